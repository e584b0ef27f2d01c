"""What an operator is, and the table of all of them, from which help and checks are made."""

import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import json
import sys
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pydantic

from jdc.prep import problems

Kind = Literal["map", "signals", "predicate", "filter", "dedup", "sample", "model"]


class Params(pydantic.BaseModel):
  """The base of all parameters: nothing unknown, nothing converted, nothing changed later."""

  model_config = pydantic.ConfigDict(
    extra="forbid", frozen=True, strict=True, allow_inf_nan=False
  )

  def files(self) -> tuple[str, ...]:
    """Returns the files that parameters name, whose contents count for what is up to date."""
    return ()

  def file_problems(self) -> list[str]:
    """Returns what is wrong with the contents of these files, whose paths can be opened."""
    return []

  def essence(self) -> dict[str, Any]:
    """Returns what changes what comes out, as JSON values; by default all parameters."""
    return self.model_dump(mode="json")

  def at(self, root: Path) -> Self:
    """Returns the parameters with paths that start at the plan's folder."""
    del root
    return self


class Prepared(NamedTuple):
  """A file that an operator measures by, made once for a run.

  Attributes:
    data: its content.
    suffix: of its name, such as `.safetensors`.
    counts: what there is to report of it.
  """

  data: bytes
  suffix: str
  counts: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Operator:
  """An operator of the catalogue.

  Attributes:
    name: what a plan calls it.
    kind: `map` changes text or fields; `signals` measures documents; `predicate` bounds
      signals and drops what is out of bounds; `filter` is several predicates; `dedup` and
      `sample` decide over all documents at once; `model` asks a language model.
    function: by kind. map: (batch, params) -> batch. signals: (batch, params) -> a NumPy array
      or Arrow array a signal. predicate: (signals, params) -> reason -> bool[rows], true where
      a document goes. dedup and sample: params -> a `globals_.GlobalOp`.
    params: the type of its parameters.
    needs: columns that must be there; those of signals are found by themselves.
    provides: columns that are there after it; of signals, their names.
    code: modules that count for what is up to date, beside those that imports show
      (`code_hash`).
    uses: of a predicate, and of dedup and sample where keys are made of signals, (signals
      operator, its parameters) for given parameters.
    parts: of filters, (predicate, its parameters) of what they consist of; rules that are no
      operators stand as a filter of their own.
    prepare: of signals that measure by a file made once for a run, before documents are read:
      params -> `Prepared`; the function gets the file's path as a third argument.
    keys_of: of dedup and sample, the parameters that keys depend on; `None`: on all.
    rewrites: of dedup and sample, whether it changes or copies documents instead of dropping
      some, or a function of the parameters that says so.
    early: of a map, whether it changes documents one by one, drops none and costs less than to
      write them once more: it may be done in the pass before, ahead of what stands before it.
    messages: of a map of texts, whether it changes the messages of instruction data, too.
    stage_rank: where it usually stands; `explain` remarks on other orders.
    cost: microseconds of one core for a document of 1.2 kB, about.
    not_after: operators it cannot follow, and why.
    lacks: of signals, (the one that is 1 where a document lacks something, what that is) of the
      parameter `field`; that all lack it is an error when all have been read.
  """

  name: str
  kind: Kind
  function: Callable[..., Any]
  params: type[pydantic.BaseModel]
  needs: tuple[str, ...] = ("text",)
  provides: tuple[str, ...] = ()
  code: tuple[str, ...] = ()
  uses: Callable[[Any], tuple[tuple[str, Mapping[str, Any]], ...]] | None = None
  parts: Callable[[Any], tuple[tuple[str, Mapping[str, Any]], ...]] | None = None
  prepare: Callable[[Any], Prepared] | None = None
  keys_of: tuple[str, ...] | None = None
  rewrites: bool | Callable[[Any], bool] = False
  early: bool = False
  messages: bool = False
  stage_rank: int = 50
  cost: float = 1.0
  not_after: Mapping[str, str] = dataclasses.field(default_factory=dict)
  lacks: tuple[str, str] | None = None

  @property
  def summary(self) -> str:
    """The first line of the docstring."""
    return self.doc.partition("\n")[0]

  @property
  def doc(self) -> str:
    """What it does; of a rule, which one function holds documents to, what the rule says."""
    return inspect.cleandoc(self.function.__doc__ or self.params.__doc__ or "")

  def check(self, given: Mapping[str, Any], where: str) -> list[str]:
    """Returns a line for each parameter that is unknown, of a wrong type or out of range."""
    try:
      self.make_params(given)
    except pydantic.ValidationError as error:
      return problems.of_validation(error, where, self.params)
    return []

  def make_params(self, given: Mapping[str, Any]) -> Any:
    """Returns the parameters, defaults filled in."""
    # As JSON, where a list stands for a tuple and nothing else is converted.
    return self.params.model_validate_json(json.dumps(given, default=str))


