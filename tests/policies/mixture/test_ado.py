"""Adaptive data optimisation: the curves, the fits, the equations, the behaviour."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.signal

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.mixture import ado, learning_curves, scaling_laws

K, B = 4, 12
BASE = (0.1, 0.2, 0.3, 0.4)
SPEC = RunSpec(100, K, ("a", "b", "c", "d"), (25,) * K, BASE, batch_size=B, num_steps=100)
KEY = jax.random.key(0)
SMALL = {"start_steps": 8, "refit_steps": 5, "window": 5, "ignore_steps": 1, "history": 16}


# Curves of losses.


def points(num_steps, capacity):
  """Which steps are kept, by the rule in words."""
  kept, stride = [], 1
  for step in range(num_steps):
    if step % stride == 0:
      if len(kept) == capacity:
        kept, stride = kept[::2], 2 * stride
      if step % stride == 0:
        kept.append(step)
  return kept, stride


@pytest.mark.parametrize("num_counts", [1, 3])
def test_curves_thin_out_when_they_are_full(num_counts):
  capacity, rng = 8, np.random.default_rng(0)
  losses, curves = rng.random((100, 3)), learning_curves.start(3, num_counts, capacity)
  seen_from, record = np.array([0, 5, 200]), jax.jit(learning_curves.record)
  for step in range(100):
    count_J = jnp.uint32([(step + 1) * (j + 1) for j in range(num_counts)])
    curves = record(curves, jnp.float32(losses[step]), count_J, jnp.asarray(step >= seen_from))
    if step in (0, 6, 7, 8, 15, 16, 17, 40, 99):
      kept, stride = points(step + 1, capacity)
      assert curves.stride == stride
      np.testing.assert_array_equal(
        curves.loss_KxH[:, : len(kept)], np.float32(losses[kept].T), err_msg=str(step)
      )
      expected = np.outer(np.arange(num_counts) + 1, np.array(kept) + 1)
      np.testing.assert_array_equal(curves.count_JxH[:, : len(kept)], expected)
  assert curves.first_K.tolist() == [0, 5, learning_curves.NEVER]


@pytest.mark.parametrize("window", [5, 11, 101])
def test_smoothing_is_that_of_savitzky_and_golay(window):
  rng, cubics = np.random.default_rng(window), learning_curves.local_cubics(window)
  smooth = jax.jit(learning_curves.smooth)
  for first, last in [(0, 150), (7, 150), (3, 3 + window), (20, 140)]:
    values_H = rng.gamma(4.0, 0.5, 150)
    expected = scipy.signal.savgol_filter(values_H[first:last], window, 3, mode="interp")
    outside = (np.arange(150) < first) | (np.arange(150) >= last)
    given_H = np.where(outside, np.nan, values_H)
    places = np.clip(np.arange(150), first, last - 1)
    smoothed = smooth(jnp.float32(given_H), places, first, last, jnp.float32(cubics))
    np.testing.assert_allclose(smoothed[first:last], expected, rtol=1e-5, atol=1e-5)


# Fits.


def objective(law, log_n, log_loss):
  """The module's docstring in float64, with its gradient."""
  a, e, alpha = law
  log_law = np.logaddexp(a - alpha * log_n, e)
  residual = log_loss - log_law
  size = np.abs(residual)
  huber = np.where(size > 1e-3, 1e-3 * (size - 0.5e-3), 0.5 * size**2)
  bounds = (alpha - 0.8, 0.001 - alpha, 0.5 - e, a - 6.5)
  force, share = -np.clip(residual, -1e-3, 1e-3), np.exp(a - alpha * log_n - log_law)
  on = [float(bound > 0) for bound in bounds]
  gradient = [
    (force * share).sum() + on[3],
    (force * (1 - share)).sum() - on[2],
    -(force * share * log_n).sum() + on[0] - on[1],
  ]
  return huber.sum() + sum(max(bound, 0) for bound in bounds), np.array(gradient)


