"""InfoBatch: who is pruned, the expected weight, the edges, the behaviour."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.selection import infobatch

N = 40
SPEC = RunSpec(N, 1, ("all",), (N,), (1.0,), num_steps=100, steps_per_round=10)
POLICY = infobatch()
OBSERVE = jax.jit(POLICY.observe)


def begin(policy=POLICY, seed=0, size=N):
  return policy.init(SPEC._replace(num_examples=size), jax.random.key(seed))[1]


def after(losses, state=None, policy=POLICY, seed=0):
  """The state of a run that saw these losses of its rows, NaN where it saw none."""
  state = begin(policy, seed, len(losses)) if state is None else state
  ids = np.where(np.isnan(losses), -1, np.arange(len(losses)))
  stats = batch_of(ids, losses)
  return policy.observe(stats, state)


def batch_of(ids, losses):
  return ExampleStats(
    example_id=jnp.asarray(ids), loss=jnp.float32(losses), num_tokens=jnp.ones(len(ids), int)
  )


def at(step):
  return ExampleStats(step=jnp.int32(step))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.9])
def test_agrees_with_the_rule(ratio):
  policy = infobatch(ratio)
  observe, update = jax.jit(policy.observe), jax.jit(policy.update)
  for seed in range(20):
    rng, last, state = np.random.default_rng(seed), np.full(N, np.nan), begin(policy, seed)
    for _ in range(rng.integers(1, 6)):
      ids, loss = rng.integers(-1, N, 8), rng.gamma(4.0, 0.7, 8)
      ids[0] = 3 * seed % N
      state = observe(batch_of(ids, loss), state)
      for row in {*ids[ids >= 0].tolist()}:
        last[row] = np.float32(np.max(loss[ids == row]))
    decision, _ = update(at(20), state)
    below = last < np.nanmean(last)
    assert np.nanmin(np.abs(last - np.nanmean(last))) > 1e-4 or np.sum(~np.isnan(last)) == 1
    n = np.sum(below)
    m = max(1, int(np.floor((1 - ratio) * n + 1e-6)))
    kept = np.isfinite(decision.logits)
    assert np.all(np.asarray(decision.logits)[kept] == 0)
    assert np.all(kept[~below])
    assert np.sum(kept & below) == min(m, n)
    expected = np.where(below, n / m, 1.0) * kept
    np.testing.assert_allclose(decision.weights, expected, rtol=1e-6)
    counts = {"num_below": n, "num_pruned": n - min(m, n), "num_nonfinite": 0}
    assert decision.metrics == counts | {"num_eligible": np.sum(kept)}
    np.testing.assert_allclose(np.sum(decision.weights), N, rtol=1e-6)


@pytest.mark.parametrize(("num_below", "ratio"), [(1, 0.5), (2, 0.9), (3, 0.5), (5, 0.5)])
def test_every_subset_is_equally_likely_so_that_each_row_weighs_1(num_below, ratio):
  """Of the draws, against all subsets; five standard deviations."""
  draws, policy = 6000, infobatch(ratio)
  losses = np.array([1.0] * num_below + [9.0] * 2)
  state = after(losses, policy=policy)
  keys = jax.random.split(jax.random.key(1), draws)
  decide = lambda key: policy.update(at(0), state._replace(key=key))[0]
  weights = np.float64(jax.jit(jax.vmap(decide))(keys).weights)
  m = max(1, int((1 - ratio) * num_below + 1e-6))
  subsets = list(itertools.combinations(range(num_below), m))
  drawn = [tuple(np.flatnonzero(row[:num_below])) for row in weights]
  counts = np.array([drawn.count(subset) for subset in subsets])
  assert counts.sum() == draws
  p = 1 / len(subsets)
  assert np.all(np.abs(counts - draws * p) <= 5 * np.sqrt(draws * p * (1 - p)))
  by_enumeration = np.zeros(len(losses))
  by_enumeration[num_below:] = 1
  for subset in subsets:
    by_enumeration[list(subset)] += p * num_below / m
  np.testing.assert_allclose(by_enumeration, 1, rtol=1e-12)
  deviation = np.sqrt((num_below / m - 1) / draws)
  np.testing.assert_allclose(weights.mean(axis=0), 1, atol=5 * deviation + 1e-6)


def test_each_round_draws_anew():
  state = after(np.array([1.0] * 20 + [5.0] * 20))
  first, state = POLICY.update(at(0), state)
  second, _ = POLICY.update(at(10), state)
  assert np.sum(first.weights) == np.sum(second.weights) == N
  assert np.any(first.weights != second.weights)


def test_edges():
  nothing, _ = POLICY.update(at(0), begin())
  assert nothing.logits.tolist() == [0.0] * N
  assert nothing.weights.tolist() == [1.0] * N
  for value in (0.1, 0.0, 3e38, 1e-38):  # none is below the mean, however that is rounded
    alike, _ = POLICY.update(at(0), after(np.full(N, value)))
    assert alike.metrics["num_below"] == 0
    assert alike.weights.tolist() == [1.0] * N
  large, _ = POLICY.update(at(0), after(np.array([3e38] * 3 + [1.0])))
  assert large.metrics["num_below"] == 1
  lost, _ = POLICY.update(at(0), after(np.array([1.0, np.inf, 3.0, -np.inf])))
  assert lost.logits.tolist() == [0.0, -np.inf, 0.0, -np.inf]
  assert lost.weights.tolist() == [1.0, 0.0, 1.0, 0.0]
  assert lost.metrics["num_nonfinite"] == 2
  again = after(np.array([2.0, 2.0, np.nan, np.nan]), after(np.array([1.0, np.inf, 3.0, 3.0])))
  found, _ = POLICY.update(at(0), again)  # what is finite again counts
  assert found.metrics["num_nonfinite"] == 0
  assert found.weights.tolist() in ([2.0, 0.0, 1.0, 1.0], [0.0, 2.0, 1.0, 1.0])


def test_stops_pruning_for_the_last_steps():
  state = after(np.array([1.0] * 20 + [5.0] * 20))
  for step, pruned in ((0, 10), (87, 10), (88, 0), (99, 0)):
    assert POLICY.update(at(step), state)[0].metrics["num_pruned"] == pruned
  policy = infobatch(anneal=1.0)
  assert policy.update(at(99), after(np.arange(N), policy=policy))[0].metrics["num_pruned"] > 0
  policy = infobatch(anneal=0.0)
  assert policy.update(at(0), after(np.arange(N), policy=policy))[0].metrics["num_pruned"] == 0


def test_learns_as_from_all_rows_with_fewer_steps():
  """Least squares: the sum of the weighted gradients of the rows kept is that of all rows."""
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(N, 3)), rng.normal(size=N)
  theta = rng.normal(size=3)
  loss, gradient = (x @ theta - y) ** 2 / 2, (x @ theta - y)[:, None] * x
  state = after(loss)
  keys = jax.random.split(jax.random.key(3), 4000)
  decide = lambda key: POLICY.update(at(0), state._replace(key=key))[0]
  decisions = jax.jit(jax.vmap(decide))(keys)
  weights = np.float64(decisions.weights)
  sums = weights @ gradient
  error = np.abs(sums.mean(axis=0) - gradient.sum(axis=0))
  assert np.all(error < 5 * sums.std(axis=0) / np.sqrt(len(keys)))
  num_kept = np.sum(np.isfinite(decisions.logits), axis=1)
  assert num_kept.max() < 0.75 * N
  # Without weights the sum is that of the hard rows mostly.
  biased = (weights > 0) @ gradient
  error = np.abs(biased.mean(axis=0) - gradient.sum(axis=0))
  assert np.any(error > 20 * biased.std(axis=0) / np.sqrt(len(keys)))


def test_rejects():
  with pytest.raises(ValueError, match=r"prune_ratio must be in \[0, 1\), got 1; anneal must"):
    infobatch(1, anneal=2.0)
  with pytest.raises(ValueError, match="num_steps > 0, got 0"):
    POLICY.init(SPEC._replace(num_steps=0), jax.random.key(0))
