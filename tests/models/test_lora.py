"""Tests of adapters: the equation, dropout, gradients and their cost, sharding."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jdc.models.base import BATCH_AXES, MESH_AXES
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.models.layers import Build, Linear
from jdc.models.lora import LoraConfig, adaptable, check_targets, merged
from jdc.models.subsets import join, matcher, paths, split

# Every size differs from every other, so that the shape of a product says what it is of.
CONFIG = DecoderConfig(
  vocab_size=96,
  width=40,
  num_layers=3,
  num_heads=6,
  num_kv_heads=2,
  head_size=10,
  mlp_width=56,
  initializer_scale=2.0,
)
LORA = LoraConfig(rank=4, alpha=6.0)
ADAPTERS = matcher(["layers/*/lora_*"])
KEY = jax.random.key(0)
B, T = 4, 16


def rows(num_rows=B):
  rng = np.random.default_rng(0)
  tokens = jnp.asarray(rng.integers(0, CONFIG.vocab_size, (num_rows, T + 1)), jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (num_rows, T))
  return tokens[:, :-1], tokens[:, 1:], positions, jnp.ones((num_rows, T), jnp.int32)


def adapted(config=CONFIG, lora=LORA):
  """A model and its parameters, with both maps of every adapter different from 0."""
  model = decoder(config, loss_chunk=None, lora=lora)
  adapters, frozen = split(model.init(KEY), ADAPTERS)
  leaves, treedef = jax.tree.flatten(adapters)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  drawn = [0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
  return model, treedef.unflatten(drawn), frozen


def hidden(model, params, num_rows=B):
  tokens, _, positions, segments = rows(num_rows)
  return jax.jit(model.hidden)(params, tokens, positions, segments)


def loss_of(model, key=None):
  def loss(adapters, frozen, *batch):
    options = {} if key is None else {"key": key}
    return jnp.mean(model.token_losses(join(adapters, frozen), *batch, **options))

  return loss


# The equation.


@pytest.mark.parametrize("rank_stabilised", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_a_map_is_the_equation(rank_stabilised, use_bias):
  lora = LoraConfig(
    rank=4, alpha=6.0, targets=("layers/mlp/up",), rank_stabilised=rank_stabilised
  )
  linear = Linear(
    Build(CONFIG, lora), "layers/mlp/up", 12, 7, rngs=nnx.Rngs(0), use_bias=use_bias
  )
  rng = np.random.default_rng(0)
  x, a, b = rng.normal(size=(5, 12)), rng.normal(size=(12, 4)), rng.normal(size=(4, 7))
  bias = rng.normal(size=7)
  linear.lora_a[...], linear.lora_b[...] = jnp.float32(a), jnp.float32(b)
  expected = x @ np.float64(linear.kernel[...])
  expected += 6.0 / (math.sqrt(4) if rank_stabilised else 4) * (x @ a) @ b
  if use_bias:
    linear.bias[...] = jnp.float32(bias)
    expected += bias
  np.testing.assert_allclose(linear(jnp.float32(x)), expected, rtol=1e-5, atol=1e-5)


def test_an_adapted_model_starts_as_the_model_itself():
  model = decoder(CONFIG, lora=LORA)
  adapters, frozen = split(model.init(KEY), ADAPTERS)
  plain = decoder(CONFIG).init(KEY)
  jax.tree.map(np.testing.assert_array_equal, frozen, plain)
  np.testing.assert_array_equal(
    hidden(model, join(adapters, frozen)), hidden(decoder(CONFIG), plain)
  )


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_merged_is_unmerged(rank_stabilised):
  lora = dataclasses.replace(LORA, rank_stabilised=rank_stabilised)
  model, adapters, frozen = adapted(lora=lora)
  params = join(adapters, frozen)
  whole = merged(params, lora)
  assert set(paths(whole)) == set(paths(frozen))
  expected = hidden(model, params)
  np.testing.assert_allclose(hidden(decoder(CONFIG), whole), expected, atol=2e-5)
  assert np.abs(expected - hidden(decoder(CONFIG), frozen)).max() > 0.1
  gate = frozen["layers"]["mlp"]["gate"]["kernel"], *adapters["layers"]["mlp"]["gate"].values()
  kernel, a, b = (np.float64(x) for x in gate)
  np.testing.assert_allclose(
    whole["layers"]["mlp"]["gate"]["kernel"], kernel + lora.scale * a @ b, atol=1e-6
  )


def test_merging_rounds_once():
  config = dataclasses.replace(CONFIG, parameter_dtype="bfloat16")
  _, adapters, frozen = adapted(config)
  whole = merged(join(adapters, frozen), LORA)
  query = (
    frozen["layers"]["attention"]["query"]["kernel"],
    *adapters["layers"]["attention"]["query"].values(),
  )
  kernel, a, b = (np.float32(x) for x in query)
  merged_kernel = whole["layers"]["attention"]["query"]["kernel"]
  assert merged_kernel.dtype == jnp.bfloat16
  expected = (kernel + np.float32(LORA.scale) * (a @ b)).astype(jnp.bfloat16)
  assert np.mean(np.asarray(merged_kernel) == expected) > 0.999


def test_only_the_targets_have_adapters():
  lora = LoraConfig(rank=2, targets=("layers/attention/query", "layers/mlp/*"))
  shapes = jax.eval_shape(decoder(CONFIG, lora=lora).init, KEY)
  attention, mlp = shapes["layers"]["attention"], shapes["layers"]["mlp"]
  assert attention["query"]["lora_a"].shape == (3, 40, 2)
  assert attention["query"]["lora_b"].shape == (3, 2, 60)
  assert mlp["down"]["lora_a"].shape == (3, 56, 2)
  adapters, _ = split(shapes, ADAPTERS)
  assert set(adapters["layers"]["attention"]) == {"query"}
  assert set(adapters["layers"]["mlp"]) == {"gate", "up", "down"}


def test_initial_values():
  lora = dataclasses.replace(LORA, rank=64)
  params = decoder(CONFIG, lora=lora).init(KEY)
  seen = []
  for module in adaptable(CONFIG):
    _, part, name = module.split("/")
    a, b = (params["layers"][part][name][leaf] for leaf in ("lora_a", "lora_b"))
    assert not np.any(b)
    limit = 1 / math.sqrt(a.shape[1])
    assert np.abs(a).max() <= limit
    sample = np.sort(np.asarray(a).reshape(-1) / limit)  # against the uniform distribution
    steps = (np.arange(sample.size) + 0.5) / sample.size
    assert np.abs((sample + 1) / 2 - steps).max() < 1.95 / math.sqrt(sample.size)
    seen += [float(x) for x in a[:, 0, 0] / limit]
  assert len(set(seen)) == len(seen)  # each layer and each module has its own


def test_adapters_have_their_own_type():
  config = dataclasses.replace(CONFIG, dtype="bfloat16", parameter_dtype="bfloat16")
  adapters, frozen = split(jax.eval_shape(decoder(config, lora=LORA).init, KEY), ADAPTERS)
  assert {x.dtype.name for x in jax.tree.leaves(adapters)} == {"float32"}
  assert {x.dtype.name for x in jax.tree.leaves(frozen)} == {"bfloat16"}


# Dropout.


def test_dropout_is_off_without_a_key():
  model, adapters, frozen = adapted()
  dropped = decoder(CONFIG, lora=dataclasses.replace(LORA, dropout=0.5))
  assert dropped.dropout
  assert not model.dropout
  params = join(adapters, frozen)
  np.testing.assert_array_equal(hidden(dropped, params), hidden(model, params))
  batch = rows()
  with_key = dropped.token_losses(params, *batch, key=KEY)
  assert np.abs(with_key - dropped.token_losses(params, *batch)).max() > 0.01
  np.testing.assert_array_equal(with_key, dropped.token_losses(params, *batch, key=KEY))


def test_the_mean_under_dropout_is_what_there_is_without():
  lora = LoraConfig(rank=4, dropout=0.3, targets=("layers/mlp/up",))
  linear = Linear(Build(CONFIG, lora), "layers/mlp/up", 12, 7, rngs=nnx.Rngs(0))
  linear.lora_b[...] = jax.random.normal(KEY, (4, 7))
  x = jax.random.normal(jax.random.key(1), (2, 3, 12))
  keys = jax.random.split(jax.random.key(2), 20_000)
  drawn = jax.jit(jax.vmap(lambda key: linear(x, key)))(keys)
  error = np.abs(np.mean(drawn, axis=0) - linear(x))
  assert np.all(error < 5 * np.std(drawn, axis=0) / math.sqrt(len(keys)))
  assert np.std(drawn, axis=0).min() > 0.01


def test_layers_and_modules_drop_different_features():
  # With A the identity and kernels of 0, the adapter's output shows which features it kept.
  lora = LoraConfig(rank=40, alpha=40.0, dropout=0.5)
  build = Build(dataclasses.replace(CONFIG, mlp_width=40), lora)

  def kept(path, key):
    linear = Linear(build, path, 40, 40, rngs=nnx.Rngs(0))
    linear.kernel[...] = jnp.zeros((40, 40))
    linear.lora_a[...] = linear.lora_b[...] = jnp.eye(40)
    return tuple(np.asarray(linear(jnp.ones((1, 2, 40)), key)).reshape(-1).tolist())

  keys = jax.random.split(KEY, 3)
  drawn = [kept(module, key) for module in adaptable(CONFIG) for key in keys]
  assert {value for mask in drawn for value in mask} == {0.0, 2.0}
  assert len(set(drawn)) == len(drawn)
  assert kept("layers/mlp/up", KEY) == kept("layers/mlp/up", KEY)


def test_layers_drop_different_features():
  # For a single token, the gradient of A is 0 in the rows of the features that were dropped.
  # Queries and keys have no gradient, since one token only sees itself.
  targets = ("layers/attention/value", "layers/mlp/gate", "layers/mlp/up")
  model, adapters, frozen = adapted(lora=LoraConfig(rank=4, dropout=0.5, targets=targets))
  row = tuple(x[:1, :1] for x in rows())
  gradient = jax.jit(jax.grad(loss_of(model, KEY)))(adapters, frozen, *row)
  gradient, _ = split(gradient, matcher(["*_a"]))
  kept = [tuple(rows.any(axis=1)) for x in jax.tree.leaves(gradient) for rows in np.asarray(x)]
  assert len(set(kept)) == len(kept) == 3 * CONFIG.num_layers
  assert np.mean(kept) == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(len(kept) * 40))


# Gradients.


def test_gradients_are_those_of_numpy():
  """d loss / d A = scale x^T (g B^T), d loss / d B = scale (x A)^T g for y -> g."""
  lora = LoraConfig(rank=4, alpha=6.0, targets=("layers/mlp/up",))
  linear = Linear(Build(CONFIG, lora), "layers/mlp/up", 12, 7, rngs=nnx.Rngs(0))
  graph, state = nnx.split(linear)
  rng = np.random.default_rng(0)
  x, g = rng.normal(size=(5, 12)), rng.normal(size=(5, 7))
  params = nnx.to_pure_dict(state)
  params["lora_b"] = jnp.float32(rng.normal(size=(4, 7)))
  gradient = jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(jnp.float32(x)) * g))(params)
  a, b = np.float64(params["lora_a"]), np.float64(params["lora_b"])
  np.testing.assert_allclose(gradient["lora_a"], 1.5 * x.T @ (g @ b.T), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(gradient["lora_b"], 1.5 * (x @ a).T @ g, rtol=1e-4, atol=1e-5)


def test_gradients_are_finite_differences():
  model, adapters, frozen = adapted()
  loss = jax.jit(lambda adapters: loss_of(model)(adapters, frozen, *rows()))
  gradient = jax.grad(loss)(adapters)
  assert set(paths(gradient)) == set(paths(adapters))
  for i in range(3):
    step = jax.tree.map(
      lambda x, i=i: 1e-3 * jax.random.normal(jax.random.key(i), x.shape), adapters
    )
    above, below = (jax.tree.map(f, adapters, step) for f in (jnp.add, jnp.subtract))
    inner = jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, gradient, step))
    difference = (loss(above) - loss(below)) / 2
    assert float(difference) == pytest.approx(float(inner), rel=0.02, abs=2e-6)


def test_adapters_alone_have_the_gradients_that_they_have_among_all():
  model, adapters, frozen = adapted()
  part = jax.jit(jax.grad(loss_of(model)))(adapters, frozen, *rows())
  whole = jax.jit(jax.grad(lambda p: loss_of(model)(p, {}, *rows())))(join(adapters, frozen))
  whole, _ = split(whole, ADAPTERS)
  for one, other in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)


def test_per_example_gradients_are_a_loop():
  model, adapters, frozen = adapted()

  def loss(adapters, *row):
    batch = (x[None] for x in row)
    return jnp.mean(model.token_losses(join(adapters, frozen), *batch))

  batch = rows()
  together = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0, 0, 0)))(adapters, *batch)
  one = jax.jit(jax.grad(loss))
  for i in range(B):
    alone = one(adapters, *(x[i] for x in batch))
    for left, right in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
      np.testing.assert_allclose(left[i], right, rtol=1e-4, atol=1e-5 * np.abs(right).max())


# What gradients cost.


def linear_flops(jaxpr, times=1):
  """The operations of a program's products without batch axes, those of the layers' maps.

  Those of attention have batch axes, and those of the loss have an axis of the vocabulary.
  """
  total = 0
  for equation in jaxpr.eqns:
    inner = times * equation.params.get("length", 1)
    if equation.primitive.name == "dot_general":
      (contracted, _), (batched, _) = equation.params["dimension_numbers"]
      left, output = equation.invars[0].aval, equation.outvars[0].aval
      if not batched and CONFIG.vocab_size not in (*left.shape, *output.shape):
        total += times * 2 * output.size * math.prod(left.shape[i] for i in contracted)
    for value in equation.params.values():
      part = getattr(value, "jaxpr", value)
      total += linear_flops(part, inner) if hasattr(part, "eqns") else 0
  return total


@pytest.mark.parametrize("remat", ["none", "layer"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_frozen_kernels_cost_no_products_of_their_own(remat, dtype):
  """Of a kernel's products y = x W, dx = dy W^T and dW = x^T dy the last is left out."""
  config = dataclasses.replace(CONFIG, remat=remat, dtype=dtype)
  model = decoder(config, loss_chunk=None, lora=LORA)
  adapters, frozen = split(jax.eval_shape(model.init, KEY), ADAPTERS)
  each = 2 * B * T * config.num_layers
  maps = [(40, 60), (40, 20), (40, 20), (60, 40), (40, 56), (40, 56), (56, 40)]
  kernels = each * sum(m * n for m, n in maps)
  low_rank = each * LORA.rank * sum(m + n for m, n in maps)
  expected = 2 * kernels + 3 * low_rank
  if remat == "layer":  # the forward pass once more, without the last map and the last B
    expected += kernels + low_rank - each * (56 * 40 + LORA.rank * 40)
  else:  # the last A once more, as the input of its map is not kept
    expected += each * 56 * LORA.rank
  gradient = jax.grad(loss_of(model))
  program = jax.make_jaxpr(gradient)(adapters, frozen, *rows())
  assert linear_flops(program.jaxpr) == expected
  program = jax.make_jaxpr(gradient)(join(adapters, frozen), {}, *rows())
  assert linear_flops(program.jaxpr) == expected + kernels


