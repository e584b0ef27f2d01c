"""Group DRO, as a mixture and as a weighting: one q, two uses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec, mixture, weighting

K, B = 4, 12
SIZES = (40, 30, 20, 10)
SPEC = RunSpec(100, K, ("a", "b", "c", "d"), SIZES, (0.1, 0.2, 0.3, 0.4), batch_size=B)
KEY = jax.random.key(0)
ARGUMENTS = [(0.01, 0.0, "carry"), (0.5, 2.0, "carry"), (0.5, 2.0, "zero")]
both = pytest.mark.parametrize("factory", [mixture.group_dro, weighting.group_dro])


def reference(batches, eta, C, absent):
  """The docstring's equations, one example at a time, in float64; returns also the weights."""
  q, loss, seen = np.full(K, 1 / K), np.zeros(K), np.zeros(K, bool)
  for domain_B, loss_B, tokens_B in batches:
    usable_B = np.isfinite(loss_B) & (tokens_B > 0)
    count = np.array([tokens_B[usable_B & (domain_B == k)].sum() for k in range(K)])
    if absent == "zero":
      loss, seen = np.zeros(K), np.ones(K, bool)
    for k in range(K):
      rows = usable_B & (domain_B == k)
      if rows.any():
        loss[k], seen[k] = np.average(loss_B[rows], weights=tokens_B[rows]), True
    raised = np.where(seen, q * np.exp(eta * (loss + C / np.sqrt(SIZES))), 0)
    q = np.where(seen, raised / max(raised.sum(), 1e-300) * q[seen].sum(), q)
  weight_K = q * tokens_B.sum() / np.maximum(count, 1)
  return loss, q, np.where(usable_B, weight_K[domain_B], 0)


def random_batches(seed, num=20):
  rng = np.random.default_rng(seed)
  for _ in range(num):
    loss_B = rng.gamma(4.0, 0.5, B)
    loss_B[rng.random(B) < 0.1] = np.nan
    yield rng.integers(0, rng.integers(1, K + 1), B), loss_B, rng.integers(0, 9, B)


