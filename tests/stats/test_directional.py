"""Directional derivatives against gradients and the directions, and what offers none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.data.batch import inputs_and_targets
from jdc.models import cross_entropy, subsets
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.stats.gradients import Options, make_features
from jdc.stats.losses import make_example_losses
from jdc.train import sharding

B, T, V, SIZE = 6, 5, 16, 24
CONFIG = DecoderConfig(
  vocab_size=V, width=8, num_layers=3, num_heads=2, num_kv_heads=2, mlp_width=8
)
KEY, WANTED = jax.random.key(5), frozenset({"gradient"})


@functools.cache
def parts():
  """A decoder, its parameters and rows; the second has no target."""
  model = decoder(CONFIG)
  rng = np.random.default_rng(0)
  segments = np.ones((B, T + 1), np.int32)
  segments[:, : T // 2] = -1
  segments[1] = -1
  rows = inputs_and_targets(rng.integers(0, V, (B, T + 1)).astype(np.int32), segments)
  return model, (jax.jit(model.init)(jax.random.key(1)), None), rows


@functools.cache
def gradients():
  """The gradient of each row, by path."""
  model, (params, _), rows = parts()
  found = jax.jit(jax.jacrev(make_example_losses(model)))(params, rows)
  return {path: np.asarray(x, np.float64) for path, x in subsets.leaves(found)}


def compute(options, batches=None, model=None):
  made = make_features(model or parts()[0], parts()[1], WANTED, options, KEY, None, batches)
  return made, jax.jit(made.compute)


def directions(number):
  """Feature `number` is the derivative along these, by path, over sqrt(R)."""
  from jdc.stats import directional

  drawn = directional._direction(jax.random.fold_in(KEY, number), parts()[1][0])
  return {path: np.asarray(x, np.float64) for path, x in subsets.leaves(drawn)}


@pytest.mark.parametrize(
  ("options", "accepts"),
  [
    (Options("directional", size=SIZE, microbatch_size=5), ["*"]),
    (Options("directional", ("layers/mlp/*",), size=SIZE, microbatch_size=1), ["layers/mlp/*"]),
  ],
)
def test_agrees_with_gradients_along_each_direction(options, accepts):
  made, features = compute(options)
  found = np.asarray(features(parts()[1], None, parts()[2])["gradient"])
  assert found.shape == (B, SIZE)
  matches = subsets.matcher(accepts)
  for number in (0, 7, SIZE - 1):
    along = directions(number)
    expected = sum(
      np.sum(gradient.reshape(B, -1) * along[path].ravel(), axis=1)
      for path, gradient in gradients().items()
      if matches(path)
    ) / np.sqrt(SIZE)
    np.testing.assert_allclose(found[:, number], expected, atol=1e-5 * np.abs(expected).max())
  np.testing.assert_array_equal(found[1], 0)
  assert (made.forward, made.backward) == (2 * SIZE + -(-SIZE // options.microbatch_size), 0)


def test_the_last_layers_alone():
  options = Options("directional", top_layers=1, size=SIZE)
  found = np.asarray(compute(options)[1](parts()[1], None, parts()[2])["gradient"])
  layers = [path for path in gradients() if path.startswith("layers/")]
  top = {path: gradients()[path][:, -1:] for path in layers}
  from jdc.stats import directional

  shapes = jax.tree.map(lambda x: x[-1:], {"layers": parts()[1][0]["layers"]})
  drawn = dict(subsets.leaves(directional._direction(jax.random.fold_in(KEY, 3), shapes)))
  expected = sum(
    np.sum(top[path].reshape(B, -1) * np.ravel(drawn[path]), axis=1) for path in layers
  ) / np.sqrt(SIZE)
  np.testing.assert_allclose(found[:, 3], expected, atol=1e-5 * np.abs(expected).max())


def test_devices_and_microbatches_do_not_matter():
  options = Options("directional", size=SIZE, microbatch_size=24)
  expected = np.asarray(compute(options)[1](parts()[1], None, parts()[2])["gradient"])
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  batches = sharding.batch_sharding(mesh)
  rows = jax.tree.map(lambda x: jnp.pad(x, ((0, 2), (0, 0))), parts()[2])
  specs = parts()[0].partition_specs(parts()[1][0])
  params = jax.tree.map(
    lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec)), parts()[1][0], specs
  )
  with jax.set_mesh(mesh):
    features = compute(options._replace(microbatch_size=7), batches)[1]
    found = features((params, None), None, jax.device_put(rows, batches))["gradient"]
  scale = np.linalg.norm(expected, axis=1, keepdims=True)
  np.testing.assert_allclose(
    np.asarray(found)[:B] - expected, 0 * expected, atol=1e-5 * scale.max()
  )


def test_inner_products_are_unbiased():
  """Over many directions they tend to those of the gradients."""
  size = 4096
  options = Options("directional", size=size, microbatch_size=64)
  found = np.asarray(compute(options)[1](parts()[1], None, parts()[2])["gradient"], np.float64)
  flat = np.concatenate([x.reshape(B, -1) for x in gradients().values()], axis=1)
  true, norms = flat @ flat.T, np.linalg.norm(flat, axis=1)
  deviation = np.sqrt((np.outer(norms, norms) ** 2 + true**2) / size)
  assert np.all(np.abs(found @ found.T - true) <= 4 * deviation)


def test_losses_in_chunks_have_derivatives_in_forward_mode():
  """A chunk of logits at a time, for a vocabulary that does not fit."""
  model = decoder(CONFIG, loss_chunk=4)
  options = Options("directional", size=3)
  whole, chunked = (
    np.asarray(compute(options, model=m)[1](parts()[1], None, parts()[2])["gradient"])
    for m in (parts()[0], model)
  )
  np.testing.assert_allclose(chunked, whole, atol=1e-5 * np.abs(whole).max())
  hidden, output = jnp.ones((2, 8, 3)), jnp.ones((3, 5))
  targets = jnp.zeros((2, 8), jnp.int32)
  loss = lambda x, **mode: cross_entropy.token_cross_entropy(x, output, targets, 4, **mode)
  with pytest.raises(TypeError, match="forward-mode"):
    jax.jvp(loss, (hidden,), (hidden,))
  jax.jvp(functools.partial(loss, forward_mode=True), (hidden,), (hidden,))


def test_what_has_no_forward_mode_is_refused():
  model = decoder(CONFIG, loss_chunk=1)._replace(forward_mode_losses=None)
  with pytest.raises(
    ValueError, match="'directional' needs losses with derivatives in forward"
  ):
    compute(Options("directional", size=3), model=model)
  for wanted in ("gradient_norm", "update_direction"):
    with pytest.raises(ValueError, match=f"'directional' has no {wanted}"):
      make_features(
        parts()[0], parts()[1], frozenset({wanted}), Options("directional", size=3), KEY
      )
  with pytest.raises(ValueError, match="for a model without `forward_mode_losses`, got 1"):
    compute(
      Options("directional", size=3, top_layers=1),
      model=parts()[0]._replace(forward_mode_losses=None),
    )
