"""Advice on planted losses: it finds the optimum, and its interval tells noise from signal."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from jdc.policies.mixture import regmix as regression
from jdc.recipes import advice, regmix
from jdc.recipes.regmix import Search

SEARCH = Search(num_proxies=24, num_simulated=2000, num_best=16, max_epochs=1000.0)
EFFECT = np.array([0.1, 1.5, 0.1])


def planted(noise):
  rng = np.random.default_rng(0)

  def losses(proportions):
    return np.full(3, 4.0 - EFFECT @ proportions + noise * rng.normal())

  return losses


def advise(config, data, train, folder, **options):
  options = {"resamples": 40, **options}
  return advice.advise(SEARCH, config, config, str(folder), train, data=data, **options)


def test_the_planted_optimum_is_advised_and_certain(config, data, fake_train, tmp_path):
  found = advise(config, data, fake_train(planted(0.0)), tmp_path)
  assert sum(found.proportions.values()) == pytest.approx(1)
  assert found.proportions["math"] > 0.9
  assert found.high["math"] - found.low["math"] < 1e-6  # without noise all refits agree
  assert found.held_out_r2 == pytest.approx(1)
  sizes = np.array(list(data.tokens.values()))
  np.testing.assert_allclose(list(found.by_size.values()), sizes / sizes.sum())
  written = json.loads((tmp_path / "advice.json").read_text())
  assert written["proportions"] == found.proportions
  digest = hashlib.sha256((tmp_path / "regmix.json").read_bytes()).hexdigest()
  assert written["regmix_sha256"] == digest
  shares, fraction = (tmp_path / "advice.flags").read_text().split()
  name, _, values = shares.partition("=")
  assert name == "--config.mixture.proportions"
  assert fraction == "--config.corpus.target_fraction=0.1"  # that of the proxies' corpus
  given = [float(value) for value in values.split(",")]
  np.testing.assert_allclose(given, list(found.proportions.values()), atol=1e-6)


def test_noise_widens_the_interval(config, data, fake_train, tmp_path):
  widths = []
  for noise in (0.02, 1.0):
    found = advise(config, data, fake_train(planted(noise)), tmp_path / str(noise))
    widths.append(max(found.high[name] - found.low[name] for name in found.high))
    for name, share in found.proportions.items():
      if found.held_out_r2 > 0:
        assert found.low[name] - 1e-9 <= share <= found.high[name] + 1e-9
  assert widths[0] < 0.05
  assert widths[1] > 0.2


def test_proxies_that_tell_nothing_leave_the_proportions_by_size(
  config, data, fake_train, tmp_path
):
  rng = np.random.default_rng(1)
  found = advise(config, data, fake_train(lambda _: np.full(3, rng.normal(4))), tmp_path)
  assert found.held_out_r2 <= 0
  assert found.proportions == found.by_size


def test_refits_are_of_resampled_proxies(config, data, fake_train, tmp_path):
  advise(config, data, fake_train(planted(0.1)), tmp_path)
  written = json.loads((tmp_path / "regmix.json").read_text())
  mixtures, losses = np.array(written["mixtures"]), np.array(written["losses"])
  prior = list(data.tokens.values())
  space = regmix.space_of(SEARCH, config, data)
  found = advice._resampled(mixtures, losses, np.array(prior), space, SEARCH, 5)
  refits = []
  rng = np.random.default_rng(SEARCH.seed)
  for _ in range(5):
    chosen = rng.integers(len(losses), size=len(losses))
    # Normal equations, apart from the regression's own solver.
    w, y = mixtures[chosen], losses[chosen]
    coefficients = np.linalg.solve(w.T @ w, w.T @ y)
    refits.append(regression.best_mixture(coefficients, 0, prior, space, 2000, 16).mixture)
  np.testing.assert_allclose(found, refits, atol=1e-9)


def test_near_duplicates_count_as_repetitions(config, data, fake_train, tmp_path):
  profile = tmp_path / "profile.json"
  profile.write_text(json.dumps({"exact_dup_rate": 0.1, "near_dup_rate": 0.5}))
  # The target's run is one pass over all tokens; math has a tenth of them.
  config = dataclasses.replace(config, num_steps=78)
  search = dataclasses.replace(SEARCH, max_epochs=4.0)
  shares = {}
  for name, path in {"plain": None, "profiled": profile}.items():
    train = fake_train(planted(0.0))
    found = advice.advise(
      search, config, config, str(tmp_path / name), train, data=data, profile=path, resamples=20
    )
    shares[name] = found.proportions["math"]
  assert shares["profiled"] <= 0.2 + 1e-6 < shares["plain"] <= 0.4 + 1e-6
  told = json.loads((tmp_path / "profiled/advice.json").read_text())["profile"]
  assert told["sha256"] == hashlib.sha256(profile.read_bytes()).hexdigest()


def test_what_is_wrong_is_said_before_any_run(config, data, fake_train, tmp_path):
  train = fake_train(planted(0.0))
  with pytest.raises(ValueError, match="resamples must be 20 or more"):
    advise(config, data, train, tmp_path, resamples=5)
  wrong = tmp_path / "profile.json"
  wrong.write_text("{}")
  with pytest.raises(ValueError, match="is no profile"):
    advise(config, data, train, tmp_path, profile=wrong)
  assert train.asked == []
