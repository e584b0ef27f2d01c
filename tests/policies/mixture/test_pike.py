"""PiKE: the equations, the edges, the behaviour."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.mixture import pike, tilt

PRIOR = (0.1, 0.2, 0.3, 0.4)
SPEC = RunSpec(100, 4, ("a", "b", "c", "d"), (25,) * 4, PRIOR, batch_size=16)
KEY = jax.random.key(0)
WIDTH, HALF = 6, 5
ZETA = {"zeta1": 0.05, "zeta2": 0.08}


@functools.cache
def made(*args, **kwargs):
  """A policy whose functions are compiled once for all tests."""
  policy = pike(*args, **kwargs)
  observe = policy.observe and jax.jit(policy.observe)
  return policy._replace(update=jax.jit(policy.update), observe=observe)


def as_stats(halves_Kx2xD):
  product = np.einsum("iad,jbd->iajb", halves_Kx2xD, halves_Kx2xD)
  return ExampleStats(domain_gradient_product=jnp.float32(product))


def as_batch(domain_B, loss_B, tokens_B):
  return ExampleStats(
    domain=jnp.asarray(domain_B), loss=jnp.float32(loss_B), num_tokens=jnp.asarray(tokens_B)
  )


def random_halves(rng):
  return rng.normal(size=(4, 1, WIDTH)) + rng.normal(size=(4, 2, WIDTH))


def random_batch(rng, num_domains=4):
  loss_B = rng.gamma(4.0, 0.5, 12)
  loss_B[rng.random(12) < 0.1] = np.nan
  return rng.integers(0, num_domains, 12), loss_B, rng.integers(0, 9, 12)


def round_means(batches):
  """Mean loss per token of each domain over a round; NaN without tokens."""
  domain, loss, tokens = (np.concatenate(x) for x in zip(*batches, strict=True))
  usable = (tokens > 0) & np.isfinite(loss)
  means = np.full(4, np.nan)
  for k in set(domain[usable]):
    rows = usable & (domain == k)
    means[k] = np.average(loss[rows], weights=tokens[rows])
  return means


def lowest(lam, kappa):
  """The exact rule by trying every support."""
  best, best_w = np.inf, None
  for size in range(1, 5):
    for support in map(list, itertools.combinations(range(4), size)):
      flat = [k for k in support if kappa[k] == 0]
      if flat and size > 1:
        continue  # not drawn here: see test_simplex
      w = np.zeros(4)
      if size == 1:
        w[support] = 1
      else:
        nu = (1 + sum(lam[k] / kappa[k] for k in support)) / sum(1 / kappa[k] for k in support)
        w[support] = [(nu - lam[k]) / kappa[k] for k in support]
      value = w @ lam + w**2 @ kappa / 2
      if np.all(w >= -1e-12) and value < best:
        best, best_w = value, np.maximum(w, 0)
  return best_w


def reference(w, halves, losses, rule, tau, zeta1, zeta2, alignment=0.0, b=16):
  """The docstring's equations from the gradients themselves, in float64."""
  a, c = halves[:, 0], halves[:, 1]
  G = np.sum(a * c, axis=1)
  V = HALF / 2 * np.sum((a - c) ** 2, axis=1)
  y = np.ones(4)
  if tau is not None:
    has = ~np.isnan(losses)
    y = np.full(4, tau / 4)
    e = np.exp(tau * (losses[has] - losses[has].max())) if has.any() else np.ones(0)
    y[has] = tau * has.mean() * e / e.sum()
  G, V = y**2 * G, y**2 * V
  if rule == "update":
    w = w * np.exp(zeta1 * G - zeta2 / (2 * b) * V)
    w = w / w.sum()
  else:
    kappa = zeta2 * (1 + alignment * 3) * np.maximum(G, 0)
    w = lowest(zeta2 / (2 * b) * V - zeta1 * G, kappa)
  return w, w * y / np.sum(w * y)


@pytest.mark.parametrize("tau", [None, 2.0])
def test_update_agrees_with_the_equations(tau):
  policy = made(**ZETA, half_batch_size=HALF, tau=tau)
  for seed in range(6):
    rng = np.random.default_rng(seed)
    _, state = policy.init(SPEC, KEY)
    w, losses = np.array(PRIOR), np.full(4, np.nan)
    for number in range(5):
      halves = random_halves(rng)
      decision, state = policy.update(as_stats(halves), state)
      w, sampled = reference(w, halves, losses, "update", tau, **ZETA)
      np.testing.assert_allclose(np.exp(state.log_w_K), w, rtol=1e-5, atol=1e-5)
      np.testing.assert_allclose(np.exp(decision.logits), sampled, rtol=1e-5, atol=1e-5)
      if tau is None:
        continue
      batches = [random_batch(rng, 3 if number == 1 else 4) for _ in range(3)]
      for batch in batches:
        state = policy.observe(as_batch(*batch), state)
      means = round_means(batches)
      losses = np.where(np.isnan(means), losses, means)


