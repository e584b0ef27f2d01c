"""Self-paced learning: the equations, the pace, the edges, the behaviour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.weighting import self_paced

SPEC = RunSpec(90, 1, ("web",), (90,), (1.0,), batch_size=8, num_steps=12)
KEY = jax.random.key(0)


def as_stats(loss, tokens):
  return ExampleStats(loss=jnp.float32(loss), num_tokens=jnp.asarray(tokens))


def random_batches(seed, num):
  rng = np.random.default_rng(seed)
  for _ in range(num):
    loss = np.float32(rng.gamma(4.0, 0.5, 8))
    loss[rng.random(8) < 0.15] = np.nan
    yield loss, rng.integers(0, 4, 8)


def usable(loss, tokens):
  return (tokens > 0) & np.isfinite(loss)


def weigh(loss, tokens, rule, limit, inclusive):
  """The docstring's rule, one example at a time, in float64."""
  weights = np.zeros(8)
  for i in np.flatnonzero(usable(loss, tokens)):
    value = float(loss[i])
    if rule == "hard":
      weights[i] = value <= limit if inclusive else value < limit
    else:
      weights[i] = max(0.0, 1 - value / limit)
  return weights


@pytest.mark.parametrize("rule", ["hard", "linear"])
def test_a_growing_threshold_agrees_with_the_equations(rule):
  policy = self_paced(rule, threshold=1.1, growth=1.15)
  update = jax.jit(policy.update)
  for seed in range(4):
    _, state = policy.init(SPEC, KEY)
    for t, (loss, tokens) in enumerate(random_batches(seed, 10)):
      decision, state = update(as_stats(loss, tokens), state)
      limit = 1.1 * 1.15**t
      expected = weigh(loss, tokens, rule, limit, inclusive=False)
      np.testing.assert_allclose(decision.weights, expected, rtol=1e-5, atol=1e-6)
      np.testing.assert_allclose(decision.metrics["threshold"], limit, rtol=1e-6)
      lost = np.sum((tokens > 0) & np.isnan(loss))
      assert decision.metrics["num_nonfinite"] == lost


@pytest.mark.parametrize("rule", ["hard", "linear"])
@pytest.mark.parametrize("growth_steps", [None, 6])
def test_quantiles_agree_with_the_equations(rule, growth_steps):
  policy = self_paced(rule, quantiles=(0.35, 0.9), growth_steps=growth_steps, capacity=20)
  update = jax.jit(policy.update)
  for seed in range(4):
    _, state = policy.init(SPEC, KEY)
    seen = []
    for t, (loss, tokens) in enumerate(random_batches(seed, 14)):
      decision, state = update(as_stats(loss, tokens), state)
      seen = (seen + loss[usable(loss, tokens)].tolist())[-20:]
      share = 0.35 + 0.55 * min(t / (growth_steps or 12), 1)
      limit = np.quantile(seen, share)
      np.testing.assert_allclose(decision.metrics["threshold"], limit, rtol=1e-5)
      # The margin: a loss may be the quantile itself.
      clear = usable(loss, tokens) & (np.abs(loss - limit) > 1e-4)
      expected = weigh(loss, tokens, rule, limit, inclusive=True)
      actual = np.where(clear, decision.weights, 0)
      np.testing.assert_allclose(actual, np.where(clear, expected, 0), rtol=1e-5, atol=1e-5)


def test_the_whole_distribution_weighs_exactly_one_in_the_end():
  policy = self_paced(quantiles=(0.3, 1.0), growth_steps=3)
  update, (_, state) = jax.jit(policy.update), policy.init(SPEC, KEY)
  kept = []
  for _ in range(5):
    loss = np.linspace(1.0, 8.0, 8)
    decision, state = update(as_stats(loss, [3] * 8), state)
    kept.append(sum(decision.weights.tolist()))
  assert kept == [3.0, 5.0, 6.0, 8.0, 8.0]


def test_equal_losses():
  hard, linear = (self_paced(rule, quantiles=(0.5, 1.0)) for rule in ("hard", "linear"))
  same = as_stats([2.3] * 8, [3] * 8)
  assert hard.update(same, hard.init(SPEC, KEY)[1])[0].weights.tolist() == [1.0] * 8
  assert linear.update(same, linear.init(SPEC, KEY)[1])[0].weights.tolist() == [0.0] * 8
  strict = self_paced(threshold=2.3, growth=1.0)
  assert strict.update(same, strict.init(SPEC, KEY)[1])[0].weights.tolist() == [0.0] * 8


