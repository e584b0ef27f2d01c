"""RegMix: the space of mixtures, the regression, the mixture found."""

import itertools

import numpy as np
import pytest
import scipy.stats

from jdc.policies.mixture import regmix

PRIOR = [50.0, 30.0, 15.0, 5.0]


def simulate(seed, space, num):
  chunks = regmix.proxy_mixtures.accepted(seed, np.array(PRIOR) / 100, num, space)
  total = itertools.accumulate(chunks, lambda a, b: np.concatenate([a, b]))
  return next(w for w in total if len(w) >= num)[:num]


def test_samples_distinct_mixtures_within_the_bounds():
  space = regmix.Space(max_epochs=4.0, minimum=0.01)
  mixtures = regmix.sample_mixtures(0, PRIOR, 200, space)
  assert mixtures.shape == (200, 4)
  np.testing.assert_allclose(mixtures.sum(axis=1), 1)
  assert np.all((mixtures == 0) | (mixtures >= 0.01))
  assert np.all(mixtures <= 4 * np.array(PRIOR) / 100 + 1e-12)
  assert np.any(mixtures == 0)
  assert len(np.unique(mixtures.round(5), axis=0)) == 200
  np.testing.assert_array_equal(mixtures, regmix.sample_mixtures(0, PRIOR, 200, space))
  # Fewer of the same seed are the first ones; the unit of the prior does not matter.
  fewer = regmix.sample_mixtures(0, 7 * np.array(PRIOR), 20, space)
  np.testing.assert_allclose(fewer, mixtures[:20])
  assert not np.allclose(fewer, regmix.sample_mixtures(1, PRIOR, 20, space))


def test_a_longer_run_lowers_what_a_domain_may_have():
  mixtures = regmix.sample_mixtures(0, PRIOR, 100, regmix.Space(max_epochs=6.0, epochs=3.0))
  assert np.all(mixtures <= 2 * np.array(PRIOR) / 100 + 1e-12)


@pytest.mark.parametrize("strength", [0.1, 5.0])
def test_agrees_with_the_moments_of_the_dirichlet(strength):
  space = regmix.Space(
    min_strength=strength, max_strength=strength, max_epochs=1e6, minimum=0.0
  )
  w = simulate(3, space, 200_000)
  q = np.sqrt(PRIOR) / np.sum(np.sqrt(PRIOR))
  alpha = strength * q
  np.testing.assert_allclose(w.mean(axis=0), q, atol=4e-3)
  variance = q * (1 - q) / (alpha.sum() + 1)
  np.testing.assert_allclose(w.var(axis=0), variance, rtol=0.02)
  points = np.array([1e-6, 1e-3, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.999])
  for k in range(4):
    share = np.mean(w[:, k, None] < points, axis=0)
    marginal = scipy.stats.beta(alpha[k], strength - alpha[k])
    np.testing.assert_allclose(share, marginal.cdf(points), atol=5e-3)


def test_strengths_are_spread_over_the_logarithm():
  """The mean of the variances over the 15 strengths."""
  space = regmix.Space(temperature=1.0, max_epochs=1e6, minimum=0.0)
  w = simulate(0, space, 200_000)
  q = np.array(PRIOR) / 100
  variance = np.mean([q * (1 - q) / (s + 1) for s in np.geomspace(0.1, 5.0, 15)], axis=0)
  np.testing.assert_allclose(w.var(axis=0), variance, rtol=0.02)


def runs(seed, num, noise=0.0):
  rng = np.random.default_rng(seed)
  mixtures = regmix.sample_mixtures(seed, PRIOR, num)
  truth = np.array([3.0, 2.5, 4.0, 3.5])
  return mixtures, mixtures @ truth + noise * rng.normal(size=num), truth


def test_recovers_planted_coefficients():
  mixtures, losses, truth = runs(0, 12)
  model = regmix.fit(mixtures, losses)
  np.testing.assert_allclose(model.coefficients, truth, rtol=1e-9)
  np.testing.assert_allclose(model.held_out, losses, rtol=1e-9)
  np.testing.assert_allclose([model.r2, model.held_out_r2], 1)
  np.testing.assert_allclose(model.held_out_rank_correlation, 1)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_normal_equations_and_the_leverages(seed):
  mixtures, losses, _ = runs(seed, 25, noise=0.2)
  model = regmix.fit(mixtures.tolist(), losses.tolist())
  inverse = np.linalg.inv(mixtures.T @ mixtures)
  coefficients = inverse @ mixtures.T @ losses
  residual = losses - mixtures @ coefficients
  leverage = np.diag(mixtures @ inverse @ mixtures.T)
  held_out = losses - residual / (1 - leverage)
  total = np.sum((losses - losses.mean()) ** 2)
  np.testing.assert_allclose(model.coefficients, coefficients, rtol=1e-8)
  np.testing.assert_allclose(model.held_out, held_out, rtol=1e-8)
  np.testing.assert_allclose(model.r2, 1 - np.sum(residual**2) / total)
  np.testing.assert_allclose(model.held_out_r2, 1 - np.sum((losses - held_out) ** 2) / total)
  rank = scipy.stats.spearmanr(losses, held_out).statistic
  np.testing.assert_allclose(model.held_out_rank_correlation, rank)


def test_ranks_share_ties_as_usual():
  losses = [2.0, 2.0, 3.0, 3.0, 4.0, 1.0]
  mixtures = [[1, 0], [0.9, 0.1], [0.1, 0.9], [0.2, 0.8], [0, 1], [0.95, 0.05]]
  model = regmix.fit(mixtures, losses)
  rank = scipy.stats.spearmanr(losses, model.held_out).statistic
  np.testing.assert_allclose(model.held_out_rank_correlation, rank)


