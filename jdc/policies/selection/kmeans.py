"""k-means and spherical k-means: Lloyd's iterations."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jdc.policies.selection import groups
from jdc.policies.weighting import directions

_ITERATIONS = 20


def kmeans(embedding: jax.Array, valid: jax.Array, k: int, key: jax.Array) -> jax.Array:
  r"""Lloyd's k-means: 20 times each centre moves to the mean of the rows nearest to it.

    z_i = argmin_j |x_i - c_j|^2,    c_j <- mean of the x_i with z_i = j.

  Centres begin at k rows, the first of a random permutation. In every iteration, the centre of
  the n-th empty cluster moves to the row that is n-th farthest from its own centre; a cluster
  stays empty where no row is farther than 1e-5 of the largest norm, as with fewer distinct
  rows than clusters.

  Args:
    embedding: f[N, D].
    valid: bool[N].
    k: number of clusters, in [1, N].
    key: of the permutation.

  Returns:
    i32[N], 0..k-1; -1 where a row is not valid or not finite.

  Raises:
    ValueError: if k is out of range.

  References:
    Lloyd, "Least squares quantization in PCM", 1982.

  Example:
    >>> x = jnp.array([[0.0], [0.1], [5.0], [jnp.nan], [5.1]])
    >>> z = kmeans(x, jnp.ones(5, bool), 2, jax.random.key(0))
    >>> bool(z[0] == z[1] != z[2] == z[4]), int(z[3])
    (True, -1)
  """
  groups.check(embedding, k)
  usable_N = valid & directions.finite(embedding)
  x_NxD = groups.centred(embedding, usable_N)
  half_norm = lambda c_kxD: jnp.sum(c_kxD**2, axis=-1) / 2
  return _lloyd(x_NxD, usable_N, usable_N, k, key, groups.means, half_norm)


def spherical_kmeans(
  embedding: jax.Array, valid: jax.Array, k: int, key: jax.Array
) -> jax.Array:
  r"""k-means by cosine: centres are unit vectors, rows join the one with the largest cosine.

    z_i = argmax_j <u_i, c_j>,  u_i = x_i / |x_i|,    c_j <- unit(sum of the u_i with z_i = j).

  As `kmeans` in all else; "farthest" is the smallest cosine. A zero row has cosine 0 with every
  centre and never becomes one.

  Args:
    embedding: f[N, D].
    valid: bool[N].
    k: number of clusters, in [1, N].
    key: of the permutation.

  Returns:
    i32[N], 0..k-1; -1 where a row is not valid or not finite.

  Raises:
    ValueError: if k is out of range.

  References:
    Dhillon and Modha, "Concept decompositions for large sparse text data using clustering",
    2001.

  Example:
    >>> x = jnp.array([[1.0, 0.1], [0.0, 3.0], [9.0, 0.0], [0.1, 0.2]])
    >>> z = spherical_kmeans(x, jnp.ones(4, bool), 2, jax.random.key(0))
    >>> bool(z[0] == z[2] != z[1] == z[3])
    True
  """
  groups.check(embedding, k)
  usable_N = valid & directions.finite(embedding)
  u_NxD = jnp.where(usable_N[:, None], directions.unit(embedding), 0.0)
  seed_N = usable_N & jnp.any(u_NxD != 0, axis=-1)
  concepts = lambda u_NxD, z_N, k: directions.unit(groups.sums(u_NxD, z_N, k))
  return _lloyd(u_NxD, usable_N, seed_N, k, key, concepts, lambda c_kxD: jnp.zeros(k))


def _lloyd(
  x_NxD: jax.Array,
  usable_N: jax.Array,
  seed_N: jax.Array,
  k: int,
  key: jax.Array,
  centres: Callable[[jax.Array, jax.Array, int], jax.Array],
  price: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """Returns the clusters after 20 iterations; seeds are the rows that may become centres."""
  largest = jnp.max(jnp.sum(x_NxD**2, axis=-1))

  def assign(centre_kxD: jax.Array, alive_k: jax.Array) -> jax.Array:
    price_k = jnp.where(alive_k, price(centre_kxD), jnp.inf)
    best = lambda x_D: jnp.argmax(directions.dot(centre_kxD, x_D) - price_k)
    nearest_N = jax.lax.map(best, x_NxD, batch_size=groups.block(k, x_NxD.shape[0]))
    return jnp.where(usable_N, nearest_N.astype(jnp.int32), -1)

  def iterate(_: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    centre_kxD = found[0]
    cluster_N = assign(*found)
    distance_N = jnp.sum((x_NxD - centre_kxD[cluster_N]) ** 2, axis=-1)
    far_k, row_k = jax.lax.top_k(jnp.where(seed_N, distance_N, -1.0), k)
    empty_k = groups.sizes(cluster_N, k) == 0
    nth_k = jnp.maximum(jnp.cumsum(empty_k) - 1, 0)
    moved_kxD = jnp.where(empty_k[:, None], x_NxD[row_k[nth_k]], centres(x_NxD, cluster_N, k))
    return moved_kxD, ~empty_k | (far_k[nth_k] > 1e-10 * largest)

  row_k = groups.shuffled(key, seed_N)[:k]
  return assign(*jax.lax.fori_loop(0, _ITERATIONS, iterate, (x_NxD[row_k], seed_N[row_k])))
