"""Tests of k-means by cosine, beside a plain program in float64."""

import numpy as np
import pytest

from jdc.prep.semantic import kmeans, vectors


def plain_lloyd(x, k, iterations):
  """The same rule, one row after the other."""
  centre, before = x[:k].copy(), None
  for iteration in range(1, iterations + 1):
    cluster = np.array([int(np.argmax(centre @ row)) for row in x])
    own = np.sum(x * centre[cluster], axis=1)
    sums = np.stack([x[cluster == j].sum(axis=0) for j in range(k)])
    norms = np.linalg.norm(sums, axis=1)
    centre = np.where(norms[:, None] > 1e-6, sums / np.maximum(norms, 1e-6)[:, None], centre)
    empty = [j for j in range(k) if not np.any(cluster == j)]
    if not empty and before is not None and np.array_equal(cluster, before):
      break
    if empty and iteration < iterations:
      for j, row in zip(empty, np.argsort(own, kind="stable"), strict=False):
        centre[j] = x[row]
    before = cluster
  return centre, iteration, own.mean()


def unit_rows(seed, n, width, groups=12, noise=0.6):
  rng = np.random.default_rng(seed)
  centres = rng.standard_normal((groups, width))
  rows = centres[rng.integers(groups, size=n)] + noise * rng.standard_normal((n, width))
  return vectors.unit(rows)


@pytest.mark.parametrize(("n", "k"), [(300, 7), (2048, 5), (2100, 40), (50, 50), (9, 1)])
def test_centres_are_those_of_a_plain_program(n, k):
  x = unit_rows(n, n, 16)
  centre, iterations, mean = plain_lloyd(x.astype(np.float64), k, 20)
  found = kmeans.fit(x, k)
  assert found.iterations == iterations
  np.testing.assert_allclose(found.centre, centre, atol=2e-5)
  assert abs(found.mean_cosine - mean) < 1e-5
  cluster, cosine = kmeans.assign([x[: n // 3], x[n // 3 :]], found.centre)
  exact = x.astype(np.float64) @ centre.T
  np.testing.assert_allclose(cosine, exact.max(axis=1), atol=2e-5)
  np.testing.assert_allclose(exact[np.arange(n), cluster], exact.max(axis=1), atol=2e-5)


def test_the_centre_of_an_empty_cluster_moves_to_what_is_far():
  x = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 2, 2]]
  found = kmeans.fit(x, 3)
  assert found.empty == 0
  assert found.mean_cosine == 1
  assert sorted(found.centre.argmax(axis=1).tolist()) == [0, 1, 2]


def test_fewer_distinct_rows_than_clusters_leave_clusters_empty():
  x = np.eye(2, dtype=np.float32)[[0, 1, 0, 1, 1]]
  found = kmeans.fit(x, 4)
  assert found.empty == 2
  assert np.isfinite(found.centre).all()
  cluster, cosine = kmeans.assign([x], found.centre)
  assert len(set(cluster.tolist())) == 2
  np.testing.assert_allclose(cosine, 1, atol=1e-6)


def test_opposite_rows_do_not_make_a_centre_vanish():
  x = np.array([[1, 0], [-1, 0]], np.float32)
  assert np.isfinite(kmeans.fit(x, 1).centre).all()
  np.testing.assert_allclose(np.linalg.norm(kmeans.fit(x, 1).centre, axis=1), 1)


def test_what_is_out_of_range_is_named():
  x = np.eye(3, dtype=np.float32)
  with pytest.raises(ValueError, match=r"k must be in \[1, 3\].* got 4 and 20"):
    kmeans.fit(x, 4)
  with pytest.raises(ValueError, match="iterations 1 or more, got 1 and 0"):
    kmeans.fit(x, 1, iterations=0)


def test_clusters_do_not_depend_on_blocks_or_on_what_else_is_in_one():
  x = unit_rows(3, 5000, 24)
  centre = kmeans.fit(x, 30).centre
  whole = kmeans.assign([x], centre)
  for parts in ([x[:1], x[1:4999], x[4999:]], [x[i : i + 700] for i in range(0, 5000, 700)]):
    for a, b in zip(kmeans.assign(parts, centre), whole, strict=True):
      np.testing.assert_array_equal(a, b)


def test_what_fills_a_block_counts_nowhere():
  x = unit_rows(5, 9, 4)
  (rows, count), zero = next(kmeans._blocks([x])), np.zeros((3, 4), np.float32)
  total, size, *_ = kmeans._step(rows, count, x[:3], zero, np.zeros(3, np.int32))
  assert (rows.shape, count, int(size.sum())) == ((kmeans.BLOCK, 4), 9, 9)
  np.testing.assert_allclose(np.asarray(total).sum(axis=0), x.sum(axis=0), atol=1e-5)
