"""Sorting: the rows of a round by rising or falling score."""

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import Ordering
from jdc.policies.combine import ordering_score_problems


def sorting(
  descending: bool = False, observes: frozenset[str] = frozenset({"loss"})
) -> Ordering:
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
    A common curriculum; the simplest of those compared in "Demystifying Data Organization for
    Enhanced LLM Training".

  Example:
    >>> order = sorting(descending=True).order
    >>> order(jnp.array([1.0, jnp.inf, 3.0, jnp.nan, 1.0]), jax.random.key(0)).tolist()
    [2, 0, 4, 3, 1]
  """
  problems = ordering_score_problems("observes", observes)
  if not isinstance(descending, bool):
    problems.append(f"descending must be True or False, got {descending!r}")
  checks.raise_all(problems)

  def order(score: jax.Array, key: jax.Array) -> jax.Array:
    del key  # deterministic
    score = score.astype(jnp.float32)
    last = jnp.where(jnp.isnan(score), 1, jnp.where(score == jnp.inf, 2, 0))
    value = jnp.where(last > 0, 0.0, -score if descending else score)
    return jnp.lexsort((value, last)).astype(jnp.int32)

  return Ordering(observes, order)