@pytest.mark.parametrize("remat", ["none", "layer"])
def test_the_compiled_program_has_no_gradient_of_a_frozen_kernel(remat):
  config = dataclasses.replace(CONFIG, remat=remat)
  model = decoder(config, loss_chunk=None, lora=LORA)
  adapters, frozen = split(jax.eval_shape(model.init, KEY), ADAPTERS)
  gradient = jax.jit(jax.grad(loss_of(model)))
  part = gradient.lower(adapters, frozen, *rows()).compile()
  whole = gradient.lower(join(adapters, frozen), {}, *rows()).compile()
  kernels = {(40, 60), (20, 40), (40, 56), (40, 96)}
  assert products(whole) & kernels == kernels
  assert products(part) & kernels == set()
  outputs = sum(4 * math.prod(x.shape) for x in jax.tree.leaves(adapters))
  pointers = 8 * len(jax.tree.leaves(adapters))
  assert part.memory_analysis().output_size_in_bytes <= outputs + pointers


def products(compiled):
  """The shapes of the matrices that products give, smaller sizes first."""
  shapes = re.findall(r"= \w+\[([\d,]+)\]\S* (?:dot|custom-call)\(", compiled.as_text())
  return {tuple(sorted(size for size in map(int, s.split(",")) if size > 1)) for s in shapes}


