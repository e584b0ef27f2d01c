"""DoGE: the equations, the edges, the behaviour."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.mixture import doge

SPEC = RunSpec(100, 4, ("a", "b", "c", "d"), (25,) * 4, (0.1, 0.2, 0.3, 0.4), num_targets=8)
KEY = jax.random.key(0)
WIDTH = 6


@functools.cache
def made(*args, **kwargs):
  """A policy whose update is compiled once for all tests."""
  policy = doge(*args, **kwargs)
  return policy._replace(update=jax.jit(policy.update))


def as_stats(gradient_Kx2xD, target_D):
  return ExampleStats(
    domain_gradient_product=jnp.float32(
      np.einsum("iad,jbd->iajb", gradient_Kx2xD, gradient_Kx2xD)
    ),
    domain_target_alignment=jnp.float32(gradient_Kx2xD @ target_D),
  )


def random_rounds(seed, num_rounds=6, scale=1.0):
  rng = np.random.default_rng(seed)
  for _ in range(num_rounds):
    yield scale * rng.normal(size=(4, 2, WIDTH)), scale * rng.normal(size=WIDTH)


def reference(rounds, objective, rule, lr, mu, max_norm):
  """The docstring's equations from the gradients themselves, in float64."""
  alpha, mean = np.full(4, 1 / 4), np.zeros(4)
  for t, (halves, target) in enumerate(rounds, start=1):
    g = [halves[i].mean(axis=0) for i in range(4)]
    if max_norm is not None:
      g = [x * min(1, max_norm / np.linalg.norm(x)) for x in g]
    goal = sum(g) if objective == "universal" else target
    W = np.array([x @ goal for x in g])
    s = lr * W
    if rule == "repository":
      norm = np.mean([np.linalg.norm(x) for x in g])
      s = np.clip(s / (norm + 1e-6), 0, 5 * lr)
    alpha = alpha * np.exp((s - s.max()) / mu)
    alpha /= alpha.sum()
    mean += (alpha - mean) / t
  return alpha, mean


@pytest.mark.parametrize("objective", ["universal", "target"])
@pytest.mark.parametrize("rule", ["paper", "repository"])
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_agrees_with_the_equations(objective, rule, max_grad_norm):
  policy = made(objective, rule, learning_rate=0.02, mu=0.1, max_grad_norm=max_grad_norm)
  for seed in range(8):
    _, state = policy.init(SPEC, KEY)
    rounds = list(random_rounds(seed, scale=[1.0, 3.0, 0.1][seed % 3]))
    for number, one in enumerate(rounds, start=1):
      decision, state = policy.update(as_stats(*one), state)
      alpha, mean = reference(rounds[:number], objective, rule, 0.02, 0.1, max_grad_norm)
      np.testing.assert_allclose(np.exp(decision.logits), alpha, rtol=1e-5, atol=1e-5)
      np.testing.assert_allclose(state.mean_alpha_K, mean, rtol=1e-5, atol=1e-5)
    assert decision.metrics["num_nonfinite"] == 0


def test_starts_uniform_and_keeps_the_mean_of_what_was_in_force():
  policy = made("target", learning_rate=0.1)
  decision, state = policy.init(SPEC, KEY)
  np.testing.assert_allclose(np.exp(decision.logits), 0.25)
  np.testing.assert_allclose(state.mean_alpha_K, 0.25)
  alphas = []
  for one in random_rounds(0, 5):
    decision, state = policy.update(as_stats(*one), state)
    alphas.append(np.exp(np.float64(decision.logits)))
  np.testing.assert_allclose(state.mean_alpha_K, np.mean(alphas, axis=0), atol=1e-6)


def test_learning_rate_over_mu_is_all_that_counts_in_the_paper():
  one = made("universal", "paper", learning_rate=0.02, mu=0.1, max_grad_norm=None)
  other = made(learning_rate=0.2, mu=1.0)
  stats = as_stats(*next(random_rounds(0)))
  np.testing.assert_allclose(
    one.update(stats, one.init(SPEC, KEY)[1])[0].logits,
    other.update(stats, other.init(SPEC, KEY)[1])[0].logits,
    rtol=1e-6,
  )


@pytest.mark.parametrize("how", ["zero", "nan", "half"])
def test_an_absent_domain_keeps_its_products(how):
  policy = made("target", learning_rate=0.1)
  _, state = policy.init(SPEC, KEY)
  rounds = list(random_rounds(3, 2))
  _, before = policy.update(as_stats(*rounds[0]), state)
  halves, target = rounds[1]
  halves = halves.copy()
  halves[1, slice(1) if how == "half" else slice(None)] = np.nan if how == "nan" else 0
  decision, after = policy.update(as_stats(halves, target), before)
  present = np.array([0, 2, 3])
  np.testing.assert_array_equal(after.product_KxK[1], before.product_KxK[1])
  np.testing.assert_array_equal(after.product_KxK[:, 1], before.product_KxK[:, 1])
  assert after.alignment_K[1] == before.alignment_K[1]
  mean = halves[present].mean(axis=1)
  np.testing.assert_allclose(
    after.product_KxK[np.ix_(present, present)], mean @ mean.T, rtol=1e-5, atol=1e-5
  )
  np.testing.assert_allclose(after.alignment_K[present], mean @ target, rtol=1e-5, atol=1e-5)
  assert decision.metrics["num_nonfinite"] == (how == "nan")
  # It goes on with what is known of it.
  s = 0.1 * np.float64(after.alignment_K) / 0.05
  alpha = np.exp(np.float64(before.log_alpha_K) + s)
  np.testing.assert_allclose(np.exp(decision.logits), alpha / alpha.sum(), atol=1e-6)


