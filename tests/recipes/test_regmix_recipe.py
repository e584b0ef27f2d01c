"""The RegMix driver on planted losses: what it finds, resumes, writes and refuses."""

import dataclasses
import json

import numpy as np
import pytest

from jdc.policies import mixture
from jdc.policies.mixture import regmix as regression
from jdc.recipes import regmix
from jdc.recipes.regmix import Search
from jdc.train.config import CorpusConfig, policy

SEARCH = Search(num_proxies=24, num_simulated=2000, num_best=16, max_epochs=1000.0)
# Of domain k on the share of domain j: math helps everywhere.
EFFECT = np.array([[0.5, 1.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.9, 0.2]])


def planted(proportions):
  return 4.0 - EFFECT @ proportions


def test_the_planted_optimum_is_found(config, data, fake_train, tmp_path):
  train = fake_train(planted)
  outcome = regmix.run(SEARCH, config, config, str(tmp_path), train, data=data)
  assert max(outcome.mixture, key=outcome.mixture.get) == "math"
  assert outcome.mixture["math"] > 0.95
  assert sum(outcome.mixture.values()) == pytest.approx(1)
  written = json.loads((tmp_path / "regmix.json").read_text())
  expected = 4.0 - EFFECT.mean(axis=0)
  np.testing.assert_allclose(list(written["coefficients"].values()), expected, rtol=1e-9)
  assert written["held_out_r2"] == pytest.approx(1)
  assert written["held_out_rank_correlation"] == pytest.approx(1)
  assert written["mixture"] == outcome.mixture
  assert written["domains"] == list(data.tokens) == list(written["coefficients"])
  mixtures, losses = np.array(written["mixtures"]), np.array(written["losses"])
  np.testing.assert_allclose(losses, 4.0 - mixtures @ EFFECT.mean(axis=0))
  np.testing.assert_allclose(written["held_out"], losses)
  assert written["predicted_loss"] == pytest.approx(list(outcome.mixture.values()) @ expected)


def test_proxies_are_scored_on_the_target_split_and_the_run_proper_as_it_says(
  config, data, fake_train, tmp_path
):
  train = fake_train(planted)
  outcome = regmix.run(SEARCH, config, config, str(tmp_path), train, data=data)
  *proxies, (last, workdir) = train.asked
  assert len(proxies) == SEARCH.num_proxies
  assert {asked.evaluation.split for asked, _ in proxies} == {"target"}
  assert last.evaluation.split == "validation"
  assert workdir == f"{tmp_path}/target"
  assert tuple(last.mixture["proportions"]) == tuple(outcome.mixture.values())
  assert outcome.target.after.keys() == {f"validation/{name}/loss" for name in data.tokens}


def test_the_mixtures_are_those_of_the_paper_by_tokens(config, data, fake_train, tmp_path):
  train = fake_train(planted)
  regmix.run(SEARCH, config, config, str(tmp_path), train, data=data)
  tried = [asked.mixture["proportions"] for asked, _ in train.asked[:-1]]
  space = regression.Space(max_epochs=1000.0, epochs=10 * 8 * 16 / 10_000)
  expected = regression.sample_mixtures(0, [6000, 1000, 3000], SEARCH.num_proxies, space)
  np.testing.assert_array_equal(tried, expected)


@pytest.mark.parametrize(("name", "best"), [("web", "math"), ("code", "math")])
def test_one_domain_can_be_what_counts(name, best, config, data, fake_train, tmp_path):
  search = dataclasses.replace(SEARCH, target_domains=(name,))
  train = fake_train(planted)
  outcome = regmix.run(search, config, config, str(tmp_path), train, data=data)
  written = json.loads((tmp_path / "regmix.json").read_text())
  expected = 4.0 - EFFECT[list(data.tokens).index(name)]
  np.testing.assert_allclose(list(written["coefficients"].values()), expected, rtol=1e-9)
  assert max(outcome.mixture, key=outcome.mixture.get) == best


