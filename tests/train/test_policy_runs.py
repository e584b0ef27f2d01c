"""Every policy runs a whole training job, and resumes bitwise in the middle of a round."""

import dataclasses
import inspect
import itertools
import math
import shutil

import jax
import pytest

from jdc import metrics, policies
from jdc.models.decoder import decoder
from jdc.policies import DataPolicy, mixture, ordering, weighting
from jdc.train import checkpoint, loop
from jdc.train.config import CheckpointConfig, LoggingConfig, ProbeConfig, TargetConfig
from jdc.train.passes import REFERENCE
from jdc.train.state import Reference

SAVED, NUM_STEPS = 5, 9

# Arguments of the factories that have no defaults, or whose defaults do nothing in 9 steps.
MIXTURES = {
  "ado": {"start_steps": 3, "refit_steps": 2, "window": 5, "ignore_steps": 0},
  "aioli": {"period": 4, "lp_rounds": 1},
  "doge": {"objective": "target"},
  "dynamic_moe": {"every_steps": 2},
  "odm": {"warmup_steps": 1},
  "pike": {"zeta1": 1.0, "zeta2": 1.0, "tau": 1.0},
  "schedule": {"stages": ((0, (2, 3, 5)), (6, (5, 3, 2))), "interpolation": "cosine"},
  "skill_it": {"adjacency": ((1, 0.5, 0), (0, 1, 0), (0, 0.5, 1))},
}
WEIGHTINGS = {
  "loss_reweighting": {"burn_in_steps": 2},
  "ohem": {"fraction": 0.5},
  "selective_backprop": {"corrected": True},
  "self_paced": {"quantiles": (0.3, 0.9), "growth_steps": 6},
}
# Functions for before a run.
NO_POLICY = {"adjacency_from_losses", "regmix"}


def names(module):
  return sorted(set(module.__all__) - NO_POLICY)


# A mixture and a weighting in one run, as far as there are as many.
PAIRS = list(itertools.zip_longest(names(mixture), names(weighting)))


def make(module, arguments, name):
  return None if name is None else getattr(module, name)(**arguments.get(name, {}))


@pytest.fixture(scope="module")
def build(small_run, small_model, model_config):
  """Returns `build(chosen)`, a short run with a target set, and a reference if it is read."""
  config = dataclasses.replace(
    model_config, num_layers=1, num_experts=3, experts_per_token=1, balance_weight=0.01
  )
  experts = decoder(config)

  def load(mesh):
    return jax.device_put(small_model.init(jax.random.key(9)), jax.NamedSharding(mesh, jax.P()))

  def build(chosen, **fields):
    active = [policy for policy in (chosen.mixture, chosen.weighting) if policy is not None]
    observed = frozenset().union(*(policy.observes for policy in active))
    if observed & REFERENCE:
      fields["reference"] = Reference(small_model, load, "reference")
    if "domain_expert_load" in observed:
      fields["model"] = experts
    settings = {
      "num_steps": NUM_STEPS,
      "steps_per_round": 2,
      "target": TargetConfig(rows=6, every_steps=5, alignment_rows=4),
      "probe": ProbeConfig(rows=4),
      "checkpoint": CheckpointConfig(every_steps=SAVED),
    }
    return small_run(chosen, **settings | fields)

  return build


def test_no_policy_is_missing():
  tested = zip(*PAIRS, strict=True)
  for module, found in zip((mixture, weighting), tested, strict=True):
    assert set(found) >= set(module.__all__) - NO_POLICY
    left_out = [getattr(module, name) for name in NO_POLICY & set(module.__all__)]
    assert not any(
      inspect.signature(function).return_annotation is DataPolicy
      for function in left_out
      if callable(function)
    )


@pytest.mark.parametrize(("mixed", "weighted"), PAIRS)
def test_resumes_bitwise_in_the_middle_of_a_round(
  build, assert_same, tmp_path, mixed, weighted
):
  chosen = policies.combine(
    mixture=make(mixture, MIXTURES, mixed), weighting=make(weighting, WEIGHTINGS, weighted)
  )
  run, whole, parts = build(chosen), tmp_path / "whole", tmp_path / "parts"
  expected = loop.fit(run, str(whole))
  assert expected.stopped == "finished"
  assert int(expected.state.skipped) == 0
  assert math.isfinite(expected.after["validation/macro_loss"])

  # As if it had been killed in its last step: the files are longer than the checkpoint.
  shutil.copytree(whole, parts)
  shutil.rmtree(parts / "checkpoints" / str(NUM_STEPS))
  found = loop.fit(run, str(parts))
  assert_same(found.state, expected.state)
  assert_same(found.plan, expected.plan)
  for file in ("metrics.jsonl", "example_ids.i32"):
    assert (parts / file).read_bytes() == (whole / file).read_bytes()
  saved = [checkpoint.read_payload(folder / "checkpoints") for folder in (whole, parts)]
  assert [step for step, _ in saved] == [NUM_STEPS] * 2
  assert saved[0][1]["checksums"] == saved[1][1]["checksums"]


def test_metrics_do_not_tell_when_the_run_was_saved(build, tmp_path):
  """What is spent on the next step or round is no part of the last one's cost."""
  chosen = policies.combine(
    mixture=mixture.doge(objective="target"),
    weighting=weighting.adapt(),
    ordering=ordering.sorting(),
  )
  files, logging = [], LoggingConfig(every_steps=1, tensorboard=False)
  for every_steps in (1, 2, 100):
    folder = tmp_path / str(every_steps)
    saves = CheckpointConfig(every_steps=every_steps)
    loop.fit(build(chosen, num_steps=6, checkpoint=saves, logging=logging), str(folder))
    files.append((folder / "metrics.jsonl").read_bytes())
  assert files[0] == files[1] == files[2]
  last = metrics.read_metrics(folder)[-1]
  assert last["cost/extra_forward_rows"] > last["cost/extra_backward_rows"] > 0