def test_a_domain_never_measured_keeps_its_share():
  policy = made("universal", "paper", learning_rate=0.02, mu=0.1, max_grad_norm=None)
  _, state = policy.init(SPEC, KEY)
  halves, target = next(random_rounds(0))
  halves[2] = 0
  decision, state = policy.update(as_stats(halves, target), state)
  alpha = np.exp(np.float64(decision.logits))
  np.testing.assert_allclose(alpha[2], 0.25, rtol=1e-6)
  mean = halves.mean(axis=1)
  W = (mean @ mean.T).sum(axis=1)[[0, 1, 3]]
  expected = np.exp(0.02 * W / 0.1)
  np.testing.assert_allclose(alpha[[0, 1, 3]], 0.75 * expected / expected.sum(), atol=1e-6)
  assert decision.metrics["num_nonfinite"] == 0


def test_the_repositorys_mean_norm_is_that_of_the_domains_measured():
  policy = made("target", "repository", learning_rate=0.02, mu=0.1)
  _, state = policy.init(SPEC, KEY)
  halves, target = next(random_rounds(0))
  halves[2] = 0
  decision, _ = policy.update(as_stats(halves, target), state)
  mean, measured = halves.mean(axis=1), [0, 1, 3]
  norm = np.linalg.norm(mean[measured], axis=1).mean()
  s = np.clip(0.02 * (mean @ target)[measured] / (norm + 1e-6), 0, 5 * 0.02)
  expected = 0.75 * np.exp(s / 0.1) / np.exp(s / 0.1).sum()
  np.testing.assert_allclose(np.exp(decision.logits)[measured], expected, atol=1e-6)


def test_counts_an_alignment_that_is_not_finite_and_keeps_the_old_one():
  policy = made("target", learning_rate=0.1)
  _, state = policy.init(SPEC, KEY)
  one, other = (as_stats(*x) for x in random_rounds(0, 2))
  _, state = policy.update(one, state)
  spoilt = other.domain_target_alignment.at[3, 1].set(jnp.inf)
  other = ExampleStats(
    domain_gradient_product=other.domain_gradient_product, domain_target_alignment=spoilt
  )
  decision, after = policy.update(other, state)
  assert decision.metrics["num_nonfinite"] == 1
  assert after.alignment_K[3] == state.alignment_K[3]
  assert after.alignment_K[0] != state.alignment_K[0]
  assert after.product_KxK[3, 3] != state.product_KxK[3, 3]


def test_one_domain_is_always_drawn():
  policy = made("universal", "paper", learning_rate=0.02, mu=0.1, max_grad_norm=None)
  _, state = policy.init(RunSpec(10, 1, ("web",), (10,), (1.0,)), KEY)
  decision, state = policy.update(as_stats(np.ones((1, 2, WIDTH)), np.ones(WIDTH)), state)
  assert decision.logits.tolist() == [0.0]
  assert state.mean_alpha_K.tolist() == [1.0]


def noisy_rounds(direction_KxD, target_D, num, noise=0.5):
  rng = np.random.default_rng(0)
  for _ in range(num):
    halves = direction_KxD[:, None] + noise * rng.normal(size=(4, 2, WIDTH))
    yield as_stats(halves, target_D)


@pytest.mark.parametrize("rule", ["paper", "repository"])
def test_follows_the_domain_aligned_with_the_target(rule):
  policy = made("target", rule, learning_rate=5e-3)
  decision, state = policy.init(SPEC, KEY)
  direction_KxD = np.eye(4, WIDTH)
  direction_KxD[0] = -direction_KxD[2]  # against the target
  for stats in noisy_rounds(direction_KxD, direction_KxD[2], 60):
    decision, state = policy.update(stats, state)
  assert np.argmax(decision.logits) == 2
  assert np.exp(decision.logits[2]) > 0.9
  assert np.argmax(state.mean_alpha_K) == 2
  if rule == "paper":
    assert np.argmin(decision.logits) == 0


def test_without_a_target_follows_the_domain_that_helps_all_others():
  policy = made("universal", learning_rate=5e-3)
  decision, state = policy.init(SPEC, KEY)
  direction_KxD = np.eye(4, WIDTH)
  direction_KxD[1] = direction_KxD[[0, 2, 3]].sum(axis=0) / np.sqrt(3)
  for stats in noisy_rounds(direction_KxD, np.zeros(WIDTH), 60, noise=0.2):
    decision, state = policy.update(stats, state)
  assert np.argmax(decision.logits) == 1


def test_the_target_needs_a_target_set():
  with pytest.raises(ValueError, match="num_targets"):
    doge("target").init(SPEC._replace(num_targets=0), KEY)
  doge("universal").init(SPEC._replace(num_targets=0), KEY)


@pytest.mark.parametrize(
  "argument",
  [
    {"objective": "ood"},
    {"rule": "official"},
    {"learning_rate": 0.0},
    {"learning_rate": np.inf},
    {"mu": np.nan},
    {"mu": "0.05"},
    {"max_grad_norm": 0.0},
  ],
)
def test_rejects(argument):
  with pytest.raises(ValueError, match=next(iter(argument))):
    doge(**argument)


def test_names_all_offenders_at_once():
  with pytest.raises(ValueError, match=r"objective.*learning_rate.*mu"):
    doge("ood", learning_rate=-1.0, mu=0)
