"""Folding and zigzag: several sweeps over the whole range of scores."""

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import Ordering
from jdc.policies.ordering import ranking


def folding(
  layers: int = 5, descending: bool = False, observes: frozenset[str] = ranking.LOSS
) -> Ordering:
  """Sweeps over the whole range of scores `layers` times, each time with other rows.

  With s the n rows by rising score (stable), L layers and Python's slices,

    order = s[0::L] + s[1::L] + ... + s[L-1::L].

  Args:
    layers: L, sweeps; 1 is `sorting`.
    descending: whether s begins with the largest score.
    observes: the statistic that is the score; empty where scores are given by row.

  Returns:
    An ordering. Rows whose score is NaN are at the end of s in either direction; padding, whose
    score is +inf, is not among the n rows and comes last.

  Raises:
    ValueError: if `layers` is no whole number of at least 1, `observes` is not a frozenset of
      at most one field of `ExampleStats`, or `descending` is not a bool.

  References:
    FO in Dai et al., "Demystifying Data Organization for Enhanced LLM Training", 2026,
    arXiv 2605.30334.

  Example:
    >>> score = jnp.array([0.0, 1.0, 2.0, 3.0, 4.0, jnp.inf])
    >>> folding(layers=2).order(score, jax.random.key(0)).tolist()
    [0, 2, 4, 1, 3, 5]
  """
  return _ordering(layers, descending, observes, alternating=False)


def zigzag(
  layers: int = 5, descending: bool = False, observes: frozenset[str] = ranking.LOSS
) -> Ordering:
  """Sweeps over the whole range of scores `layers` times, to and fro.

  As `folding`, with every odd sweep reversed, so that neighbours in the order are neighbours
  in score:

    order = s[0::L] + s[1::L][::-1] + s[2::L] + ...

  Args:
    layers: L, sweeps; 1 is `sorting`.
    descending: whether s begins with the largest score.
    observes: the statistic that is the score; empty where scores are given by row.

  Returns:
    An ordering; NaN and padding as in `folding`.

  Raises:
    ValueError: as `folding`.

  References:
    ZIG in Dai et al., "Demystifying Data Organization for Enhanced LLM Training", 2026,
    arXiv 2605.30334.

  Example:
    >>> score = jnp.array([0.0, 1.0, 2.0, 3.0, 4.0, jnp.inf])
    >>> zigzag(layers=2).order(score, jax.random.key(0)).tolist()
    [0, 2, 4, 3, 1, 5]
  """
  return _ordering(layers, descending, observes, alternating=True)


def _ordering(
  layers: int, descending: bool, observes: frozenset[str], *, alternating: bool
) -> Ordering:
  problems = layer_problems(layers) + ranking.problems_of(observes, descending=descending)
  checks.raise_all(problems)

  def order(score: jax.Array, key: jax.Array) -> jax.Array:
    del key  # deterministic
    rows, num_real = ranking.ranked(score, descending)
    position = jnp.arange(rows.shape[0], dtype=jnp.int32)
    rank = folded(position, num_real, layers, alternating=alternating)
    return ranking.among_real(rows, num_real, rank)

  return Ordering(observes, order)


def layer_problems(layers: object) -> list[str]:
  """What is wrong with a number of layers."""
  if checks.is_count(layers, 1):
    return []
  return [f"layers must be a whole number of at least 1, got {layers!r}"]


def folded(
  position: jax.Array, count: jax.Array, layers: int, *, alternating: bool
) -> jax.Array:
  """Returns the rank of the row that is at each position when `count` ranks are folded.

  Positions and counts broadcast; what is returned for a position outside 0..count-1 is not
  meant to be used.
  """
  # The first `longer` layers have one row more than the others.
  size, longer = count // layers, count % layers
  head = longer * (size + 1)
  in_head = position < head
  width = jnp.where(in_head, size + 1, jnp.maximum(size, 1))
  offset = jnp.where(in_head, position, position - head)
  layer = offset // width + jnp.where(in_head, 0, longer)
  place = offset % width
  if alternating:
    place = jnp.where(layer % 2 == 1, width - 1 - place, place)
  return layer + place * layers
