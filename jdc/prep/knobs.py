"""The thresholds of rules: which parameter moves which bound, and how far it can go."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jdc.prep import predicates
from jdc.prep.ops.filters import Filter
from jdc.prep.plan_step import Step
from jdc.prep.predicates import Bound, Rule
from jdc.prep.spec import PlanSpec, StepSpec


class Knob(NamedTuple):
  """A parameter of a rule that a bound depends on.

  Attributes:
    step: number of the step, from 1.
    rule: the rule's name.
    parameter: of the rule.
    reason: of the bound.
    signal: that the bound is on.
    side: `min` or `max`.
    value: of the parameter.
  """

  step: int
  rule: str
  parameter: str
  reason: str
  signal: str
  side: str
  value: float | bool


def rules_of(step: Step) -> dict[str, Rule]:
  """Returns the rules of a step, by name; none of other operators."""
  if isinstance(step.values, Rule):
    return {step.op: step.values}
  if not isinstance(step.values, Filter):
    return {}
  found: dict[str, Rule] = {}
  for name, given in step.values.rules.items():
    for rule in predicates.GROUPS.get(name, (name,)):
      held = given.get(rule, {}) if name in predicates.GROUPS else given
      if rule not in found or name not in predicates.GROUPS:
        found[rule] = predicates.RULES[rule](**({} if isinstance(held, str) else held))
  return found


def knobs(step: Step) -> list[Knob]:
  """Returns the parameters of a step's rules that can be loosened.

  What a parameter does is seen from the bounds that change with it.
  """
  found = []
  for name, rule in rules_of(step).items():
    before = rule.bounds()
    for parameter in type(rule).model_fields:
      value = getattr(rule, parameter)
      if isinstance(value, str):
        continue
      after = _moved(rule, parameter, value)
      for bound in before:
        side = _changed(bound, after)
        if side:
          found.append(
            Knob(step.number, name, parameter, bound.reason, bound.signal, side, value)
          )
  return found


def _moved(rule: Rule, parameter: str, value: Any) -> tuple[Bound, ...]:
  others = [not value] if isinstance(value, bool) else _near(value)
  for other in others:
    try:
      return type(rule)(**{**rule.model_dump(), parameter: other}).bounds()
    except ValueError:
      continue
  return rule.bounds()


def _near(value: float) -> list[Any]:
  step = 1 if isinstance(value, int) else 0.01
  return [value + step, value - step]


def _changed(bound: Bound, after: tuple[Bound, ...]) -> str:
  same = [b for b in after if b.reason == bound.reason]
  if not same:
    return "max"  # switched off
  if same[0].min != bound.min:
    return "min"
  return "max" if same[0].max != bound.max else ""


def loosest(knob: Knob, values: np.ndarray) -> float:
  """Returns the value of a parameter at which the bound drops none of some documents."""
  known = values[~np.isnan(values)]
  if not len(known):
    return float(knob.value)
  extreme = float(known.min() if knob.side == "min" else known.max())
  wider = min if knob.side == "min" else max
  return wider(float(knob.value), extreme)


def rounded(knob: Knob, value: float) -> float | int:
  """Returns a value as it can stand in a plan, rounded so that it is no stricter."""
  if isinstance(knob.value, int):
    return int(np.floor(value) if knob.side == "min" else np.ceil(value))
  digits = 4 - int(np.floor(np.log10(abs(value)))) - 1 if value else 4
  scale = 10.0**digits
  moved = np.floor(value * scale) if knob.side == "min" else np.ceil(value * scale)
  found = round(float(moved / scale), max(digits, 0))
  # An exclusive bound drops its own value, too.
  return max(found, 0.0) if knob.side == "min" else found


def turned(plan: PlanSpec, knob: Knob, value: float | bool, why: str) -> PlanSpec:
  """Returns a plan with another value of a parameter, and the reason in its step."""
  step = plan.step[knob.step - 1]
  steps = list(plan.step)
  steps[knob.step - 1] = StepSpec(
    op=step.op,
    why="; ".join(filter(None, [step.why, why])),
    params=_params(step, knob, value),
  )
  return plan.model_copy(update={"step": tuple(steps)})


def without(plan: PlanSpec, knob: Knob, why: str) -> PlanSpec:
  """Returns a plan without a rule; ValueError if nothing of the step is left."""
  step = plan.step[knob.step - 1]
  steps = list(plan.step)
  if step.op != "filter":
    del steps[knob.step - 1]
  else:
    rules = {k: v for k, v in _expanded(step.params["rules"]).items() if k != knob.rule}
    if rules:
      note = "; ".join(filter(None, [step.why, why]))
      steps[knob.step - 1] = StepSpec(op=step.op, why=note, params={"rules": rules})
    else:
      del steps[knob.step - 1]
  return plan.model_copy(update={"step": tuple(steps)})


def _params(step: StepSpec, knob: Knob, value: float | bool) -> dict[str, Any]:
  if step.op != "filter":
    return {**step.params, knob.parameter: value}
  rules = _expanded(step.params["rules"])
  held = rules.get(knob.rule, {})
  rules[knob.rule] = {**({} if isinstance(held, str) else held), knob.parameter: value}
  return {"rules": rules}


def _expanded(rules: Mapping[str, Any]) -> dict[str, Any]:
  """Returns rules one by one, groups taken apart, in the order in which they decide."""
  found: dict[str, Any] = {}
  for name, given in rules.items():
    for rule in predicates.GROUPS.get(name, (name,)):
      held = given.get(rule, {}) if name in predicates.GROUPS else given
      if rule not in found or name not in predicates.GROUPS:
        found[rule] = held
  return found
