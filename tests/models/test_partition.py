"""Tests of the sharding rules: sharded = unsharded, and nothing is left whole over fsdp."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.data.batch import inputs_and_targets
from jdc.models.base import BATCH_AXES, MESH_AXES
from jdc.models.decoder import DecoderConfig, decoder
from jdc.models.partition import check_partition, constrain, partition_specs

CONFIG = DecoderConfig(
  vocab_size=64,
  width=32,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  mlp_width=48,
  initializer_scale=2.0,
)
KEY = jax.random.key(0)


def make_mesh(*shape):
  axis_types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  devices = jax.devices()[: math.prod(shape)]
  return jax.make_mesh(shape, MESH_AXES, axis_types=axis_types, devices=devices)


def shardings(model, mesh):
  specs = model.partition_specs(jax.eval_shape(model.init, KEY))
  return jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs)


def batch(num_rows=8, num_positions=17):
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, CONFIG.vocab_size, (num_rows, num_positions), dtype=np.int32)
  segments = np.int32(1 + (np.arange(num_positions) >= rng.integers(3, 15, (num_rows, 1))))
  segments[-1, 5:] = 0
  return inputs_and_targets(tokens, segments)


def losses_and_gradients(model):
  def loss(params, rows):
    losses_BxT = model.token_losses(params, *rows[:4])
    return jnp.sum(losses_BxT * rows.mask) / jnp.sum(rows.mask), losses_BxT

  return jax.value_and_grad(loss, has_aux=True)


@pytest.mark.parametrize(
  ("shape", "tie_embeddings"),
  [((2, 2, 1, 2), False), ((2, 2, 1, 2), True), ((1, 8, 1, 1), False)],
)
def test_sharded_equals_unsharded(shape, tie_embeddings):
  config = dataclasses.replace(CONFIG, tie_embeddings=tie_embeddings, remat="layer")
  model = decoder(config, loss_chunk=6)
  (_, losses), gradients = jax.jit(losses_and_gradients(model))(model.init(KEY), batch())

  mesh = make_mesh(*shape)
  with jax.set_mesh(mesh):
    params = jax.jit(model.init, out_shardings=shardings(model, mesh))(KEY)
    rows = jax.device_put(batch(), jax.NamedSharding(mesh, jax.P(BATCH_AXES)))
    step = jax.jit(losses_and_gradients(model))
    (_, mesh_losses), mesh_gradients = step(params, rows)

  np.testing.assert_allclose(mesh_losses, losses, rtol=1e-5, atol=1e-5)
  for expected, actual in zip(*map(jax.tree.leaves, (gradients, mesh_gradients)), strict=True):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_no_parameter_is_replicated_over_fsdp(tie_embeddings):
  model = decoder(dataclasses.replace(CONFIG, tie_embeddings=tie_embeddings))
  mesh = make_mesh(2, 2, 1, 2)
  params = jax.jit(model.init, out_shardings=shardings(model, mesh))(KEY)
  for path, array in jax.tree.leaves_with_path(params):
    names = [name for entry in array.sharding.spec for name in _names(entry)]
    assert "fsdp" in names, path
    is_matrix = "norm" not in jax.tree_util.keystr(path)
    assert ("tensor" in names) == is_matrix, path
    shards = mesh.shape["fsdp"] * (mesh.shape["tensor"] if is_matrix else 1)
    assert math.prod(array.addressable_shards[0].data.shape) == array.size // shards


def _names(entry):
  return () if entry is None else (entry,) if isinstance(entry, str) else entry


def test_initial_parameters_do_not_depend_on_the_mesh():
  model = decoder(CONFIG)
  mesh = make_mesh(2, 2, 1, 2)
  sharded = jax.jit(model.init, out_shardings=shardings(model, mesh))(KEY)
  for expected, actual in zip(*map(jax.tree.leaves, (model.init(KEY), sharded)), strict=True):
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


def test_activations_are_split_over_the_batch_axes():
  model = decoder(CONFIG)
  mesh = make_mesh(2, 2, 1, 2)
  rows = batch()
  with jax.set_mesh(mesh):
    params = jax.jit(model.init, out_shardings=shardings(model, mesh))(KEY)
    # The tokens come in whole; the split is the model's own.
    hidden = jax.jit(model.hidden)(params, rows.tokens, rows.positions, rows.segments)
    logits = jax.jit(model.logits)(params, rows.tokens, rows.positions, rows.segments)
  assert hidden.addressable_shards[0].data.shape == (2, 16, 32)
  assert logits.addressable_shards[0].data.shape == (2, 16, 32)


def test_per_example_gradients_run_on_a_mesh():
  model = decoder(CONFIG)
  rows = batch()

  def loss(params, tokens, targets, positions, segments):
    example = (x[None] for x in (tokens, targets, positions, segments))
    return jnp.sum(model.token_losses(params, *example))

  per_example = jax.vmap(jax.grad(loss), (None, 0, 0, 0, 0))
  expected = jax.jit(per_example)(model.init(KEY), *rows[:4])
  mesh = make_mesh(2, 2, 1, 2)
  with jax.set_mesh(mesh):
    params = jax.jit(model.init, out_shardings=shardings(model, mesh))(KEY)
    split = jax.device_put(rows[:4], jax.NamedSharding(mesh, jax.P(BATCH_AXES)))
    actual = jax.jit(per_example)(params, *split)
  for left, right in zip(*map(jax.tree.leaves, (expected, actual)), strict=True):
    np.testing.assert_allclose(right, left, rtol=1e-4, atol=1e-5 * np.abs(left).max())


def test_constrain_is_a_hint():
  x = jnp.ones((3, 4))
  assert constrain(x, BATCH_AXES, "tensor") is x  # no mesh
  with jax.set_mesh(make_mesh(2, 2, 1, 2)):
    assert constrain(x, BATCH_AXES, "tensor") is x  # 3 rows over 4 devices
    assert jax.jit(lambda x: constrain(x, None, "tensor"))(x).sharding.spec == jax.P(
      None, "tensor"
    )
  with jax.set_mesh(
    jax.make_mesh((2,), ("replica",), axis_types=(jax.sharding.AxisType.Auto,))
  ):
    assert constrain(x, None, "tensor") is x  # the mesh has no such axis


def test_check_partition_accepts_what_divides():
  model = decoder(CONFIG)
  model.check_partition({"data": 3, "fsdp": 32, "expert": 1, "tensor": 2})


def test_check_partition_names_all_offenders():
  with pytest.raises(ValueError) as error:
    check_partition(CONFIG, {"data": 1, "fsdp": 5, "expert": 1, "tensor": 32})
  message = str(error.value)
  assert "width 32 is not a multiple of fsdp 5" in message
  for field in ("num_heads 4", "num_kv_heads 2", "mlp_width 48"):
    assert f"{field} is not a multiple of tensor 32" in message
  assert "vocab_size" not in message


def test_check_partition_of_experts():
  shape = {"data": 1, "fsdp": 1, "expert": 4, "tensor": 1}
  for num_experts, message in (
    (6, "num_experts 6 is not a multiple of expert 4"),
    (0, "num_experts 0, a dense model, has nothing to split over expert 4"),
  ):
    chosen = min(num_experts, 2)
    config = dataclasses.replace(CONFIG, num_experts=num_experts, experts_per_token=chosen)
    with pytest.raises(ValueError, match=message):
      check_partition(config, shape)
  check_partition(dataclasses.replace(CONFIG, num_experts=8, experts_per_token=1), shape)


def test_check_partition_names_absent_axes():
  with pytest.raises(ValueError, match=r"absent: fsdp, expert, tensor"):
    check_partition(CONFIG, {"data": 8})


def test_a_parameter_without_a_rule_is_an_error():
  with pytest.raises(
    ValueError, match="no partition rule for the parameter layers/gadget/kernel"
  ):
    partition_specs({"layers": {"gadget": {"kernel": jnp.ones((2, 4))}}})