@pytest.mark.parametrize(("tau", "alignment"), [(None, 0.0), (None, 0.5), (2.0, 0.0)])
def test_exact_agrees_with_brute_force(tau, alignment):
  scale = {"zeta1": 0.3, "zeta2": 0.5}
  policy = made(**scale, half_batch_size=HALF, rule="exact", tau=tau, alignment=alignment)
  for seed in range(12):
    rng = np.random.default_rng(seed)
    _, state = policy.init(SPEC, KEY)
    halves = random_halves(rng)
    halves[:, 1] *= np.sign(np.sum(halves[:, 0] * halves[:, 1], axis=1))[:, None]
    losses = np.full(4, np.nan)
    if tau is not None:
      losses = rng.gamma(4.0, 0.1, 4)
      state = policy.observe(as_batch(np.arange(4), losses, np.full(4, 3)), state)
    decision, state = policy.update(as_stats(halves), state)
    w, sampled = reference(None, halves, losses, "exact", tau, **scale, alignment=alignment)
    np.testing.assert_allclose(np.exp(state.log_w_K), w, atol=1e-5)
    np.testing.assert_allclose(np.exp(decision.logits), sampled, atol=1e-5)


def test_estimates_are_unbiased():
  """Of |grad L|^2 and the variance of one example's gradient, over many pairs of halves."""
  rng = np.random.default_rng(0)
  mean_D, sigma = rng.normal(size=WIDTH), 0.7
  examples = mean_D + sigma * rng.normal(size=(4_000, 4, 2, HALF, WIDTH))
  product = np.einsum("niad,njbd->niajb", examples.mean(axis=3), examples.mean(axis=3))
  policy = made(**ZETA, half_batch_size=HALF)
  _, state = policy.init(SPEC, KEY)
  update = jax.vmap(lambda p: policy.update(ExampleStats(domain_gradient_product=p), state)[1])
  states = update(jnp.float32(product))
  np.testing.assert_allclose(np.mean(states.gradient_K), mean_D @ mean_D, rtol=0.02)
  np.testing.assert_allclose(np.mean(states.variance_K), WIDTH * sigma**2, rtol=0.02)


@pytest.mark.parametrize("rule", ["update", "exact"])
def test_an_absent_domain_keeps_its_estimates(rule):
  policy = made(**ZETA, half_batch_size=HALF, rule=rule)
  rng = np.random.default_rng(1)
  _, state = policy.init(SPEC, KEY)
  decision, fresh = policy.update(as_stats(random_halves(rng)), state)
  halves = random_halves(rng)
  halves[2, 0], halves[3] = 0, np.nan
  decision, after = policy.update(as_stats(halves), fresh)
  for name in ("gradient_K", "variance_K"):
    before, now = getattr(fresh, name), getattr(after, name)
    np.testing.assert_array_equal(now[2:], before[2:])
    assert np.all(now[:2] != before[:2])
  assert decision.metrics["num_nonfinite"] == 1
  # Never measured, they keep the base proportion.
  decision, _ = policy.update(as_stats(halves), state)
  np.testing.assert_allclose(np.exp(decision.logits)[2:], PRIOR[2:], rtol=1e-6)
  np.testing.assert_allclose(np.exp(decision.logits).sum(), 1, rtol=1e-6)


def test_counts_losses_that_are_not_finite_and_keeps_those_of_absent_domains():
  policy = made(**ZETA, half_batch_size=HALF, tau=2.0)
  _, state = policy.init(SPEC, KEY)
  stats = as_stats(random_halves(np.random.default_rng(0)))
  state = policy.observe(as_batch([0, 1, 2, 3], [1.0, 2.0, 3.0, np.nan], [4, 4, 4, 0]), state)
  state = policy.observe(as_batch([0, 1, 0, 0], [4.0, np.inf, 9.0, 0.0], [2, 4, 0, 0]), state)
  decision, state = policy.update(stats, state)
  assert decision.metrics["num_nonfinite"] == 1
  np.testing.assert_allclose(state.losses.loss_K, [2, 2, 3, 0], rtol=1e-6)
  assert state.losses.known_K.tolist() == [True, True, True, False]
  state = policy.observe(as_batch([3] * 4, [5.0] * 4, [1] * 4), state)
  decision, state = policy.update(stats, state)
  assert decision.metrics["num_nonfinite"] == 0
  np.testing.assert_allclose(state.losses.loss_K, [2, 2, 3, 5], rtol=1e-6)


def test_w_decides_where_no_domain_of_weight_has_a_loss_to_speak_of():
  """Domain 1 has all of y and, as its gradient is noise, nothing of w."""
  policy = made(zeta1=0.3, zeta2=0.5, half_batch_size=HALF, rule="exact", tau=2.0)
  _, state = policy.init(SPEC, KEY)
  state = policy.observe(as_batch(range(4), [1.0, 3e38, 1.0, 1.0], [5] * 4), state)
  halves = np.ones((4, 2, WIDTH))
  halves[1, 1] = -1
  decision, _ = policy.update(as_stats(halves), state)
  np.testing.assert_allclose(np.exp(decision.logits), [1 / 3, 0, 1 / 3, 1 / 3], atol=1e-6)


