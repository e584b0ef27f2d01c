"""COINCIDE in float64 from the definitions; picks against exhaustive search; the edges."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.selection import coincide, mmd
from jdc.policies.selection.coincide import budgets
from jdc.policies.selection.kmeans import spherical_kmeans

N, D, K, COUNT = 70, 5, 6, 20
KEY = jax.random.key(0)
SPEC = RunSpec(N, 1, ("web",), (N,), (1.0,), embedding_size=D)
cluster = jax.jit(spherical_kmeans, static_argnums=2)


@functools.cache
def prepared(count=COUNT, clusters=K, **arguments):
  """Returns (embedding, ids) -> decision, compiled once."""
  policy = coincide(count, clusters, **arguments)
  state, prepare = policy.init(SPEC, KEY)[1], jax.jit(policy.prepare)

  def decide(embedding, ids=None):
    ids = jnp.arange(N) if ids is None else jnp.asarray(ids)
    stats = ExampleStats(example_id=ids, embedding=jnp.asarray(embedding, jnp.float32))
    decision, after = policy.update(ExampleStats(), prepare(stats, state))
    assert after.decision is decision
    return decision

  return decide


def unit(x):
  norm = np.linalg.norm(x, axis=-1, keepdims=True)
  return x / np.where(norm > 0, norm, 1)


def kernel(a, b):
  return np.exp(-np.sum((a[:, None] - b) ** 2, axis=-1))


def discrepancy(members, picked):
  """The squared MMD less A(C, C), from its definition."""
  return kernel(picked, picked).mean() - 2 * kernel(members, picked).mean()


def largest_remainder(p, n):
  """Counts, and the gap between the remainders that decide."""
  quota = p / p.sum() * n
  whole = np.floor(quota + 1e-12)
  left = int(n - whole.sum())
  rest = np.sort(quota - whole)[::-1]
  gap = rest[left - 1] - rest[left] if 0 < left < len(rest) else 1.0
  order = np.argsort(-(quota - whole), kind="stable")
  whole[order[:left]] += 1
  return whole.astype(int), gap


def reference_budgets(p, size, count):
  take, margin = np.zeros(len(size), int), 1.0
  count = min(count, size.sum())
  while take.sum() < count:
    room = take < size
    more, gap = largest_remainder(np.where(room, p, 0), count - take.sum())
    margin = min(margin, gap) if room.sum() > 1 else margin
    take = np.minimum(take + more, size)
  return take, margin


def reference(embedding, usable, tau):
  """Places of the rows that are picked, and the smallest margin of a choice."""
  f = unit(np.where(usable[:, None], embedding, 0).astype(np.float64))
  valid = jnp.asarray(usable)
  z = np.asarray(cluster(jnp.asarray(f, jnp.float32), valid, K, KEY))
  rows = [np.flatnonzero(z == k) for k in range(K)]
  size = np.array([len(r) for r in rows])
  centre = [unit(f[r].sum(axis=0)) for r in rows]
  exponent = np.full(K, -np.inf)
  for i in np.flatnonzero(size):
    others = [centre[i] @ centre[j] for j in np.flatnonzero(size) if j != i]
    pairs = [np.exp(-np.sum((f[p] - f[q]) ** 2)) for p, q in itertools.permutations(rows[i], 2)]
    density = np.mean(pairs) if pairs else 1.0
    exponent[i] = (np.mean(others) if others else 0.0) / (tau * density)
  p = np.exp(exponent - exponent.max())
  take, margin = reference_budgets(p / p.sum(), size, COUNT)
  turns = []
  for k in range(K):
    picked = []
    for m in range(take[k]):
      left = [r for r in rows[k] if r not in picked]
      value = [discrepancy(f[rows[k]], f[[*picked, r]]) for r in left]
      ordered = np.sort(value)
      # In the unit of sums of kernels, which is what is compared.
      gap = (ordered[1] - ordered[0]) * (m + 1) ** 2 if len(left) > 1 else 1.0
      margin, best = min(margin, gap), left[int(np.argmin(value))]
      turns.append(((m + 0.5) / take[k], k, best))
      picked.append(best)
  return [row for _, _, row in sorted(turns)], margin, size


def test_agrees_with_the_definitions():
  compared = 0
  for seed in range(20):
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(K, D))
    x = centre[rng.integers(0, K, N)] + rng.choice([0.2, 0.6]) * rng.normal(size=(N, D))
    x[rng.random(N) < 0.05] = np.nan
    x[0] *= seed % 3 > 0
    ids = np.where(rng.random(N) < 0.05, -1, np.arange(N))
    usable = np.isfinite(x).all(axis=1) & (ids >= 0)
    x = x.astype(np.float32)
    expected, margin, size = reference(x, usable, tau=1.0)
    decision = prepared()(x, ids)
    assert {name: int(value) for name, value in decision.metrics.items()} == {
      "num_nonfinite": np.sum((ids >= 0) & ~np.isfinite(x).all(axis=1)),
      "num_eligible": COUNT,
      "num_clusters": np.sum(size > 0),
    }
    if margin > 1e-4:
      places = np.full(N, -np.inf)
      places[expected] = -np.arange(COUNT) / COUNT
      np.testing.assert_allclose(decision.logits, places, rtol=1e-6)
      compared += 1
  assert compared >= 8


def grouped(x, z, k):
  return jax.jit(mmd.grouped, static_argnums=2)(
    jnp.asarray(x, jnp.float32), jnp.asarray(z, jnp.int32), k
  )


sums, picks, densities = jax.jit(mmd.kernel_sums), jax.jit(mmd.pick), jax.jit(mmd.density)


def test_densities_and_sums_over_many_blocks():
  """Clusters within a block, across blocks, of one row and of none."""
  rng = np.random.default_rng(0)
  sizes = [3, 300, 1, 0, 250, 40, 6]
  z = rng.permutation(np.repeat([*range(6), -1], sizes))
  x = unit(rng.normal(size=(len(z), D))).astype(np.float32)
  rows = grouped(x, z, 6)
  sum_P = sums(rows)
  pairs = kernel(x.astype(np.float64), x.astype(np.float64))
  pairs = np.where((z[:, None] == z) & (z >= 0), pairs, 0)
  np.fill_diagonal(pairs, 0)
  np.testing.assert_allclose(sum_P[: len(z)], pairs.sum(axis=1)[rows.row_N], rtol=1e-5)
  assert np.all(sum_P[600 - 6 :] == 0)
  mean = [pairs[z == k].sum() / max(n * (n - 1), 1) for k, n in enumerate(sizes[:6])]
  expected = np.where(np.array(sizes[:6]) > 1, mean, 1.0)
  np.testing.assert_allclose(densities(rows, sum_P), expected, rtol=1e-5)


def test_each_pick_is_the_best_one_and_the_first_the_best_of_all():
  """Exhaustively: of every row that could come next, and of subsets where greedy is optimal."""
  compared = 0
  for seed in range(60):
    rng = np.random.default_rng(seed)
    x = unit(rng.normal(size=(9, 3)) + rng.normal(size=3)).astype(np.float32)
    rows = grouped(x, np.repeat([1, 0], [7, 2]), 2)
    turn = np.asarray(picks(rows, sums(rows), jnp.array([0, 4])))
    members = x[:7].astype(np.float64)
    picked = [int(np.flatnonzero(turn == m)[0]) for m in range(4)]
    assert sorted(turn) == [-1] * 5 + [0, 1, 2, 3]
    for m in range(4):
      left = sorted(set(range(7)) - set(picked[:m]))
      value = [discrepancy(members, members[[*picked[:m], r]]) for r in left]
      ordered = np.sort(value) * (m + 1) ** 2
      if ordered[1] - ordered[0] > 1e-4:
        assert left[int(np.argmin(value))] == picked[m]
        compared += 1
      else:
        break
    subsets = itertools.combinations(range(7), 1)
    best = min(discrepancy(members, members[list(s)]) for s in subsets)
    np.testing.assert_allclose(discrepancy(members, members[picked[:1]]), best, rtol=1e-4)
  assert compared > 200


def test_picks_the_best_subset_of_a_cluster_of_groups():
  """Tight groups of one size around orthogonal centres: one row of each, the middle one."""
  x = np.repeat(np.eye(4, 8), 3, axis=0)
  x[0::3] += 0.2 * np.eye(4, 8, 4)  # to both sides of the middle one
  x[2::3] -= 0.2 * np.eye(4, 8, 4)
  x = unit(x)
  rows = grouped(x, np.zeros(12), 1)
  turn = np.asarray(picks(rows, sums(rows), jnp.array([4])))
  best = min(itertools.combinations(range(12), 4), key=lambda s: discrepancy(x, x[list(s)]))
  assert set(np.flatnonzero(turn >= 0)) == set(best) == {1, 4, 7, 10}


@pytest.mark.parametrize("seed", range(5))
def test_budgets_agree_with_largest_remainders_and_meet_the_count(seed):
  rng = np.random.default_rng(seed)
  decide, compared = jax.jit(budgets), 0
  for _ in range(60):
    exponent = np.float32(rng.normal(size=8) * rng.choice([0.1, 2.0, 40.0]))
    size = rng.integers(0, 12, 8)
    exponent = np.where(size > 0, exponent, -np.inf).astype(np.float32)
    count = int(rng.integers(1, 60))
    take = np.asarray(decide(jnp.asarray(exponent), jnp.asarray(size, jnp.int32), count))
    assert take.sum() == min(count, size.sum())
    assert np.all(take <= size)
    p = np.exp(exponent.astype(np.float64) - exponent.max(initial=-1e30))
    expected, margin = reference_budgets(np.maximum(p, (size > 0) * 1e-250), size, count)
    if margin > 1e-4:
      assert take.tolist() == expected.tolist()
      compared += 1
  assert compared > 20


def test_takes_more_where_others_are_near_and_less_where_rows_are_dense():
  """Of three loose clusters and a dense one, most rows come from the two that are alike."""
  rng = np.random.default_rng(0)
  centre = unit(np.array([[1, 0.9, 0, 0, 0], [0.9, 1, 0, 0, 0], [0, 0, 1, 0, 0.0]]))
  z = np.repeat(np.arange(3), [20, 20, 30])
  x = centre[z] + np.where(z == 2, 0.01, 0.15)[:, None] * rng.normal(size=(N, D))
  picked = np.isfinite(prepared(count=COUNT, clusters=3, tau=0.3)(x).logits)
  share = np.bincount(z, picked, minlength=3) / picked.sum()
  assert share[0] + share[1] > 0.9


def test_clusters_pick_in_turns():
  """At any time, each has made the same part of its picks, within a half and the ties."""
  rng = np.random.default_rng(0)
  x = np.float32(np.eye(D)[np.arange(N) % 4] + 0.2 * rng.normal(size=(N, D)))
  z = np.asarray(cluster(jnp.asarray(unit(x)), jnp.ones(N, bool), K, KEY))
  order = np.argsort(-prepared()(x).logits)[:COUNT]
  take = np.bincount(z[order], minlength=K)
  for n in range(1, COUNT):
    made = np.bincount(z[order[:n]], minlength=K)
    assert np.all(np.abs(made - take * n / COUNT) <= 0.5 + take * K / (2 * COUNT))


def test_too_few_finite_rows_are_all_selected():
  x = np.full((N, D), np.nan)
  decision = prepared()(x)
  assert np.all(decision.logits == -np.inf)
  x[:3] = np.eye(D)[:3]
  decision = prepared()(x)
  assert np.isfinite(decision.logits).nonzero()[0].tolist() == [0, 1, 2]
  assert decision.metrics["num_nonfinite"] == N - 3
  same = prepared()(np.ones((N, D)))
  assert np.argsort(-same.logits, stable=True)[:COUNT].tolist() == list(range(COUNT))


def test_given_embeddings_decide_as_those_of_the_model(tmp_path):
  x = np.random.default_rng(3).normal(size=(N, D)).astype(np.float32)
  np.savez(tmp_path / "given.npz", pool=x)
  policy = coincide(COUNT, K, embeddings=str(tmp_path / "given.npz"))
  decision, state = policy.init(SPEC._replace(embedding_size=0), KEY)
  np.testing.assert_array_equal(decision.logits, prepared()(x).logits)
  assert policy.prepare is None
  assert policy.update(ExampleStats(), state)[1] is state
  with pytest.raises(ValueError, match="must hold num_examples 9 rows, got 70"):
    coincide(2, 2, embeddings=str(tmp_path / "given.npz")).init(
      RunSpec(9, 1, ("web",), (9,), (1.0,)), KEY
    )


@pytest.mark.parametrize(
  "arguments",
  [
    {"count": 0},
    {"clusters": 0},
    {"tau": 0.0},
    {"tau": np.inf},
    {"embedding": "hidden"},
    {"embeddings": 3},
    {"embeddings": "missing.npz"},
    {"max_candidates": 0},
  ],
  ids=str,
)
def test_rejects(arguments):
  with pytest.raises(ValueError, match=next(iter(arguments))):
    coincide(**{"count": 3} | arguments)


def test_refuses_runs_that_do_not_fit():
  with pytest.raises(ValueError, match=r"above max_candidates 69.*count 80.*clusters 90"):
    coincide(80, 90, max_candidates=69).init(SPEC, KEY)
  with pytest.raises(ValueError, match="embedding_size > 0, got 0"):
    coincide(3).init(SPEC._replace(embedding_size=0), KEY)
