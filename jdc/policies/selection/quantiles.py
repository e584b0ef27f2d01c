"""Quantiles of the statistics of those rows that may be drawn."""

import jax
import jax.numpy as jnp


def quantiles(
  values: jax.Array, eligible: jax.Array, shares: tuple[float, ...]
) -> list[jax.Array]:
  """Returns quantiles of the eligible values by linear interpolation; inf where there are none.

  Args:
    values: f32[n].
    eligible: bool[n], which values count; they are finite.
    shares: each in [0, 1].
  """
  ordered = jnp.sort(jnp.where(eligible, values, jnp.inf))
  count = jnp.sum(eligible, dtype=jnp.int32)
  return [_interpolate(ordered, jnp.maximum(count - 1, 0), share) for share in shares]


def _interpolate(ordered: jax.Array, last: jax.Array, share: float) -> jax.Array:
  """Returns the value at position share * last of the values 0..last in order."""
  # In float32 the position in a large pool would be off by whole rows. Writing last in base 256
  # leaves whole steps, which are exact, and a remainder below a thousand.
  steps2, part2 = divmod(share * 256**2, 1.0)
  steps1, part1 = divmod(share * 256, 1.0)
  high, middle, small = last // 256**2, last // 256 % 256, last % 256
  rest = high * part2 + middle * part1 + small * share
  nearest = jnp.round(rest)
  rest = jnp.where(jnp.abs(rest - nearest) < 1e-6 * (1 + nearest), nearest, rest)
  whole = jnp.floor(rest)
  start = high * int(steps2) + middle * int(steps1) + whole.astype(jnp.int32)
  below, above = ordered[jnp.minimum(start, last)], ordered[jnp.minimum(start + 1, last)]
  fraction = rest - whole
  # The difference of products cannot overflow and is exactly 0 for equal values.
  return below + (fraction * above - fraction * below)
