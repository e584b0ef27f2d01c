"""Dynamic mixing of a mixture of experts: distances between the loads of domains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.mixture import dynamic_moe

K, E = 4, 6
SPEC = RunSpec(100, K, ("a", "b", "c", "d"), (25,) * K, (0.1, 0.2, 0.3, 0.4), num_experts=E)
KEY = jax.random.key(0)


def reference(loads, distance, eta=10.0, c=0.05, w=SPEC.proportions):
  """The docstring's equations, one pair of domains at a time, in float64."""
  kept = np.full((K, E), 1 / E)
  for load in loads:
    for k in range(K):
      if np.all(np.isfinite(load[k])) and np.all(load[k] >= 0):
        total = load[k].sum()
        kept[k] = load[k] / total if total > 0 else 1 / E
    delta = np.zeros(K)
    for i in range(K):
      for j in range(K):
        x, y = kept[i], kept[j]
        cosine = x @ y / np.sqrt((x @ x) * (y @ y))
        delta[i] += (np.linalg.norm(x - y) if distance == "l2" else 1 - cosine) / K
    raised = np.array(w) * np.exp(eta * (delta - delta.max()))
    w = (1 - c) * raised / raised.sum() + c / K
  return delta, w


def random_loads(seed, num=8):
  rng = np.random.default_rng(seed)
  for _ in range(num):
    load = rng.gamma(1.0, 100.0, (K, E)).astype(np.float32)
    bad = rng.random(K) < 0.15
    load[bad, rng.integers(E)] = rng.choice([np.nan, np.inf, -1.0])
    load[rng.random(K) < 0.1] = 0
    yield load


def as_stats(load):
  return ExampleStats(domain_expert_load=jnp.asarray(load, jnp.float32))


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_agrees_with_the_equations(distance):
  policy = dynamic_moe(distance, every_steps=1)
  update = jax.jit(policy.update)
  for seed in range(10):
    _, state = policy.init(SPEC, KEY)
    loads = list(random_loads(seed))
    for load in loads:
      decision, state = update(as_stats(load), state)
      unusable = np.sum(~np.all(np.isfinite(load) & (load >= 0), axis=1))
      assert decision.metrics["num_nonfinite"] == unusable
    delta, w = reference(loads, distance)
    np.testing.assert_allclose(np.exp(decision.logits), w, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state.distance_K, delta, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(decision.metrics["max_distance"], delta.max(), rtol=1e-5)
    np.testing.assert_allclose(decision.metrics["mean_distance"], delta.mean(), rtol=1e-5)


def test_decides_at_every_nth_call_only():
  policy = dynamic_moe(every_steps=3)
  update = jax.jit(policy.update)
  decision, state = policy.init(SPEC, KEY)
  np.testing.assert_allclose(np.exp(decision.logits), SPEC.proportions, rtol=1e-6)
  changed = []
  for load in random_loads(0, 9):
    later, state = update(as_stats(load), state)
    changed.append(later.logits.tolist() != decision.logits.tolist())
    decision = later
  assert changed == [False, False, True] * 3


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_raises_the_domain_that_is_routed_unlike_the_others(distance):
  policy = dynamic_moe(distance, every_steps=1)
  update = jax.jit(policy.update)
  _, state = policy.init(SPEC._replace(proportions=(0.25,) * K), KEY)
  load = np.tile([5.0, 4, 3, 2, 1, 1], (K, 1))
  load[2] = load[2, ::-1]
  for _ in range(5):
    decision, state = update(as_stats(load), state)
  p = np.exp(decision.logits)
  assert p[2] > 0.9
  np.testing.assert_allclose(p[[0, 1, 3]], p[0], rtol=1e-5)


def test_equal_loads_decay_towards_uniform():
  policy = dynamic_moe(every_steps=1)
  _, state = policy.init(SPEC, KEY)
  decision, _ = policy.update(as_stats(np.zeros((K, E))), state)
  expected = 0.95 * np.array(SPEC.proportions) + 0.05 / K
  np.testing.assert_allclose(np.exp(decision.logits), expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e38])
def test_the_scale_of_a_load_does_not_matter(scale):
  policy = dynamic_moe(every_steps=1)
  load = np.abs(np.random.default_rng(0).normal(size=(K, E))) + 0.1
  plain, _ = policy.update(as_stats(load), policy.init(SPEC, KEY)[1])
  scaled, _ = policy.update(as_stats(load * scale), policy.init(SPEC, KEY)[1])
  np.testing.assert_allclose(scaled.logits, plain.logits, rtol=1e-5)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"distance": "cos"}, "distance must be in"),
    ({"learning_rate": 0.0, "smoothing": 1.0}, "learning_rate.*smoothing"),
    ({"every_steps": 0}, "every_steps"),
    ({"every_steps": True}, "every_steps"),
  ],
)
def test_rejects(arguments, message):
  with pytest.raises(ValueError, match=message):
    dynamic_moe(**arguments)


def test_rejects_a_run_that_does_not_fit():
  spec = RunSpec(9, 1, ("web",), (9,), (1.0,), num_experts=1)
  with pytest.raises(ValueError, match=r"num_domains.*got 1.*num_experts.*got 1"):
    dynamic_moe().init(spec, KEY)
  _, state = dynamic_moe().init(SPEC, KEY)
  with pytest.raises(ValueError, match=r"shape \(4, 6\).*got \(4, 5\)"):
    dynamic_moe().update(as_stats(np.ones((K, E - 1))), state)