# On several devices.


def on_mesh(model, params):
  mesh = jax.make_mesh((1, 4, 1, 2), MESH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 4)
  specs = model.partition_specs(params)
  shardings = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs)
  split_rows = jax.device_put(rows(), jax.NamedSharding(mesh, jax.P(BATCH_AXES)))
  return mesh, jax.device_put(params, shardings), split_rows


@pytest.mark.slow
def test_sharded_is_unsharded():
  config = dataclasses.replace(CONFIG, num_layers=2)
  model, adapters, frozen = adapted(config, dataclasses.replace(LORA, dropout=0.3))
  step = jax.jit(jax.value_and_grad(loss_of(model, KEY)))
  loss, gradient = step(adapters, frozen, *rows())
  mesh, params, batch = on_mesh(model, join(adapters, frozen))
  with jax.set_mesh(mesh):
    mesh_loss, mesh_gradient = step(*split(params, ADAPTERS), *batch)
    whole = merged(params, LORA)
  np.testing.assert_allclose(mesh_loss, loss, rtol=1e-5)
  for left, right in zip(*map(jax.tree.leaves, (gradient, mesh_gradient)), strict=True):
    np.testing.assert_allclose(right, left, rtol=1e-4, atol=1e-5 * np.abs(left).max())
  expected = merged(join(adapters, frozen), LORA)
  for left, right in zip(*map(jax.tree.leaves, (expected, whole)), strict=True):
    np.testing.assert_allclose(right, left, rtol=1e-5, atol=1e-6)


