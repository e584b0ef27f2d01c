"""Clusterings: their rules in float64, one row at a time, the edges, and blobs they recover."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies.selection import groups
from jdc.policies.selection.clustering import CLUSTERINGS, Clustering
from jdc.policies.selection.kmeans import kmeans

KEY = jax.random.key(0)
JITTED = {name: jax.jit(f, static_argnums=2) for name, f in CLUSTERINGS.items()}
N, D, K = 40, 3, 3  # of nearly all tests, which compile once
MARGIN = 1e-4


def clusters(name, x, k, valid=None, key=KEY):
  valid = np.ones(len(x), bool) if valid is None else valid
  found = JITTED[name](jnp.asarray(x, jnp.float32), jnp.asarray(valid), k, key)
  assert found.shape == (len(x),)
  assert found.dtype == jnp.int32
  return np.asarray(found)


def unit(x):
  norm = np.linalg.norm(x)
  return x / norm if norm > 0 else x


def shuffled(key, usable):
  """The usable rows in the order of random numbers."""
  bits = np.asarray(jax.random.bits(key, len(usable)))
  return [int(i) for i in np.argsort(bits, kind="stable") if usable[i]]


def lloyd(x, usable, k, key, spherical):
  """The rule of the docstring in float64, and by how much its closest decision was made."""
  x = np.array([unit(row) if spherical else row for row in x.astype(np.float64)])
  rows = [i for i in range(len(x)) if usable[i]]
  seeds = [i for i in rows if not spherical or x[i].any()]
  order = shuffled(key, usable)
  first = [i for i in order if i in seeds][:k]
  centre, exists = np.zeros((k, x.shape[1])), np.arange(k) < len(first)
  centre[: len(first)] = x[first]
  scale, margin = max(x[i] @ x[i] for i in rows), 1.0

  for iteration in range(21):
    z = np.full(len(x), -1)
    for i in rows:
      cost = -centre @ x[i] if spherical else np.sum((x[i] - centre) ** 2, axis=1)
      cost = np.where(exists, cost, np.inf)
      z[i] = np.argmin(cost)
      # Equal centres tie exactly, whatever the precision.
      margin = min([margin, *(d for d in cost - cost[z[i]] if d > 0)])
    if iteration == 20:
      return z, margin
    far = {i: np.sum((x[i] - centre[z[i]]) ** 2) for i in seeds}
    outer = sorted(far, key=lambda i: (-far[i], i))
    empty = [j for j in range(k) if j not in z]
    for n in range(min(len(empty), len(outer) - 1)):
      margin = min(margin, far[outer[n]] - far[outer[n + 1]])
    for j in range(k):
      members = [x[i] for i in rows if z[i] == j]
      if members:
        centre[j] = unit(sum(members)) if spherical else sum(members) / len(members)
      else:
        n = empty.index(j)
        exists[j] = n < len(outer) and far[outer[n]] > 1e-10 * scale
        if exists[j]:
          centre[j] = x[outer[n]]
      exists[j] |= len(members) > 0


def farthest_first(x, usable, k, key):
  x = np.asarray(x, np.float64)
  rows, z = [i for i in range(len(x)) if usable[i]], np.full(len(x), -1)
  best, margin, centre = dict.fromkeys(rows, np.inf), 1.0, shuffled(key, usable)[0]
  for j in range(k):
    for i in rows:
      distance = np.sum((x[i] - x[centre]) ** 2)
      if distance < best[i]:
        margin = min(margin, best[i] - distance)
        best[i], z[i] = distance, j
    centre = min(rows, key=lambda i: (-best[i], i))
    if j < k - 1:
      margin = min(margin, *(best[centre] - best[i] for i in rows if i != centre), 1.0)
  return z, margin


def sign_lsh(x, usable, k, key):
  bits = int(np.ceil(np.log2(k)))
  plane = np.asarray(jax.random.normal(key, (x.shape[1], bits)), np.float64)
  z, margin = np.full(len(x), -1), 1.0
  for i in range(len(x)):
    if usable[i]:
      products = [x[i].astype(np.float64) @ plane[:, b] for b in range(bits)]
      z[i] = sum(2**b for b, product in enumerate(products) if product > 0) % k
      margin = min([margin, *(abs(product) for product in products if product != 0)])
  return z, margin


def random_partition(x, usable, k, key):
  z = np.full(len(x), -1)
  for turn, i in enumerate(shuffled(key, usable)):
    z[i] = turn % k
  return z, 1.0


REFERENCES = {
  "kmeans": lambda *args: lloyd(*args, spherical=False),
  "spherical_kmeans": lambda *args: lloyd(*args, spherical=True),
  "farthest_first": farthest_first,
  "sign_lsh": sign_lsh,
  "random_partition": random_partition,
}


@pytest.mark.parametrize("name", CLUSTERINGS)
def test_agrees_with_the_rule(name):
  compared = 0
  for seed in range(16):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, D)) * rng.uniform(0.1, 3.0, (N, 1))
    x = (x + 2 * (seed % 3 == 0)).astype(np.float32)  # what all rows have in common
    valid = rng.permutation(N) < (N, 25, 6, 3)[seed % 4]
    x[rng.permutation(N) < (0, 0, 15)[seed % 3]] = 0.0
    x[rng.permutation(N) < seed % 4] = np.nan
    usable = valid & np.isfinite(x).all(axis=1)
    key = jax.random.key(seed)
    expected, margin = REFERENCES[name](x, usable, K, key) if usable.any() else (-usable, 1.0)
    if margin > MARGIN:
      np.testing.assert_array_equal(clusters(name, x, K, valid, key), expected)
      compared += 1
  assert compared >= 12


@pytest.mark.parametrize("name", ["kmeans", "spherical_kmeans"])
def test_empty_clusters_move_to_the_farthest_rows(name):
  """Most of the first centres coincide, so that clusters begin empty."""
  compared = 0
  for seed in range(12):
    rng = np.random.default_rng(seed)
    x = np.ones((N, D), np.float32)
    x[30:] = rng.normal(size=(10, D)) * 2
    key, usable = jax.random.key(seed), np.ones(N, bool)
    found = clusters(name, x, K, key=key)
    assert len(set(found)) == K
    assert len(set(found[:30])) == 1
    expected, margin = REFERENCES[name](x, usable, K, key)
    if margin > MARGIN and sum(i < 30 for i in shuffled(key, usable)[:K]) >= 2:
      np.testing.assert_array_equal(found, expected)
      compared += 1
  assert compared >= 6


@pytest.mark.parametrize("name", CLUSTERINGS)
def test_one_cluster_holds_all(name):
  x = np.random.default_rng(0).normal(size=(9, 2))
  x[4] = np.inf
  expected = [0, 0, 0, 0, -1, 0, 0, -1, 0]
  assert clusters(name, x, 1, np.arange(9) != 7).tolist() == expected


@pytest.mark.parametrize("name", ["kmeans", "spherical_kmeans", "farthest_first"])
def test_as_many_clusters_as_rows(name):
  x, few = np.random.default_rng(0).normal(size=(N, D)), np.isin(np.arange(N), [4, 9, 17])
  assert sorted(clusters(name, x, K, few)[few]) == [0, 1, 2]
  if name == "kmeans":
    assert sorted(clusters(name, x[:7], 7)) == list(range(7))


@pytest.mark.parametrize("name", ["kmeans", "spherical_kmeans", "farthest_first"])
def test_equal_rows_share_a_cluster_and_spare_clusters_stay_empty(name):
  for seed in range(6):
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    x = rng.normal(size=(2, D)).astype(np.float32)[np.arange(N) % 2]
    found = clusters(name, x, K, key=key)
    assert found[0] != found[1]
    np.testing.assert_array_equal(found, found[np.arange(N) % 2])
    np.testing.assert_array_equal(found, REFERENCES[name](x, np.ones(N, bool), K, key)[0])


@pytest.mark.parametrize("name", CLUSTERINGS)
def test_rows_that_are_not_usable_change_nothing(name):
  """Whatever they hold: their cluster is -1, and that of the others is as without them."""
  rng = np.random.default_rng(2)
  x, valid = rng.normal(size=(N, D)), np.arange(N) % 3 != 1
  expected = clusters(name, x, K, valid)
  assert set(expected[~valid]) == {-1}
  assert expected[valid].min() >= 0
  for value in (0.0, 3e38, np.nan, -np.inf):
    x[~valid] = value
    np.testing.assert_array_equal(clusters(name, x, K, valid), expected)
  assert set(clusters(name, x * np.nan, K)) == {-1}
  assert set(clusters(name, x, K, np.zeros(N, bool))) == {-1}


@pytest.mark.parametrize("name", CLUSTERINGS)
def test_zero_rows_and_extreme_scales(name):
  x = np.random.default_rng(3).normal(size=(N, D))
  for zero in (np.arange(N) < 5, np.ones(N, bool)):
    found = clusters(name, np.where(zero[:, None], 0.0, x), K)
    assert set(found) <= {0, 1, 2}
    if name != "random_partition":
      assert len(set(found[zero])) == 1
  expected = clusters(name, x, K)
  for scale in (2.0**120, 2.0**-100):
    np.testing.assert_array_equal(clusters(name, x * scale, K), expected)


@pytest.mark.parametrize("name", CLUSTERINGS)
def test_a_function_of_the_key(name):
  x = np.random.default_rng(4).normal(size=(N, D))
  found = [clusters(name, x, K, key=jax.random.key(seed)) for seed in (0, 0, 1)]
  np.testing.assert_array_equal(found[0], found[1])
  assert np.any(found[0] != found[2])


def test_blocks_change_nothing(monkeypatch):
  """Products are formed in blocks, of which the last is smaller."""
  x = np.random.default_rng(5).normal(size=(N, D))
  args = jnp.asarray(x, jnp.float32), jnp.ones(N, bool)
  monkeypatch.setattr(groups, "_PRODUCTS", 2 * N)  # two clusters, and 26 rows, at a time
  found = jax.jit(lambda *args: kmeans(*args, K, KEY))(*args)
  np.testing.assert_array_equal(found, clusters("kmeans", x, K))


@pytest.mark.parametrize("name", ["kmeans", "farthest_first"])
def test_memory_is_that_of_a_block(name):
  """Neither N x N, nor N x k x D, nor even N x k numbers exist at once."""
  size, width, k = 1 << 18, 8, 1 << 12
  pool = jnp.zeros((size, width)), jnp.ones(size, bool)
  compiled = JITTED[name].lower(*pool, k, KEY).compile()
  temporary = compiled.memory_analysis().temp_size_in_bytes
  assert temporary < 4 * (8 * size * width + 4 * groups._PRODUCTS) < size * k / 4


@pytest.mark.parametrize("name", ["kmeans", "spherical_kmeans", "farthest_first"])
def test_recovers_blobs(name):
  """Three separated blobs; the iterations need one of the first centres in each."""
  recovered = 0
  for seed in range(20):
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    blob = rng.permutation(np.repeat([0, 1, 2], [10, 12, 18]))
    x = np.eye(D)[blob] + 0.05 * rng.normal(size=(N, D))
    begun = {blob[i] for i in shuffled(key, np.ones(N, bool))[:K]}
    if name == "farthest_first" or len(begun) == K:
      found = clusters(name, x, K, key=key)
      assert len(set(zip(blob.tolist(), found.tolist(), strict=True))) == K
      recovered += 1
  assert recovered >= 4


def test_rows_at_a_small_angle_often_share_a_bucket():
  rng, same, other = np.random.default_rng(0), [], []
  for seed in range(30):
    x = rng.normal(size=(N, D))
    x[1::2] = 2 * x[::2] + 0.05 * rng.normal(size=(N // 2, D))
    z = clusters("sign_lsh", x, K, key=jax.random.key(seed))
    same.append(np.mean(z[::2] == z[1::2]))
    other.append(np.mean(z[::2] == np.roll(z[1::2], 1)))
  assert np.mean(same) > 0.95
  assert np.mean(other) < 0.5


def test_parts_of_the_random_partition_have_equal_sizes():
  valid = np.arange(N) % 7 != 0
  z = clusters("random_partition", np.zeros((N, D)), K, valid)
  assert sorted(np.bincount(z[valid])) == [11, 11, 12]


@pytest.mark.parametrize("k", [0, 6])
def test_rejects(k):
  for cluster in CLUSTERINGS.values():
    with pytest.raises(ValueError, match=rf"k must be in \[1, 5\].*{k}"):
      cluster(jnp.zeros((5, 2)), jnp.ones(5, bool), k, KEY)


def test_the_table_names_them_all():
  assert tuple(CLUSTERINGS) == get_args(Clustering)
