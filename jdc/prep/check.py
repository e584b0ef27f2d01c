"""Whether a plan can run: operators, parameters, their order; all that is wrong, at once."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jdc.prep import catalog, code_hash, ops, plan_step, problems
from jdc.prep.catalog import Operator, Params
from jdc.prep.spec import OutputSpec, PlanSpec, StepSpec, content_hash
from jdc.prep.store import hash_file


def find(name: str, root: Path | None) -> Operator | None:
  """Returns an operator by its name in a plan: built in, or `FILE.py:NAME`.

  Raises:
    ValueError: if a file holds no operators, or not this one.
  """
  path, _, short = name.rpartition(":")
  if not path:
    return ops.OPERATORS.get(name)
  if root is None:
    return None  # a plan that was not placed yet
  held = catalog.load(root / path)
  if short not in held:
    raise ValueError(f"{path}: no operator {short!r}{problems.suggestion(short, held)}")
  return held[short]


def step_problems(step: StepSpec, number: int, root: Path | None = None) -> list[str]:
  """Returns what is wrong with a step by itself.

  Args:
    step: the step.
    number: of it.
    root: the folder that operators' files start at; `None`: these are not looked into.
  """
  if ":" in step.op:
    try:
      own = find(step.op, root)
    except ValueError as error:
      return [f"step {number}: {error}"]
    return own.check(step.params, f"step {number} ({step.op})") if own else []
  steps = {name: o for name, o in ops.OPERATORS.items() if o.kind != "signals"}
  if step.op not in steps:
    if step.op in ops.OPERATORS:
      return [f"step {number}: {step.op} only measures; a rule that reads it runs it"]
    hint = problems.suggestion(step.op, steps)
    return [f"step {number}: unknown operator {step.op!r}{hint}"]
  return ops.OPERATORS[step.op].check(step.params, f"step {number} ({step.op})")


def order_problems(plan: PlanSpec, root: Path | None = None) -> list[str]:
  """Returns which steps cannot stand where they do."""
  found: list[str] = []
  before: list[tuple[int, Operator]] = []
  provided = {"text", "fields"}
  for number, operator in _operators(plan, root):
    op = operator.name
    for earlier, held in before:
      why = operator.not_after.get(held.name)
      if why:
        found.append(
          f"step {number} ({op}) cannot come after step {earlier} ({held.name}): {why}"
        )
    for column in operator.needs:
      if column not in provided:
        makers = [o.name for o in ops.OPERATORS.values() if column in o.provides]
        found.append(
          f"step {number} ({op}) needs the column {column!r}, which nothing before it "
          f"provides; {', '.join(makers) or 'no operator'} does"
        )
    provided |= set(operator.provides)
    before.append((number, operator))
  return found


def _operators(plan: PlanSpec, root: Path | None) -> Iterator[tuple[int, Operator]]:
  """Yields the operators of a plan, and those that its filters consist of."""
  for number, step in enumerate(plan.step, start=1):
    try:
      operator = find(step.op, root)
    except ValueError:  # which `step_problems` tells
      operator = None
    if operator is None:
      continue
    yield number, operator
    if operator.parts and not operator.check(step.params, ""):
      for name, _ in operator.parts(operator.make_params(step.params)):
        if name != step.op:
          yield number, ops.OPERATORS[name]


def remarks(plan: PlanSpec) -> list[str]:
  """Returns what could be better in the order of the steps."""
  found = []
  known = [
    (number, step.op, ops.OPERATORS[step.op])
    for number, step in enumerate(plan.step, 1)
    if step.op in ops.OPERATORS
  ]
  for (_, name, before), (number, other, operator) in itertools.pairwise(known):
    again = other in [op for n, op, _ in known if n < number - 1]
    again = again or name in [op for n, op, _ in known if n > number]
    # New texts have a beginning of their own, and fields are put in order wherever they are.
    begins = "text" in before.provides and not before.early
    of_fields = operator.needs == ("fields",) and not operator.provides
    if operator.stage_rank < before.stage_rank and not (again or begins or of_fields):
      found.append(f"step {number} ({other}) usually stands before {name}")
  return [*found, *_text_of_messages(plan)]


def _text_of_messages(plan: PlanSpec) -> list[str]:
  """Returns which steps change the text of messages, and not the messages."""
  found, normalized = [], 0
  for number, step in enumerate(plan.step, 1):
    operator = ops.OPERATORS.get(step.op)
    if operator is None:
      continue
    changes = operator.kind == "map" and "text" in operator.provides
    if normalized and changes and not operator.messages:
      found.append(
        f"step {number} ({step.op}) changes the text alone, which later steps and token shards "
        f"read: the messages of step {normalized} (sft_normalize) stay as they are"
      )
    if "messages" in operator.provides:
      normalized = number
  return found


def resolve(plan: PlanSpec, root: Path) -> list[plan_step.Step]:
  """Returns the steps of a plan with all their parameters.

  Args:
    plan: the plan.
    root: the folder that relative paths start at.

  Raises:
    ValueError: lists all that is wrong with operators, parameters, files and order.
  """
  found: list[str] = []
  for number, step in enumerate(plan.step, start=1):
    found += step_problems(step, number, root)
  found += order_problems(plan, root)
  found += output_problems(plan, root)
  problems.raise_all(found, "plan")
  steps = [
    plan_step.make_step(number, step.op, step.params, str(root))
    for number, step in enumerate(plan.step, start=1)
  ]
  problems.raise_all([line for step in steps for line in _file_problems(step)], "plan")
  return steps


def _file_problems(step: plan_step.Step) -> list[str]:
  """Returns what is wrong with the files that a step names."""
  paths = plan_step.files_of(step)
  found = [f"{path}: no such file" for path in paths if not Path(path).is_file()]
  for part in plan_step.parts(step) if not found else ():
    if isinstance(part.values, Params):
      try:
        found += part.values.file_problems()
      except OSError as error:
        found.append(str(error))
  return [f"step {step.number} ({step.op}): {line}" for line in found]


def output_at(output: OutputSpec, root: Path) -> OutputSpec:
  """Returns how output is written, the tokenizer's path as it can be opened."""
  name = output.tokens.get("tokenizer", "bytes")
  if output.format != "tokens" or name == "bytes":
    return output
  held = {**output.tokens, "tokenizer": str(root / name)}
  return output.model_copy(update={"tokens": held})


