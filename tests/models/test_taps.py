"""Taps see what goes into and out of every linear map, and its gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.models import subsets
from jdc.models.decoder import DecoderConfig, decoder
from jdc.models.lora import LoraConfig

_ROWS, _LENGTH = 3, 12


@jax.custom_vjp
def _collect(gradient_BxDxF, x_BxTxD, y_BxTxF):
  del gradient_BxDxF, x_BxTxD
  return y_BxTxF


def _forward(gradient_BxDxF, x_BxTxD, y_BxTxF):
  del gradient_BxDxF
  return y_BxTxF, x_BxTxD


def _backward(x_BxTxD, dy_BxTxF):
  return jnp.einsum("btd,btf->bdf", x_BxTxD, dy_BxTxF), None, dy_BxTxF


_collect.defvjp(_forward, _backward)


@functools.cache
def _model(lora):
  config = DecoderConfig(
    vocab_size=61, width=16, num_layers=4, num_heads=4, num_kv_heads=2, mlp_width=24,
    sliding_window=4, layer_types=("local", "global", "local", "global"),
  )  # fmt: skip
  model = decoder(config, lora=LoraConfig(rank=3) if lora else None)
  params = model.init(jax.random.key(0))
  noise = lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape)
  return model, jax.tree.map(noise, params)


def _rows():
  tokens = jax.random.randint(jax.random.key(2), (_ROWS, _LENGTH + 1), 0, 61)
  positions = jnp.broadcast_to(jnp.arange(_LENGTH), (_ROWS, _LENGTH))
  return tokens[:, :-1], tokens[:, 1:], positions, jnp.ones_like(positions)


@pytest.mark.parametrize(("lora", "top_layers"), [(False, 0), (True, 0), (True, 1), (False, 3)])
def test_taps_collect_the_gradient_of_every_row(lora, top_layers):
  model, params = _model(lora)
  rows = _rows()
  maps = model.linear_maps(params)
  assert len(maps) == (21 if lora else 7)
  count = top_layers or 4
  zeros = {
    path: jnp.zeros((count, _ROWS, found.in_features, found.out_features))
    for path, found in maps.items()
  }

  def loss(zeros):
    taps = {path: jax.tree_util.Partial(_collect, z) for path, z in zeros.items()}
    return jnp.sum(model.tapped_losses(params, taps, *rows, top_layers))

  def one_loss(params, row):
    return jnp.sum(model.token_losses(params, *(x[None] for x in row)))

  found = jax.jit(jax.grad(loss))(zeros)
  expected = jax.jit(jax.vmap(jax.grad(one_loss), (None, 0)))(params, rows)
  for path, leaf in subsets.leaves(expected):
    if path in maps:
      right = np.swapaxes(leaf, 0, 1)[-count:]
      np.testing.assert_allclose(found[path], right, rtol=0, atol=2e-5 * np.abs(right).max())


def test_losses_do_not_change():
  model, params = _model(True)
  rows = _rows()
  expected = model.token_losses(params, *rows)
  for top_layers in (0, 2):
    found = model.tapped_losses(params, {}, *rows, top_layers)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_no_gradient_goes_below_the_top_layers():
  model, params = _model(False)
  rows = _rows()
  loss = lambda params: jnp.sum(model.tapped_losses(params, {}, *rows, 2))
  gradient = jax.grad(loss)(params)
  whole = jax.grad(lambda params: jnp.sum(model.token_losses(params, *rows)))(params)
  for path, leaf in subsets.leaves(gradient["layers"]):
    same = dict(subsets.leaves(whole["layers"]))[path]
    assert np.all(leaf[:2] == 0), path
    np.testing.assert_allclose(leaf[2:], same[2:], rtol=1e-4, atol=1e-6)
  assert np.all(gradient["embedding"]["embedding"] == 0)
  assert np.any(gradient["output"]["kernel"] != 0)
