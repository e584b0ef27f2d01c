"""Runs on fixed mixtures: what is kept of them, what is trained again, what is refused."""

import dataclasses
import json
import re
import signal

import numpy as np
import pytest

from jdc.data import token_manifest
from jdc.policies import mixture, weighting
from jdc.recipes import runs
from jdc.train import process, sharding
from jdc.train.config import CheckpointConfig, CorpusConfig, LoggingConfig, MeshConfig, policy

MIXTURES = {"a": (0.5, 0.5, 0.0), "b": (0.0, 0.0, 1.0), "c": (0.2, 0.3, 0.5)}


def planted(proportions):
  return 4.0 - proportions


def run(config, data, folder, train, mixtures=MIXTURES):
  return runs.losses(config, mixtures, data, str(folder), train)


def test_losses_are_those_of_the_runs_in_order(config, data, fake_train, tmp_path):
  train = fake_train(planted)
  losses = run(config, data, tmp_path, train)
  np.testing.assert_allclose(losses.after, 4.0 - np.array(list(MIXTURES.values())))
  np.testing.assert_array_equal(losses.before, np.full((3, 3), 5.0))
  assert [workdir for _, workdir in train.asked] == [f"{tmp_path}/proxies/{n}" for n in "abc"]
  for (asked, _), proportions in zip(train.asked, MIXTURES.values(), strict=True):
    assert asked.evaluation.split == "target"
    assert asked.mixture["factory"] is mixture.static
    assert tuple(asked.mixture["proportions"]) == proportions


def test_finished_runs_are_not_trained_again(config, data, fake_train, tmp_path):
  first, second, third = (fake_train(planted) for _ in range(3))
  first.stop_at = 1
  assert run(config, data, tmp_path, first) is None
  assert first.folders == ["a", "b"]
  losses = run(config, data, tmp_path, second)
  assert second.folders == ["b", "c"]
  again = run(config, data, tmp_path, third)
  assert third.folders == []
  np.testing.assert_array_equal(again, losses)
  np.testing.assert_array_equal(losses, run(config, data, tmp_path / "other", third))


def test_a_signal_at_the_end_of_a_run_stops_before_the_next(config, data, fake_train, tmp_path):
  def signalled(proportions):
    if proportions[2] == 1.0:
      signal.raise_signal(signal.SIGTERM)
    return planted(proportions)

  train, before = fake_train(signalled), signal.getsignal(signal.SIGTERM)
  assert run(config, data, tmp_path, train) is None
  assert signal.getsignal(signal.SIGTERM) is before
  assert run(config, data, tmp_path, train) is not None  # b is kept
  assert train.folders == ["a", "b", "c"]


def test_a_signal_in_a_run_is_heard_by_what_runs_several():
  mesh = sharding.make_mesh()
  with process.sigterm(mesh) as outer:
    with process.sigterm(mesh) as inner:
      assert not inner()
      signal.raise_signal(signal.SIGTERM)
      assert inner()
    assert outer()


def test_a_run_that_fails_loses_no_other(config, data, fake_train, tmp_path):
  def failing(proportions):
    if proportions[2] == 0.5:
      raise KeyboardInterrupt
    return planted(proportions)

  with pytest.raises(KeyboardInterrupt):
    run(config, data, tmp_path, fake_train(failing))
  train = fake_train(planted)
  run(config, data, tmp_path, train)
  assert train.folders == ["c"]
  assert [path.name for path in tmp_path.iterdir()] == ["proxies.json"]


def test_more_runs_may_be_asked_for(config, data, fake_train, tmp_path):
  train = fake_train(planted)
  run(config, data, tmp_path, train, {"a": MIXTURES["a"]})
  run(config, data, tmp_path, train)
  assert train.folders == ["a", "b", "c"]
  losses = run(config, data, tmp_path, train, {"c": MIXTURES["c"]})
  assert train.folders == ["a", "b", "c"]
  np.testing.assert_allclose(losses.after, [[3.8, 3.7, 3.5]])


CHANGES = {
  "num_steps: 10 -> 20": {"num_steps": 20},
  "seed: 0 -> 1": {"seed": 1},
  "corpus.target_fraction: 0.1 -> 0.2": {"corpus": CorpusConfig(target_fraction=0.2)},
  "data: 'DIR' -> 'OTHER'": {"data": "OTHER"},
  "weighting.factory: None -> 'jdc.": {"weighting": policy(weighting.loss_reweighting)},
}


@pytest.mark.parametrize("named", CHANGES)
def test_changed_settings_are_refused(named, config, data, fake_train, tmp_path):
  train = fake_train(planted)
  run(config, data, tmp_path, train, {"a": MIXTURES["a"]})
  with pytest.raises(ValueError, match=re.escape(named)):
    run(dataclasses.replace(config, **CHANGES[named]), data, tmp_path, train)
  assert train.folders == ["a"]