def test_adapters_are_split_like_their_kernels():
  model, adapters, frozen = adapted()
  _, params, _ = on_mesh(model, join(adapters, frozen))
  for module in adaptable(CONFIG):
    _, part, name = module.split("/")
    linear = params["layers"][part][name]
    _, rows_axis, columns_axis = linear["kernel"].sharding.spec
    assert linear["lora_a"].sharding.spec == jax.P(None, rows_axis, None)
    assert linear["lora_b"].sharding.spec == jax.P(None, None, columns_axis)


# Errors.


def test_every_field_out_of_range_is_named():
  with pytest.raises(ValueError) as error:
    LoraConfig(rank=0, alpha=math.nan, dropout=1.0, targets=(), dtype="float16")
  for words in (
    "rank must be a positive integer, got 0",
    "alpha must be positive and finite, got nan",
    "dropout must be in [0, 1), got 1.0",
    "targets must be at least one pattern, got ()",
    "dtype must be one of float32, bfloat16, got 'float16'",
  ):
    assert words in str(error.value)


def test_every_target_that_matches_nothing_is_named():
  lora = LoraConfig(targets=("layers/attention/*", "layers/attention/out", "output"))
  with pytest.raises(ValueError) as error:
    decoder(CONFIG, lora=lora)
  message = str(error.value)
  assert "targets layers/attention/out, output match no linear map" in message
  assert "layers/attention/attention_output" in message


def test_neither_experts_nor_their_router_nor_the_output_have_adapters():
  config = dataclasses.replace(CONFIG, num_experts=4, experts_per_token=2)
  assert adaptable(config) == tuple(m for m in adaptable(CONFIG) if "attention" in m)
  lora = LoraConfig(targets=("*", "layers/*"))
  adapters, _ = split(
    jax.eval_shape(decoder(config, lora=lora).init, KEY), matcher(["*/lora_*"])
  )
  assert set(adapters) == {"layers"}
  assert set(adapters["layers"]) == {"attention"}
  with pytest.raises(ValueError, match=r"layers/mlp/\*, output match no linear map"):
    check_targets(LoraConfig(targets=("layers/mlp/*", "*", "output")), config)
