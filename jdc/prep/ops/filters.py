"""Operators that measure documents, and those that drop documents by what was measured."""

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pydantic
from pydantic import Field

from jdc.prep import predicates, problems
from jdc.prep.catalog import Operator, Params
from jdc.prep.kernels import signals as kernel

Reasons = dict[str, np.ndarray]
_TEXT_SIGNALS = tuple(name for name in kernel.SIGNALS if name != kernel.COMPRESSION)


def signals(batch: pa.RecordBatch, params: Params) -> dict[str, np.ndarray]:
  """Counts words, lines, symbols, stop words and repetitions of documents, in one pass."""
  del params
  return kernel.signals(batch.column("text"), _TEXT_SIGNALS)


def compression(batch: pa.RecordBatch, params: Params) -> dict[str, np.ndarray]:
  """Compresses documents by zlib to see how much they repeat themselves."""
  del params
  return kernel.signals(batch.column("text"), [kernel.COMPRESSION])


def _uses(bounds: tuple[predicates.Bound, ...]) -> tuple[tuple[str, dict[str, Any]], ...]:
  names = predicates.signals_of(bounds)
  used = ["signals"] if any(name in _TEXT_SIGNALS for name in names) else []
  used += ["compression"] if kernel.COMPRESSION in names else []
  return tuple((name, {}) for name in used)


def _decide(found: Mapping[str, Any], bounds: tuple[predicates.Bound, ...]) -> Reasons:
  outside = predicates.decide(found, bounds).all_reasons
  return {bound.reason: outside[:, k] for k, bound in enumerate(bounds)}


class Filter(Params):
  """See `filter`."""

  rules: Annotated[dict[str, Any], Field(min_length=1)] = Field(
    description="By name of a rule its parameters, or the name of its source."
  )

  @pydantic.field_validator("rules")
  @classmethod
  def _are_rules(cls, value: dict[str, Any]) -> dict[str, Any]:
    found = [line for name in value for line in _rule_problems(name, value[name])]
    try:
      predicates.bounds_of(_own(value))
    except ValueError as error:
      found += str(error).splitlines()
    if found:
      raise ValueError("\n".join(found))
    return value

  @property
  def bounds(self) -> tuple[predicates.Bound, ...]:
    """The bounds of the rules over signals of the text, in the order of the catalogue."""
    found = predicates.bounds_of(_own(self.rules))
    place = {name: number for number, name in enumerate(predicates.RULES)}
    return tuple(sorted(found, key=lambda bound: place[bound.reason.partition(".")[0]]))


def _own(rules: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the rules that bound signals of the text; others are operators."""
  known = (*predicates.RULES, *predicates.GROUPS)
  return {name: given for name, given in rules.items() if name in known}


def _rule_problems(name: str, given: Any) -> list[str]:
  """Returns what is wrong with a rule that is an operator, or none at all."""
  from jdc.prep import ops

  if _own({name: given}):
    return []
  operator = ops.OPERATORS.get(name)
  if operator is None or operator.kind in ("signals", "filter"):
    accepted = [o.name for o in ops.OPERATORS.values() if o.kind == "predicate"]
    accepted = list(dict.fromkeys([*predicates.RULES, *predicates.GROUPS, *accepted]))
    hint = problems.suggestion(name, accepted)
    return [f"unknown rule {name!r}{hint}"]
  if operator.kind != "predicate":
    return [f"{name} bounds no signal (its kind is {operator.kind}): make it a step of its own"]
  if not isinstance(given, Mapping):
    return [f"{name}: accepted: a table of parameters; got {given!r}"]
  return operator.check(given, name)


def _parts(params: Filter) -> tuple[tuple[str, Mapping[str, Any]], ...]:
  """Returns what a filter consists of: the rules over the text first, then the operators."""
  own = _own(params.rules)
  rest = tuple((name, given) for name, given in params.rules.items() if name not in own)
  return ((("filter", {"rules": own}), *rest)) if own else rest


def filter_(found: Mapping[str, Any], params: Filter) -> Reasons:
  """Drops documents that break one of several rules; the first that they break is the reason.

  Rules are groups by name (gopher_quality, gopher_repetition, gopher, refinedweb, fineweb, c4;
  `explain gopher` lists its rules), and all operators of kind `predicate`, with the parameters
  that they have as steps; those over signals of the text come first, those of Gopher before
  FineWeb's, C4's and ours, in whatever order they are written.
  Signals are measured once and kept, so that another threshold costs no reading of text.
  """
  return _decide(found, params.bounds)


def _rule(found: Mapping[str, Any], params: predicates.Rule) -> Reasons:
  return _decide(found, params.bounds())


def _rule_operator(name: str, rule: type[predicates.Rule]) -> Operator:
  return Operator(
    name,
    "predicate",
    _rule,
    rule,
    uses=lambda params: _uses(params.bounds()),
    stage_rank=40,
    cost=0.1,
  )


OPERATORS = (
  Operator(
    "signals", "signals", signals, Params, provides=_TEXT_SIGNALS,
    stage_rank=30, cost=30.0,
  ),
  Operator(
    "compression", "signals", compression, Params, provides=(kernel.COMPRESSION,),
    stage_rank=30, cost=40.0,
  ),
  Operator(
    "filter", "filter", filter_, Filter, uses=lambda params: _uses(params.bounds),
    parts=_parts,
    stage_rank=40, cost=0.5,
  ),
  *(_rule_operator(name, rule) for name, rule in predicates.RULES.items()),
)  # fmt: skip
