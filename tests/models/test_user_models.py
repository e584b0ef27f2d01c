"""Models written with flax alone: their linear maps are found, and tapped right."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jdc.data.batch import RowInputs, inputs_and_targets
from jdc.models import subsets
from jdc.models.user_linen import from_linen
from jdc.models.user_nnx import from_nnx
from jdc.stats import ghost, gradients, kron, linear_taps

B, T, V, WIDTH = 4, 7, 13, 8
KEY = jax.random.key(3)


def causal(segments):
  ago = jnp.arange(segments.shape[1])[:, None] - jnp.arange(segments.shape[1])
  return ((segments[:, :, None] == segments[:, None]) & (ago >= 0))[:, None]


class NnxBlock(nnx.Module):
  def __init__(self, rngs):
    self.up = nnx.Linear(WIDTH, 6, rngs=rngs)
    self.down = nnx.Linear(6, WIDTH, use_bias=False, rngs=rngs)

  def __call__(self, x):
    return x + self.down(jnp.tanh(self.up(x)))


class OtherKind(nnx.Linear):
  pass


class NnxModel(nnx.Module):
  def __init__(self, rngs):
    self.embed = nnx.Embed(V, WIDTH, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)
    self.blocks = nnx.List([NnxBlock(rngs), NnxBlock(rngs)])
    self.twice = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
    self.looped = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
    self.other_kind = OtherKind(WIDTH, WIDTH, rngs=rngs)
    self.tied = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(2)])
    self.tied[1].kernel = self.tied[0].kernel
    self.pooled = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
    keys = jax.random.split(rngs.params(), 2)
    self.stacked = jax.vmap(lambda key: nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(key)))(keys)
    self.head = nnx.Linear(WIDTH, V, rngs=rngs)

  def __call__(self, tokens, mask):
    x = self.embed(tokens)
    x = self.blocks[0](x + self.attention(x, mask=mask))
    x = nnx.remat(lambda block, x: block(x))(self.blocks[1], x)
    x = jnp.tanh(self.twice(jnp.tanh(self.twice(x))))
    x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(self.looped(x)), None), x, length=2)
    x = self.tied[1](self.tied[0](self.other_kind(x)))
    x += self.pooled(jnp.mean(self.embed(tokens), axis=1))[:, None]
    x, _ = jax.lax.scan(lambda x, layer: (jnp.tanh(layer(x)), None), x, self.stacked)
    return self.head(x)


class LinenBlock(nn.Module):
  @nn.compact
  def __call__(self, x):
    y = jnp.tanh(nn.Dense(6, name="up")(x))
    return x + nn.Dense(WIDTH, use_bias=False, name="down")(inputs=y)


class LinenStep(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return jnp.tanh(nn.Dense(WIDTH, name="layer")(x)), None


class LinenModel(nn.Module):
  @nn.compact
  def __call__(self, tokens, mask):
    embed = nn.Embed(V, WIDTH, name="embed")
    x = embed(tokens)
    x += nn.MultiHeadDotProductAttention(2, name="attention")(x, mask=mask)
    x = nn.remat(LinenBlock)(name="second")(LinenBlock(name="first")(x))
    twice = nn.Dense(WIDTH, name="twice")
    x = jnp.tanh(twice(jnp.tanh(twice(x))))
    x += nn.Dense(WIDTH, name="pooled")(jnp.mean(embed(tokens), axis=1))[:, None]
    stacked = nn.scan(
      LinenStep, variable_axes={"params": 0}, split_rngs={"params": True}, length=2
    )
    x, _ = stacked(name="stacked")(x, None)
    looped = nn.scan(
      LinenStep, variable_broadcast="params", split_rngs={"params": False}, length=2
    )
    x, _ = looped(name="looped")(x, None)
    return nn.Dense(V, name="head")(x)


def token_losses(model, tokens, targets, positions, segments):
  del positions
  logits = model(tokens, causal(segments))
  return optax.softmax_cross_entropy_with_integer_labels(logits, targets)


ATTENTION = {f"attention/{name}/kernel" for name in ("key", "out", "query", "value")}
BLOCKS = {"nnx": ("blocks/0", "blocks/1"), "linen": ("first", "second")}
NOT_TAPPED = {
  "nnx": ("looped", "other_kind", "pooled", "stacked", "tied/0", "twice"),
  "linen": ("looped/layer", "pooled", "stacked/layer", "twice"),
}


@functools.cache
def case(kind):
  """A model and its parameters in two parts."""
  if kind == "nnx":
    created = nnx.eval_shape(lambda: NnxModel(nnx.Rngs(0)))
    model = from_nnx(created, token_losses, vocab_size=V)
    shapes = model.init(None)
  else:
    model = from_linen(LinenModel(), token_losses, vocab_size=V)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
  rng = np.random.default_rng(0)
  draw = lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32)
  return model, (jax.tree.map(draw, shapes), None)


@functools.cache
def rows():
  rng = np.random.default_rng(0)
  segments = np.ones((B, T + 1), np.int32)
  segments[1, 5:], segments[2, :3], segments[3] = 0, -1, -1
  return inputs_and_targets(rng.integers(0, V, (B, T + 1)).astype(np.int32), segments)


@functools.cache
def expected(kind):
  """The gradient of each row by each parameter, f64[B, ...] by path."""
  model, (params, _) = case(kind)

  @jax.jit
  @jax.grad
  def gradient(params, row):
    losses = model.token_losses(params, *row[:4])
    return jnp.sum(losses * row.mask) / jnp.maximum(jnp.sum(row.mask), 1)

  each = [gradient(params, RowInputs(*(x[i : i + 1] for x in rows()))) for i in range(B)]
  stacked = jax.tree.map(lambda *x: np.stack([np.asarray(y, np.float64) for y in x]), *each)
  return dict(subsets.leaves(stacked))


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_maps_are_found(kind):
  model, (params, _) = case(kind)
  maps = model.linear_maps(jax.eval_shape(lambda: params))
  paths = {f"{block}/{name}/kernel" for block in BLOCKS[kind] for name in ("down", "up")}
  assert maps.keys() == paths | ATTENTION | {"head/kernel"}
  leaves = dict(subsets.leaves(params))
  assert {path.removesuffix("/kernel") for path in leaves if path.endswith("/kernel")} == {
    path.removesuffix("/kernel") for path in maps
  } | {*NOT_TAPPED[kind]}
  for path, found in maps.items():
    assert found.in_features * found.out_features == leaves[path].size
    assert found.num_layers == 0
  assert maps[f"{BLOCKS[kind][0]}/up/kernel"][:2] == (WIDTH, 6)
  assert maps["attention/query/kernel"][:2] == (WIDTH, WIDTH)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_taps_do_not_change_losses(kind):
  model, (params, _) = case(kind)

  @jax.jit
  def both(params):
    losses = model.token_losses(params, *rows()[:4])
    return losses, model.tapped_losses(params, {}, *rows()[:4])

  right, found = both(params)
  np.testing.assert_allclose(found, right, rtol=1e-6)
  assert found.shape == (B, T)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_features_and_products_agree_with_explicit_gradients(kind):
  model, params = case(kind)
  chosen, k = gradients.Options("kron", size=9 * 3**2), 3
  maps = linear_taps.choose(model, params, chosen)
  features = kron.make_kron(model, params, frozenset({"gradient"}), chosen, KEY)
  found = jax.jit(features.compute)(params, None, rows())["gradient"]
  factors = jax.jit(lambda: kron.projections(KEY, maps, k))()
  parts, product = [], 0.0
  for path, one in maps.items():
    each = expected(kind)[path].reshape(B, one.in_features, one.out_features)
    p_in, p_out = (np.asarray(x, np.float64) for x in factors[path])
    parts.append((p_in.T @ each @ p_out).reshape(B, -1))
    flat = each.reshape(B, -1)
    product += flat @ flat.T
  right, size = np.concatenate(parts, axis=1), np.sqrt(np.diag(product))
  error = np.linalg.norm(found - right, axis=1)
  assert np.all(error <= 1e-5 * np.linalg.norm(right, axis=1))
  products = jax.jit(ghost.make_gradient_products(model, params, chosen))(params, rows())
  assert np.all(np.abs(products - product) <= 1e-5 * np.outer(size, size))
  assert np.all(size[:3] > 0)
  assert size[3] == 0  # a prompt alone


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_exact_gradients_are_of_all_parameters(kind):
  model, params = case(kind)
  options = gradients.Options(size=32)
  wanted = frozenset({"gradient_norm"})
  features = gradients.make_features(model, params, wanted, options, KEY)
  found = jax.jit(features.compute)(params, None, rows())["gradient_norm"]
  square = sum(np.sum(x.reshape(B, -1) ** 2, axis=1) for x in expected(kind).values())
  np.testing.assert_allclose(found, np.sqrt(square), rtol=1e-5)


@pytest.mark.parametrize("kind", ["nnx", "linen"])
def test_errors_name_what_cannot_be_tapped(kind):
  model, params = case(kind)

  def error(message, **fields):
    with pytest.raises(ValueError, match=message):
      kron.make_kron(
        model, params, frozenset({"gradient"}), gradients.Options("kron", **fields), KEY
      )

  named = ", ".join(f"{name}/kernel" for name in NOT_TAPPED[kind])
  error(f"match what cannot be tapped: {named}", parameters=("*kernel",))
  error("'stacked/.*' match no linear map .*: stacked/", parameters=("stacked/*",))
  error(r"top_layers 1 does not fit the layers of .*head/kernel \(0\)", top_layers=1)
  with pytest.raises(ValueError, match="top_layers 1: the layers of this model are not known"):
    model.tapped_losses(params[0], {}, *rows()[:4], 1)
  with pytest.raises(ValueError, match="`logits` is not offered"):
    model.logits(params[0], *rows()[:3])


class LinenLayer(nn.Module):
  @nn.compact
  def __call__(self, x):
    return jnp.tanh(nn.Dense(WIDTH, name="inner")(x))


@pytest.mark.parametrize("traced_before", [False, True])
def test_layers_in_a_jit_inside_are_not_tapped(traced_before):
  """Its first trace is kept, in which taps may be missing."""
  jitted = nn.jit(LinenLayer)

  class Jitted(nn.Module):
    @nn.compact
    def __call__(self, tokens, _):
      return nn.Dense(V, name="head")(jitted(name="block")(nn.Embed(V, WIDTH)(tokens)))

  model = from_linen(Jitted(), token_losses, vocab_size=V)
  params = jax.eval_shape(model.init, KEY)
  if traced_before:
    jax.eval_shape(model.token_losses, params, *rows()[:4])
  assert set(model.linear_maps(params)) == {"head/kernel"}
  taps = dict.fromkeys(("head/kernel", "block/outer/kernel"), lambda x, y: y)
  with pytest.raises(ValueError, match="layers of block/outer/kernel were not called"):
    jax.eval_shape(lambda p: model.tapped_losses(p, taps, *rows()[:4]), params)


def test_other_collections_are_named():
  class Normed(nn.Module):
    @nn.compact
    def __call__(self, tokens, _):
      return nn.BatchNorm(use_running_average=False)(nn.Embed(V, V)(tokens))

  model = from_linen(Normed(), token_losses, vocab_size=V)
  with pytest.raises(ValueError, match="variables beside its params: batch_stats"):
    jax.eval_shape(model.init, KEY)


def test_parameters_are_replicated_unless_told():
  model, (params, _) = case("nnx")
  specs = model.partition_specs(jax.eval_shape(lambda: params))
  assert jax.tree.structure(specs) == jax.tree.structure(params)
  assert {*jax.tree.leaves(specs)} == {jax.P()}
