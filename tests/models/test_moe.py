"""Tests of mixtures of experts on a mesh; their outputs are compared with transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.train import sharding

SHAPE = (16, 32)  # rows of tokens
POSITIONS = jnp.broadcast_to(jnp.arange(SHAPE[1], dtype=jnp.int32), SHAPE)
MODEL = decoder(
  DecoderConfig(
    vocab_size=64,
    width=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    mlp_width=48,
    num_experts=4,
    experts_per_token=2,
  )
)


def loss(params, tokens):
  targets, segments = jnp.roll(tokens, -1, axis=1), jnp.ones_like(tokens)
  return jnp.mean(MODEL.token_losses(params, tokens, targets, POSITIONS, segments))


@pytest.fixture(scope="module")
def inputs():
  tokens = np.random.default_rng(0).integers(0, 64, SHAPE).astype(np.int32)
  return MODEL.init(jax.random.key(0)), tokens


@pytest.fixture(scope="module")
def on_one_device(inputs):
  return jax.jit(jax.value_and_grad(loss)).lower(*inputs).compile()


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_a_device_computes_its_own_tokens_only(inputs, on_one_device, sizes):
  mesh = sharding.make_mesh(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
  params, tokens = inputs
  shardings = jax.tree.map(
    lambda spec: jax.NamedSharding(mesh, spec), MODEL.partition_specs(params)
  )
  placed = (
    jax.device_put(params, shardings),
    jax.device_put(tokens, sharding.batch_sharding(mesh)),
  )
  with jax.set_mesh(mesh):
    compiled = jax.jit(jax.value_and_grad(loss)).lower(*placed).compile()
  found, expected = jax.device_get((compiled(*placed), on_one_device(*inputs)))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected
  )
  shards = sizes[0] * sizes[1]
  whole = on_one_device.memory_analysis().temp_size_in_bytes
  assert compiled.memory_analysis().temp_size_in_bytes < 2 * whole / shards
