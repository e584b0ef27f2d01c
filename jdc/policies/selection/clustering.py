"""Clusterings of embeddings in fixed memory: functions (embedding, valid, k, key) -> cluster.

Each maps f32[N, D], bool[N], a static number of clusters k in [1, N] and a key to i32[N], the
cluster 0..k-1 of each row; -1 for rows that are not valid or not finite. They are pure, run
under jit and are functions of the key alone; ties go to the lower index. A cluster may be
empty. No array of N x N or N x k x D numbers is ever built.
"""

from typing import Literal, Protocol

import jax
import jax.numpy as jnp

from jdc.policies.selection import groups
from jdc.policies.selection.kmeans import kmeans, spherical_kmeans
from jdc.policies.weighting import directions

Clustering = Literal[
  "kmeans", "spherical_kmeans", "farthest_first", "sign_lsh", "random_partition"
]


class ClusterFn(Protocol):
  """`(embedding f32[N, D], valid bool[N], k, key) -> i32[N]`."""

  def __call__(
    self, embedding: jax.Array, valid: jax.Array, k: int, key: jax.Array, /
  ) -> jax.Array: ...


def farthest_first(embedding: jax.Array, valid: jax.Array, k: int, key: jax.Array) -> jax.Array:
  """k-center: each next centre is the row farthest from all centres so far.

  The first is a random row. Rows join their nearest centre; cluster j is that of the j-th. The
  largest distance to a centre is at most twice the smallest possible. With fewer distinct rows
  than clusters the last clusters are empty.

  Args:
    embedding: f[N, D].
    valid: bool[N].
    k: number of clusters, in [1, N].
    key: of the first centre.

  Returns:
    i32[N], 0..k-1; -1 where a row is not valid or not finite.

  Raises:
    ValueError: if k is out of range.

  References:
    Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985.

  Example:
    >>> x = jnp.array([[0.0], [0.0], [0.0], [7.0]])
    >>> z = farthest_first(x, jnp.ones(4, bool), 2, jax.random.key(0))
    >>> bool(z[0] == z[1] == z[2] != z[3])
    True
  """
  groups.check(embedding, k)
  usable_N = valid & directions.finite(embedding)
  x_NxD = groups.centred(embedding, usable_N)
  first = groups.shuffled(key, usable_N)[0]

  def add(j: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    nearest_N, cluster_N = found
    centre = jnp.where(j == 0, first, jnp.argmax(nearest_N))
    distance_N = jnp.sum((x_NxD - x_NxD[centre]) ** 2, axis=-1)
    closer_N = distance_N < nearest_N
    return jnp.where(closer_N, distance_N, nearest_N), jnp.where(closer_N, j, cluster_N)

  nearest_N = jnp.where(usable_N, jnp.inf, -jnp.inf).astype(jnp.float32)
  start = nearest_N, jnp.full(usable_N.shape, -1, jnp.int32)
  return jax.lax.fori_loop(0, k, add, start)[1]


def sign_lsh(embedding: jax.Array, valid: jax.Array, k: int, key: jax.Array) -> jax.Array:
  """Buckets of the signs of ceil(log2 k) random projections, modulo k.

  With h_b standard normal, bit b is 1 if <x, h_b> > 0: rows at a small angle share a bucket
  with a high probability. Buckets beyond k fold onto the first ones.

  Args:
    embedding: f[N, D].
    valid: bool[N].
    k: number of clusters, in [1, N].
    key: of the projections.

  Returns:
    i32[N], 0..k-1; -1 where a row is not valid or not finite.

  Raises:
    ValueError: if k is out of range.

  References:
    Charikar, "Similarity estimation techniques from rounding algorithms", 2002.

  Example:
    >>> x = jnp.array([[1.0, 0.0], [9.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    >>> z = sign_lsh(x, jnp.ones(4, bool), 2, jax.random.key(0))
    >>> bool(z[0] == z[1] != z[2]), int(z[3])
    (True, 0)
  """
  groups.check(embedding, k)
  usable_N = valid & directions.finite(embedding)
  x_NxD = directions.moderate(jnp.where(usable_N[:, None], embedding, 0.0), axis=-1)
  num_bits = (k - 1).bit_length()
  plane_Dxb = jax.random.normal(key, (embedding.shape[1], num_bits), jnp.float32)
  bit_Nxb = (directions.dot(x_NxD, plane_Dxb) > 0).astype(jnp.uint32)
  bucket_N = jnp.sum(bit_Nxb << jnp.arange(num_bits, dtype=jnp.uint32), axis=-1)
  return jnp.where(usable_N, (bucket_N % k).astype(jnp.int32), -1)


def random_partition(
  embedding: jax.Array, valid: jax.Array, k: int, key: jax.Array
) -> jax.Array:
  """A random partition into k parts whose sizes differ by at most 1, the control.

  Args:
    embedding: f[N, D]; only whether rows are finite matters.
    valid: bool[N].
    k: number of clusters, in [1, N].
    key: of the permutation that deals rows to parts in turn.

  Returns:
    i32[N], 0..k-1; -1 where a row is not valid or not finite.

  Raises:
    ValueError: if k is out of range.

  Example:
    >>> z = random_partition(jnp.zeros((6, 1)), jnp.ones(6, bool), 3, jax.random.key(0))
    >>> jnp.bincount(z, length=3).tolist()
    [2, 2, 2]
  """
  groups.check(embedding, k)
  usable_N = valid & directions.finite(embedding)
  turn_N = jnp.argsort(groups.shuffled(key, usable_N)).astype(jnp.int32)
  return jnp.where(usable_N, turn_N % k, -1)


CLUSTERINGS: dict[str, ClusterFn] = {
  "kmeans": kmeans,
  "spherical_kmeans": spherical_kmeans,
  "farthest_first": farthest_first,
  "sign_lsh": sign_lsh,
  "random_partition": random_partition,
}
