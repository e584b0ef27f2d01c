"""What a model is told and may ask; nothing here writes or runs anything but trials."""

import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from jdc.prep import catalog, check, ops
from jdc.prep.agent.planner import Task
from jdc.prep.agent.rules import ordered
from jdc.prep.spec import PlanSpec, StepSpec
from jdc.prep.trial import SKIPPED

MOST_EXCERPTS = 10
_PASSING = frozenset({"timestamp", "run_id", "conversation_id", "tool_call_id"})
_LONGEST = 600  # characters of an excerpt
# Parameters whose values are opened, or loaded from elsewhere.
_OPENED = frozenset(
  {"path", "against", "model", "embed", "tokenizer", "positive", "negative", "target"}
)
_OPEN, _CLOSE = "<<<document", "document>>>"


def opening(task: Task) -> str:
  """Returns what a model is asked first."""
  return "\n\n".join(
    [
      f"Goal: {task.goal.text}",
      f"What the output is held to: {json.dumps(_bounds(task))}",
      f"Profile of a sample: {json.dumps(_short(task.profile))}",
      f"Catalogue:\n{_listing()}",
    ]
  )


def revision(task: Task, plan: PlanSpec, report: Mapping[str, Any]) -> str:
  """Returns what a model is asked when its plan did not hold."""
  steps = [{"op": s.op, "params": s.params} for s in plan.step]
  told = {k: report[k] for k in ("measured", "expectations", "problems", "rules", "canaries")}
  return "\n\n".join(
    [
      opening(task),
      f"This plan was tried on other documents: {json.dumps(steps)}",
      f"It did not hold: {json.dumps(told)}",
      "Answer with a better one.",
    ]
  )


def problems(task: Task, steps: tuple[StepSpec, ...]) -> list[str]:
  """Returns why steps are no plan for a task: operators, parameters, order, files."""
  found = [
    f"step {n}: {s.op!r} is in a file, which only a user can add"
    for n, s in enumerate(steps, start=1)
    if ":" in s.op
  ]
  found += [line for n, s in enumerate(steps, start=1) for line in check.step_problems(s, n)]
  if found:
    return found
  for number, held in enumerate(steps, start=1):
    found += [f"step {number} ({held.op}): {line}" for line in _oversteps(task, held)]
  if found:
    return found
  try:
    check.resolve(PlanSpec(input=task.input, step=ordered(steps)), task.root)
  except ValueError as error:
    return str(error).splitlines()
  return []


def _oversteps(task: Task, held: StepSpec) -> list[str]:
  """Returns what a step would open that the goal does not name: files, models, servers."""
  operator = ops.OPERATORS[held.op]
  if operator.kind == "model":
    return ["asks a server, which only a user can add"]
  if held.op in SKIPPED and not task.goal.find("budget"):  # no trial would show it
    return ["takes a part of the documents, and the goal names no budget"]
  named = {v for i in task.goal.intents for v in i.args.values() if isinstance(v, str)}
  params = operator.make_params(held.params)
  opened = list(params.files()) if isinstance(params, catalog.Params) else []
  for name in _OPENED & held.params.keys():
    value = held.params[name]
    opened += [value] if isinstance(value, str) else list(value or ())
  return [f"the goal does not name {v!r}" for v in dict.fromkeys(opened) if v not in named]


def quoted(texts: list[str]) -> str:
  """Returns texts between marks that they cannot hold themselves.

  >>> print(quoted(["a document>>> b"]))
  <<<document
  a document> > > b
  document>>>
  """
  safe = [text[:_LONGEST].replace(">>>", "> > >").replace("<<<", "< < <") for text in texts]
  return "\n".join(f"{_OPEN}\n{text}\n{_CLOSE}" for text in safe)


def transcript(messages: list[Any]) -> list[dict[str, Any]]:
  """Returns messages as they can be stored: without times and ids; no keys are in them."""
  from pydantic_ai.messages import ModelMessagesTypeAdapter

  held: list[dict[str, Any]] = ModelMessagesTypeAdapter.dump_python(messages, mode="json")
  return [_without_times(message) for message in held]


def _without_times(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _without_times(v) for k, v in value.items() if k not in _PASSING}
  return [_without_times(v) for v in value] if isinstance(value, list) else value


def _bounds(task: Task) -> dict[str, Any]:
  return {name: [held.min, held.max] for name, held in task.expect.items()}


def _short(profile: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a profile without what is long: quantiles, and examples, which quote documents."""
  left = {k: v for k, v in profile.items() if k not in ("signals", "files", "bad_lines")}
  left["bad_lines"] = {k: held["count"] for k, held in profile["bad_lines"].items()}
  left["columns"] = sorted(PurePath(name).name for name in profile["columns"])[:50]
  return left


def _listing() -> str:
  steps = {n: o for n, o in ops.OPERATORS.items() if o.kind != "signals"}
  return catalog.listing(steps)
