"""Decisions of a run are made again by another: the same examples with the same weights."""

import json
import shutil

import numpy as np
import pytest

from jdc import metrics, policies
from jdc.policies import mixture, selection, weighting
from jdc.train.config import CheckpointConfig

DECIDED = policies.combine(
  mixture=mixture.odm(warmup_steps=2),
  selection=selection.loss(),
  weighting=weighting.loss_reweighting(burn_in_steps=2),
)
DRAWN = {"draw": "gumbel_top_k", "steps_per_round": 3}


def losses(folder):
  return [line["train/loss"] for line in metrics.read_metrics(folder) if "train/loss" in line]


@pytest.fixture(scope="module")
def recorded(fit, tmp_path_factory):
  folder = tmp_path_factory.mktemp("recorded") / "run"
  fit(folder, DECIDED, num_steps=9, **DRAWN)
  return folder


def test_a_replayed_run_is_the_recorded_one(fit, recorded, tmp_path):
  decisions = metrics.read_decisions(recorded)
  assert decisions.ids_SxB.shape == (9, 8)
  assert decisions.weights_SxB is not None
  assert np.ptp(decisions.weights_SxB[5]) > 0
  fit(tmp_path / "again", num_steps=9, replay=str(recorded))
  for file in ("example_ids.i32", "example_weights.f32", "example_ids.json"):
    assert (tmp_path / "again" / file).read_bytes() == (recorded / file).read_bytes()
  np.testing.assert_allclose(losses(tmp_path / "again"), losses(recorded), rtol=1e-6)
  other = fit(tmp_path / "other", num_steps=9)
  assert other.stopped == "finished"
  assert not np.allclose(losses(tmp_path / "other"), losses(recorded), rtol=1e-3)


def test_a_replayed_run_resumes(fit, recorded, tmp_path):
  saving = {"checkpoint": CheckpointConfig(every_steps=5), "replay": str(recorded)}
  fit(tmp_path / "whole", num_steps=9, **saving)
  shutil.copytree(tmp_path / "whole", tmp_path / "cut")
  shutil.rmtree(tmp_path / "cut/checkpoints/9")
  fit(tmp_path / "cut", num_steps=9, **saving)
  for file in ("metrics.jsonl", "example_ids.i32", "example_weights.f32"):
    assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_a_log_that_changes_between_is_noticed(fit, recorded, tmp_path):
  log = shutil.copytree(recorded, tmp_path / "log")
  saving = {"checkpoint": CheckpointConfig(every_steps=5), "replay": str(log)}
  fit(tmp_path / "run", num_steps=9, **saving)
  shutil.rmtree(tmp_path / "run/checkpoints/9")
  ids = metrics.read_example_ids(log)
  ids[::-1].tofile(log / "example_ids.i32")
  with pytest.raises(ValueError, match=r"the checkpoint is of another run.*replay"):
    fit(tmp_path / "run", num_steps=9, **saving)


def test_without_weights_none_are_recorded(fit, tmp_path):
  fit(tmp_path / "plain", num_steps=2)
  assert metrics.read_decisions(tmp_path / "plain").weights_SxB is None
  fit(tmp_path / "again", num_steps=2, replay=str(tmp_path / "plain"))
  assert not (tmp_path / "again/example_weights.f32").exists()


def test_refuses_a_log_that_does_not_fit(fit, recorded, tmp_path):
  with pytest.raises(ValueError) as error:
    fit(tmp_path / "run", num_steps=10, batch_size=16, replay=str(recorded))
  assert "its steps have 8 examples, those of this run 16" in str(error.value)
  assert "it has 9 steps, this run num_steps=10" in str(error.value)
  about = json.loads((recorded / "example_ids.json").read_text())
  log = shutil.copytree(recorded, tmp_path / "log")
  changed = about | {"data_fingerprint": "other", "token_weights": True}
  (log / "example_ids.json").write_text(json.dumps(changed))
  with pytest.raises(ValueError, match=r"it drew from data 'other'.*it weighted tokens"):
    fit(tmp_path / "run", num_steps=9, replay=str(log))


def test_refuses_what_is_no_log(fit, recorded, tmp_path):
  with pytest.raises(ValueError, match="nowhere holds no log of a run's decisions"):
    fit(tmp_path / "run", replay=str(tmp_path / "nowhere"))
  log = shutil.copytree(recorded, tmp_path / "log")
  np.ones(16, np.float32).tofile(log / "example_weights.f32")
  with pytest.raises(ValueError, match=r"holds \(9, 8\) examples.*weights.f32 \(2, 8\)"):
    fit(tmp_path / "run", replay=str(log))


def test_leaves_no_decision_to_policies(fit, recorded, tmp_path):
  chosen = policies.combine(mixture=mixture.odm(), weighting=weighting.loss_reweighting())
  with pytest.raises(ValueError, match=r"plan\.replay=.* none to the mixture, weighting"):
    fit(tmp_path / "run", chosen, num_steps=9, replay=str(recorded))
