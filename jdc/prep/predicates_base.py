"""What a rule over signals is, and the decision that bounds make."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import pydantic

# Share of a document's characters above which it is mostly of a script without spaces.
MOSTLY = 0.5
_UNSPACED = "unspaced"


# Documents that are not mostly of a script without spaces, those that are, and all.
Scripts = Literal["all", "spaced", "unspaced"]


class Bound(NamedTuple):
  """The values of one signal that a rule accepts."""

  signal: str
  min: float | None  # None: no such bound
  max: float | None
  inclusive: bool  # whether min and max themselves are accepted
  reason: str  # why a document outside is dropped
  scripts: Scripts = "all"  # which documents it holds for, see `decide`


class Decision(NamedTuple):
  """What K bounds say of N documents."""

  keep: np.ndarray  # bool[N]
  first_reason: np.ndarray  # i32[N], the first bound that a document is out of, -1 for none
  all_reasons: np.ndarray  # bool[N,K], whether it is out of each
  undefined: np.ndarray  # bool[N,K], where it is because the signal is not defined


class Rule(pydantic.BaseModel):
  """The parameters of a rule: nothing unknown, nothing converted, nothing changed later."""

  model_config = pydantic.ConfigDict(
    extra="forbid", frozen=True, strict=True, allow_inf_nan=False
  )
  source: ClassVar[str]  # whose rule it is, a name that also stands for its published values

  def bounds(self) -> tuple[Bound, ...]:
    """Returns what documents are held to."""
    raise NotImplementedError


def decide(signals: Mapping[str, np.ndarray], bounds: Sequence[Bound]) -> Decision:
  """Decides which documents are within all bounds.

  A signal x is within a bound where min <= x <= max, or min < x < max if it is not inclusive.
  NaN, a signal that is not defined, is out of every bound that holds for the document, and
  marked in `undefined`. A bound on `unspaced` scripts holds only where the signal `unspaced` is
  above 0.5, one on `spaced` scripts only where it is not, or not defined.

  Args:
    signals: by name, [N] each; `signals_of(bounds)` says which are needed.
    bounds: K of them, in the order in which they are named as reasons.

  Returns:
    The decision. Without bounds everything is kept.

  Raises:
    ValueError: if signals are missing, or of different lengths.

  Example:
    >>> few = Bound("n_words", 2, None, True, "too few words")
    >>> decision = decide({"n_words": np.array([1, 2, np.nan])}, [few])
    >>> decision.keep.tolist(), decision.first_reason.tolist()
    ([False, True, False], [0, -1, 0])
    >>> decision.undefined[:, 0].tolist()
    [False, False, True]
  """
  number = _check(signals, bounds)
  outside = np.zeros((number, len(bounds)), bool)
  undefined = np.zeros((number, len(bounds)), bool)
  for k, bound in enumerate(bounds):
    values = np.asarray(signals[bound.signal])
    holds = _holds(signals, bound.scripts, number)
    undefined[:, k] = np.isnan(values) & holds
    outside[:, k] = ~_within(values, bound) & holds
  keep = np.logical_not(outside.any(axis=1))
  first = np.full(number, -1, np.int32)
  if bounds:
    first[~keep] = outside[~keep].argmax(axis=1)
  return Decision(keep, first, outside, undefined)


def signals_of(bounds: Sequence[Bound]) -> tuple[str, ...]:
  """Returns the names of the signals that bounds need, each once, in order.

  Example:
    >>> signals_of([Bound("mean_len", 3, 10, True, "mean word length", "spaced")])
    ('mean_len', 'unspaced')
  """
  names = [bound.signal for bound in bounds]
  names += [_UNSPACED for bound in bounds if bound.scripts != "all"]
  return tuple(dict.fromkeys(names))


def _holds(signals: Mapping[str, np.ndarray], scripts: Scripts, number: int) -> np.ndarray:
  if scripts == "all":
    return np.ones(number, bool)
  unspaced = np.asarray(signals[_UNSPACED]) > MOSTLY
  return unspaced if scripts == "unspaced" else ~unspaced


def _within(values: np.ndarray, bound: Bound) -> np.ndarray:
  """Returns bool[N]; comparisons with NaN are false."""
  low = -np.inf if bound.min is None else bound.min
  high = np.inf if bound.max is None else bound.max
  if bound.inclusive:
    return (values >= low) & (values <= high)
  return (values > low) & (values < high)


def _check(signals: Mapping[str, np.ndarray], bounds: Sequence[Bound]) -> int:
  missing = [name for name in signals_of(bounds) if name not in signals]
  if missing:
    raise ValueError(f"signals {missing} are missing; given: {sorted(signals)}")
  lengths = {name: len(values) for name, values in signals.items()}
  if len(set(lengths.values())) > 1:
    raise ValueError(f"signals must be of one length, got {lengths}")
  return next(iter(lengths.values()), 0)
