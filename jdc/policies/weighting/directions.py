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
  x = jnp.where(finite(x)[..., None], x, 0.0).astype(jnp.float32)
  # Scaled first, because squares would overflow or vanish.
  largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
  has_direction = largest >= jnp.finfo(jnp.float32).tiny
  scaled = jnp.where(has_direction, x / jnp.where(has_direction, largest, 1.0), 0.0)
  norm = jnp.sqrt(jnp.sum(scaled**2, axis=-1, keepdims=True))
  return scaled / jnp.where(has_direction, norm, 1.0)


def finite(x: jax.Array) -> jax.Array:
  """Returns bool[...], which vectors [..., D] have finite entries only."""
  return jnp.all(jnp.isfinite(x), axis=-1)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns a @ b in float32, also where a device would multiply in less."""
  return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
