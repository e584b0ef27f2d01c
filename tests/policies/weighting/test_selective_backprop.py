"""Selective backprop: the probabilities, the draws, the edges, the behaviour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.weighting import selective_backprop

SPEC = RunSpec(90, 1, ("web",), (90,), (1.0,), batch_size=8)
KEY = jax.random.key(0)
DRAWS = 4000


def as_stats(loss, tokens, example_id=None):
  example_id = np.arange(len(loss)) if example_id is None else example_id
  return ExampleStats(
    loss=jnp.float32(loss), num_tokens=jnp.asarray(tokens), example_id=jnp.int32(example_id)
  )


def random_batches(seed, num):
  rng = np.random.default_rng(seed)
  for _ in range(num):
    loss = np.float32(rng.integers(1, 9, 8) / 4)  # ties
    loss[rng.random(8) < 0.15] = np.nan
    yield loss, rng.integers(0, 4, 8)


def probabilities(seen, loss, beta):
  held = np.array(seen)
  rank = [np.mean(held < x) + np.mean(held == x) / 2 for x in loss]
  return np.power(rank, beta)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("beta", [1.0, 2.5, 0.0])
def test_agrees_with_the_equations(beta, corrected):
  """What is kept weighs 1 or 1/p; how often it is kept is tested below."""
  policy = selective_backprop(beta, corrected, capacity=20)
  update, (_, state) = jax.jit(policy.update), policy.init(SPEC, KEY)
  seen, num_kept = [], 0
  for loss, tokens in random_batches(1, 25):
    decision, state = update(as_stats(loss, tokens), state)
    usable = (tokens > 0) & np.isfinite(loss)
    seen = (seen + loss[usable].tolist())[-20:]
    p = probabilities(seen, loss[usable], beta)
    weights = np.asarray(decision.weights)
    assert not np.any(weights[~usable])
    kept = weights[usable] > 0
    expected = 1 / p[kept] if corrected else np.ones(kept.sum())
    np.testing.assert_allclose(weights[usable][kept], expected, rtol=1e-5)
    mean = p.mean() if p.size else 0
    np.testing.assert_allclose(decision.metrics["mean_probability"], mean, rtol=1e-5)
    assert decision.metrics["num_kept"] == kept.sum()
    assert decision.metrics["num_nonfinite"] == np.sum((tokens > 0) & np.isnan(loss))
    assert state.recent.size == len(seen)
    num_kept += kept.sum()
  assert num_kept > 0


def monte_carlo(policy, stats, batch_size):
  """Weights of one batch under many keys, f32[DRAWS, B]."""
  _, state = policy.init(SPEC._replace(batch_size=batch_size), KEY)
  draw = lambda key: policy.update(stats, state._replace(key=key))[0].weights
  return np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(KEY, DRAWS)))


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_keeps_with_the_stated_probability_and_corrects_it(beta):
  loss = np.array([0.5, 1.0, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0])
  stats, p = as_stats(loss, [3] * 8), probabilities(loss, loss, beta)
  error = np.sqrt(p * (1 - p) / DRAWS)
  biased = monte_carlo(selective_backprop(beta), stats, 8)
  assert set(np.unique(biased)) == {0.0, 1.0}
  assert np.all(np.abs(biased.mean(axis=0) - p) < 4 * error)
  corrected = monte_carlo(selective_backprop(beta, corrected=True), stats, 8)
  assert np.all(np.abs(corrected.mean(axis=0) - 1) < 4 * error / p)


def test_the_corrected_loss_is_unbiased_and_the_other_leans_to_hard_examples():
  rng = np.random.default_rng(0)
  loss = rng.gamma(4.0, 0.5, 64)
  stats = as_stats(loss, np.full(64, 3))
  biased = monte_carlo(selective_backprop(), stats, 64)
  corrected = (monte_carlo(selective_backprop(corrected=True), stats, 64) * loss).mean(axis=1)
  error = corrected.std() / np.sqrt(DRAWS)
  assert abs(corrected.mean() - loss.mean()) < 4 * error
  np.testing.assert_allclose(biased.mean(), 0.5, atol=0.01)
  leaning = (biased * loss).sum(axis=1) / biased.sum(axis=1)
  assert leaning.mean() > 1.15 * loss.mean()


def test_draws_are_independent_between_examples_and_updates():
  stats = as_stats(np.full(8, 2.0), [3] * 8)  # p = 1/2
  kept = monte_carlo(selective_backprop(), stats, 8)
  correlation = np.corrcoef(kept.T) - np.eye(8)
  assert np.abs(correlation).max() < 4.5 / np.sqrt(DRAWS)
  policy = selective_backprop()
  update, (_, state) = jax.jit(policy.update), policy.init(SPEC, KEY)
  seen = []
  for _ in range(60):
    decision, state = update(stats, state)
    seen.append(np.asarray(decision.weights))
  shares = np.mean(seen, axis=0)
  assert np.all((shares > 0.2) & (shares < 0.8))
  assert len({tuple(weights) for weights in seen}) > 50


def test_draws_follow_the_example_and_not_its_place():
  policy = selective_backprop(corrected=True)
  _, state = policy.init(SPEC, KEY)
  loss, example_id = np.linspace(1, 3, 8), np.array([5, 3, 70, 1, 0, 9, 8, 2])
  order = np.array([3, 1, 0, 2, 7, 6, 5, 4])
  one = policy.update(as_stats(loss, [3] * 8, example_id), state)[0].weights
  other = policy.update(as_stats(loss[order], [3] * 8, example_id[order]), state)[0].weights
  np.testing.assert_array_equal(other, one[order])


def test_beta_0_keeps_all_with_weight_exactly_one():
  for corrected in (False, True):
    weights = monte_carlo(selective_backprop(0.0, corrected), as_stats([1.0, 2.0], [3, 3]), 2)
    assert np.all(weights == 1)


def test_small_probabilities_are_drawn_right():
  """Far below the 2^-23 of one uniform number in float32: never, rather than once in 2^23."""
  from jdc.policies.weighting.selective_backprop import _uniforms

  draws = np.sort(np.asarray(jax.jit(_uniforms)(KEY, jnp.arange(2**22))))
  assert draws[0] >= 0
  assert draws[-1] < 1
  np.testing.assert_allclose(draws.mean(), 0.5, atol=1e-3)
  # A grid of 2^-23 would give about a million pairs of equal draws; near 1 float32 has others.
  low = draws[draws < 2**-6]
  assert np.mean(np.diff(low) == 0) < 0.01


def test_padding_and_losses_that_are_not_finite_do_not_enter():
  policy = selective_backprop(0.0)
  _, state = policy.init(SPEC, KEY)
  stats = as_stats([1.0, np.nan, 3.0, np.inf, 5.0, 6.0, 7.0, 8.0], [1, 1, 0, 1, 1, 0, 1, 1])
  decision, state = policy.update(stats, state)
  assert decision.weights.tolist() == [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0]
  assert state.recent.losses_n[:5].tolist() == [1.0, 5.0, 7.0, 8.0, 0.0]
  assert decision.metrics["num_nonfinite"] == 2


@pytest.mark.parametrize(
  ("arguments", "named"),
  [
    ({"beta": -1.0}, "beta"),
    ({"beta": np.inf, "corrected": True}, "beta"),
    ({"corrected": 1}, "corrected"),
    ({"capacity": 0}, "capacity"),
    ({"beta": 4.1, "corrected": True}, r"beta must be at most 4.00 to correct"),
  ],
)
def test_rejects(arguments, named):
  with pytest.raises(ValueError, match=named):
    selective_backprop(**arguments)


def test_rejects_what_does_not_fit_the_run():
  selective_backprop(4.0, corrected=True).init(SPEC, KEY)
  selective_backprop(9.0).init(SPEC, KEY)
  with pytest.raises(ValueError, match="capacity must hold a batch of 8 examples, got 7"):
    selective_backprop(capacity=7).init(SPEC, KEY)
  with pytest.raises(ValueError, match="batch_size"):
    selective_backprop().init(SPEC._replace(batch_size=0), KEY)
