"""What clusterings share: sums over the rows of each cluster, in fixed memory."""

import jax
import jax.numpy as jnp

from jdc.policies.weighting import directions

_PRODUCTS = 1 << 22  # numbers of a block of inner products, 16 MiB


def sums(x: jax.Array, cluster: jax.Array, k: int) -> jax.Array:
  """Returns f32[k, D], the sum of the rows [N, D] of each cluster i32[N]; -1 is in none."""
  # A product with one-hot rows: the same on every run, where a scattered sum need not be.
  member = lambda j: directions.dot((cluster == j).astype(jnp.float32), x)
  return jax.lax.map(member, jnp.arange(k), batch_size=block(x.shape[0], k))


def sizes(cluster: jax.Array, k: int) -> jax.Array:
  """Returns i32[k], the number of rows of each cluster i32[N]; -1 is in none."""
  return jnp.zeros(k, jnp.int32).at[jnp.where(cluster < 0, k, cluster)].add(1, mode="drop")


def means(x: jax.Array, cluster: jax.Array, k: int) -> jax.Array:
  """Returns f32[k, D], the mean of the rows of each cluster, 0 where it is empty."""
  return sums(x, cluster, k) / jnp.maximum(sizes(cluster, k), 1)[:, None]


def centred(x: jax.Array, usable: jax.Array) -> jax.Array:
  """Returns the rows less their mean over `usable`, times one power of two; others are 0.

  Differences of rows keep their order, and do not drown in what all rows have in common.
  """
  x = directions.moderate(jnp.where(usable[:, None], x, 0.0))
  mean_D = jnp.sum(x, axis=0) / jnp.maximum(jnp.sum(usable), 1)
  return jnp.where(usable[:, None], x - mean_D, 0.0)


def shuffled(key: jax.Array, usable_N: jax.Array) -> jax.Array:
  """Returns i32[N], all rows in a random order, the usable ones first."""
  return jnp.lexsort((jax.random.bits(key, usable_N.shape), ~usable_N))


def block(length: int, most: int) -> int:
  """Returns how many vectors of a length are formed at once."""
  return min(most, max(1, _PRODUCTS // length))


def check(embedding: jax.Array, k: int) -> None:
  if not 1 <= k <= embedding.shape[0]:
    raise ValueError(f"k must be in [1, {embedding.shape[0]}], the rows, got {k}")