def output_problems(plan: PlanSpec, root: Path) -> list[str]:
  """Returns what is wrong with the options of token shards."""
  output = plan.output
  if output.format != "tokens":
    return ["output.tokens: only for format='tokens'"] if output.tokens else []
  from jdc.prep.sinks.tokens import TokenOptions

  known = [field.name for field in dataclasses.fields(TokenOptions)]
  found = problems.unknown_keys(output.tokens, known, "output.tokens")
  if "tokenizer" not in output.tokens:
    found.append("output.tokens: tokenizer must be given, a file, a folder, or 'bytes'")
  elif not isinstance(name := output.tokens["tokenizer"], str):
    found.append(f"output.tokens: tokenizer must be a string, got {name!r}")
  if found:
    return found
  held = output_at(output, root).tokens
  if held["tokenizer"] != "bytes" and not Path(held["tokenizer"]).exists():
    found.append(f"output.tokens: {held['tokenizer']}: no such tokenizer")
  try:
    TokenOptions(**held)
  except (TypeError, ValueError) as error:
    found += [f"output.tokens: {line}" for line in str(error).splitlines()]
  return found


def output_code(output: OutputSpec, root: Path) -> str:
  """Returns a hash of what writes output, and of the tokenizer's files."""
  if output.format != "tokens":
    return code_hash.of_modules(["jdc.prep.sinks.documents"]).hash
  tokenizer = Path(output_at(output, root).tokens["tokenizer"])
  files = sorted(tokenizer.glob("*.json")) if tokenizer.is_dir() else [tokenizer]
  held = [hash_file(path) for path in files if path.is_file()]
  return content_hash([code_hash.of_modules(["jdc.prep.sinks.tokens"]).hash, held])


def essence(plan: PlanSpec, root: Path) -> dict[str, Any]:
  """Returns what changes the output of a plan, with defaults: input, steps and output."""
  return {
    "jdc_pipeline": plan.jdc_pipeline,
    "input": plan.input.model_dump(mode="json"),
    "steps": {
      f"{step.number} {step.op}": json.loads(step.essence) for step in resolve(plan, root)
    },
    "output": plan.output.model_dump(mode="json"),
  }


def describe(plan: PlanSpec, root: Path) -> str:
  """Returns a plan in words: its steps with all parameters, why they are there, remarks."""
  lines = [f"goal: {plan.goal or 'none given'}", f"plan_hash: {plan_hash(plan, root)}"]
  for step, given in zip(resolve(plan, root), plan.step, strict=True):
    lines.append(f"{step.number}. {step.op} ({step.operator.kind}): {step.operator.summary}")
    lines.append(f"   {step.params}")
    if given.why:
      lines.append(f"   why: {given.why}")
  lines += [f"remark: {line}" for line in remarks(plan)]
  for name, bounds in plan.expect.items():
    lines.append(f"expects {name} in [{bounds.min}, {bounds.max}]")
  return "\n".join(lines)


def plan_hash(plan: PlanSpec, root: Path) -> str:
  """Returns the hash of what changes the output: input, steps and output, with defaults.

  Goal, reasons, expectations and provenance do not count, nor do the contents of files.
  """
  return content_hash(essence(plan, root))