def as_stats(domain_B, loss_B, tokens_B):
  return ExampleStats(
    domain=jnp.asarray(domain_B), loss=jnp.float32(loss_B), num_tokens=jnp.asarray(tokens_B)
  )


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_agrees_with_the_equations(arguments):
  mix, weigh = mixture.group_dro(*arguments), weighting.group_dro(*arguments)
  update_mix, update_weigh = jax.jit(mix.update), jax.jit(weigh.update)
  for seed in range(5):
    (_, state), (_, other) = mix.init(SPEC, KEY), weigh.init(SPEC, KEY)
    batches = list(random_batches(seed))
    for batch in batches:
      sampled, state = update_mix(as_stats(*batch), state)
      weighted, other = update_weigh(as_stats(*batch), other)
    loss, q, weights = reference(batches, *arguments)
    for learnt in (state, other):
      np.testing.assert_allclose(learnt.loss_K, loss, rtol=1e-5)
    np.testing.assert_allclose(np.exp(sampled.logits), q, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(weighted.weights, weights, rtol=1e-5, atol=1e-5)
    bad = np.sum(~np.isfinite(batches[-1][1]) & (batches[-1][2] > 0))
    assert sampled.metrics["num_nonfinite"] == weighted.metrics["num_nonfinite"] == bad
    np.testing.assert_allclose(sampled.metrics["robust_loss"], q @ loss, rtol=1e-5)


def test_the_weighted_loss_is_the_sum_of_q_times_the_losses_of_the_domains():
  policy = weighting.group_dro(0.3)
  domain_B, tokens_B = np.arange(B) % K, np.arange(B) + 1
  loss_B = np.random.default_rng(0).gamma(4.0, 0.5, B)
  decision, state = policy.update(
    as_stats(domain_B, loss_B, tokens_B), policy.init(SPEC, KEY)[1]
  )
  ours = np.sum(np.float64(decision.weights) * tokens_B * loss_B) / tokens_B.sum()
  mean_K = [np.average(loss_B[k::K], weights=tokens_B[k::K]) for k in range(K)]
  np.testing.assert_allclose(ours, np.exp(np.float64(state.log_q_K)) @ mean_K, rtol=1e-6)


def test_starts_uniform():
  for policy in (mixture.group_dro(), weighting.group_dro()):
    decision, state = policy.init(SPEC, KEY)
    np.testing.assert_allclose(np.exp(state.log_q_K), 0.25, rtol=1e-6)
  assert decision.weights.tolist() == [1.0] * B
  np.testing.assert_allclose(np.exp(mixture.group_dro().init(SPEC, KEY)[0].logits), 0.25)


def test_a_domain_not_seen_yet_keeps_its_share():
  policy = mixture.group_dro(1.0)
  decision, _ = policy.update(
    as_stats([0, 0, 1], [3.0, 1.0, 1.0], [2, 2, 2]), policy.init(SPEC, KEY)[1]
  )
  raised = 0.5 * np.exp([2, 1]) / np.exp([2, 1]).sum()
  np.testing.assert_allclose(np.exp(decision.logits), [*raised, 0.25, 0.25], rtol=1e-6)


def test_sizes_are_adjusted_for_by_their_root():
  policy = mixture.group_dro(1.0, size_adjustment=5.0)
  decision, _ = policy.update(
    as_stats([0, 1, 2, 3], [2.0] * 4, [3] * 4), policy.init(SPEC, KEY)[1]
  )
  log_q = 5 / np.sqrt(SIZES)
  np.testing.assert_allclose(np.diff(decision.logits), np.diff(log_q), rtol=1e-5)


def test_a_domain_out_of_favour_for_long_comes_back_when_its_loss_rises():
  """q falls to e^-300, which float32 holds as a logarithm only."""
  policy = mixture.group_dro(1.0)
  spec = RunSpec(9, 2, ("a", "b"), (5, 4), (0.5, 0.5))
  (decision, state), update = policy.init(spec, KEY), jax.jit(policy.update)
  for loss_B in [[0.0, 3.0]] * 100 + [[3.0, 0.0]] * 100 + [[3.0, 2.0]] * 2:
    decision, state = update(as_stats([0, 1], loss_B, [4, 4]), state)
  np.testing.assert_allclose(np.diff(decision.logits), -2, atol=1e-3)


def test_weights_one_domain_and_padding_neutrally():
  policy = weighting.group_dro()
  spec = RunSpec(9, 1, ("web",), (9,), (1.0,), batch_size=3)
  decision, _ = policy.update(
    as_stats([0, 0, 0], [1.0, 2.0, np.nan], [3, 4, 0]), policy.init(spec, KEY)[1]
  )
  np.testing.assert_allclose(decision.weights, [1, 1, 0], rtol=1e-6)
  assert decision.metrics["num_nonfinite"] == 0


def test_follows_the_highest_loss_noise_included():
  """Domain 1 is noise, whose loss stays at ln 16; the others are learnt as they are drawn."""
  policy, rng = mixture.group_dro(0.05), np.random.default_rng(0)
  (decision, state), update = policy.init(SPEC, KEY), jax.jit(policy.update)
  loss_K = np.full(K, np.log(16))
  for _ in range(300):
    q_K = np.exp(np.float64(decision.logits))
    domain_B = rng.choice(K, B, p=q_K / q_K.sum())
    decision, state = update(as_stats(domain_B, loss_K[domain_B], np.full(B, 8)), state)
    count_K = np.bincount(domain_B, minlength=K) / B
    loss_K = np.where(np.arange(K) == 1, loss_K, loss_K * (1 - 0.1 * count_K))
  assert np.exp(decision.logits[1]) > 0.9


@both
@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"learning_rate": 0}, "learning_rate"),
    ({"learning_rate": np.nan, "size_adjustment": -1.0}, "learning_rate.*size_adjustment"),
    ({"absent": "skip"}, "absent must be in"),
  ],
)
def test_rejects(factory, arguments, message):
  with pytest.raises(ValueError, match=message):
    factory(**arguments)


@both
def test_rejects_a_run_that_does_not_fit(factory):
  spec = SPEC._replace(domain_sizes=(0, 3, 3, 0))
  factory().init(spec, KEY)
  with pytest.raises(ValueError, match=r"domain_sizes of \['a', 'd'\] are 0"):
    factory(size_adjustment=1.0).init(spec, KEY)


def test_a_weighting_needs_a_batch_size():
  with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
    weighting.group_dro().init(SPEC._replace(batch_size=0), KEY)
  mixture.group_dro().init(SPEC._replace(batch_size=0), KEY)
