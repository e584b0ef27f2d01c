"""TSDS against a plain float64 loop over its events; the edges; what duplicates share."""

import functools
import inspect

import jax
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec, TargetStats
from jdc.policies.neighbours import Neighbours
from jdc.policies.selection import tsds
from jdc.policies.selection.transport import sum_by_index, transport

KEY = jax.random.key(0)
M, C, D = 5, 80, 4
spec_of = lambda size: RunSpec(
  size, 1, ("web",), (size,), (1.0,), sweep_size=size, num_targets=M, embedding_size=D
)


def transport_reference(distance, index, density, alpha, c, size):
  """The equations as a loop over events; p and the smallest margin of a choice it made."""
  rows = [(d[n >= 0], n[n >= 0]) for d, n in zip(distance, index, strict=True)]
  rows = [(d, n) for d, n in rows if len(n)]
  num, p = len(rows), np.zeros(size)
  reach = [np.cumsum(1 / density[n]) for _, n in rows]
  events = sorted((reach[j][k], k, j) for j in range(num) for k in range(len(rows[j][1]) - 1))
  if not events:
    for _, n in rows:
      p[n[0]] += 1 / num
    return p, np.inf
  cost, last, margin, limit = np.zeros(num), np.zeros(num, int), np.inf, (1 - alpha) * num
  for place, (s, k, j) in enumerate(events):  # noqa: B007
    d, n = rows[j]
    cost[j] = d[k + 1] * s - np.sum(d[: k + 1] / density[n[: k + 1]])
    total = alpha / c * cost.sum()
    margin = min(margin, abs(total - limit) if limit else np.inf)
    if total >= limit:
      break
    last[j] = k
  around = np.array([event[0] for event in events[max(place - 1, 0) : place + 2]])
  gaps = np.diff(around)
  margin = min(margin, np.min(np.where(gaps == 0, np.inf, gaps), initial=np.inf))
  for j, (_, n) in enumerate(rows):
    mass = 1 / (num * s * density[n[: last[j] + 1]])
    np.add.at(p, n[: last[j] + 1], mass)
    p[n[last[j] + 1]] += max(1 / num - mass.sum(), 0)
  return p / p.sum(), margin