def test_a_domain_is_not_repeated_more_often_than_allowed(config, data, fake_train, tmp_path):
  # The target's run is one pass over all tokens; math has a tenth of them.
  target = dataclasses.replace(config, num_steps=78)
  search = dataclasses.replace(SEARCH, max_epochs=4.0)
  outcome = regmix.run(search, config, target, str(tmp_path), fake_train(planted), data=data)
  most = 4.0 * 0.1 / (78 * 8 * 16 / 10_000)
  assert most - 0.05 < outcome.mixture["math"] <= most


@pytest.mark.parametrize("stop_at", [0, 5, 24])
def test_a_stopped_search_continues(stop_at, config, data, fake_train, tmp_path):
  stopped, rest = fake_train(planted), fake_train(planted)
  stopped.stop_at = stop_at
  outcome = regmix.run(SEARCH, config, config, str(tmp_path), stopped, data=data)
  if stop_at < SEARCH.num_proxies:
    assert outcome == regmix.Outcome({}, None)
    assert not (tmp_path / "regmix.json").exists()
  else:
    assert outcome.target.stopped == "SIGTERM"
  regmix.run(SEARCH, config, config, str(tmp_path), rest, data=data)
  proxies = [f"{number:04d}" for number in range(stop_at, SEARCH.num_proxies)]
  assert rest.folders == [*proxies, "target"]
  whole = fake_train(planted)
  regmix.run(SEARCH, config, config, str(tmp_path / "whole"), whole, data=data)
  for file in ("regmix.json", "proxies.json"):
    assert (tmp_path / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_more_proxies_are_added_to_those_there_are(config, data, fake_train, tmp_path):
  train = fake_train(planted)
  regmix.run(SEARCH, config, config, str(tmp_path), train, data=data)
  more, again = dataclasses.replace(SEARCH, num_proxies=26), fake_train(planted)
  regmix.run(more, config, config, str(tmp_path), again, data=data)
  assert again.folders == ["0024", "0025", "target"]


def test_other_mixtures_are_refused(config, data, fake_train, tmp_path):
  train = fake_train(planted)
  regmix.run(SEARCH, config, config, str(tmp_path), train, data=data)
  other = dataclasses.replace(SEARCH, seed=1)
  with pytest.raises(ValueError, match="the mixtures of 24 runs, the first 0000: "):
    regmix.run(other, config, config, str(tmp_path), train, data=data)
  assert len(train.asked) == 25


def test_losses_that_mixtures_do_not_explain_are_reported(
  config, data, fake_train, tmp_path, caplog
):
  rng = np.random.default_rng(0)
  train = fake_train(lambda proportions: rng.normal(4.0, 1.0, 3))
  regmix.run(SEARCH, config, config, str(tmp_path), train, data=data)
  assert "predicted no better than by their mean" in caplog.text
  # Where all losses are equal, there is nothing to explain.
  train = fake_train(lambda proportions: np.ones(3))
  regmix.run(SEARCH, config, config, str(tmp_path / "equal"), train, data=data)
  written = json.loads((tmp_path / "equal/regmix.json").read_text())
  assert written["r2"] is None
  assert written["held_out_rank_correlation"] is None


def test_what_is_wrong_is_said_before_any_run(config, data, fake_train, tmp_path):
  train = fake_train(planted)
  target = dataclasses.replace(
    config, seed=1, corpus=CorpusConfig(), mixture=policy(mixture.odm)
  )
  with pytest.raises(ValueError, match="must share seed") as error:
    regmix.run(SEARCH, config, target, str(tmp_path), train, data=data)
  assert "must share corpus.target_fraction" in str(error.value)
  assert "the target's mixture is set by RegMix" in str(error.value)
  search = dataclasses.replace(SEARCH, num_proxies=3, target_domains=("web", "wbe"))
  with pytest.raises(
    ValueError, match=r"no domains \['wbe'\]; known: code, math, web"
  ) as error:
    regmix.run(search, config, config, str(tmp_path), train, data=data)
  assert "search.num_proxies must be above the number of domains, 3" in str(error.value)
  long = dataclasses.replace(config, num_steps=10**6)
  with pytest.raises(ValueError, match=r"epochs .* must not exceed max_epochs"):
    regmix.run(SEARCH, config, long, str(tmp_path), train, data=data)
  with pytest.raises(ValueError, match="num_proxies"):
    Search(num_proxies=2.5)
  assert not train.asked
