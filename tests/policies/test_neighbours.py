"""Neighbours and densities against all pairs in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import neighbours

M, C, D, K = 5, 60, 7, 9


def all_distances(a, b):
  return np.linalg.norm(a[:, None].astype(np.float64) - b.astype(np.float64), axis=-1)


def reference(queries, query_counts, points, counts, num):
  distance = np.where(counts, all_distances(queries, points), np.inf)
  distance[~query_counts] = np.inf
  order = np.argsort(distance, axis=1, kind="stable")[:, :num]
  distance = np.take_along_axis(distance, order, axis=1)
  return distance, np.where(np.isfinite(distance), order, -1)


def case(seed, shift=0.0):
  """Random points, some of them left out, some exact copies of others."""
  rng = np.random.default_rng(seed)
  points = (rng.normal(size=(C, D)) + shift).astype(np.float32)
  points[rng.integers(0, C, 6)] = points[3]
  queries = (rng.normal(size=(M, D)) + shift).astype(np.float32)
  queries[0] = points[3]
  return queries, rng.random(M) < 0.8, points, rng.random(C) < 0.9


@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_nearest_are_those_of_all_pairs(shift, monkeypatch):
  for chunk in (2**24, 150):  # at once; two queries at a time, and one left over
    monkeypatch.setattr(neighbours, "_CHUNK", chunk)
    neighbours.nearest.clear_cache()
    compared = 0
    for seed in range(20):
      arrays = case(seed, shift)
      distance, index = reference(*arrays, K + 1)
      found = neighbours.nearest(*arrays, K)
      np.testing.assert_allclose(found.distance_MxK, distance[:, :K], rtol=1e-5, atol=1e-5)
      with np.errstate(invalid="ignore"):
        gaps = np.diff(distance)
      if np.nanmin(np.where(gaps == 0, np.inf, gaps)) > 1e-4:  # equal ones are copies
        np.testing.assert_array_equal(found.index_MxK, index[:, :K])
        compared += 1
    assert compared > 8


def test_copies_come_in_the_order_of_their_index():
  points = np.ones((6, 3), np.float32)
  found = neighbours.nearest(points[:1], np.ones(1, bool), points, np.arange(6) != 1, 6)
  assert found.index_MxK.tolist() == [[0, 2, 3, 4, 5, -1]]
  assert found.distance_MxK.tolist() == [[0.0] * 5 + [np.inf]]


@pytest.mark.parametrize(
  ("bandwidth", "num"), [(0.0, 4), (1e-30, C), (2.5, 1), (2.5, 4), (2.5, C), (1e30, 4)]
)
def test_densities_are_those_of_all_pairs(bandwidth, num, monkeypatch):
  monkeypatch.setattr(neighbours, "_CHUNK", 7 * C)
  neighbours.density.clear_cache()
  for seed in range(3):
    _, _, points, counts = case(seed)
    square = all_distances(points, points) ** 2
    kernel = np.maximum(1 - square / bandwidth**2, 0) if bandwidth else np.eye(C)
    kernel = -np.sort(-np.where(counts, kernel, 0), axis=1)
    expected = kernel[:, :num].sum(1)[counts]
    actual = neighbours.density(points, counts, bandwidth, num)
    np.testing.assert_allclose(actual[counts], expected, rtol=1e-5)


def test_no_matrix_of_all_pairs():
  """Peak memory of 20,000 points is far below that of their distances, 1.6 GB."""
  points, counts = jnp.zeros((20_000, 4)), jnp.ones(20_000, bool)
  density = neighbours.density.lower(points, counts, 1.0, 50)
  nearest = neighbours.nearest.lower(points, counts, points, counts, 50)
  for lowered in (density, nearest):
    memory = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 8 * 4 * 2**24


def test_too_large_to_be_squared():
  rows = jnp.array([[1e18, 1.0], [1e19, 0.0], [jnp.nan, 0.0], [0.0, 0.0], [-jnp.inf, 0.0]])
  assert neighbours.within_float32(rows).tolist() == [True, False, False, True, False]
