"""Proportions by a softmax of the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.mixture import loss_proportional

K, B = 4, 10
SPEC = RunSpec(100, K, ("a", "b", "c", "d"), (25,) * K, (0.1, 0.2, 0.3, 0.4))
KEY = jax.random.key(0)


def reference(batches, T, a):
  """The docstring's equations, one example at a time, in float64."""
  loss = [None] * K
  for domain_B, loss_B, tokens_B in batches:
    for k in range(K):
      rows = np.isfinite(loss_B) & (tokens_B > 0) & (domain_B == k)
      if rows.any():
        mean = np.average(loss_B[rows], weights=tokens_B[rows])
        loss[k] = mean if loss[k] is None else a * loss[k] + (1 - a) * mean
  known = [x for x in loss if x is not None]
  if not known:
    return np.array(SPEC.proportions)
  filled = np.array([np.mean(known) if x is None else x for x in loss])
  p = np.exp((filled - filled.max()) / T)
  return p / p.sum()


def random_batches(seed, num):
  rng = np.random.default_rng(seed)
  for _ in range(num):
    loss_B = rng.gamma(4.0, 0.5, B)
    loss_B[rng.random(B) < 0.15] = np.nan
    yield rng.integers(0, rng.integers(1, K + 1), B), loss_B, rng.integers(0, 9, B)


def as_stats(domain_B, loss_B, tokens_B):
  return ExampleStats(
    domain=jnp.asarray(domain_B), loss=jnp.float32(loss_B), num_tokens=jnp.asarray(tokens_B)
  )


@pytest.mark.parametrize(("temperature", "smoothing"), [(1.0, 0.0), (0.3, 0.8)])
def test_agrees_with_the_equations(temperature, smoothing):
  policy = loss_proportional(temperature, smoothing)
  update = jax.jit(policy.update)
  for seed in range(30):
    _, state = policy.init(SPEC, KEY)
    batches = list(random_batches(seed, 1 + seed % 8))
    for batch in batches:
      decision, state = update(as_stats(*batch), state)
    expected = reference(batches, temperature, smoothing)
    np.testing.assert_allclose(np.exp(decision.logits), expected, rtol=1e-5, atol=1e-5)
    bad = np.sum(~np.isfinite(batches[-1][1]) & (batches[-1][2] > 0))
    assert decision.metrics["num_nonfinite"] == bad


def test_stays_at_the_base_proportions_until_something_is_seen():
  policy = loss_proportional()
  first, state = policy.init(SPEC, KEY)
  decision, state = policy.update(as_stats([0, 1], [np.nan, 2.0], [3, 0]), state)
  for logits in (first.logits, decision.logits):
    np.testing.assert_allclose(np.exp(logits), SPEC.proportions, rtol=1e-6)
  assert decision.metrics["num_nonfinite"] == 1
  entropy = -np.sum(np.array(SPEC.proportions) * np.log(SPEC.proportions))
  np.testing.assert_allclose(decision.metrics["entropy"], entropy, rtol=1e-6)


@pytest.mark.parametrize(
  ("temperature", "expected"), [(0, [0, 0.5, 0, 0.5]), (np.inf, [0.25] * 4)]
)
def test_at_the_ends_of_temperature(temperature, expected):
  policy = loss_proportional(temperature)
  stats = as_stats([0, 1, 2, 3], [1.0, 2.0, 1.5, 2.0], [4] * 4)
  decision, _ = policy.update(stats, policy.init(SPEC, KEY)[1])
  np.testing.assert_allclose(np.exp(decision.logits), expected, rtol=1e-6)


def test_follows_the_loss():
  policy, update = loss_proportional(), jax.jit(loss_proportional().update)
  _, state = policy.init(SPEC, KEY)
  for loss_K in np.random.default_rng(0).gamma(4.0, 0.5, (20, K)):
    decision, state = update(as_stats(np.arange(K), loss_K, [5] * K), state)
    np.testing.assert_array_equal(np.argsort(decision.logits), np.argsort(loss_K))
    np.testing.assert_allclose(np.diff(decision.logits), np.diff(loss_K), atol=1e-5)


def test_one_domain():
  policy = loss_proportional()
  _, state = policy.init(RunSpec(9, 1, ("web",), (9,), (1.0,)), KEY)
  decision, _ = policy.update(as_stats([0], [7.0], [3]), state)
  assert decision.logits.tolist() == [0.0]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"temperature": -1.0}, "temperature"),
    ({"temperature": np.nan, "smoothing": 1.0}, "temperature.*smoothing"),
  ],
)
def test_rejects(arguments, message):
  with pytest.raises(ValueError, match=message):
    loss_proportional(**arguments)
