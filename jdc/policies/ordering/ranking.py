"""What orderings share: the rows by rank, shares of their number, checks of arguments."""

import fractions
from typing import Any

import jax
import jax.numpy as jnp

from jdc.policies.combine import ordering_score_problems

LOSS = frozenset({"loss"})

_MAX_DENOMINATOR = 1 << 28  # three times it fits in 32 bits


def ranked(score: jax.Array, descending: bool = False) -> tuple[jax.Array, jax.Array]:
  """Returns the row of each rank, and how many rows are no padding.

  Args:
    score: f32[n]; +inf marks padding.
    descending: whether the largest score has rank 0.

  Returns:
    i32[n] and i32[]. Equal scores keep their order; in either direction, rows whose score is
    NaN come after all others, and padding comes last.
  """
  score = score.astype(jnp.float32)
  last = jnp.where(jnp.isnan(score), 1, jnp.where(score == jnp.inf, 2, 0))
  value = jnp.where(last > 0, 0.0, -score if descending else score)
  rows = jnp.lexsort((value, last)).astype(jnp.int32)
  return rows, jnp.sum(last < 2, dtype=jnp.int32)


def rounded(count: jax.Array, numerator: Any, denominator: int) -> jax.Array:
  """Returns round(count * numerator / denominator) without rounding errors, halves to even.

  Args:
    count: i32[], 0 or more.
    numerator: i32[...], from 0 to `denominator`.
    denominator: at most 2^28.

  Returns:
    i32[...], of the shape of `numerator`.
  """
  numerator = jnp.asarray(numerator, jnp.int32)

  def next_bit(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    whole, rest = carry  # of the leading i bits of count, times the fraction
    rest = 2 * rest + ((count >> (30 - i)) & 1) * numerator
    return 2 * whole + rest // denominator, rest % denominator

  # A float32 product is wrong by whole rows from 2^24 rows on, an int32 one overflows.
  zero = jnp.zeros_like(numerator)
  whole, rest = jax.lax.fori_loop(0, 31, next_bit, (zero, zero))
  up = (2 * rest > denominator) | ((2 * rest == denominator) & (whole % 2 == 1))
  return whole + up.astype(jnp.int32)


def as_fraction(value: float | fractions.Fraction) -> fractions.Fraction:
  """Returns the decimal number that was written, such as 1/10 for 0.1; see `rounded`."""
  if isinstance(value, float | int):
    value = fractions.Fraction(repr(float(value)))
  return value.limit_denominator(_MAX_DENOMINATOR)


def among_real(rows: jax.Array, num_real: jax.Array, rank: jax.Array) -> jax.Array:
  """Returns the rows with those that are no padding in the order of `rank`, i32[n]."""
  position = jnp.arange(rows.shape[0], dtype=jnp.int32)
  return rows[jnp.where(position < num_real, rank, position)]


def random_in_parts(part: jax.Array, key: jax.Array) -> jax.Array:
  """Returns a random permutation i32[n] that sorts `part`, i32[n].

  That of the first elements does not depend on how much padding follows.
  """
  bits = jax.random.bits(key, part.shape, jnp.uint32)
  return jnp.lexsort((bits, part)).astype(jnp.int32)


def problems_of(observes: Any, **switches: Any) -> list[str]:
  """Returns what is wrong with the arguments that most orderings take."""
  return ordering_score_problems("observes", observes) + [
    f"{name} must be True or False, got {value!r}"
    for name, value in switches.items()
    if not isinstance(value, bool)
  ]
