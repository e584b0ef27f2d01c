"""Sorting: the rows of a round by rising or falling score."""

import jax

from jdc.policies import checks
from jdc.policies.base import Ordering
from jdc.policies.ordering import ranking


def sorting(descending: bool = False, observes: frozenset[str] = ranking.LOSS) -> Ordering:
  """Orders rows by their score; equal scores keep their order.

  Args:
    descending: whether the largest score comes first.
    observes: the statistic that is the score; empty where scores are given by row.

  Returns:
    An ordering. In either direction, rows whose score is NaN come after all others, and
    padding, whose score is +inf, comes last.

  Raises:
    ValueError: if `observes` is not a frozenset of at most one field of `ExampleStats`, or
      `descending` is not a bool.

  References:
    A common curriculum; the simplest of those compared in Dai et al., "Demystifying Data
    Organization for Enhanced LLM Training", 2026, arXiv 2605.30334.

  Example:
    >>> order = sorting(descending=True).order
    >>> score = jax.numpy.array([1.0, jax.numpy.inf, 3.0, jax.numpy.nan, 1.0])
    >>> order(score, jax.random.key(0)).tolist()
    [2, 0, 4, 3, 1]
  """
  checks.raise_all(ranking.problems_of(observes, descending=descending))

  def order(score: jax.Array, key: jax.Array) -> jax.Array:
    del key  # deterministic
    return ranking.ranked(score, descending)[0]

  return Ordering(observes, order)
