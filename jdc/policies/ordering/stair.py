"""Stair and saw: a rising order whose transitions revisit what came before."""

import fractions

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import Ordering
from jdc.policies.ordering import ranking
from jdc.policies.ordering.folding import folded, layer_problems


def stair(
  parts: int = 2,
  radius: float = 0.0,
  layers: int = 2,
  descending: bool = False,
  observes: frozenset[str] = ranking.LOSS,
) -> Ordering:
  """Orders rows by their score, folded around the points between parts of equal size.

  With s the n rows by rising score (stable), k parts, radius rho and L layers, the rows
  c_j - w .. c_j + w - 1 of s are replaced by their `folding` with L layers, for

    c_j = round(n j / k), j = 1..k-1,      w = round(n rho),

  halves rounded to even. The other rows stay where they are.

  Args:
    parts: k, at least 2.
    radius: rho, a fraction of the rows, with 2 rho < 1 / k; 0 is `sorting`.
    layers: L, sweeps over a transition.
    descending: whether s begins with the largest score.
    observes: the statistic that is the score; empty where scores are given by row.

  Returns:
    An ordering. Rows whose score is NaN are at the end of s in either direction; padding, whose
    score is +inf, is not among the n rows and comes last. Where rounding makes two transitions
    overlap, which takes few rows, the later one begins where the earlier one ends.

  Raises:
    ValueError: if `parts` or `layers` is no such number, `radius` is not in [0, 1 / (2 k)),
      `observes` is not a frozenset of at most one field of `ExampleStats`, or `descending` is
      not a bool.

  References:
    STR in Dai et al., "Demystifying Data Organization for Enhanced LLM Training", 2026,
    arXiv 2605.30334.

  Example:
    >>> score = jnp.arange(10.0)
    >>> stair(parts=2, radius=0.2).order(score, jax.random.key(0)).tolist()
    [0, 1, 2, 3, 5, 4, 6, 7, 8, 9]
  """
  return _ordering(parts, radius, layers, descending, observes, alternating=False)


def saw(
  parts: int = 2,
  radius: float = 0.0,
  layers: int = 2,
  descending: bool = False,
  observes: frozenset[str] = ranking.LOSS,
) -> Ordering:
  """Orders rows by their score, to and fro around the points between parts of equal size.

  As `stair`, with `zigzag` in place of `folding`.

  Args:
    parts: k, at least 2.
    radius: rho, a fraction of the rows, with 2 rho < 1 / k; 0 is `sorting`.
    layers: L, sweeps over a transition.
    descending: whether s begins with the largest score.
    observes: the statistic that is the score; empty where scores are given by row.

  Returns:
    An ordering; NaN, padding and overlaps as in `stair`.

  Raises:
    ValueError: as `stair`.

  References:
    SAW in Dai et al., "Demystifying Data Organization for Enhanced LLM Training", 2026,
    arXiv 2605.30334.

  Example:
    >>> score = jnp.arange(10.0)
    >>> saw(parts=2, radius=0.2).order(score, jax.random.key(0)).tolist()
    [0, 1, 2, 3, 5, 6, 4, 7, 8, 9]
  """
  return _ordering(parts, radius, layers, descending, observes, alternating=True)


def _ordering(
  parts: int,
  radius: float,
  layers: int,
  descending: bool,
  observes: frozenset[str],
  *,
  alternating: bool,
) -> Ordering:
  problems = ranking.problems_of(observes, descending=descending)
  checks.raise_all(_part_problems(parts, radius) + layer_problems(layers) + problems)
  share = ranking.as_fraction(radius)

  def order(score: jax.Array, key: jax.Array) -> jax.Array:
    del key  # deterministic
    rows, num_real = ranking.ranked(score, descending)
    position = jnp.arange(rows.shape[0], dtype=jnp.int32)
    start_J, end_J = _transitions(num_real, parts, share)
    at = jnp.searchsorted(end_J[:-1], position, side="right")
    start, end = start_J[at], end_J[at]
    rank = start + folded(position - start, end - start, layers, alternating=alternating)
    rank = jnp.where((start <= position) & (position < end), rank, position)
    return ranking.among_real(rows, num_real, rank)

  return Ordering(observes, order)


def _transitions(
  count: jax.Array, parts: int, radius: fractions.Fraction
) -> tuple[jax.Array, jax.Array]:
  """The first rank of each transition and the one after its last, i32[k - 1]."""
  split_J = ranking.rounded(count, jnp.arange(1, parts), parts)
  width = ranking.rounded(count, radius.numerator, radius.denominator)
  end_J = split_J + width
  before_J = jnp.concatenate([jnp.zeros(1, jnp.int32), end_J[:-1]])
  return jnp.maximum(split_J - width, before_J), end_J


def _part_problems(parts: object, radius: object) -> list[str]:
  problems = []
  if not checks.is_count(parts, 2):
    problems.append(f"parts must be a whole number of at least 2, got {parts!r}")
  if not (checks.is_finite(radius) and radius >= 0):  # type: ignore[operator]
    problems.append(f"radius must be finite and 0 or more, got {radius!r}")
  elif not problems and 2 * parts * ranking.as_fraction(radius) >= 1:  # type: ignore[operator,arg-type]
    problems.append(f"radius must be below 1 / (2 parts) = {1 / (2 * parts):g}, got {radius!r}")  # type: ignore[operator]
  return problems
