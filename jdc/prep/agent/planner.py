"""What a planner is given, and what it returns: a plan, nothing that runs."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from jdc.prep.agent.goal import Goal
from jdc.prep.spec import Expectation, InputSpec, OutputSpec, PlanSpec, StepSpec


@dataclasses.dataclass(frozen=True)
class Task:
  """What is to be planned.

  Attributes:
    goal: as it was read.
    input: what is read.
    profile: as `survey` gives it.
    expect: what the plan is held to; it is not the planner's to choose.
    root: the folder that paths in steps start at.
    measure: runs a plan on the profiled sample; returns for each step that drops by rules, by
      its number from 1, the share of the documents that break each of its rules.
    excerpts: returns beginnings of so many documents of the profiled sample.
  """

  goal: Goal
  input: InputSpec
  profile: Mapping[str, Any]
  expect: Mapping[str, Expectation]
  root: Path
  measure: Callable[[PlanSpec], Mapping[int, Mapping[str, float]]]
  excerpts: Callable[[int], list[str]]

  def plan(self, steps: tuple[StepSpec, ...], output: OutputSpec) -> PlanSpec:
    """Returns a plan of steps, with what no planner decides."""
    return PlanSpec(
      goal=self.goal.text,
      input=self.input,
      step=steps,
      output=output,
      expect=dict(self.expect),
    )


@dataclasses.dataclass(frozen=True)
class Proposal:
  """What a planner returns.

  Attributes:
    plan: with the reason of every step.
    remarks: what a user should know, such as parts of the goal that no step serves.
    provenance: of the planner: its name, and what else tells how the plan came about.
  """

  plan: PlanSpec
  remarks: tuple[str, ...]
  provenance: Mapping[str, Any]


class Planner(Protocol):
  """Turns a task into a plan."""

  def plan(self, task: Task) -> Proposal:
    """Returns a first plan; ValueError if there can be none."""

  def revise(self, task: Task, plan: PlanSpec, report: Mapping[str, Any]) -> Proposal | None:
    """Returns another plan in view of a verification, `None` if it has no better one."""
