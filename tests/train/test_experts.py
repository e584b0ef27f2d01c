"""A mixture of experts trains split over the expert axis, and resumes there."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jdc import metrics, policies
from jdc.models import configs
from jdc.models.decoder import decoder
from jdc.policies import mixture, weighting
from jdc.train import config as c
from jdc.train import estimate

ROOT = Path(__file__).parents[2]
CHOSEN = policies.combine(
  mixture=mixture.odm(warmup_steps=1), weighting=weighting.loss_reweighting(burn_in_steps=2)
)


@pytest.fixture(scope="module")
def model(model_config):
  changes = {"num_experts": 4, "experts_per_token": 2, "balance_weight": 0.05}
  return decoder(dataclasses.replace(model_config, **changes))


def column(folder, name):
  return [line[name] for line in metrics.read_metrics(folder) if name in line]


def test_trains_and_resumes_over_experts(fit, assert_same, model, tmp_path):
  fields = {"model": model, "mesh": c.MeshConfig(data=2, expert=4), "num_steps": 9}
  whole = fit(tmp_path / "whole", CHOSEN, **fields)
  gate = whole.state.params["layers"]["mlp"]["gate"]["kernel"]
  assert gate.sharding.shard_shape(gate.shape) == (2, 1, 16, 32)
  fit(tmp_path / "parts", CHOSEN, **fields | {"num_steps": 7})
  parts = fit(tmp_path / "parts", CHOSEN, **fields)
  assert_same(whole.state, parts.state)
  losses = column(tmp_path / "whole", "train/loss")
  assert losses[-1] < losses[0]

  # Rows, losses and the balance are those of any other mesh.
  one = fields | {"mesh": c.MeshConfig(data=8)}
  fit(tmp_path / "other", CHOSEN, **one | {"num_steps": 4})
  other = fit(tmp_path / "other", CHOSEN, **fields)
  for name in ("train/loss", "train/balance_loss"):
    expected = column(tmp_path / "whole", name)
    assert expected
    assert column(tmp_path / "other", name) == pytest.approx(expected, rel=1e-5)
  assert other.state.params["output"]["kernel"].sharding.mesh.shape["expert"] == 4


def test_the_balance_reaches_the_training_loss(fit, model, tmp_path):
  """Nothing else keeps the experts even."""
  fields = {"mesh": c.MeshConfig(data=8), "num_steps": 12, "learning_rate": 3e-2}
  last = {}
  for weight in (1.0, 1e-9):
    folder = tmp_path / str(weight)
    fit(folder, model=model._replace(balance_weight=weight), **fields)
    last[weight] = column(folder, "train/balance_loss")[-1] / weight
  assert 1 < last[1.0] < 1.05 < last[1e-9]


# The config and the dry run.


def test_flags_make_a_mixture_of_experts(model_config):
  config = c.to_config_dict(c.TrainConfig(model=model_config, mesh=c.MeshConfig(expert=2)))
  with config.unlocked():
    config.model.update({"num_experts": 4, "experts_per_token": 2, "balance_weight": 0.01})
    config.mesh.expert = 4
  read = c.from_config_dict(config)
  assert read.model.num_experts == 4
  assert decoder(read.model).balance_weight == 0.01
  assert read.mesh.expert == 4
  with pytest.raises(ValueError, match=r"balance_weight 0\.01 is for a mixture of experts"):
    dataclasses.replace(read.model, num_experts=0, experts_per_token=0)
  with pytest.raises(ValueError, match="balance_weight must be 0 or more and finite, got -1"):
    dataclasses.replace(read.model, balance_weight=-1)


def test_a_dry_run_splits_the_experts():
  mesh = c.MeshConfig(data=1, fsdp=-1, expert=8)
  config = c.TrainConfig(model=configs.mixtral_8x7b(), mesh=mesh, batch_size=64)
  lines = re.findall(r"^ +(\d+) +(data=.*tensor=1) +([\d.]+) ", estimate.report(config), re.M)
  experts = 32 * 8 * 3 * 4096 * 14336
  rest = 46_702_792_704 - experts
  assert [int(line[0]) for line in lines] == [8, 16, 64]
  for devices, shown, gibibytes in lines:
    fsdp = int(devices) // 8
    assert shown == f"data=1, fsdp={fsdp}, expert=8, tensor=1"
    held = 4 * (experts / 8 + rest) / fsdp / (1 << 30)
    assert float(gibibytes) == pytest.approx(held, abs=0.0051)


def test_a_dry_run_tells_what_does_not_divide():
  model = dataclasses.replace(configs.mixtral_8x7b(), num_experts=6)
  report = estimate.report(c.TrainConfig(model=model, mesh=c.MeshConfig(fsdp=-1, expert=4)))
  assert report.count("num_experts 6 is not a multiple of expert 4") == 3


@pytest.mark.slow
def test_the_launch_script_trains_experts(tmp_path):
  fields = {
    "config": ROOT / "configs/quickstart.py:tiny",
    "config.num_steps": 6,
    "config.model.num_experts": 4,
    "config.model.experts_per_token": 2,
    "config.model.balance_weight": 0.01,
    "config.mesh.data": 1,
    "config.mesh.expert": 4,
    "workdir": tmp_path / "run",
  }
  given = (f"--{k}={v}" for k, v in fields.items())
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
  done = subprocess.run(
    [sys.executable, ROOT / "launch/train.py", *given],
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
    env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)},
  )
  assert done.returncode == 0, done.stderr
  assert column(tmp_path / "run", "train/balance_loss")
