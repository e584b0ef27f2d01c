"""DoReMi: the equations, the loss it makes, the edges, the behaviour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.mixture import doremi

K, B, T = 4, 12, 6
NAMES = ("a", "b", "c", "d")
SPEC = RunSpec(100, K, NAMES, (25,) * K, (0.1, 0.2, 0.3, 0.4), batch_size=B)
KEY = jax.random.key(0)
UPDATES = {
  kind: (doremi(1.0, 1e-3, kind), jax.jit(doremi(1.0, 1e-3, kind).update))
  for kind in ("uniform", "base")
}


def reference(batches, eta=1.0, c=1e-3, corrected=False):
  """The docstring's equations, one token at a time, in float64."""
  alpha, history, weights = np.full(K, 1 / K), [], []
  excess, seen = np.zeros(K), np.zeros(K, bool)
  for domain, loss, ref, mask, p in batches:
    gap, n = np.float64(loss) - np.float64(ref), mask.sum(1)
    usable = [n[i] > 0 and np.isfinite(gap[i][mask[i]]).all() for i in range(len(n))]
    if corrected:
      usable = [u and np.isfinite(x) and x > 0 for u, x in zip(usable, p, strict=True)]
    for k in range(K):
      rows = [i for i in range(len(n)) if usable[i] and domain[i] == k]
      if rows:
        terms = [max(gap[i, t], 0) for i in rows for t in range(mask.shape[1]) if mask[i, t]]
        excess[k], seen[k] = np.mean(terms), True
    share = alpha[seen].sum()
    raised = np.where(seen, alpha * np.exp(eta * (excess - excess.max())), 0)
    raised = np.where(seen, share * raised / max(raised.sum(), 1e-300), alpha)
    alpha = (1 - c) * raised + c / K
    history.append(alpha)
    ratio = alpha[domain] / (p if corrected else 1)
    ratio = np.where(usable, ratio, 0)
    weights = ratio * n.sum() / max(np.sum(ratio * n), 1e-300)
  return (
    excess,
    alpha,
    np.mean(history, axis=0),
    weights,
    int(np.sum((n > 0) & ~np.array(usable))),
  )


def random_batch(rng, spoil=0.0):
  domain = rng.integers(0, rng.integers(1, K + 1), B)
  mask = np.arange(T) < rng.integers(0, T + 1, B)[:, None]
  mask &= rng.random((B, T)) < 0.8
  loss, ref = rng.gamma(3.0, 1.0, (2, B, T)).astype(np.float32)
  bad = rng.random((B, T)) < spoil
  loss = np.where(bad, rng.choice([np.nan, np.inf, -np.inf], (B, T)), loss)
  return domain, loss, ref, mask, rng.dirichlet(np.ones(K) * 3).astype(np.float32)[domain]


def as_stats(domain, loss, ref, mask, p=None):
  return ExampleStats(
    domain=jnp.asarray(domain),
    num_tokens=jnp.asarray(mask.sum(1)),
    token_mask=jnp.float32(mask),
    token_loss=jnp.where(mask, jnp.float32(loss), jnp.nan),
    reference_token_loss=jnp.float32(ref),
    domain_probability=None if p is None else jnp.float32(p),
  )