def test_tilt_is_the_gradient_of_the_tilted_loss():
  """Times tau, of log(sum_k exp(tau L_k)) / tau; and has sum tau with some losses unknown."""
  rng = np.random.default_rng(0)
  for tau in (0.1, 1.0, 5.0):
    loss_K = jnp.float32(rng.gamma(4.0, 0.5, 4))
    losses = tilt.start(4)._replace(loss_K=loss_K, known_K=jnp.ones(4, bool))
    tilted = lambda loss_K, tau=tau: jax.nn.logsumexp(tau * loss_K) / tau
    y_K = np.exp(tilt.log_tilt(losses, tau))
    np.testing.assert_allclose(y_K, tau * jax.grad(tilted)(loss_K), rtol=1e-5)
    losses = losses._replace(known_K=jnp.array([True, False, True, False]))
    y_K = np.exp(tilt.log_tilt(losses, tau))
    np.testing.assert_allclose(y_K[[1, 3]], tau / 4, rtol=1e-6)
    np.testing.assert_allclose(y_K.sum(), tau, rtol=1e-6)


def test_one_domain_is_always_drawn():
  for rule in ("update", "exact"):
    policy = made(**ZETA, half_batch_size=HALF, rule=rule)
    _, state = policy.init(RunSpec(10, 1, ("web",), (10,), (1.0,), batch_size=4), KEY)
    decision, _ = policy.update(as_stats(np.ones((1, 2, WIDTH))), state)
    assert decision.logits.tolist() == [0.0]


def noisy_rounds(length_K, noise_K, num):
  """Domain k's gradient has this length and each example's this much noise a coordinate."""
  rng = np.random.default_rng(0)
  for _ in range(num):
    noise = rng.normal(size=(4, 2, WIDTH)) * np.array(noise_K)[:, None, None]
    yield as_stats(np.array(length_K)[:, None, None] * np.eye(4, WIDTH)[:, None] + noise)


@pytest.mark.parametrize("rule", ["update", "exact"])
def test_raises_the_domain_with_a_large_gradient_and_little_noise(rule):
  policy = made(zeta1=0.1, zeta2=0.1, half_batch_size=50, rule=rule)
  decision, state = policy.init(SPEC._replace(proportions=(0.25,) * 4), KEY)
  shares = []
  for stats in noisy_rounds([2.0, 2.0, 0.5, 0.5], [0.05, 0.5, 0.05, 0.5], 40):
    decision, state = policy.update(stats, state)
    shares.append(np.exp(decision.logits))
  # The exact rule follows every estimate at once.
  share_K = shares[-1] if rule == "update" else np.mean(shares, axis=0)
  assert share_K[0] > 0.6
  assert share_K[0] > 2 * share_K[1:].max()


def test_balanced_learning_raises_the_domain_with_the_higher_loss():
  plain = made(**ZETA, half_batch_size=HALF)
  balanced = made(**ZETA, half_batch_size=HALF, tau=2.0)
  spec = SPEC._replace(proportions=(0.25,) * 4)
  for policy in (plain, balanced):
    decision, state = policy.init(spec, KEY)
    for stats in noisy_rounds([1.0] * 4, [0.1] * 4, 10):
      if policy.observe is not None:
        state = policy.observe(as_batch(range(4), [2.0, 2.0, 3.5, 2.0], [5] * 4), state)
      decision, state = policy.update(stats, state)
    share_K = np.exp(decision.logits)
    assert (share_K[2] > 0.5) == (policy is balanced)


@pytest.mark.parametrize(
  "argument",
  [
    {"zeta1": -1.0},
    {"zeta1": np.inf},
    {"zeta2": np.nan},
    {"zeta2": 0.0, "rule": "exact"},
    {"half_batch_size": 0},
    {"half_batch_size": 2.0},
    {"rule": "paper"},
    {"alignment": -0.1},
    {"tau": 0.0},
    {"tau": np.inf},
  ],
)
def test_rejects(argument):
  with pytest.raises(ValueError, match=next(iter(argument))):
    pike(**{"zeta1": 1.0, "zeta2": 1.0, "half_batch_size": 4, **argument})


def test_its_weights_have_no_defaults():
  with pytest.raises(TypeError, match=r"zeta1.*zeta2"):
    pike()


def test_half_batches_are_those_of_the_run():
  with pytest.raises(ValueError, match="probe_size=8, got 4"):
    pike(1.0, 1.0, 4).init(SPEC._replace(probe_size=8), KEY)
  with pytest.raises(ValueError, match="no probe_size"):
    pike(1.0, 1.0).init(SPEC._replace(probe_size=0), KEY)
  _, told = pike(1.0, 1.0).init(SPEC._replace(probe_size=8), KEY)
  _, given = pike(1.0, 1.0, 8).init(SPEC, KEY)
  assert told.half_batch_size == given.half_batch_size == 8


def test_needs_a_batch_size():
  with pytest.raises(ValueError, match="batch_size"):
    pike(1.0, 1.0, 4).init(SPEC._replace(batch_size=0), KEY)
