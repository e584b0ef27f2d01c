"""Spherical k-means of unit vectors, block by block: no array of rows x clusters is built."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 2048  # rows at a time: their cosines with all centres fit a cache


class Fit(NamedTuple):
  """Centres, and how well they fit the rows that they were made of.

  Attributes:
    centre: f32[k, D], unit vectors.
    iterations: after how many no row changed its cluster, or all that were allowed.
    mean_cosine: of the rows with the centres of their clusters.
    empty: clusters without a row.
  """

  centre: np.ndarray
  iterations: int
  mean_cosine: float
  empty: int


def fit(x_NxD: np.ndarray, k: int, *, iterations: int = 20) -> Fit:
  r"""Lloyd's k-means by cosine, of unit vectors u_i, from the first k rows.

    z_i = argmax_j <u_i, c_j>,    c_j <- unit(sum of the u_i with z_i = j).

  Of equal cosines the lower j counts. In every iteration the centre of the n-th empty cluster
  moves to the row that is n-th farthest from its own centre. A cluster stays empty where there
  are fewer distinct rows than clusters. The result is a function of the rows in their order:
  a random order makes a random start.

  Args:
    x_NxD: f32[N, D], unit vectors.
    k: number of clusters, in [1, N].
    iterations: at most so many.

  Raises:
    ValueError: if k or the number of iterations is out of range.

  References:
    Dhillon and Modha, "Concept decompositions for large sparse text data using clustering",
    2001.

  Example:
    >>> x = np.array([[1, 0], [0, 1], [0.8, 0.6], [0.6, 0.8]], np.float32)
    >>> fit(x, 2).centre.round(2).tolist()
    [[0.949999988079071, 0.3199999928474426], [0.3199999928474426, 0.949999988079071]]
  """
  if not 1 <= k <= len(x_NxD) or iterations < 1:
    raise ValueError(
      f"k must be in [1, {len(x_NxD)}], the number of rows, and iterations 1 or more, got "
      f"{k} and {iterations}"
    )
  blocks = [(jnp.asarray(rows), count) for rows, count in _blocks([x_NxD])]
  centre_kxD = jnp.asarray(x_NxD[:k])
  before = np.full(len(x_NxD), -1)
  for iteration in range(1, iterations + 1):
    total_kxD, size_k = jnp.zeros_like(centre_kxD), jnp.zeros(k, jnp.int32)
    found = []
    for block_BxD, count in blocks:
      total_kxD, size_k, *nearest = _step(block_BxD, count, centre_kxD, total_kxD, size_k)
      found.append((*nearest, count))
    cluster_N, cosine_N = _joined(found)
    centre_kxD = _means(total_kxD, centre_kxD)
    empty = np.flatnonzero(np.asarray(size_k) == 0)
    if not len(empty) and np.array_equal(cluster_N, before):
      break
    if len(empty) and iteration < iterations:
      far = np.argsort(cosine_N, kind="stable")[: len(empty)]
      centre_kxD = centre_kxD.at[empty].set(x_NxD[far])
    before = cluster_N
  mean = float(np.mean(cosine_N, dtype=np.float64))
  return Fit(np.asarray(centre_kxD), iteration, mean, len(empty))


def assign(
  parts: Iterable[np.ndarray], centre_kxD: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the nearest centre of each row i32[N], and its cosine f32[N].

  Args:
    parts: f32[., D] unit vectors, which may be read as they are asked for.
    centre_kxD: f32[k, D], unit vectors.
  """
  centres = jnp.asarray(centre_kxD)
  found = [(*_nearest(jnp.asarray(rows), centres), count) for rows, count in _blocks(parts)]
  return _joined(found)


def _blocks(parts: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, int]]:
  """Yields blocks of one shape, the last of a part filled with zeros, and their rows."""
  for part in parts:
    for begin in range(0, len(part), BLOCK):
      rows = part[begin : begin + BLOCK]
      count = len(rows)
      if count < BLOCK:
        rows = np.pad(rows, ((0, BLOCK - count), (0, 0)))
      yield rows, count


@jax.jit
def _nearest(x_BxD: jax.Array, centre_kxD: jax.Array) -> tuple[jax.Array, jax.Array]:
  cosine_Bxk = x_BxD @ centre_kxD.T
  best_Bx1 = jnp.max(cosine_Bxk, axis=1, keepdims=True)
  # Which on a CPU is several times faster than argmax, and the same but for NaN.
  k = cosine_Bxk.shape[1]
  place_Bxk = jnp.where(cosine_Bxk == best_Bx1, jnp.arange(k, dtype=jnp.int32), k)
  return jnp.min(place_Bxk, axis=1), best_Bx1[:, 0]


@jax.jit
def _step(
  x_BxD: jax.Array,
  count: jax.Array,
  centre_kxD: jax.Array,
  total_kxD: jax.Array,
  size_k: jax.Array,
) -> tuple[jax.Array, ...]:
  """Adds a block to the sums of the clusters; returns them with its clusters and cosines."""
  cluster_B, cosine_B = _nearest(x_BxD, centre_kxD)
  is_row_B = jnp.arange(len(x_BxD)) < count  # what fills the block is zeros
  total_kxD = total_kxD.at[cluster_B].add(x_BxD)
  return total_kxD, size_k.at[cluster_B].add(is_row_B), cluster_B, cosine_B


@jax.jit
def _means(total_kxD: jax.Array, centre_kxD: jax.Array) -> jax.Array:
  """Returns the directions of sums; where a sum is zero, the centre stays."""
  norm_kx1 = jnp.linalg.norm(total_kxD, axis=1, keepdims=True)
  return jnp.where(norm_kx1 > 1e-6, total_kxD / jnp.maximum(norm_kx1, 1e-6), centre_kxD)


def _joined(
  found: list[tuple[jax.Array, jax.Array, int]],
) -> tuple[np.ndarray, np.ndarray]:
  """Returns what was found of all blocks, without what filled them."""
  cluster = [np.asarray(cluster)[:count] for cluster, _, count in found]
  cosine = [np.asarray(cosine)[:count] for _, cosine, count in found]
  return (
    np.concatenate([np.zeros(0, np.int32), *cluster]),
    np.concatenate([np.zeros(0, np.float32), *cosine]),
  )
