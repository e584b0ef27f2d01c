"""Representatives: each rule in float64, one row at a time, and the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies.selection.representatives import choose_representatives

N, D, K, COUNT = 40, 3, 5, 4
RULES = ["random", "nearest", "farthest", "mixed"]
KEY = jax.random.key(0)
JITTED = jax.jit(choose_representatives, static_argnums=(2, 3, 4))


def choose(x, cluster, rule, key=KEY):
  found = JITTED(jnp.asarray(x, jnp.float32), jnp.asarray(cluster), K, COUNT, rule, key)
  assert found.shape == (K, COUNT)
  assert found.dtype == jnp.int32
  return np.asarray(found)


def reference(x, cluster, rule):
  """The rule in float64, and by how much the closest choice was made."""
  expected, margin = np.full((K, COUNT), -1), 1.0
  for j in range(K):
    rows = [i for i in range(N) if cluster[i] == j and np.isfinite(x[i]).all()]
    mean = np.mean([x[i].astype(np.float64) for i in rows], axis=0) if rows else None
    distance = {i: np.linalg.norm(x[i] - mean) for i in rows}
    for n in range(min(COUNT, len(rows))):
      far = rule == "farthest" or (rule == "mixed" and n % 2 == 1)
      order = sorted(distance, key=lambda i, d=distance, far=far: (-d[i] if far else d[i], i))
      if len(order) > 1:
        margin = min(margin, abs(distance[order[0]] - distance[order[1]]))
      expected[j, n] = order[0]
      del distance[order[0]]
  return expected, margin


@pytest.mark.parametrize("rule", RULES[1:])
def test_agrees_with_the_rule(rule):
  compared = 0
  for seed in range(30):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, D)) * 10.0 ** rng.integers(-3, 4) + 5 * (seed % 2)
    x = x.astype(np.float32)
    x[rng.random(N) < 0.1] = np.nan
    cluster = rng.choice([-1, 0, 1, 1, 1, 2, 4], N)  # 3 is empty
    expected, margin = reference(x, cluster, rule)
    if margin > 1e-4 * np.nanmax(np.abs(x)):
      np.testing.assert_array_equal(choose(x, cluster, rule), expected)
      compared += 1
  assert compared >= 15


@pytest.mark.parametrize("rule", RULES)
def test_distinct_rows_of_the_cluster(rule):
  for seed in range(10):
    rng = np.random.default_rng(seed)
    cluster = rng.choice([-1, 0, 1, 1, 1, 1, 1, 4], N)
    found = choose(rng.normal(size=(N, D)), cluster, rule, jax.random.key(seed))
    for j in range(K):
      size = np.sum(cluster == j)
      chosen = found[j][found[j] >= 0]
      assert len(set(chosen)) == min(size, COUNT) == len(chosen)
      assert np.all(cluster[chosen] == j)
      assert np.all(found[j, len(chosen) :] == -1)


@pytest.mark.parametrize(
  ("rule", "expected"),
  [
    ("nearest", [2, 3, 0, 1]),
    ("farthest", [0, 1, 4, 5]),
    ("mixed", [2, 0, 3, 1]),
  ],
)
def test_ties_go_to_the_lower_index(rule, expected):
  x, cluster = np.zeros((N, D)), np.full(N, -1)
  x[:6, 0] = [-1, 1, 0, 0, 1, -1]
  cluster[:6] = 3
  assert choose(x, cluster, rule)[3].tolist() == expected


@pytest.mark.parametrize("rule", RULES[1:])
def test_equal_rows_are_taken_in_order(rule):
  cluster = np.repeat(np.arange(K), N // K)
  found = choose(np.full((N, D), 0.3), cluster, rule)
  np.testing.assert_array_equal(found, 8 * np.arange(K)[:, None] + np.arange(COUNT))


def test_random_representatives_are_uniform_and_of_the_key():
  """Each of six rows is first a sixth of the time, and among the four in two thirds."""
  cluster = np.where(np.arange(N) < 6, 2, -1)
  keys = jax.random.split(KEY, 600)
  draw = lambda key: choose_representatives(jnp.zeros((N, 0)), cluster, K, COUNT, "random", key)
  found = np.asarray(jax.jit(jax.vmap(draw))(keys))[:, 2]
  first, chosen = np.bincount(found[:, 0], minlength=6), np.bincount(found.ravel(), minlength=6)
  deviation = np.sqrt(600 * 1 / 6 * 5 / 6), np.sqrt(600 * 2 / 3 * 1 / 3)
  assert np.all(np.abs(first - 100) < 4 * deviation[0])
  assert np.all(np.abs(chosen - 400) < 4 * deviation[1])
  np.testing.assert_array_equal(found[0], draw(keys[0])[2])


@pytest.mark.parametrize(
  "argument", [{"k": 0}, {"count": 0}, {"count": 1.5}, {"rule": "nearby"}]
)
def test_rejects(argument):
  given = {"k": 2, "count": 3, "rule": "mixed", "key": KEY} | argument
  with pytest.raises(ValueError, match=next(iter(argument))):
    choose_representatives(jnp.zeros((4, 2)), jnp.zeros(4, jnp.int32), **given)
