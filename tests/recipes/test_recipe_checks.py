"""What is wrong with the last of several runs is said before the first is trained."""

import dataclasses

import pytest

from jdc.models.configs import DecoderConfig
from jdc.policies import mixture
from jdc.recipes import doremi, regmix
from jdc.train import config as c

GOOD = c.TrainConfig(
  num_steps=4,
  batch_size=8,
  sequence_length=16,
  data="python",
  model=DecoderConfig(
    vocab_size=258, width=8, num_layers=1, num_heads=1, num_kv_heads=1, mlp_width=8
  ),
  mixture=c.policy(mixture.static),
)
PROXY = dataclasses.replace(GOOD, mixture=c.policy(mixture.doremi))
SCHEDULE = dataclasses.replace(GOOD, optimizer=c.OptimizerConfig(schedule="sine"))
NO_MODEL = dataclasses.replace(GOOD, model=None)
DRAW = dataclasses.replace(GOOD, plan=c.PlanConfig(draw="top_k"))
FAULTS = {
  "schedule": (SCHEDULE, "target: .*sine"),
  "model": (NO_MODEL, "target: the config must have either a model"),
  "plan": (DRAW, "target: plan.draw='top_k' needs a round-scope selection"),
}


@pytest.mark.parametrize(("target", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_of_the_target_is_named_first(target, message):
  doremi.check(GOOD, PROXY, GOOD)
  regmix.check(GOOD, GOOD)
  with pytest.raises(ValueError, match=message):
    doremi.check(GOOD, PROXY, target)
  with pytest.raises(ValueError, match=message):
    regmix.check(GOOD, target)


def test_doremi_reads_its_reference_from_the_workdir():
  elsewhere = dataclasses.replace(GOOD, checkpoint=c.CheckpointConfig(folder="elsewhere"))
  with pytest.raises(ValueError, match=r"checkpoint.folder='elsewhere' must be empty"):
    doremi.check(elsewhere, PROXY, GOOD)