def test_all_that_changed_is_named(config, data, fake_train, tmp_path):
  train = fake_train(planted)
  run(config, data, tmp_path, train)
  other = data._replace(fingerprints=data.fingerprints | {"web (train)": "d"})
  mixtures = MIXTURES | {"b": (0.0, 0.5, 0.5), "c": (0.0, 1.0, 0.0)}
  with pytest.raises(ValueError, match=r"proxies\.json is of other runs") as error:
    run(dataclasses.replace(config, batch_size=4), other, tmp_path, train, mixtures)
  for part in (
    "batch_size: 8 -> 4",
    "data of domain web (train): 'c' -> 'd'",
    "the mixtures of 2 runs, the first b: {'code': 0.0, 'math': 0.0, 'web': 1.0} -> "
    "{'code': 0.0, 'math': 0.5, 'web': 0.5}",
  ):
    assert part in str(error.value)
  assert train.folders == ["a", "b", "c"]


def test_what_changes_no_loss_may_change(config, data, fake_train, tmp_path):
  train = fake_train(planted)
  losses = run(config, data, tmp_path, train)
  changed = dataclasses.replace(
    config,
    mesh=MeshConfig(fsdp=2),
    checkpoint=CheckpointConfig(every_steps=3),
    logging=LoggingConfig(every_steps=1),
    corpus=dataclasses.replace(config.corpus, cache_dir="elsewhere"),
    mixture=policy(mixture.by_size),
  )
  np.testing.assert_array_equal(run(changed, data, tmp_path, train), losses)
  assert train.folders == ["a", "b", "c"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_names_the_run(value, config, data, fake_train, tmp_path):
  def broken(proportions):
    return np.where((proportions == 0.5) & (proportions.max() == 0.5), value, 1.0)

  first = {"b": MIXTURES["b"], "a": MIXTURES["a"]}
  for _ in range(2):  # it is not kept
    with pytest.raises(FloatingPointError, match=r"proxy a: .*after.* on code, math$"):
      run(config, data, tmp_path, fake_train(broken), first)
  assert set(json.loads((tmp_path / "proxies.json").read_text())["runs"]) == {"b"}


def test_a_run_that_stops_for_want_of_finite_steps_is_named(config, data, fake_train, tmp_path):
  def stops(proportions):
    raise FloatingPointError("10 steps in a row without a finite loss")

  with pytest.raises(FloatingPointError, match=r"^proxy a: 10 steps"):
    run(config, data, tmp_path, fake_train(stops))


def test_a_run_that_ends_early_is_an_error(config, data, fake_train, tmp_path):
  train = fake_train(planted)
  train.change = {"stopped": "every domain is exhausted"}
  with pytest.raises(ValueError, match=r"proxy a ended .* every domain is exhausted"):
    run(config, data, tmp_path, train)
  assert not (tmp_path / "proxies.json").exists()


def test_each_run_has_checkpoints_of_its_own(config, data, fake_train, tmp_path):
  train = fake_train(planted)
  checkpoint = dataclasses.replace(config.checkpoint, folder="gs://bucket/runs")
  run(dataclasses.replace(config, checkpoint=checkpoint), data, tmp_path, train)
  folders = [asked.checkpoint.folder for asked, _ in train.asked]
  assert folders == [f"gs://bucket/runs/proxies/{name}" for name in "abc"]


def test_stages_must_share_data_held_out_documents_and_text(config):
  assert runs.not_shared({"proxy": config, "target": config}) == []
  longer = dataclasses.replace(config, num_steps=99, sequence_length=32)
  elsewhere = dataclasses.replace(
    longer, corpus=dataclasses.replace(config.corpus, cache_dir="x")
  )
  assert runs.not_shared({"proxy": config, "target": elsewhere}) == []
  other = dataclasses.replace(config, seed=1, corpus=CorpusConfig(text_field="body"))
  assert runs.not_shared({"proxy": config, "target": other}) == [
    "the runs must share seed, got {'proxy': 0, 'target': 1}",
    "the runs must share corpus.text_field, got {'proxy': 'text', 'target': 'body'}",
    "the runs must share corpus.target_fraction, got {'proxy': 0.1, 'target': 0.0}",
  ]


def test_token_shards_bring_their_own_target_split(config, tmp_path):
  """A config file's share for it would be refused, since their rows are made already."""
  (tmp_path / "texts").mkdir()
  shards = tmp_path / "shards"
  shards.mkdir()
  (shards / token_manifest.FILE).write_text("{}")
  assert runs.on_data(config, str(shards)).corpus.target_fraction == 0
  other = runs.on_data(config, str(tmp_path / "texts"))
  assert other.corpus.target_fraction == config.corpus.target_fraction == 0.1
  assert other.data == str(tmp_path / "texts")
