"""A step of a plan with all its parameters, and what it consists of, reads and depends on."""

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jdc.prep.ops as ops
from jdc.prep import catalog, code_hash
from jdc.prep.catalog import Operator, Params
from jdc.prep.spec import canonical_json, content_hash


class Step(NamedTuple):
  """A step of a plan, with all its parameters as canonical JSON, and the plan's folder.

  `file` is that of an operator which is not built in.
  """

  number: int
  op: str
  params: str
  root: str
  file: str = ""

  @property
  def operator(self) -> Operator:
    """The operator."""
    return _operator(self.op, self.file)

  @property
  def values(self) -> Any:
    """The parameters, paths as they can be opened."""
    values = _parsed(self.op, self.params, self.file)
    return values.at(Path(self.root)) if isinstance(values, Params) else values

  @property
  def identity(self) -> list[Any]:
    """What determines what the step does, but its code."""
    stamps = [_file_hash(path, _stamp(path)) for path in files_of(self)]
    return [self.op, self.essence, stamps]

  @property
  def essence(self) -> str:
    """Those of the parameters that change what comes out, as canonical JSON."""
    values = _parsed(self.op, self.params, self.file)
    return canonical_json(values.essence()) if isinstance(values, Params) else self.params

  @property
  def keys_identity(self) -> list[Any]:
    """What determines the keys of a global step, but its code."""
    names = self.operator.keys_of
    if names is None:
      return self.identity
    held = {k: v for k, v in json.loads(self.params).items() if k in names}
    return [self.op, canonical_json(held), self.identity[2]]

  @property
  def prepared_name(self) -> str:
    """What the file is called that the step measures by."""
    return f"{self.number:02d}-{self.op}"

  @property
  def rewrites(self) -> bool:
    """Whether a global step changes or copies documents instead of dropping some."""
    held = self.operator.rewrites
    return held(self.values) if callable(held) else held


@functools.lru_cache(maxsize=512)
def _parsed(name: str, params: str, file: str) -> Any:
  return _operator(name, file).params.model_validate_json(params)


def _operator(name: str, file: str) -> Operator:
  """Returns an operator of a file, where it has one of that name, else a built-in one."""
  own = catalog.load(file) if file else {}
  return own[name] if name in own else ops.OPERATORS[name]


def _stamp(path: str) -> tuple[int, ...]:
  status = os.stat(path)
  return status.st_size, status.st_mtime_ns, status.st_ctime_ns


@functools.lru_cache(maxsize=512)
def _file_hash(path: str, stamp: tuple[int, ...]) -> str:
  del stamp
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def make_step(
  number: int, name: str, given: Mapping[str, Any], root: str, file: str = ""
) -> Step:
  """Returns a step with defaults filled in; `name` may be that of a plan, `FILE.py:NAME`."""
  path, _, name = name.rpartition(":")
  file = str(Path(root) / path) if path else file
  values = _operator(name, file).make_params(given)
  return Step(number, name, canonical_json(values.model_dump(mode="json")), root, file)


def parts(step: Step) -> list[Step]:
  """Returns the predicates of a filter, each as a step; of other steps the step."""
  split = step.operator.parts
  if split is None:
    return [step]
  held = split(_parsed(step.op, step.params, step.file))
  return [make_step(step.number, name, given, step.root) for name, given in held]


def files_of(step: Step) -> list[str]:
  """Returns the files that the parameters of a step name."""
  values = [part.values for part in parts(step)]
  return [path for value in values if isinstance(value, Params) for path in value.files()]


def signal_column(step: Step, signal: str) -> str:
  """Returns the column of a signal; measures with other parameters have other columns."""
  default = (
    canonical_json(step.operator.params().model_dump(mode="json"))
    if _optional(step.operator)
    else ""
  )
  suffix = "" if step.params == default else "#" + content_hash(step.params)[:8]
  return f"signal:{signal}{suffix}"


def _optional(operator: Operator) -> bool:
  return not any(field.is_required() for field in operator.params.model_fields.values())


def measures(step: Step) -> list[Step]:
  """Returns the steps of kind `signals` that a step reads, each once."""
  found: dict[Step, None] = {}
  for part in parts(step):
    uses = part.operator.uses
    for used in uses(_parsed(part.op, part.params, part.file)) if uses else ():
      found[make_step(step.number, *used, step.root, part.file)] = None
  return list(found)


def step_code(step: Step) -> str:
  """Returns a hash of the code behind a step."""
  hashes = []
  operators = {part.operator.name: part.operator for part in (step, *parts(step))}
  for held in operators.values():
    objects = [held.function, held.params, *filter(None, [held.prepare])]
    hashes.append(code_hash.of_objects(objects, held.code).hash)
  return content_hash(hashes)
