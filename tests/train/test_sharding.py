"""Sharded over data, fsdp and tensor axes, a run is the single-device run."""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest

from jdc import policies
from jdc.data.loader import Loader, Pool
from jdc.models.base import MESH_AXES
from jdc.models.decoder import decoder
from jdc.policies import mixture, weighting
from jdc.train import setup, sharding
from jdc.train import state as state_lib
from jdc.train.step import make_train_step

AUTO = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)


def mesh_of(data, fsdp, tensor):
  sizes = (data, fsdp, 1, tensor)
  devices = jax.devices()[: math.prod(sizes)]
  return jax.make_mesh(sizes, MESH_AXES, axis_types=AUTO, devices=devices)


@pytest.fixture(scope="module")
def trained(domains, model_config, tiny_config):
  """Returns `trained(mesh)`: state and losses after a few steps, by hand around the step."""
  chosen = policies.combine(
    mixture=mixture.odm(warmup_steps=1), weighting=weighting.loss_reweighting(burn_in_steps=1)
  )

  def run(mesh, accumulation_steps=1, num_steps=8):
    config = dataclasses.replace(tiny_config, accumulation_steps=accumulation_steps)
    model, schedule = decoder(model_config), optax.constant_schedule(1e-2)
    optimizer = optax.adamw(schedule)
    spec = setup.run_spec(config, domains, chosen)
    decisions, states = state_lib.init_policies(chosen, spec, 0)
    options = setup.step_options(config, decisions, chosen)
    step = make_train_step(model, optimizer, schedule, chosen, options)
    pool = Pool([d.train for d in domains.values()], config.sequence_length)
    batches = iter(
      Loader(
        pool,
        setup.plan_spec(config, spec, chosen, {}),
        setup.initial_mixture(spec, decisions),
        sharding.batch_sharding(mesh),
      )
    )
    losses = []
    with jax.set_mesh(mesh):
      state = state_lib.init(state_lib.Start(model), optimizer, states, mesh, 0)
      if not num_steps:
        return state, losses
      jitted = jax.jit(step, donate_argnums=0)
      for _ in range(num_steps):
        state, output = jitted(state, next(batches))
        batches.push(output.mixture_logits)
        losses.append(float(output.loss))
    return state, losses

  return run


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_losses_are_those_of_one_device(trained, accumulation_steps):
  _, single = trained(mesh_of(1, 1, 1))
  _, sharded = trained(mesh_of(2, 2, 2), accumulation_steps)
  np.testing.assert_allclose(sharded, single, rtol=2e-5)


@pytest.mark.parametrize("num_steps", [0, 2])
def test_no_parameter_or_moment_is_replicated_over_fsdp(trained, num_steps):
  state, _ = trained(mesh_of(2, 2, 2), num_steps=num_steps)
  checked = 0
  for path, x in jax.tree_util.tree_leaves_with_path((state.params, state.opt_state)):
    if x.ndim:
      axes = jax.tree.leaves(tuple(x.sharding.spec))
      assert "fsdp" in axes, jax.tree_util.keystr(path)
      checked += 1
  assert checked == 3 * len(jax.tree.leaves(state.params))  # parameters and two moments


@pytest.mark.parametrize(
  ("sizes", "message"),
  [
    ({"data": 3}, "data=3, fsdp=1, expert=1, tensor=1 does not cover the 8 devices"),
    ({"data": -1, "fsdp": -1}, "at most one -1"),
    ({"data": 0}, "must be positive"),
    ({"data": -1, "fsdp": 16}, "does not cover"),
  ],
)
def test_mesh_sizes_are_checked(sizes, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(**sizes)


def test_one_size_takes_the_devices_that_are_left():
  shape = dict(sharding.make_mesh(fsdp=2, expert=2).shape)
  assert shape == {"data": 2, "fsdp": 2, "expert": 2, "tensor": 1}


def test_batch_sizes_are_checked_together():
  mesh = mesh_of(2, 2, 2)
  with pytest.raises(ValueError, match=r"batch_size=6, other=2 must be divisible.*= 4"):
    sharding.check_batch(mesh, batch_size=6, other=2, fine=8)
