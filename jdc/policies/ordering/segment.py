"""Segment: rows of one tail first, rows of a tail last, all others between."""

import fractions

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import Ordering
from jdc.policies.ordering import ranking

_TAILS = ("low", "high")


def segment(
  first_percent: float = 10.0,
  last_percent: float = 10.0,
  first_tail: str = "low",
  last_tail: str = "high",
  observes: frozenset[str] = ranking.LOSS,
) -> Ordering:
  """Puts rows of one tail of the scores first and rows of a tail last, each part shuffled.

  With s the n rows by rising score (stable), x = `first_percent` and y = `last_percent`,

    a = round(n x / 100),      b = round(n y / 100), or n - a if x + y = 100,

  halves rounded to even. The first part holds the a rows at the low or high end of s, the last
  part the b rows at its low or high end, the part between them all others. Both from the same
  tail: its a + b rows are split at random. If x + y > 100, both are first multiplied by
  100 / (x + y). Each of the three parts is in random order.

  Args:
    first_percent: x, from 0 to 100.
    last_percent: y, from 0 to 100.
    first_tail: "low" or "high", where the first part comes from.
    last_tail: "low" or "high", where the last part comes from.
    observes: the statistic that is the score; empty where scores are given by row.

  Returns:
    An ordering. Rows whose score is NaN are at the high end of s; padding, whose score is +inf,
    is not among the n rows and comes last.

  Raises:
    ValueError: if a percentage is not in [0, 100], a tail is unknown, or `observes` is not a
      frozenset of at most one field of `ExampleStats`.

  References:
    SEG in Dai et al., "Demystifying Data Organization for Enhanced LLM Training", 2026,
    arXiv 2605.30334. How the paper rounds is not said; here as in `stair`.

  Example:
    >>> order = segment(50, 25).order(jnp.array([3.0, 0.0, 2.0, 1.0]), jax.random.key(0))
    >>> sorted(order[:2].tolist()), order[2:].tolist()
    ([1, 3], [2, 0])
  """
  percents = {"first_percent": first_percent, "last_percent": last_percent}
  problems = [
    f"{name} must be from 0 to 100, got {value!r}"
    for name, value in percents.items()
    if not (checks.is_number(value) and 0 <= value <= 100)
  ]
  problems += [
    f"{name} must be one of {_TAILS}, got {value!r}"
    for name, value in (("first_tail", first_tail), ("last_tail", last_tail))
    if value not in _TAILS
  ]
  checks.raise_all(problems + ranking.problems_of(observes))
  percent_sum = ranking.as_fraction(first_percent) + ranking.as_fraction(last_percent)
  whole = max(percent_sum, fractions.Fraction(100))

  def order(score: jax.Array, key: jax.Array) -> jax.Array:
    rows, num_real = ranking.ranked(score)
    num_first = _count(num_real, first_percent, whole)
    num_last = num_real - num_first
    if percent_sum < 100:
      num_last = _count(num_real, last_percent, whole)
    rank = jnp.arange(rows.shape[0], dtype=jnp.int32)
    if first_tail == last_tail:
      first = last = _in_tail(rank, num_real, first_tail, num_first + num_last)
    else:
      first = _in_tail(rank, num_real, first_tail, num_first)
      last = _in_tail(rank, num_real, last_tail, num_last)
    # The first part's ranks, then the last part's, then those between, each at random; where
    # both are of one tail, they are one part and this is their random split.
    label = jnp.where(first, 0, jnp.where(last, 1, 2))
    shuffled = ranking.random_in_parts(jnp.where(rank < num_real, label, 3), key)
    position = rank
    between = position < num_real - num_last
    behind = jnp.where(between, num_last, num_first + num_last - num_real)
    source = jnp.where(position < num_first, position, position + behind)
    return ranking.among_real(rows, num_real, shuffled[source])

  return Ordering(observes, order)


def _count(num_real: jax.Array, percent: float, whole: fractions.Fraction) -> jax.Array:
  share = ranking.as_fraction(ranking.as_fraction(percent) / whole)
  return ranking.rounded(num_real, share.numerator, share.denominator)


def _in_tail(rank: jax.Array, num_real: jax.Array, tail: str, size: jax.Array) -> jax.Array:
  return rank < size if tail == "low" else rank >= num_real - size
