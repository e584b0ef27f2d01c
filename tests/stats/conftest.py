"""Linear maps of small decoders, and the gradients of single rows by them, one at a time."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.data.batch import RowInputs, inputs_and_targets
from jdc.models import subsets
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.models.lora import LoraConfig
from jdc.train import sharding

_VOCABULARY = 24
_CONFIG = DecoderConfig(
  vocab_size=_VOCABULARY,
  width=32,
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
  mlp_width=24,
)


def _tokens(seed, num_rows, length):
  """Rows of up to two documents with prompts and padding; the first has no target."""
  rng = np.random.default_rng(seed)
  segments = np.zeros((num_rows, length + 1), np.int32)
  for row in segments:
    first, both = sorted(rng.integers(2, length + 2, 2))
    row[:both], row[:first] = 2, 1
    row[: rng.integers(0, first)] = -1
  segments[0] = -np.abs(segments[0])
  tokens = rng.integers(0, _VOCABULARY, segments.shape).astype(np.int32)
  return tokens, segments


def _rows(seed, num_rows, length):
  return inputs_and_targets(*_tokens(seed, num_rows, length))


@functools.cache
def _model(name):
  """A model and its parameters in two parts."""
  experts = {"num_experts": 4, "experts_per_token": 2} if name == "experts" else {}
  lora = LoraConfig(rank=3) if name == "lora" else None
  config = DecoderConfig(**{**vars(_CONFIG), **experts})
  model = decoder(config, loss_chunk=5 if name == "lora" else None, lora=lora)
  params = model.init(jax.random.key(1))
  if lora is None:
    return model, (params, None)
  params = jax.tree.map(lambda x: x + 0.02, params)  # adapters start with one factor 0
  return model, subsets.split(params, subsets.matcher(["*/lora_*"]))


def _full(params):
  return params[0] if params[1] is None else subsets.join(*params)


@functools.cache
def _gradient(name):
  model, _ = _model(name)

  @jax.jit
  @jax.grad
  def gradient(params, rows):
    losses = model.token_losses(params, *rows[:4])
    return jnp.sum(losses * rows.mask) / jnp.maximum(jnp.sum(rows.mask), 1)

  return gradient


@functools.cache
def _gradients(name, seed, num_rows, length):
  """The gradient of each row by each linear map, f64[B, L, in, out] by path."""
  model, params = _model(name)
  rows, full = _rows(seed, num_rows, length), _full(params)
  each = [
    dict(subsets.leaves(_gradient(name)(full, RowInputs(*(x[i : i + 1] for x in rows)))))
    for i in range(num_rows)
  ]
  paths = sorted(model.linear_maps(full))
  return {path: np.stack([np.asarray(x[path], np.float64) for x in each]) for path in paths}


def _placed(name, **axes):
  """A mesh, the sharding of batches, and the parameters where they lie."""
  model, (params, frozen) = _model(name)
  mesh = sharding.make_mesh(**axes)
  assert frozen is None
  placed = jax.tree.map(
    lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec)),
    params,
    model.partition_specs(params),
  )
  return mesh, sharding.batch_sharding(mesh), (placed, None)


@pytest.fixture(scope="session")
def linear_maps():
  """Models, rows, gradients and parameters on a mesh."""
  return types.SimpleNamespace(
    model=_model, tokens=_tokens, rows=_rows, gradients=_gradients, placed=_placed
  )