def op(
  name: str, kind: Kind, params: type[pydantic.BaseModel] = Params, **options: Any
) -> Callable[[Callable[..., Any]], Operator]:
  """Makes an operator of a function; its docstring is the operator's help."""
  return lambda function: Operator(name, kind, function, params, **options)


def load(path: str | Path) -> dict[str, Operator]:
  """Returns the operators of a Python file, by name; a plan calls them `FILE.py:NAME`.

  The file is run: it is the user's, as the plan that names it is. It has the operators in
  `OPERATORS`, as the modules of `jdc.prep.ops` do; `operator_contract.problems` tests them.

  Raises:
    ValueError: if the file cannot be read or run, or has no operators.
  """
  path = Path(path)
  try:
    content = path.read_bytes()
  except OSError as error:
    raise ValueError(f"{path}: not readable: {error}") from error
  return _loaded(str(path), hashlib.sha256(content).hexdigest())


@functools.lru_cache(maxsize=64)
def _loaded(path: str, digest: str) -> dict[str, Operator]:
  # By content, so that the hash of its code is the same wherever the file lies.
  name = f"jdc_operators_{digest[:16]}"
  spec = importlib.util.spec_from_file_location(name, path)
  if spec is None or spec.loader is None:
    raise ValueError(f"{path}: not a Python file")
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  try:
    spec.loader.exec_module(module)
  except Exception as error:
    del sys.modules[name]
    raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
  held = getattr(module, "OPERATORS", None)
  if not isinstance(held, tuple | list) or not all(isinstance(o, Operator) for o in held):
    raise ValueError(f"{path}: OPERATORS must be a tuple of catalog.Operator, got {held!r:.80}")
  return {operator.name: operator for operator in held}


def out_of_bounds(
  values: np.ndarray, minimum: float | None = None, maximum: float | None = None
) -> np.ndarray:
  """Returns true where a value is below the minimum or above the maximum; NaN is in bounds.

  >>> out_of_bounds(np.array([1.0, 2.0, 3.0]), 2, 2.5).tolist()
  [True, False, True]
  """
  bad = np.zeros(len(values), bool)
  if minimum is not None:
    bad |= values < minimum
  if maximum is not None:
    bad |= values > maximum
  return bad


def explain(operator: Operator) -> str:
  """Returns the help of an operator: what it does, its parameters, what it needs."""
  lines = [f"{operator.name} ({operator.kind})", ""]
  lines += operator.doc.splitlines()
  if operator.params.model_fields:
    lines += ["", "Parameters:", *_parameters(operator.params, "  ")]
  for what, names in (("Needs", operator.needs), ("Provides", operator.provides)):
    if names:
      lines += ["", f"{what}: {', '.join(names)}"]
  for name, why in operator.not_after.items():
    lines += ["", f"Not after {name}: {why}."]
  return "\n".join(lines)


def listing(operators: Mapping[str, Operator]) -> str:
  """Returns one line an operator, in the order in which they usually stand."""
  ordered = sorted(operators.values(), key=lambda o: (o.stage_rank, o.name))
  width = max(len(o.name) for o in ordered)
  return "\n".join(f"{o.name:<{width}}  {o.kind:<9}  {o.summary}" for o in ordered)


def _parameters(params: type[pydantic.BaseModel], indent: str) -> list[str]:
  """Returns a line for each parameter; those of a table follow it, farther in."""
  lines = []
  schema = params.model_json_schema().get("properties", {})
  for name, field in params.model_fields.items():
    table = _table(field.annotation)
    accepted = "table" if table else _accepted(schema.get(name, {}))
    text = f" {field.description}" if field.description else ""
    lines.append(f"{indent}{name}: {accepted}; {_default(field, table)}.{text}")
    if table:
      lines += _parameters(table, f"{indent}  ")
  return lines


def _table(annotation: Any) -> type[pydantic.BaseModel] | None:
  """Returns the model of a parameter that is a table, or may be one."""
  for kind in (annotation, *typing.get_args(annotation)):
    if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
      return kind
  return None


def _default(field: Any, table: type[pydantic.BaseModel] | None) -> str:
  if field.is_required():
    return "required"
  value = field.get_default(call_default_factory=True)
  if table is not None and value is not None:
    return "default as below"
  return "default none" if table is not None else f"default {value!r}"


def _accepted(schema: Mapping[str, Any]) -> str:
  """Says in words what a JSON schema accepts."""
  if "enum" in schema:
    return " | ".join(json.dumps(value) for value in schema["enum"])
  if "const" in schema:
    return json.dumps(schema["const"])
  if "anyOf" in schema:
    return " or ".join(_accepted(part) for part in schema["anyOf"])
  words = [str(schema.get("type", "any"))]
  if words == ["array"]:
    words = [f"array of {_accepted(schema.get('items', {}))}"]
  signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
  words += [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema]
  return " ".join(words)
