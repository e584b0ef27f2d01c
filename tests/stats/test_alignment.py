"""Alignment with a target set: agreement with one gradient for each example."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.data.batch import RowInputs, inputs_and_targets
from jdc.models import subsets
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.models.lora import LoraConfig
from jdc.stats import alignment, ghost, linear_taps
from jdc.stats.gradients import Options
from jdc.stats.losses import full_params
from jdc.train import sharding

B, M, T, V = 8, 3, 9, 24
CONFIG = DecoderConfig(
  vocab_size=V, width=16, num_layers=2, num_heads=2, num_kv_heads=2, mlp_width=16
)


def random_rows(seed, num_rows):
  """Rows of up to two documents with prompts and padding; the first has no target."""
  rng = np.random.default_rng(seed)
  segments = np.zeros((num_rows, T + 1), np.int32)
  for row in segments:
    first, both = sorted(rng.integers(2, T + 2, 2))
    row[:both], row[:first] = 2, 1
    row[: rng.integers(0, first)] = -1
  segments[0] = -np.abs(segments[0])
  return inputs_and_targets(rng.integers(0, V, segments.shape).astype(np.int32), segments)


@functools.cache
def case(name):
  """A model, its parameters in two parts, and the gradient of a mean loss by the first."""
  lora = LoraConfig(rank=2) if name == "lora" else None
  config = CONFIG
  if name == "remat":
    config = DecoderConfig(**{**vars(CONFIG), "remat": "layer", "tie_embeddings": True})
  model = decoder(config, loss_chunk={"chunks": 5, "lora": 7}.get(name), lora=lora)
  params = model.init(jax.random.key(1))
  trained, frozen = params, None
  if lora is not None:  # adapters start with one factor 0
    params = jax.tree.map(lambda x: x + 0.02, params)
    trained, frozen = subsets.split(params, subsets.matcher(["*/lora_*"]))
  plain = decoder(config, loss_chunk=None, lora=lora)

  def mean_loss(trained, rows):
    full = trained if frozen is None else subsets.join(trained, frozen)
    losses = plain.token_losses(full, *rows[:4])
    return jnp.sum(losses * rows.mask) / jnp.maximum(jnp.sum(rows.mask), 1)

  return model, (trained, frozen), jax.jit(jax.grad(mean_loss))


def flat(gradient):
  leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(gradient)]
  return np.concatenate(leaves)


@functools.cache
def expected(name, seed):
  """Inner products in float64 of gradients taken one by one."""
  _, (trained, _), gradient = case(name)
  rows, target = random_rows(seed, B), random_rows(seed + 100, M)
  whole = flat(gradient(trained, target))
  # Alone among padding, in the shape of the target rows: one compilation serves both.
  alone = [[np.pad(x[i : i + 1], ((0, M - 1), (0, 0))) for x in rows] for i in range(B)]
  each = [flat(gradient(trained, RowInputs(*row))) for row in alone]
  scale = np.linalg.norm(whole) * max(np.linalg.norm(x) for x in each)
  return np.array([x @ whole for x in each]), scale


@pytest.mark.parametrize("name", ["chunks", "lora", "remat"])
def test_agrees_with_a_gradient_for_each_example(name):
  model, params, _ = case(name)
  align = jax.jit(alignment.make_alignment(model))
  for seed in range(3):
    found = align(params, random_rows(seed, B), random_rows(seed + 100, M))
    products, scale = expected(name, seed)
    np.testing.assert_allclose(found, products, rtol=0, atol=1e-5 * scale)
    assert found[0] == 0  # no target token
    assert found.dtype == jnp.float32
    assert np.abs(products[1:]).max() > 1e-2 * scale


@pytest.mark.parametrize("name", ["chunks", "lora"])
def test_agrees_with_products_of_pairs(name):
  """Of gradients by linear maps, which are all that is trained of adapters."""
  model, params, _ = case(name)
  maps = linear_taps.choose(model, params, Options())
  by_maps = subsets.split(full_params(params), maps.__contains__)
  assert name != "lora" or subsets.paths(by_maps[0]) == subsets.paths(params[0])
  rows = random_rows(0, B)
  target = RowInputs(*(x[-1:] for x in rows))
  found = jax.jit(alignment.make_alignment(model))(by_maps, rows, target)
  products = jax.jit(ghost.make_gradient_products(model, params, Options()))(params, rows)
  np.testing.assert_allclose(found, products[-1], rtol=0, atol=1e-5 * jnp.max(products))


def test_devices_do_not_matter():
  model, (params, _), _ = case("chunks")
  mesh = sharding.make_mesh(data=2, fsdp=4)
  placed = jax.tree.map(
    lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec)),
    params,
    model.partition_specs(params),
  )
  rows = jax.device_put(random_rows(0, B), sharding.batch_sharding(mesh))
  target = jax.device_put(random_rows(100, M), sharding.replicated(mesh))
  with jax.set_mesh(mesh):
    found = jax.jit(alignment.make_alignment(model))((placed, None), rows, target)
  products, scale = expected("chunks", 0)
  np.testing.assert_allclose(found, products, rtol=0, atol=1e-5 * scale)


def test_the_derivative_of_a_gradient_keeps_no_logits():
  """The loss in chunks has no array of all logits, whichever derivative is taken."""
  config = DecoderConfig(
    vocab_size=8192, width=8, num_layers=1, num_heads=1, num_kv_heads=1, mlp_width=8
  )
  model = decoder(config, loss_chunk=16)
  params = jax.eval_shape(model.init, jax.random.key(0))
  rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((B, 64), x.dtype), random_rows(0, B))
  align = jax.jit(alignment.make_alignment(model)).lower((params, None), rows, rows).compile()
  logits = B * 64 * 8192 * 4
  assert align.memory_analysis().temp_size_in_bytes < logits / 2


@pytest.mark.parametrize("name", ["chunks", "lora"])
def test_one_pass_tells_products_and_alignment(name):
  """By linear maps; target rows of different lengths count by their tokens."""
  model, params, _ = case(name)
  maps = linear_taps.choose(model, params, Options())
  by_maps = subsets.split(full_params(params), maps.__contains__)
  rows, target = random_rows(0, B), random_rows(100, M)
  expected = jax.jit(alignment.make_alignment(model))(by_maps, rows, target)
  products = ghost.make_gradient_products(model, params, Options())
  alone = jax.jit(products)(params, rows)
  for num_shards in (1, 8):
    found = jax.jit(
      lambda params, rows, target, shards=num_shards: alignment.aligned_products(
        products, params, rows, target, shards
      )
    )(params, rows, target)
    scale = jnp.max(alone)
    np.testing.assert_allclose(found["gradient_product"], alone, rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(found["target_alignment"], expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize(("name", "microbatches"), [("chunks", 1), ("lora", 4)])
def test_curvature_agrees_with_a_hessian_in_forward_mode(name, microbatches):
  """The derivative of the target's gradient along the sum of gradients taken one by one."""
  model, (trained, frozen), gradient = case(name)
  rows, target = random_rows(1, B), random_rows(101, M)
  alone = [[np.pad(x[i : i + 1], ((0, M - 1), (0, 0))) for x in rows] for i in range(B)]
  each = [gradient(trained, RowInputs(*row)) for row in alone]
  summed = jax.tree.map(lambda *x: jnp.float32(sum(np.float64(y) for y in x)), *each)
  derivative = jax.jit(lambda x, d: jax.jvp(lambda x: gradient(x, target), (x,), (d,))[1])
  bent = flat(derivative(trained, summed))
  products = np.array([flat(x) @ bent for x in each])
  curvature = jax.jit(alignment.make_curvature(model, microbatches))
  found = curvature((trained, frozen), rows, target)
  scale = np.linalg.norm(bent) * max(np.linalg.norm(flat(x)) for x in each)
  np.testing.assert_allclose(found, products, rtol=0, atol=1e-5 * scale)
  assert found[0] == 0
  assert found.dtype == jnp.float32
  assert np.abs(products[1:]).max() > 1e-2 * scale