@pytest.mark.parametrize("kind", ["uniform", "base"])
@pytest.mark.parametrize("spoil", [0.0, 0.1])
def test_agrees_with_the_equations(kind, spoil):
  policy, update = UPDATES[kind]
  for seed in range(6):
    rng = np.random.default_rng(seed)
    batches = [random_batch(rng, spoil) for _ in range(15)]
    _, state = policy.init(SPEC, KEY)
    for batch in batches:
      decision, state = update(as_stats(*batch), state)
    excess, alpha, mean, weights, bad = reference(batches, corrected=kind == "base")
    np.testing.assert_allclose(state.excess_K, excess, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.exp(state.log_alpha_K), alpha, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state.mean_alpha_K, mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(decision.weights, weights, rtol=1e-5, atol=1e-5)
    assert decision.metrics["num_nonfinite"] == bad
    entropy = lambda p: -np.sum(p * np.log(p))
    for name, expected in {
      "entropy": entropy(alpha),
      "mean_entropy": entropy(mean),
      "mean_max": mean.max(),
      "excess_loss": alpha @ excess,
    }.items():
      np.testing.assert_allclose(decision.metrics[name], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ("kind", "expected"), [("uniform", [0.25] * 4), ("base", SPEC.proportions)]
)
def test_samples_in_fixed_proportions(kind, expected):
  policy, update = UPDATES[kind]
  first, state = policy.init(SPEC, KEY)
  later, _ = update(as_stats(*random_batch(np.random.default_rng(0))), state)
  for decision in (first, later):
    np.testing.assert_allclose(np.exp(decision.logits), expected, rtol=1e-6)
  assert first.weights.tolist() == [1.0] * B


def test_the_weighted_loss_is_the_papers():
  """sum_tok alpha l / sum_tok alpha, from the loss in which weight 1 is neutral."""
  policy, update = UPDATES["uniform"]
  domain, loss, ref, mask, _ = random_batch(np.random.default_rng(3))
  decision, state = update(as_stats(domain, loss, ref, mask), policy.init(SPEC, KEY)[1])
  alpha_BxT = np.exp(np.float64(state.log_alpha_K))[domain][:, None] * mask
  ours = np.sum(np.float64(decision.weights)[:, None] * mask * loss) / mask.sum()
  np.testing.assert_allclose(ours, np.sum(alpha_BxT * loss) / alpha_BxT.sum(), rtol=1e-6)


def test_equal_excess_is_the_plain_loss():
  policy, update = UPDATES["uniform"]
  domain, loss, _, mask, _ = random_batch(np.random.default_rng(4))
  decision, _ = update(as_stats(domain, loss, loss, mask), policy.init(SPEC, KEY)[1])
  np.testing.assert_allclose(decision.weights[mask.any(1)], 1, rtol=1e-6)


def test_zero_alpha_makes_the_gradient_of_a_domain_zero():
  """One parameter a domain; the gradient goes through the weighted loss."""
  policy = doremi(smoothing=0.0)
  _, state = policy.init(SPEC, KEY)
  alpha_K = jnp.float32([0.5, 0.25, 0, 0.25])
  state = state._replace(log_alpha_K=jnp.log(alpha_K))
  domain = np.arange(B) % K
  _, _, ref, mask, _ = random_batch(np.random.default_rng(0))

  def weighted_loss(scale_K):
    token_loss = jnp.float32(2 + ref) * scale_K[domain][:, None]
    stats = as_stats(domain, jax.lax.stop_gradient(token_loss), ref, mask)
    decision, _ = policy.update(stats, state)
    return jnp.sum(decision.weights[:, None] * mask * token_loss) / mask.sum()

  gradient_K = np.asarray(jax.jit(jax.grad(weighted_loss))(jnp.ones(K)))
  assert gradient_K[2] == 0
  assert np.all(gradient_K[[0, 1, 3]] > 0)


def test_packed_rows_decide_as_the_same_examples_in_rows_of_their_own():
  policy, update = UPDATES["uniform"]
  domain, loss, ref, mask, _ = random_batch(np.random.default_rng(7))
  plain, _ = update(as_stats(domain, loss, ref, mask), policy.init(SPEC, KEY)[1])
  rows, each = B // 3, 3
  fold = lambda x: jnp.asarray(x).reshape(rows, each * T)
  stats = as_stats(domain, loss, ref, mask)
  stats = ExampleStats(
    domain=stats.domain,
    num_tokens=stats.num_tokens,
    token_mask=fold(stats.token_mask),
    token_loss=fold(stats.token_loss),
    reference_token_loss=fold(stats.reference_token_loss),
    token_segment=fold(np.repeat(np.arange(B), T)),
  )
  packed, _ = update(stats, policy.init(SPEC, KEY)[1])
  np.testing.assert_allclose(packed.weights, plain.weights, rtol=1e-6)


def test_clips_each_token_before_the_mean():
  policy, update = UPDATES["uniform"]
  mask = np.zeros((B, T), bool)
  mask[0, :2] = True
  loss, ref = np.zeros((B, T)), np.zeros((B, T))
  loss[0, 0], ref[0, 1] = 2.0, 5.0  # excess 2 and -5
  _, state = update(as_stats(np.full(B, 1), loss, ref, mask), policy.init(SPEC, KEY)[1])
  np.testing.assert_allclose(state.excess_K, [0, 1, 0, 0])
  assert state.seen_K.tolist() == [False, True, False, False]
  np.testing.assert_allclose(np.exp(state.log_alpha_K), [0.25] * 4, rtol=1e-6)


def test_padding_touches_nothing():
  policy, update = UPDATES["uniform"]
  empty = as_stats(*random_batch(np.random.default_rng(0))[:3], np.zeros((B, T), bool))
  _, before = update(
    as_stats(*random_batch(np.random.default_rng(1))), policy.init(SPEC, KEY)[1]
  )
  decision, after = update(empty, before)
  assert decision.weights.tolist() == [0.0] * B
  assert decision.metrics["num_nonfinite"] == 0
  np.testing.assert_array_equal(after.excess_K, before.excess_K)


def test_a_huge_excess_takes_all_the_weight():
  policy, update = UPDATES["uniform"]
  domain, loss, ref, mask = (
    np.arange(B) % K,
    np.ones((B, T)),
    np.ones((B, T)),
    np.ones((B, T), bool),
  )
  loss[domain == 2] = 1e5
  decision, state = update(as_stats(domain, loss, ref, mask), policy.init(SPEC, KEY)[1])
  np.testing.assert_allclose(
    np.exp(state.log_alpha_K), [2.5e-4, 2.5e-4, 1 - 7.5e-4, 2.5e-4], rtol=1e-4
  )
  np.testing.assert_allclose(decision.weights[2], 4 * (1 - 7.5e-4), rtol=1e-5)


def test_the_mean_does_not_drift_over_a_long_run():
  """Without compensation the mean stops moving: 5e-4 off after these updates."""
  from jdc.policies.mixture.doremi import _average

  spec = RunSpec(9, 2, ("a", "b"), (5, 4), (0.5, 0.5), batch_size=4)
  _, state = doremi().init(spec, KEY)
  num = 300_000
  alpha_N = 0.5 + 0.4 * np.linspace(-1, 1, num)

  @jax.jit
  def run(state, alpha_N):
    def step(state, alpha):
      pair_K = jnp.log(jnp.stack([alpha, 1 - alpha]))
      return _average(state._replace(log_alpha_K=pair_K)), None

    return jax.lax.scan(step, state, alpha_N)[0]

  state = run(state, jnp.float32(alpha_N))
  np.testing.assert_allclose(state.mean_alpha_K, [0.5, 0.5], atol=2e-6)
  assert state.num_updates == num


def test_one_domain_and_candidates():
  spec = RunSpec(9, 1, ("web",), (9,), (1.0,), batch_size=4, num_candidates=B)
  policy = doremi()
  first, state = policy.init(spec, KEY)
  assert first.weights.shape == (B,)
  _, loss, ref, mask, _ = random_batch(np.random.default_rng(0))
  decision, state = UPDATES["uniform"][1](as_stats(np.zeros(B, int), loss, ref, mask), state)
  np.testing.assert_allclose(decision.weights, mask.any(1), rtol=1e-6)
  assert state.mean_alpha_K.tolist() == [1.0]


def test_raises_what_can_be_learnt_over_noise():
  """Unigram models in three domains, against a reference that has converged.

  `skewed` is learnable and not learnt, `learnt` needs nothing, `noise` cannot be learnt by the
  reference either, though its loss is by far the highest.
  """
  vocabulary, rng = 16, np.random.default_rng(0)
  truth = np.full((3, vocabulary), 1 / vocabulary)
  truth[0] = 0.01 / (vocabulary - 1)
  truth[0, 3] = 0.99
  truth[1, :] = 0
  truth[1, :2] = 0.5
  logits = np.zeros((3, vocabulary))
  logits[1] = np.log(truth[1] + 1e-6)
  spec = RunSpec(9, 3, ("skewed", "learnt", "noise"), (3,) * 3, (1 / 3,) * 3, batch_size=9)
  policy = UPDATES["uniform"][0]
  (decision, state), update = policy.init(spec, KEY), UPDATES["uniform"][1]
  domain = np.arange(9) % 3
  for _ in range(60):
    draws = np.stack([rng.choice(vocabulary, 20, p=truth[d]) for d in domain])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    loss = -log_p[domain[:, None], draws]
    ref = -np.log(truth[domain[:, None], draws])
    decision, state = update(as_stats(domain, loss, ref, np.ones((9, 20), bool)), state)
    for i, d in enumerate(domain):  # the gradient of the weighted loss
      counts = np.bincount(draws[i], minlength=vocabulary) / 20
      logits[d] += 0.02 * float(decision.weights[i]) * (counts - np.exp(log_p[d]))
  alpha = np.asarray(state.mean_alpha_K)
  assert loss[domain == 2].mean() > 2.5 > loss[domain == 1].mean()  # noise has a high loss
  assert alpha[0] > 0.9
  assert alpha[2] < 0.06


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"learning_rate": 0.0}, "learning_rate"),
    ({"learning_rate": np.inf}, "learning_rate"),
    ({"smoothing": 1.0}, "smoothing"),
    ({"smoothing": -0.1, "sampling": "alpha"}, "smoothing.*sampling"),
  ],
)
def test_rejects(arguments, message):
  with pytest.raises(ValueError, match=message):
    doremi(**arguments)


def test_rejects_a_run_that_does_not_fit():
  with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
    doremi().init(SPEC._replace(batch_size=0), KEY)
  without = SPEC._replace(proportions=(0.0, 0.5, 0.5, 0.0), batch_size=0)
  with pytest.raises(ValueError, match=r"batch_size.*those of \['a', 'd'\] are 0"):
    doremi(sampling="base").init(without, KEY)


def test_observes_the_probability_only_where_it_divides_by_it():
  assert "domain_probability" not in doremi().observes
  assert doremi(sampling="base").observes - doremi().observes == {"domain_probability"}
