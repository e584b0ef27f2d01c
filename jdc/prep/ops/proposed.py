"""Operators that plans define by data: bounds on signals, regular expressions with cases."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pydantic
from pydantic import Field

from jdc.prep import predicates
from jdc.prep.batches import replace_text
from jdc.prep.catalog import Operator, Params
from jdc.prep.kernels import signals as kernel
from jdc.prep.predicates import Bound

Reasons = dict[str, np.ndarray]
Name = Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,39}$")]
_KNOWN = tuple(sorted(kernel.SIGNALS))


class SignalRange(Params):
  """See `signal_range`."""

  signal: str = Field(description=f"One of {', '.join(_KNOWN)}.")
  name: Name = Field("signal_range", description="The reason of what it drops.")
  min: float | None = None
  max: float | None = None
  scripts: Literal["all", "spaced", "unspaced"] = "all"

  @pydantic.model_validator(mode="after")
  def _is_bound(self) -> "SignalRange":
    if self.signal not in _KNOWN:
      raise ValueError(f"signal must be one of {', '.join(_KNOWN)}, got {self.signal!r}")
    if self.min is None and self.max is None:
      raise ValueError("min or max must be given")
    if self.min is not None and self.max is not None and self.min > self.max:
      raise ValueError(f"min must be at most max, got {self.min} and {self.max}")
    return self

  @property
  def bound(self) -> Bound:
    """The bound."""
    return Bound(self.signal, self.min, self.max, True, self.name, self.scripts)


def signal_range(found: Mapping[str, Any], params: SignalRange) -> Reasons:
  """Keeps documents of which a signal lies between two bounds, ends included.

  For rules that the published ones lack; the signals are those that they are made of.
  """
  return {params.name: predicates.decide(found, [params.bound]).all_reasons[:, 0]}


def _signals_of(params: SignalRange) -> tuple[tuple[str, dict[str, Any]], ...]:
  names = predicates.signals_of([params.bound])
  used = {"compression" if name == kernel.COMPRESSION else "signals" for name in names}
  return tuple((name, {}) for name in sorted(used))


class Drops(Params):
  """A text, and whether the rule drops it."""

  text: str
  drops: bool


class Becomes(Params):
  """A text, and what the rule makes of it."""

  text: str
  result: str


def _compiles(pattern: str) -> str:
  try:
    pc.match_substring_regex(pa.array([""]), pattern)
  except pa.ArrowInvalid as error:
    raise ValueError(f"not a regular expression of RE2: {error}") from None
  return pattern


Pattern = Annotated[
  str, Field(min_length=1, max_length=2000), pydantic.AfterValidator(_compiles)
]


class Pieces(Params):
  """See `pattern_hits`."""

  pattern: Pattern
  ignore_case: bool = False


class DropMatching(Pieces):
  """See `drop_matching`."""

  cases: Annotated[tuple[Drops, ...], Field(min_length=2)]
  name: Name = Field("drop_matching", description="The reason of what it drops.")
  min_hits: Annotated[int, Field(ge=1)] = 1

  @pydantic.model_validator(mode="after")
  def _has_both(self) -> "DropMatching":
    if {case.drops for case in self.cases} != {True, False}:
      raise ValueError("cases must have a text that is dropped and one that is not")
    return self

  def failed_cases(self) -> list[str]:
    """Returns which cases come out otherwise."""
    found = _hits([case.text for case in self.cases], self.pattern, self.ignore_case)
    return [
      f"{case.text[:60]!r}: {'kept' if case.drops else 'dropped'}"
      for case, hits in zip(self.cases, found.tolist(), strict=True)
      if (hits >= self.min_hits) != case.drops
    ]


class ReplaceMatching(Pieces):
  """See `replace_matching`."""

  cases: Annotated[tuple[Becomes, ...], Field(min_length=2)]
  replacement: str = ""

  @pydantic.model_validator(mode="after")
  def _has_both(self) -> "ReplaceMatching":
    if {case.text == case.result for case in self.cases} != {True, False}:
      raise ValueError("cases must have a text that changes and one that does not")
    return self

  def failed_cases(self) -> list[str]:
    """Returns which cases come out otherwise."""
    texts = [case.text for case in self.cases]
    found = _replaced(pa.array(texts, pa.string()), self).to_pylist()
    return [
      f"{case.text[:60]!r}: became {result[:60]!r}"
      for case, result in zip(self.cases, found, strict=True)
      if result != case.result
    ]


def _hits(text: Any, pattern: str, ignore_case: bool) -> np.ndarray:
  array = text if isinstance(text, pa.Array) else pa.array(text, pa.string())
  found = pc.count_substring_regex(array, pattern, ignore_case=ignore_case)
  return np.asarray(found, np.int32)


def pattern_hits(batch: pa.RecordBatch, params: Pieces) -> dict[str, np.ndarray]:
  """Counts the matches of a regular expression of RE2, whose time is linear in the text."""
  return {"pattern_hits": _hits(batch.column("text"), params.pattern, params.ignore_case)}


def drop_matching(found: Mapping[str, Any], params: DropMatching) -> Reasons:
  """Drops documents with matches of a regular expression of RE2.

  Its cases, texts that it drops and that it does not, are run by `plan` and `verify`.
  """
  return {params.name: np.asarray(found["pattern_hits"]) >= params.min_hits}


def replace_matching(batch: pa.RecordBatch, params: ReplaceMatching) -> pa.RecordBatch:
  r"""Replaces the matches of a regular expression of RE2; `\1` is its first group.

  Its cases, texts and what becomes of them, are run by `plan` and `verify`.
  """
  return replace_text(batch, _replaced(batch.column("text"), params))


def _replaced(text: pa.StringArray, params: ReplaceMatching) -> pa.StringArray:
  pattern = f"(?i){params.pattern}" if params.ignore_case else params.pattern
  return pc.replace_substring_regex(text, pattern, params.replacement)


OPERATORS = (
  Operator(
    "signal_range", "predicate", signal_range, SignalRange, uses=_signals_of, stage_rank=40,
    cost=0.1,
  ),
  Operator(
    "pattern_hits", "signals", pattern_hits, Pieces, provides=("pattern_hits",),
    stage_rank=30, cost=5.0,
  ),
  Operator(
    "drop_matching", "predicate", drop_matching, DropMatching,
    uses=lambda p: (("pattern_hits", {"pattern": p.pattern, "ignore_case": p.ignore_case}),),
    stage_rank=40, cost=0.1,
  ),
  Operator(
    "replace_matching", "map", replace_matching, ReplaceMatching, provides=("text",),
    stage_rank=16, cost=5.0,
  ),
)  # fmt: skip
