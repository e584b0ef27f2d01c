"""Directions of embeddings, whose inner products are cosines."""

import jax
import jax.numpy as jnp


def unit(x: jax.Array) -> jax.Array:
  """Returns vectors over their norm; where that is 0, or an entry is not finite, 0.

  Args:
    x: [..., D].

  Returns:
    f32[..., D].

  Example:
    >>> unit(jnp.array([[0.0, -2.0], [0.0, 0.0], [1.0, jnp.nan]])).tolist()
    [[0.0, -1.0], [0.0, 0.0], [0.0, 0.0]]
  """
  x = moderate(jnp.where(finite(x)[..., None], x, 0.0), axis=-1)
  norm = jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))
  return x / jnp.where(norm > 0, norm, 1.0)


def moderate(x: jax.Array, axis: int | None = None) -> jax.Array:
  """Returns x times the powers of two that let squares and sums neither overflow nor vanish.

  Args:
    x: f[...], finite.
    axis: along which entries share a power; by default all do.

  Returns:
    f32[...], the largest entry between 2^-46 and 2^48, or 0.
  """
  x = x.astype(jnp.float32)
  largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0.0)
  power = jnp.where(largest > 2.0**40, 2.0**-80, jnp.where(largest < 2.0**-40, 2.0**80, 1.0))
  return x * power


def finite(x: jax.Array) -> jax.Array:
  """Returns bool[...], which vectors [..., D] have finite entries only."""
  return jnp.all(jnp.isfinite(x), axis=-1)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns a @ b in float32, also where a device would multiply in less."""
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
