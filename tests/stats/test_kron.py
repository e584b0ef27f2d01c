"""Kronecker features are (P_in kron P_out^T) vec(G), of one pass for all rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.data.batch import RowInputs
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.stats import kron, linear_taps
from jdc.stats.gradients import Features, Options

B, T = 8, 9
KEY = jax.random.key(5)
BOTH = frozenset({"gradient", "gradient_norm"})
# By name: the model, patterns of paths, top layers, k, matrices, and rows at a time.
CASES = {
  "all": ("dense", (), 0, 3, 21, 8),
  "adapters": ("lora", (), 0, 4, 42, 3),  # k is above the rank
  "frozen": ("lora", ("*/query/kernel", "*/down/lora_a"), 2, 29, 4, 1),
  "experts": ("experts", (), 0, 3, 12, 4),
}


def options(case):
  name, patterns, top, k, matrices, rows = CASES[case]
  chosen = Options("kron", patterns, top, matrices * k * k, microbatch_size=rows)
  return name, chosen


def projections(maps, k):
  """All at once, since every operation outside of jit is compiled by itself."""
  return jax.jit(lambda: kron.projections(KEY, maps, k))()


def expected(linear_maps, case, seed=0, num_rows=B):
  """Features f64[B, R] of explicit gradients, and the norms of these f64[B]."""
  (name, _, top, k, *_), (_, chosen) = CASES[case], options(case)
  model, params = linear_maps.model(name)
  maps = linear_taps.choose(model, params, chosen)
  gradients = linear_maps.gradients(name, seed, num_rows, T)
  parts, squares = [], 0.0
  factors = projections(maps, k)
  for path in maps:
    each = gradients[path][:, -top:]
    squares += np.sum(each**2, axis=(1, 2, 3))
    sides = [np.asarray(x, np.float64) for x in factors[path]]
    for layer, (p_in, p_out) in enumerate(zip(*sides, strict=True)):
      both = np.kron(p_in.T, p_out.T)
      parts.append(each[:, layer].reshape(num_rows, -1) @ both.T)
  return np.concatenate(parts, axis=1), np.sqrt(squares)


def check(found, right, norms):
  error = np.linalg.norm(found["gradient"] - right, axis=1)
  assert np.all(error <= 1e-5 * np.linalg.norm(right, axis=1))
  np.testing.assert_allclose(found["gradient_norm"], norms, rtol=1e-5)
  assert np.all(found["gradient"][0] == 0)  # no target token
  assert found["gradient_norm"][0] == 0


@pytest.mark.parametrize("case", ["adapters", "frozen", "experts"])
def test_agrees_with_explicit_gradients(case, linear_maps):
  name, chosen = options(case)
  model, params = linear_maps.model(name)
  features = kron.make_kron(model, params, BOTH, chosen, KEY)
  compute = jax.jit(features.compute)
  assert isinstance(features, Features)
  assert features.size == chosen.size
  for seed in range(2):
    found = compute(params, None, linear_maps.rows(seed, B, T))
    right, norms = expected(linear_maps, case, seed)
    assert right.shape == (B, chosen.size)
    check(found, right, norms)


@pytest.mark.parametrize("field", ["gradient", "gradient_norm"])
def test_devices_and_what_is_wanted_do_not_matter(field, linear_maps):
  name, chosen = options("all")
  model, shapes = linear_maps.model(name)
  tensor = 2 if field == "gradient" else 1
  axes = {"data": 4 // tensor, "fsdp": 2, "tensor": tensor}
  mesh, batches, params = linear_maps.placed(name, **axes)
  features = kron.make_kron(model, shapes, frozenset({field}), chosen, KEY, batches)
  rows = jax.device_put(linear_maps.rows(0, 16, T), batches)
  with jax.set_mesh(mesh):
    found = jax.jit(features.compute)(params, None, rows)
  assert found.keys() == {field}
  right, norms = expected(linear_maps, "all", num_rows=16)
  check({"gradient": right, "gradient_norm": norms} | found, right, norms)


def test_inner_products_are_unbiased(linear_maps):
  name, chosen = options("all")
  model, params = linear_maps.model(name)
  rows = linear_maps.rows(0, B, T)

  @jax.jit
  @jax.vmap
  def products(key):
    features = kron.make_kron(model, params, frozenset({"gradient"}), chosen, key)
    found = features.compute(params, None, rows)["gradient"]
    return found @ found.T

  found = np.asarray(products(jax.random.split(KEY, 300)), np.float64)
  gradients = linear_maps.gradients(name, 0, B, T)
  flat = np.concatenate([x.reshape(B, -1) for x in gradients.values()], axis=1)
  right = flat @ flat.T
  deviation = found.std(axis=0) / np.sqrt(len(found))
  assert np.all(np.abs(found.mean(axis=0) - right) <= 4.5 * deviation)
  scale = np.sqrt(np.outer(np.diag(right), np.diag(right)))
  assert np.all(deviation <= 0.05 * scale)


def test_layers_and_paths_have_projections_of_their_own():
  maps = {
    path: linear_taps.Chosen(12, 10, layers)
    for path, layers in {"a": (0, 1, 2), "b": (1, 2), "c": ()}.items()
  }
  found, again = projections(maps, 4), projections({"a": maps["b"]}, 4)["a"]
  for side, part in zip(found["a"], again, strict=True):
    np.testing.assert_array_equal(np.asarray(side)[1:], part)
    assert np.abs(np.diff(np.asarray(side)[:2], axis=0)).max() > 0.1
  assert np.abs(np.subtract(np.asarray(found["a"][0])[1:], found["b"][0])).max() > 0.1
  assert [x.shape for x in found["c"]] == [(12, 4), (10, 4)]
  whole = projections({"c": maps["c"]}, 11)["c"]
  assert whole[0].shape == (12, 11)
  np.testing.assert_array_equal(whole[1], np.eye(10, 11))


def test_no_gradient_of_a_row_exists():
  config = DecoderConfig(
    vocab_size=16, width=512, num_layers=1, num_heads=4, num_kv_heads=4, mlp_width=512
  )
  model = decoder(config)
  shapes = (jax.eval_shape(model.init, jax.random.key(0)), None)
  row = jax.ShapeDtypeStruct((B, 16), jnp.int32)
  rows = RowInputs(row, row, row, row, jax.ShapeDtypeStruct(row.shape, bool))
  features = kron.make_kron(
    model, shapes, frozenset({"gradient"}), Options("kron", size=7 * 4), KEY
  )
  found = jax.jit(features.compute).lower(shapes, None, rows).compile()
  forward = jax.jit(model.token_losses).lower(shapes[0], *rows[:4]).compile()
  operations = [x.cost_analysis()["flops"] for x in (found, forward)]
  # The backward pass through the activations takes as many, and a gradient would again.
  assert operations[0] < 2.3 * operations[1]
  held = [x.memory_analysis().temp_size_in_bytes for x in (found, forward)]
  of_one_row = 512 * 512 * 4
  assert held[0] - held[1] < 3 * of_one_row


def test_errors_name_what_does_not_fit(linear_maps):
  model, params = linear_maps.model("lora")

  def error(message, wanted=BOTH, **fields):
    with pytest.raises(ValueError, match=message):
      kron.make_kron(model, params, wanted, Options("kron", **fields), KEY)

  error(
    r"features.size .* 42 matrices \(14 linear maps .*\), got 1024; .*: 672 \(k = 4\), 1050 "
  )
  error(r"got 41; the nearest that fit: 42 \(k = 1\)$", size=41)
  error("got \\['update_direction'\\].*direction does not commute", {"update_direction"})
  error("'\\*/bias' match no linear map that can be tapped: layers", parameters=("*/bias",))
  error(
    "match what cannot be tapped: embedding/embedding, output/kernel",
    parameters=("*/lora_a", "embedding/*", "output/*"),
  )
  error("cannot be tapped: output/kernel", parameters=("*/kernel",))
  error(
    r"features.top_layers 4 .* layers/attention/attention_output/lora_a \(3\)", top_layers=4
  )
  error(r"features.top_layers -1 ", top_layers=-1)
  bare = model._replace(tapped_losses=None)
  with pytest.raises(ValueError, match="no linear_maps and tapped_losses"):
    kron.make_kron(bare, params, BOTH, Options("kron"), KEY)
  frozen = ({"output": params[1]["output"]}, {**params[1], "output": {}})
  with pytest.raises(ValueError, match="no trained parameter is a linear map"):
    kron.make_kron(model, frozen, BOTH, Options("kron"), KEY)