@pytest.mark.parametrize("rule", ["hard", "linear"])
def test_edges(rule):
  policy = self_paced(rule, threshold=2.0, growth=10.0)
  _, state = policy.init(SPEC, KEY)
  late = state._replace(num_updates=jnp.int32(1000))
  decision, _ = policy.update(as_stats([1.0, 9.0, np.inf, 5.0], [1, 1, 1, 0]), late)
  assert decision.weights.tolist() == [1.0, 1.0, 0.0, 0.0]
  assert np.isfinite(decision.metrics["threshold"])
  paced = self_paced(rule, quantiles=(0.5, 1.0))
  decision, state = paced.update(as_stats([np.nan] * 8, [1] * 8), paced.init(SPEC, KEY)[1])
  assert decision.weights.tolist() == [0.0] * 8
  assert state.recent.size == 0
  decision, _ = paced.update(as_stats([0.0] * 8, [1] * 8), state)
  assert decision.weights.tolist() == [1.0 if rule == "hard" else 0.0] * 8


def test_each_example_by_itself_with_a_threshold():
  policy = self_paced("linear", threshold=2.0, growth=1.0)
  assert policy.pointwise
  assert not self_paced(quantiles=(0.5, 1.0)).pointwise
  _, state = policy.init(SPEC, KEY)
  loss = np.linspace(0.5, 3.0, 8)
  whole = policy.update(as_stats(loss, [2] * 8), state)[0].weights
  halves = [
    policy.update(as_stats(part, [2] * 4), state)[0].weights for part in (loss[:4], loss[4:])
  ]
  np.testing.assert_array_equal(jnp.concatenate(halves), whole)


@pytest.mark.parametrize("rule", ["hard", "linear"])
@pytest.mark.parametrize(
  "pace", [{"threshold": 1.5, "growth": 1.1}, {"quantiles": (0.4, 1.0), "growth_steps": 20}]
)
def test_admits_harder_examples_over_time(rule, pace):
  """Of a fixed distribution: the hardest example admitted, and the mean weight, only rise."""
  policy, rng = self_paced(rule, **pace), np.random.default_rng(0)
  update, (_, state) = jax.jit(policy.update), policy.init(SPEC._replace(batch_size=64), KEY)
  loss = rng.gamma(4.0, 0.5, 64)
  hardest, factor = [], []
  for _ in range(25):
    decision, state = update(as_stats(rng.permutation(loss), [3] * 64), state)
    hardest.append(np.max(loss[loss <= decision.metrics["threshold"] * (1 + 1e-6)]))
    factor.append(float(decision.metrics["mean_weight"]))
  assert np.all(np.diff(hardest) >= 0)
  assert np.all(np.diff(factor) >= -1e-6)
  assert hardest[0] < np.quantile(loss, 0.5)
  assert hardest[-1] == loss.max()


@pytest.mark.parametrize(
  ("arguments", "named"),
  [
    ({"rule": "soft", "quantiles": (0.5, 1.0)}, "rule"),
    ({}, "exactly one of threshold and quantiles"),
    ({"threshold": 1.0, "growth": 1.1, "quantiles": (0.5, 1.0)}, "exactly one of threshold"),
    ({"threshold": 0.0, "growth": 1.1}, "threshold must be positive"),
    ({"threshold": np.inf, "growth": 1.1}, "threshold must be positive"),
    ({"threshold": 1.0}, "growth is given with threshold"),
    ({"quantiles": (0.5, 1.0), "growth": 1.1}, "growth is given with threshold"),
    ({"threshold": 1.0, "growth": 0.9}, "growth must"),
    ({"quantiles": (0.9, 0.5)}, "quantiles"),
    ({"quantiles": (0.5, 1.1)}, "quantiles"),
    ({"quantiles": (0.5,)}, "quantiles"),
    ({"quantiles": (0.5, np.nan)}, "quantiles"),
    ({"quantiles": 0.5}, "quantiles"),
    ({"quantiles": (0.5, 1.0), "growth_steps": 0}, "growth_steps"),
    ({"threshold": 1.0, "growth": 1.1, "growth_steps": 5}, "growth_steps"),
    ({"quantiles": (0.5, 1.0), "capacity": 0}, "capacity"),
  ],
)
def test_rejects(arguments, named):
  with pytest.raises(ValueError, match=named):
    self_paced(**arguments)


def test_rejects_what_does_not_fit_the_run():
  with pytest.raises(ValueError, match="growth_steps"):
    self_paced(quantiles=(0.5, 1.0)).init(SPEC._replace(num_steps=0), KEY)
  with pytest.raises(ValueError, match="capacity must hold a batch of 8"):
    self_paced(quantiles=(0.5, 1.0), capacity=7).init(SPEC, KEY)
  with pytest.raises(ValueError, match="batch_size"):
    self_paced(threshold=1.0, growth=1.1).init(SPEC._replace(batch_size=0), KEY)