def noisy_curve(rng, num_points=128):
  """A law and losses that scatter about it, after batches of some size."""
  e, alpha = rng.uniform(0.3, 1.2), rng.uniform(0.05, 0.7)
  n = np.arange(1, num_points + 1) * float(rng.choice([16, 256, 4096, 32768]))
  a = np.log(rng.uniform(1, 6)) + alpha * np.log(n[num_points // 20]) * rng.uniform(0.3, 1)
  noise = rng.normal(size=num_points) * rng.choice([0.002, 0.01, 0.03])
  return np.log(n), np.log(np.exp(e) + np.exp(a) * n**-alpha) + noise


def test_starts_from_the_grid_of_the_paper():
  grid = scaling_laws.start_grid()
  assert grid.shape == (512, 3)
  assert [sorted(set(column.tolist())) for column in grid.T] == [
    [-2, -1, 0, 1, 2, 3, 4, 5],
    [-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5],
    np.float32([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]).tolist(),
  ]


def test_the_objective_is_the_papers():
  rng, value = np.random.default_rng(0), jax.jit(scaling_laws.objective)
  for _ in range(50):
    log_n, log_loss = noisy_curve(rng)
    law = rng.uniform([-3, -1, -0.2], [8, 2, 1.2])
    used = rng.random(128) < 0.7
    expected, _ = objective(law, log_n[used], log_loss[used])
    given = np.where(used, log_loss, np.nan)
    actual = value(jnp.float32(law), jnp.float32(log_n), jnp.float32(given), used)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


KNOWN = np.array([2.0, 0.8, 0.4])


@functools.cache
def fitted():
  """Fits of five noisy curves, of a known law from its sixth point on, and of nothing."""
  rng = np.random.default_rng(1)
  curves = [noisy_curve(rng) for _ in range(5)]
  log_n, used = np.log(np.arange(1, 129) * 64.0), np.ones((7, 128), bool)
  known = np.logaddexp(KNOWN[0] - KNOWN[2] * log_n, KNOWN[1])
  used[5, :5], known[:5] = False, np.nan
  all_curves = [*curves, (log_n, known), (log_n, np.full(128, np.nan))]
  log_n, log_loss = (jnp.float32(np.stack(each)) for each in zip(*all_curves, strict=True))
  laws, values = jax.jit(jax.vmap(scaling_laws.fit))(log_n, log_loss, used)
  return curves, np.float64(laws), np.float64(values)


def best_of_scipy(log_n, log_loss):
  """L-BFGS from the best start of each alpha of the grid."""
  grid = np.float64(scaling_laws.start_grid())
  values = [objective(law, log_n, log_loss)[0] for law in grid]
  starts = grid[np.argmin(np.reshape(values, (64, 8)), axis=0) * 8 + np.arange(8)]
  curve = (log_n, log_loss)
  runs = [scipy.optimize.minimize(objective, x, curve, "L-BFGS-B", jac=True) for x in starts]
  return min(run.fun for run in runs)


def test_fits_reach_the_objective_that_scipy_reaches_from_the_same_grid():
  for (log_n, log_loss), law, value in zip(*fitted(), strict=False):
    reached, _ = objective(law, log_n, log_loss)
    np.testing.assert_allclose(value, reached, rtol=1e-3, atol=1e-6)
    assert reached <= 1.05 * best_of_scipy(log_n, log_loss) + 1e-5


def test_fits_recover_a_law_without_noise():
  _, laws, values = fitted()
  np.testing.assert_allclose(laws[5], KNOWN, atol=0.01)
  assert values[5] < 1e-7


def test_nothing_to_fit_is_not_finite():
  assert not np.isfinite(fitted()[2][6])


# The policy.


@functools.cache
def jitted(policy):
  return jax.jit(policy.update)


def as_stats(domain_B, loss_B, tokens_B):
  return ExampleStats(
    domain=jnp.asarray(domain_B, jnp.int32),
    loss=jnp.float32(loss_B),
    num_tokens=jnp.asarray(tokens_B, jnp.int32),
  )


def random_batches(seed, num=40):
  rng = np.random.default_rng(seed)
  for step in range(num):
    domain_B = rng.integers(0, 3 if step < 15 else K, B)  # the last one comes late
    loss_B = 1 + rng.gamma(4.0, 0.2, B) * (step + 1.0) ** -(0.1 + 0.2 * domain_B)
    loss_B[rng.random(B) < 0.1] = np.nan
    tokens_B = rng.integers(0, 9, B) * (step != 20)
    yield domain_B, loss_B, tokens_B


def reference_step(batch, memory, t, law_Kx3, fitted_K, count, floor, active):
  """The docstring's policy step in float64, given the laws."""
  domain_B, loss_B, tokens_B = batch
  counts_B = tokens_B > 0
  rows_K = np.array([np.sum(counts_B & (domain_B == k)) for k in range(K)])
  memory["n"] = memory["n"] + (rows_K if count == "own" else rows_K.sum())
  for k in range(K):
    usable = counts_B & (domain_B == k) & np.isfinite(loss_B)
    if usable.any():
      memory["loss"][k] = np.average(loss_B[usable], weights=tokens_B[usable])
  if rows_K.sum():
    memory["h"] = 0.9 * memory["h"] + 0.1 * rows_K / rows_K.sum()
  if not active:
    return np.array(BASE)
  mu, n, rho = np.array(BASE), np.maximum(memory["n"], 1.0), np.array(BASE)
  a, e, alpha = np.float64(law_Kx3).T
  reducible = np.exp(e) + np.exp(a) * n**-alpha - np.exp(e)
  slope = np.maximum(alpha, 0.05) * reducible / n * mu * np.sqrt(memory["h"])
  if fitted_K.any():
    rho[fitted_K] = slope[fitted_K] / slope[fitted_K].sum() * mu[fitted_K].sum()
  rho = np.maximum(rho, floor)
  rho = rho / rho.sum()
  p = 0.1 * rho + 0.9 * memory["average"]
  memory["average"] = t / (t + 1) * memory["average"] + rho / (t + 1)
  return p


@functools.cache
def small(count):
  return ado(**SMALL, count=count)


@pytest.mark.parametrize("count", ["all", "own"])
def test_agrees_with_the_equations(count):
  policy = small(count)
  for seed in range(3):
    decision, state = policy.init(SPEC, KEY)
    np.testing.assert_allclose(np.exp(decision.logits), BASE, rtol=1e-6)
    memory = {
      "n": np.zeros(K), "h": np.array(BASE), "average": np.array(BASE), "loss": np.zeros(K)
    }  # fmt: skip
    for number, batch in enumerate(random_batches(seed), start=1):
      before, (decision, state) = state, jitted(policy)(as_stats(*batch), state)
      laws, known = np.asarray(state.law_Kx3), np.asarray(state.fitted_K)
      refit = number >= 8 and (number - 8) % 5 == 0
      assert refit == np.any(laws != np.asarray(before.law_Kx3))
      p = reference_step(batch, memory, number, laws, known, count, 0.01, number >= 8)
      np.testing.assert_allclose(np.exp(decision.logits), p, rtol=2e-5, err_msg=str(number))
      np.testing.assert_allclose(state.loss_K, memory["loss"], rtol=1e-5)
      missing = np.sum(~np.isfinite(batch[1]) & (batch[2] > 0))
      assert decision.metrics["num_nonfinite"] == missing
      assert decision.metrics["num_fitted"] == known.sum()
    assert known.all()


@pytest.mark.parametrize("count", ["all", "own"])
def test_laws_are_fits_of_the_smoothed_curves(count):
  """Computed anew from lists of losses, for a run that thinned its curves."""
  policy, losses, counts = small(count), [], []
  _, state = policy.init(SPEC, KEY)
  for batch in random_batches(7, 38):
    _, state = jitted(policy)(as_stats(*batch), state)
    losses.append(np.float64(state.loss_K))
    counts.append(np.broadcast_to(np.float64(state.count_J), K))
  kept, stride = points(38, 16)
  assert (int(state.curves.stride), len(kept)) == (stride, 10) == (4, 10)
  for k in range(K):
    first = next(step for step in range(38) if losses[step][k] > 0)
    places = [step for step in kept if step >= first]
    smoothed = scipy.signal.savgol_filter([losses[step][k] for step in places], 5, 3)
    used = np.array(places) >= 1
    log_n = np.log([counts[step][k] for step in places])[used]
    log_loss = np.log(smoothed)[used]
    reached, _ = objective(np.float64(state.law_Kx3[k]), log_n, log_loss)
    assert reached <= 1.05 * best_of_scipy(log_n, log_loss) + 1e-5


def test_a_fit_that_is_not_finite_or_too_short_keeps_the_old_law():
  policy = small("all")
  _, state = policy.init(SPEC, KEY)
  losses = lambda step: np.where(domain_B == 1, 0.0, 2 + 1 / (step + 1))
  for step in range(13):
    domain_B = np.arange(B) % (3 if step < 11 else K)
    decision, state = jitted(policy)(as_stats(domain_B, losses(step), np.full(B, 4)), state)
  # The losses of the second domain have no logarithm, the last one was seen twice.
  assert state.fitted_K.tolist() == [True, False, True, False]
  assert np.all(np.isfinite(decision.logits))
  law = np.asarray(state.law_Kx3)
  broken = state._replace(
    curves=state.curves._replace(loss_KxH=jnp.full_like(state.curves.loss_KxH, jnp.inf))
  )
  for step in range(13, 18):
    _, broken = jitted(policy)(as_stats(domain_B, losses(step), np.full(B, 4)), broken)
  np.testing.assert_array_equal(broken.law_Kx3, law)
  assert broken.fitted_K.tolist() == [True, False, True, False]


def test_a_domain_of_base_proportion_0_is_never_sampled():
  policy, spec = small("all"), SPEC._replace(proportions=(0.0, 0.3, 0.3, 0.4))
  _, state = policy.init(spec, KEY)
  for batch in random_batches(0, 20):
    decision, state = jitted(policy)(as_stats(*batch), state)
    assert decision.logits[0] == -np.inf
    np.testing.assert_allclose(np.exp(decision.logits).sum(), 1, rtol=1e-5)


def test_follows_the_steepest_learning_curve():
  """Losses follow known laws; slopes are compared at the end of the run."""
  laws = np.array([[0.5, 0.7, 0.2], [2.5, 0.6, 0.5], [0.0, 1.6, 0.01], [0.0, 1.0, 0.6]])
  spec = SPEC._replace(proportions=(0.25,) * K)
  policy, rng = small("all"), np.random.default_rng(0)
  decision, state = policy.init(spec, KEY)
  for step in range(60):
    p = np.exp(np.float64(decision.logits))
    domain_B = rng.choice(K, B, p=p / p.sum())
    a, e, alpha = laws[domain_B].T
    loss_B = np.exp(e) + np.exp(a) * (B * (step + 1.0)) ** -alpha
    loss_B = loss_B * np.exp(0.002 * rng.normal(size=B))
    decision, state = jitted(policy)(as_stats(domain_B, loss_B, np.full(B, 8)), state)
  a, e, alpha = laws.T
  slope = alpha * np.exp(a) * (B * 60.0) ** -alpha
  assert np.argmax(slope) == 1
  assert np.argmax(decision.logits) == 1
  assert np.exp(decision.logits[1]) > 0.35
  # The loss of the third is by far the highest, and hardly falls.
  assert np.exp(decision.logits[2]) < 0.25


def test_refits_in_a_branch_only():
  """Loops, which fits are made of, stand inside conditionals: an ordinary step runs none."""
  policy = small("all")
  _, state = policy.init(SPEC, KEY)
  stats = as_stats(*next(random_batches(0)))
  outside = jax.make_jaxpr(policy.update)(stats, state).jaxpr.eqns
  names = {equation.primitive.name for equation in outside}
  assert "cond" in names
  assert not {"while", "scan", "dot_general"} & names


@pytest.mark.parametrize(
  ("num_steps", "start", "window", "ignore"),
  [(0, 1000, 101, 500), (60000, 1000, 101, 500), (4000, 200, 49, 100), (105, 6, 5, 3)],
)
def test_horizons_scale_with_the_run_and_are_logged(num_steps, start, window, ignore):
  decision, _ = ado().init(SPEC._replace(num_steps=num_steps), KEY)
  told = {name: decision.metrics[name].item() for name in decision.metrics}
  expected = {"start_steps": start, "refit_steps": start, "window": window}
  assert told == {
    **expected, "ignore_steps": ignore, "floor": np.float32(0.01).item(), "stride": 1,
    "num_fitted": 0, "num_nonfinite": 0,
  }  # fmt: skip


def test_the_floor_shrinks_for_many_domains():
  many = SPEC._replace(num_domains=50, proportions=(0.02,) * 50)
  decision, _ = ado().init(many, KEY)
  np.testing.assert_allclose(decision.metrics["floor"], 0.005, rtol=1e-6)


@pytest.mark.parametrize(
  ("arguments", "change", "match"),
  [
    ({}, {"num_domains": 1, "proportions": (1.0,)}, "at least 2 domains, got 1"),
    ({"floor": 0.3}, {}, "floor must be at most 1 / 4"),
    (
      {"window": 9, "history": 16},
      {},
      "history must be at least twice the window of 9, got 16",
    ),
    ({}, {"num_steps": 2**30}, "fewer than 2\\^32 examples"),
    ({"floor": 0.3, "window": 9, "history": 16}, {}, "floor.*history"),
  ],
)
def test_the_run_must_fit(arguments, change, match):
  with pytest.raises(ValueError, match=match):
    ado(**arguments).init(SPEC._replace(**change), KEY)


@pytest.mark.parametrize(
  "argument",
  [
    {"start_steps": 0},
    {"refit_steps": 0.5},
    {"window": 4},
    {"window": 3},
    {"ignore_steps": -1},
    {"history": 15},
    {"floor": -0.1},
    {"floor": np.nan},
    {"count": "both"},
  ],
)
def test_rejects(argument):
  with pytest.raises(ValueError, match=next(iter(argument))):
    ado(**argument)
