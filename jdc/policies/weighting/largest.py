"""Which entries of a batch are the largest, where how many count is known only in the step."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

_MAX_DENOMINATOR = 10_000
_TOP_BIT = np.uint32(1 << 31)


def is_fraction(fraction: object) -> bool:
  """Whether `fraction` is a number that `num_kept` takes."""
  if not isinstance(fraction, int | float) or isinstance(fraction, bool):
    return False
  return 1 / _MAX_DENOMINATOR <= fraction <= 1


def num_kept(fraction: float, count: jax.Array) -> jax.Array:
  """Returns ceil(f n) in whole numbers, as rounding would keep one too many or too few.

  Args:
    fraction: f in [1e-4, 1], taken as the closest fraction with a denominator of at most
      10,000: 0.1 is one tenth.
    count: i32[], n.

  Returns:
    i32[], at least 1 where n is.

  Example:
    >>> num_kept(0.1, jnp.int32(30)).item(), num_kept(0.1, jnp.int32(31)).item()
    (3, 4)
  """
  part, whole = Fraction(fraction).limit_denominator(_MAX_DENOMINATOR).as_integer_ratio()
  # In two terms, because f's numerator times n would overflow.
  return part * (count // whole) + (part * (count % whole) + whole - 1) // whole


def largest(values: jax.Array, eligible: jax.Array, num: jax.Array) -> jax.Array:
  """Returns which are the `num` largest of the eligible values, ties to the lower index.

  Args:
    values: f32[n], finite where eligible.
    eligible: bool[n], which values count.
    num: i32[], at least 0; where fewer are eligible, all of them are the largest.

  Returns:
    bool[n].

  Example:
    >>> values = jnp.array([2.0, 9.0, 2.0, 1.0])
    >>> largest(values, jnp.array([True, False, True, True]), jnp.int32(1)).tolist()
    [True, False, False, False]
  """
  order = jnp.where(eligible, _ordered_bits(values), 0)

  # The last value kept, found bit by bit: 32 counts are much cheaper than a sort.
  def refine(i: jax.Array, last: jax.Array) -> jax.Array:
    candidate = last | (_TOP_BIT >> i.astype(jnp.uint32))
    return jnp.where(jnp.sum(order >= candidate, dtype=jnp.int32) >= num, candidate, last)

  last = jax.lax.fori_loop(0, 32, refine, jnp.uint32(0))
  above, tied = eligible & (order > last), eligible & (order == last)
  left = num - jnp.sum(above, dtype=jnp.int32)
  return above | (tied & (jnp.cumsum(tied, dtype=jnp.int32) <= left))


def _ordered_bits(values: jax.Array) -> jax.Array:
  """Returns whole numbers above 0 in the order of finite values."""
  # Both zeros are one value.
  unsigned = jnp.where(values == 0, 0.0, values).astype(jnp.float32)
  bits = jax.lax.bitcast_convert_type(unsigned, jnp.uint32)
  return jnp.where(bits >= _TOP_BIT, ~bits, bits | _TOP_BIT)
