"""Nearest neighbours and densities by Euclidean distance, without a matrix of all pairs."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdc.policies.weighting import directions

_CHUNK = 2**24  # numbers that exist at once


class Neighbours(NamedTuple):
  """The nearest points of each query, those of equal distance by index.

  Where a query has no more neighbours, the distance is inf and the index -1.
  """

  distance_MxK: jax.Array  # f32, ascending
  index_MxK: jax.Array  # i32


@functools.partial(jax.jit, static_argnames="num")
def nearest(
  queries: jax.Array, query_counts: jax.Array, points: jax.Array, counts: jax.Array, num: int
) -> Neighbours:
  """Returns the nearest points of each query by Euclidean distance.

  Which points are the nearest is told to the precision of float32 products of vectors around
  the mean of the points; their distances and order are those of the differences.

  Args:
    queries: f32[M, D].
    query_counts: bool[M], which queries have neighbours.
    points: f32[C, D], of squares below 2^120, as the queries.
    counts: bool[C], which points may be found.
    num: K, from 1 to C.

  Example:
    >>> points, ones = jnp.array([[0.0], [5.0], [1.0]]), jnp.ones(3, bool)
    >>> found = nearest(jnp.array([[2.0]]), ones[:1], points, ones, num=2)
    >>> found.index_MxK.tolist(), found.distance_MxK.tolist()
    ([[2, 0]], [[1.0, 2.0]])
  """
  (num_queries, width), num_points = queries.shape, points.shape[0]
  centre_D, centred_CxD, square_C = _around_mean(points, counts)

  def of_query(query: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    query_D, has_neighbours = query
    # The squared distance less what is the same for all points.
    closeness_C = 2 * directions.dot(centred_CxD, query_D - centre_D) - square_C
    _, index_K = jax.lax.top_k(jnp.where(counts, closeness_C, -jnp.inf), num)
    found_K = counts[index_K] & has_neighbours
    square_K = jnp.sum((points[index_K] - query_D) ** 2, axis=-1)
    distance_K = jnp.where(found_K, jnp.sqrt(square_K), jnp.inf)
    index_K = jnp.where(found_K, index_K, num_points)
    distance_K, index_K = jax.lax.sort((distance_K, index_K), num_keys=2)
    return distance_K, index_K

  rows = min(num_queries, max(1, _CHUNK // max(num_points, num * width)))
  distance_MxK, index_MxK = jax.lax.map(of_query, (queries, query_counts), batch_size=rows)
  return Neighbours(distance_MxK, jnp.where(index_MxK < num_points, index_MxK, -1))


@functools.partial(jax.jit, static_argnames=("bandwidth", "num"))
def density(points: jax.Array, counts: jax.Array, bandwidth: float, num: int) -> jax.Array:
  r"""Returns the density of points around each of them.

    density_i = sum over the `num` points nearest to i of max(0, 1 - |x_i - x_j|^2 / h^2),

  i itself among them, which adds 1; h = 0 gives 1.

  Args:
    points: f32[C, D], of squares below 2^120.
    counts: bool[C], which points there are; the density of others means nothing.
    bandwidth: h >= 0, a distance.
    num: from 1 to C.

  Returns:
    f32[C], at least 1.

  Example:
    >>> points, ones = jnp.array([[0.0], [0.0], [1.0]]), jnp.ones(3, bool)
    >>> density(points, ones, bandwidth=2.0, num=3).tolist()
    [2.75, 2.75, 2.5]
  """
  num_points = points.shape[0]
  if bandwidth == 0:
    return jnp.ones(num_points, jnp.float32)
  _, centred_CxD, square_C = _around_mean(points, counts)
  limits = jnp.finfo(jnp.float32)
  scale = min(max(bandwidth * bandwidth, float(limits.tiny)), float(limits.max))

  def around(index: jax.Array) -> jax.Array:
    product_C = directions.dot(centred_CxD, centred_CxD[index])
    square_distance_C = square_C[index] + square_C - 2 * product_C
    kernel_C = jnp.clip(1 - square_distance_C / scale, 0.0, 1.0)
    kernel_C = jnp.where(jnp.arange(num_points) == index, 1.0, kernel_C)
    # The nearest points are those of the largest kernel.
    return jnp.sum(jax.lax.top_k(jnp.where(counts, kernel_C, 0.0), num)[0])

  rows = min(num_points, max(1, _CHUNK // num_points))
  density_C = jax.lax.map(around, jnp.arange(num_points), batch_size=rows)
  return jnp.maximum(density_C, 1.0)


def within_float32(x: jax.Array) -> jax.Array:
  """Returns bool[...], which vectors [..., D] are finite and have squares that do not overflow.

  Example:
    >>> within_float32(jnp.array([[3.0], [jnp.inf], [1e30]])).tolist()
    [True, False, False]
  """
  return jnp.sum(x.astype(jnp.float32) ** 2, axis=-1) < math.ldexp(1.0, 120)


def _around_mean(
  points_CxD: jax.Array, counts_C: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns the mean of the points that count, the points less it, and their squared norms.

  Embeddings share a direction; without it fewer digits of a distance cancel.
  """
  held_CxD = jnp.where(counts_C[:, None], points_CxD, 0.0)
  centre_D = jnp.sum(held_CxD, axis=0) / jnp.maximum(jnp.sum(counts_C), 1)
  centred_CxD = jnp.where(counts_C[:, None], points_CxD - centre_D, 0.0)
  return centre_D, centred_CxD, jnp.sum(centred_CxD**2, axis=-1)