def reference(pool, target, real, *, alpha, c, sigma, neighbours, kde_neighbours, normalise):
  """p f64[C], and the smallest margin of a choice."""
  usable = np.isfinite(pool).all(1) & real
  pool = np.where(usable[:, None], pool, 0).astype(np.float64)
  target = target[np.isfinite(target).all(1)].astype(np.float64)
  if normalise:
    pool = pool / np.maximum(np.linalg.norm(pool, axis=1, keepdims=True), 1e-30)
    target = target / np.linalg.norm(target, axis=1, keepdims=True)
  bound = max(len(pool) // 10, 1)
  num, num_kde = min(neighbours, bound, usable.sum()), min(kde_neighbours, bound)
  distance = np.linalg.norm(target[:, None] - pool, axis=-1)
  distance[:, ~usable] = np.inf
  order = np.argsort(distance, axis=1, kind="stable")
  ordered = np.take_along_axis(distance, order, axis=1)
  density = np.ones(len(pool))
  found = np.unique(order[:, :num])
  if sigma:
    for row in found:
      square = np.sum((pool[found] - pool[row]) ** 2, axis=1)
      density[row] = np.sum(np.maximum(1 - np.sort(square)[:num_kde] / sigma**2, 0))
  p, margin = transport_reference(
    ordered[:, :num], order[:, :num], density, alpha, c, len(pool)
  )
  gaps = np.diff(ordered[:, : min(num + 1, usable.sum())])
  return p, min(margin, np.min(np.where(gaps == 0, np.inf, gaps), initial=np.inf))


@functools.cache
def decider(size, **arguments):
  """Returns (pool, target, ids) -> decision, through `score`, compiled once."""
  policy = tsds(**arguments)
  _, state = policy.init(spec_of(size), KEY)

  @jax.jit
  def update(pool, target, ids):
    score = policy.score(ExampleStats(embedding=pool), state)
    of_target = TargetStats(embedding=target)
    stats = ExampleStats(example_id=ids, score=score, target=of_target)
    return policy.update(stats, state)[0]

  return lambda pool, target, ids=None: update(
    np.float32(pool), np.float32(target), np.int32(np.arange(size) if ids is None else ids)
  )


jitted = jax.jit(transport)
DEFAULTS = {
  name: parameter.default
  for name, parameter in inspect.signature(tsds).parameters.items()
  if name in ("alpha", "c", "sigma", "neighbours", "kde_neighbours", "normalise")
}


STOPPING = {
  "alpha": 0.9, "c": 0.5, "sigma": 1.5, "neighbours": 6, "kde_neighbours": 3,
  "normalise": False,
}  # fmt: skip
TIED = {"sigma": 0.0, "alpha": 0.9, "c": 0.5}  # every event with those of the other queries


def random_case(seed, size=C):
  """Candidates with copies among them, some of them not finite or padding."""
  rng = np.random.default_rng(seed)
  pool, target = rng.normal(size=(size, D)), rng.normal(size=(M, D))
  pool[rng.integers(0, size, size // 8)] = pool[rng.integers(0, size)]
  pool[rng.random(size) < 0.1, 1] = rng.choice([np.nan, -np.inf])
  target[1:][rng.random(M - 1) < 0.2, 0] = np.nan
  ids = np.where(rng.random(size) < 0.1, -1, np.arange(size))
  return pool.astype(np.float32), target.astype(np.float32), ids


@pytest.mark.parametrize(
  ("size", "arguments"),
  [
    (C, {}),
    (C, STOPPING),
    (C, TIED),
    (19, {}),  # one neighbour
  ],
  ids=str,
)
def test_agrees_with_a_plain_loop(size, arguments):
  decide, compared, stopped = decider(size, **arguments), 0, set()
  for seed in range(40):
    pool, target, ids = random_case(seed, size)
    expected, margin = reference(pool, target, ids >= 0, **(DEFAULTS | arguments))
    decision = decide(pool, target, ids)
    metrics = {name: int(value) for name, value in decision.metrics.items()}
    bound = size // 10
    assert metrics == {
      "num_nonfinite": np.sum(~np.isfinite(pool).all(1) & (ids >= 0)),
      "num_nonfinite_targets": np.sum(~np.isfinite(target).all(1)),
      "num_eligible": np.isfinite(decision.logits).sum(),
      "num_neighbours": min(arguments.get("neighbours", bound), bound),
      "num_kde_neighbours": min(arguments.get("kde_neighbours", bound), bound),
    }
    if margin > 1e-4:
      p = np.exp(np.asarray(decision.logits, np.float64))
      np.testing.assert_allclose(p, expected, rtol=0, atol=1e-5 * expected.max())
      compared, stopped = compared + 1, stopped | {np.sum(expected > 0)}
  assert compared >= 15
  assert not arguments or len(stopped) > 3


def test_transport_agrees_with_a_plain_loop_whatever_stops_it():
  """Random distances, densities and lists of neighbours, for which alpha is not compiled."""
  size, num, compared = 40, 8, 0
  for seed in range(200):
    rng = np.random.default_rng(seed)
    distance = np.sort(rng.gamma(2.0, 1.0, (M, num))).astype(np.float32)
    index = np.stack([rng.permutation(size)[:num] for _ in range(M)]).astype(np.int32)
    density = rng.integers(1, 4, size) * rng.choice([1.0, 1.0, 1.37])
    valid = np.arange(num) < rng.integers(1, num + 1)
    valid = valid & (rng.random((M, 1)) < 0.8)
    index, distance = np.where(valid, index, -1), np.where(valid, distance, np.inf)
    alpha, c = rng.choice([0.0, 0.3, 0.7, 0.9, 1.0]), rng.choice([0.5, 2.0, 5.0])
    actual = jitted(Neighbours(distance, index), np.float32(density), alpha, c)
    if not valid.any():
      assert np.all(actual == 0)
      continue
    expected, margin = transport_reference(distance, index, density, alpha, c, size)
    if margin > 1e-4:
      np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * expected.max())
      compared += 1
  assert compared > 120


def test_puts_mass_on_the_cluster_of_the_queries():
  rng = np.random.default_rng(0)
  centres = np.eye(D)
  cluster_C = rng.integers(0, 4, C)
  pool = centres[cluster_C] + 0.1 * rng.normal(size=(C, D))
  for cluster in range(4):
    target = centres[cluster] + 0.1 * rng.normal(size=(M, D))
    p = np.exp(decider(C)(pool, target).logits)
    assert p[cluster_C == cluster].sum() > 0.99
  target = centres[[0, 0, 0, 1, 1]] + 0.1 * rng.normal(size=(M, D))
  p = np.exp(decider(C)(pool, target).logits)
  np.testing.assert_allclose([p[cluster_C == k].sum() for k in range(3)], [0.6, 0.4, 0])


def test_exact_duplicates_share_what_one_of_them_would_have():
  pool = -np.ones((C, D))
  alone, copies = 40, [3, 17, 18, 33, 70]
  pool[alone], pool[copies] = [1, 0.6, 0, 0], [1, -0.6, 0, 0]
  target = np.tile(np.eye(D)[0], (M, 1))
  p = np.exp(decider(C)(pool, target).logits)
  np.testing.assert_allclose(p[copies], 0.2 * p[alone], rtol=1e-5)
  assert p[alone] > 0.3
  p = np.exp(decider(C, **TIED)(pool, target).logits)
  np.testing.assert_allclose(p[copies], p[alone], rtol=1e-5)  # at sigma 0


def test_a_cost_that_meets_the_limit_stops_the_walk():
  """Costs 1, 3 and 6 of one query; alpha 1/2 stops it at the first of at least c."""
  index = np.where(np.arange(M)[:, None] == 2, np.arange(8), -1).astype(np.int32)
  distance = np.where(index >= 0, np.arange(8), np.inf).astype(np.float32)
  for c, reached in ((1.0, 1), (1.01, 2), (3.0, 2), (3.01, 3), (6.0, 3), (6.01, 4)):
    p = jitted(Neighbours(distance, index), np.ones(40, np.float32), 0.5, c)
    expected = np.where(np.arange(40) < reached, 1 / reached, 0)
    np.testing.assert_allclose(p, expected, rtol=1e-6)


def test_the_closer_alpha_is_to_one_the_fewer_rows_have_mass():
  rng = np.random.default_rng(0)
  distance = np.sort(rng.gamma(2.0, 1.0, (M, 8)), axis=1).astype(np.float32)
  index = np.arange(M * 8, dtype=np.int32).reshape(M, 8)
  found, density = Neighbours(distance, index), np.ones(M * 8, np.float32)
  plans = [jitted(found, density, alpha, 5.0) for alpha in (0.0, 0.5, 0.8, 1.0)]
  counts = [int(np.sum(plan > 0)) for plan in plans]
  assert counts == sorted(set(counts), reverse=True)
  assert counts[0] == M * 7  # what all have used up by the last events


def test_nothing_to_compare_leaves_no_row():
  pool, target = np.ones((C, D)), np.ones((M, D))
  for decision in (
    decider(C)(pool, np.full((M, D), np.nan)),
    decider(C)(np.full((C, D), np.inf), target),
    decider(C)(pool, target, np.full(C, -1)),
  ):
    assert np.all(decision.logits == -np.inf)
    assert decision.metrics["num_eligible"] == 0


def test_a_single_row_that_can_be_compared_has_all_mass():
  ids = np.where(np.arange(C) == 7, 7, -1)
  decision = decider(C)(np.ones((C, D)), np.eye(M, D) + 0.1, ids)
  assert decision.logits[7] == 0
  assert decision.metrics["num_eligible"] == 1


def test_rows_too_large_to_be_squared_are_left_out():
  pool, target, _ = random_case(0)
  pool = np.nan_to_num(pool, posinf=0, neginf=0)
  pool[:3] = 1e25
  decision = decider(C, **STOPPING)(pool, target)
  assert decision.metrics["num_nonfinite"] == 3
  assert np.all(decision.logits[:3] == -np.inf)
  assert not np.any(np.isnan(decision.logits))
  assert decider(C)(pool, target).metrics["num_nonfinite"] == 0  # of norm 1


def test_given_embeddings_decide_as_those_of_a_sweep(tmp_path):
  pool, target, _ = random_case(1)
  np.savez(tmp_path / "given.npz", pool=pool, target=target)
  policy = tsds(embeddings=str(tmp_path / "given.npz"))
  decision, state = policy.init(RunSpec(C, 1, ("web",), (C,), (1.0,)), KEY)
  expected = decider(C)(pool, target)
  np.testing.assert_allclose(decision.logits, expected.logits, rtol=1e-6)
  assert policy.update(ExampleStats(), state)[0] is state
  assert (policy.score, policy.observes) == (None, frozenset())


def test_sums_by_index():
  rng = np.random.default_rng(0)
  values, index = rng.normal(size=(9, 40)).astype(np.float32), rng.integers(-1, 20, (9, 40))
  index[index == 5] = 6
  expected = np.zeros(20)
  np.add.at(expected, index[index >= 0], values[index >= 0].astype(np.float64))
  actual = jax.jit(sum_by_index, static_argnums=2)(values, np.int32(index), 20)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize(
  "arguments",
  [
    {"alpha": 1.1},
    {"alpha": np.nan},
    {"c": 0.0},
    {"c": np.inf},
    {"sigma": -1.0},
    {"neighbours": 0},
    {"kde_neighbours": 1.5},
    {"normalise": 1},
    {"embedding": "hidden"},
    {"max_candidates": 0},
  ],
  ids=str,
)
def test_rejects(arguments):
  with pytest.raises(ValueError, match=next(iter(arguments))):
    tsds(**arguments)


def test_refuses_runs_that_do_not_fit():
  with pytest.raises(ValueError, match=r"sweep_size > 0.*num_targets > 0.*embedding_size > 0"):
    tsds().init(RunSpec(9, 1, ("web",), (9,), (1.0,)), KEY)
  with pytest.raises(ValueError, match="at most max_candidates 79, got 80"):
    tsds(max_candidates=79).init(spec_of(C), KEY)