def test_predicts_the_mean_for_a_domain_that_only_the_run_left_out_has():
  mixtures = [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0.2, 0.8, 0], [0, 0, 1]]
  model = regmix.fit(mixtures, [3.0, 2.5, 2.0, 2.2, 9.0])
  np.testing.assert_allclose(model.held_out[4], np.mean([3.0, 2.5, 2.0, 2.2]))


def test_equal_losses_have_no_figures():
  mixtures, losses, _ = runs(0, 12)
  model = regmix.fit(mixtures, np.full_like(losses, 2.1))
  assert np.isnan([model.r2, model.held_out_r2, model.held_out_rank_correlation]).all()
  np.testing.assert_allclose(model.coefficients, 2.1)


def test_best_is_the_mean_of_the_lowest_simulated():
  truth, space = np.array([3.0, 2.5, 4.0, 3.5]), regmix.Space(max_epochs=2.5)
  drawn = simulate(4, space, 50_000)
  best = regmix.best_mixture(truth, 4, PRIOR, space, num_simulated=50_000, num_best=16)
  lowest = drawn[np.argsort(drawn @ truth, kind="stable")[:16]].mean(axis=0)
  np.testing.assert_allclose(best.mixture, lowest)
  np.testing.assert_allclose(best.loss, lowest @ truth)


def test_recovers_a_planted_optimum():
  """From noisy losses of small runs, with and without a bound on the best domain."""
  mixtures, losses, truth = runs(1, 64, noise=0.05)
  model = regmix.fit(mixtures, losses)
  assert model.held_out_rank_correlation > 0.9
  free = regmix.best_mixture(model.coefficients, 0, PRIOR, num_simulated=20_000)
  assert np.argmax(free.mixture) == np.argmin(truth) == 1
  assert free.mixture[1] > 0.98
  bound = regmix.Space(max_epochs=2.0)  # at most 0.6 of the second, 1.0 of the first
  best = regmix.best_mixture(model.coefficients, 0, PRIOR, bound, num_simulated=20_000)
  np.testing.assert_allclose(best.mixture, [0.4, 0.6, 0, 0], atol=0.05)
  np.testing.assert_allclose(best.mixture.sum(), 1)


def test_names_runs_by_index():
  mixtures, losses, _ = runs(0, 12)
  losses[[2, 7]] = [np.nan, np.inf]
  mixtures[3] *= 2
  mixtures[5, 0] = -0.1
  with pytest.raises(ValueError, match=r"runs \[3, 5\].*; losses.*runs \[2, 7\]"):
    regmix.fit(mixtures, losses)


def test_needs_more_runs_than_domains():
  mixtures, losses, _ = runs(0, 5)
  regmix.fit(mixtures, losses)
  with pytest.raises(ValueError, match="4 domains need at least 5 runs, got 4"):
    regmix.fit(mixtures[:4], losses[:4])


def test_runs_must_tell_the_domains_apart():
  mixtures = np.array([[0.5, 0.5, 0], [0.2, 0.8, 0], [0.1, 0.9, 0], [0.3, 0.7, 0]])
  with pytest.raises(ValueError, match=r"only 2 of 3 domains apart; in no run: \[2\]"):
    regmix.fit(mixtures, [1.0, 2.0, 3.0, 4.0])


@pytest.mark.parametrize(
  ("mixtures", "losses", "message"),
  [
    ([0.5, 0.5], [1.0, 2.0], r"\(2,\)"),
    ([[1.0], [1.0]], [1.0, 2.0], "domains >= 2"),
    ([[1.0, 0.0]] * 3, [1.0, 2.0], "losses must be one a run"),
  ],
)
def test_fit_rejects_other_shapes(mixtures, losses, message):
  with pytest.raises(ValueError, match=message):
    regmix.fit(mixtures, losses)


@pytest.mark.parametrize(
  ("space", "message"),
  [
    ({"temperature": 0.0}, "temperature"),
    ({"temperature": 1.5}, r"\(0, 1\], got 1.5"),
    ({"min_strength": 6.0}, "min_strength 6.0 must not exceed"),
    ({"max_strength": np.nan}, "max_strength"),
    ({"epochs": 16.0}, "epochs 16.0 must not exceed max_epochs 15.0"),
    ({"minimum": 0.25}, "minimum"),
  ],
)
def test_rejects_a_space(space, message):
  for call in (
    lambda space: regmix.sample_mixtures(0, PRIOR, 4, space),
    lambda space: regmix.best_mixture([1.0] * 4, 0, PRIOR, space),
  ):
    with pytest.raises(ValueError, match=message):
      call(regmix.Space(**space))


def test_rejects_other_arguments():
  with pytest.raises(ValueError, match=r"domains \[1, 2\]"):
    regmix.sample_mixtures(0, [1.0, 0.0, np.nan], 4)
  with pytest.raises(ValueError, match=r"num must.*seed must"):
    regmix.sample_mixtures(-1, PRIOR, 0)
  with pytest.raises(ValueError, match=r"coefficients.*seed.*num_best"):
    regmix.best_mixture([1.0, np.nan], 0.5, PRIOR, num_simulated=10, num_best=11)


def test_gives_up_where_mixtures_are_too_rare():
  space = regmix.Space(max_epochs=1.001, min_strength=5.0, temperature=1.0)
  with pytest.raises(ValueError, match=r"found only \d of 4 mixtures.*raise max_epochs 1.001"):
    regmix.sample_mixtures(0, [1.0] * 4, 4, space)
  with pytest.raises(ValueError, match="found only 1 of 2"):  # all its mixtures are alike
    regmix.sample_mixtures(0, [1.0], 2)
