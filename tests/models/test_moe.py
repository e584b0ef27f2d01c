"""Tests of mixtures of experts, alone and on a mesh; transformers is compared elsewhere."""

import collections
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jdc.data.batch import inputs_and_targets
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.models.layers import Build
from jdc.models.moe import MixtureOfExperts, Routing, balance_loss
from jdc.train import sharding

B, T = 16, 32
CONFIG = DecoderConfig(
  vocab_size=64,
  width=32,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  mlp_width=48,
  num_experts=4,
  experts_per_token=2,
  initializer_scale=4.0,  # so that some experts get more than others
)
MODEL = decoder(CONFIG)


def documents():
  """16 documents of 2 to 16 tokens; targets are tokens of their own."""
  rng = np.random.default_rng(0)
  return [rng.integers(1, 64, n) for n in rng.integers(2, 17, B)]


def rows(num_in_row):
  """The documents, so many to a row; the other rows are padding."""
  tokens, segments = np.zeros((2, B, T + 1), np.int32)
  for i, document in enumerate(documents()):
    row, place = divmod(i, num_in_row)
    at = slice(16 * place, 16 * place + len(document))
    tokens[row, at], segments[row, at] = document, place + 1
  return inputs_and_targets(tokens, segments)


@jax.jit
@jax.value_and_grad
def plain_loss(params, inputs):
  return jnp.sum(MODEL.token_losses(params, *inputs[:4]) * inputs.mask)


def loss(params, inputs):
  outputs = MODEL.outputs(params, *inputs[:4])
  total = jnp.sum(outputs.token_loss * inputs.mask) / jnp.sum(inputs.mask)
  return total + 0.1 * outputs.balance_loss, outputs


value_and_grad = jax.value_and_grad(loss, has_aux=True)


@pytest.fixture(scope="module")
def params():
  return MODEL.init(jax.random.key(0))


@pytest.fixture(scope="module")
def on_one_device(params):
  return jax.jit(value_and_grad).lower(params, rows(2)).compile()


# The layer.


def reference_layer(x, kernels, real, normalise):
  """A loop over tokens in float64: outputs, loads and sums of probabilities."""
  router, gate, up, down = (np.float64(kernel) for kernel in kernels)
  num_experts = router.shape[1]
  y, load, total = np.zeros(x.shape), *np.zeros((2, len(x), num_experts))
  for b, t in np.ndindex(x.shape[:2]):
    exps = np.exp(x[b, t] @ router)
    p = exps / exps.sum()
    chosen = np.argsort(-p, kind="stable")[:3]
    weights = p[chosen] / p[chosen].sum() if normalise else p[chosen]
    for e, weight in zip(chosen, weights, strict=True):
      g = x[b, t] @ gate[e]
      y[b, t] += weight * ((g / (1 + np.exp(-g)) * (x[b, t] @ up[e])) @ down[e])
      load[b, e] += real[b, t]
    total[b] += real[b, t] * p
  return y, load, total


@pytest.mark.parametrize("normalise", [True, False])
def test_a_layer_agrees_with_a_loop_over_tokens(normalise):
  config = dataclasses.replace(
    CONFIG, num_experts=5, experts_per_token=3, normalise_experts=normalise
  )
  layer = MixtureOfExperts(Build(config), rngs=nnx.Rngs(0))
  rng = np.random.default_rng(1)
  x, real = rng.normal(size=(3, 7, 32)), rng.random((3, 7)) < 0.6
  real[1] = False
  kernels = [part.kernel[...] for part in (layer.router, layer.gate, layer.up, layer.down)]
  y, load, total = reference_layer(x, kernels, real, normalise)
  actual, routing = layer.with_routing(jnp.float32(x), jnp.asarray(real))
  np.testing.assert_allclose(actual, y, atol=1e-5 * np.abs(y).max())
  np.testing.assert_array_equal(actual, layer(jnp.float32(x)))
  np.testing.assert_array_equal(routing.load_BxE, load)
  np.testing.assert_allclose(routing.probability_BxE, total, atol=1e-5)
  assert routing.load_BxE.sum() == 3 * real.sum()


@jax.custom_vjp
def undefined_beyond(lhs, rhs, group_sizes):
  """A product, and a gradient, that hold NaN in the rows beyond all groups."""
  y = RAGGED_DOT(lhs, rhs, group_sizes)
  return jnp.where(in_groups(y, group_sizes), y, jnp.nan)


def forward(lhs, rhs, group_sizes):
  return undefined_beyond(lhs, rhs, group_sizes), (lhs, rhs, group_sizes)


def backward(arguments, cotangent):
  lhs, rhs, group_sizes = arguments
  mine = in_groups(lhs, group_sizes)
  _, pull = jax.vjp(lambda lhs, rhs: RAGGED_DOT(lhs, rhs, group_sizes), lhs, rhs)
  by_lhs, by_rhs = pull(jnp.where(mine, cotangent, 0))
  return jnp.where(mine, by_lhs, jnp.nan), by_rhs, None


def in_groups(x, group_sizes):
  return (jnp.arange(len(x)) < jnp.sum(group_sizes))[:, None]


undefined_beyond.defvjp(forward, backward)
RAGGED_DOT = jax.lax.ragged_dot


def test_experts_of_others_contribute_zero_whatever_a_product_holds(monkeypatch):
  """Accelerators leave rows beyond the groups, and their gradients, as they are."""
  layer = MixtureOfExperts(Build(CONFIG), rngs=nnx.Rngs(0))
  kernels = tuple(part.kernel[...] for part in (layer.gate, layer.up, layer.down))
  rng = np.random.default_rng(1)
  x, weight = np.float32(rng.normal(size=(3, 7, 32))), np.float32(rng.random((3, 7, 2)))
  expert = np.argsort(rng.random((3, 7, 4)))[..., :2]
  expert[0, 0] = [1, 3]

  def of_two(kernels, x, weight):
    two = tuple(kernel[2:] for kernel in kernels)
    mine = np.where(expert >= 2, expert - 2, 2)
    y = layer._mixed(two, x, weight, mine)
    return jnp.sum(jnp.sin(y)), y

  def of_all(kernels, x, weight):
    y = layer._mixed(kernels, x, jnp.where(expert >= 2, weight, 0.0), expert)
    return jnp.sum(jnp.sin(y)), y

  differentiated = {"argnums": (0, 1, 2), "has_aux": True}
  expected = jax.value_and_grad(of_all, **differentiated)(kernels, x, weight)
  monkeypatch.setattr(jax.lax, "ragged_dot", undefined_beyond)
  actual = jax.value_and_grad(of_two, **differentiated)(kernels, x, weight)
  for a, b in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  unrelated = ~(expert >= 2).any(axis=-1)
  assert unrelated.any()
  (_, y), gradients = actual
  assert not np.asarray(y)[unrelated].any()
  assert not np.asarray(gradients[1])[unrelated].any()


# The balance of the experts.


def random_routing(rng, num_layers=3, batch_size=5, num_experts=6, k=2):
  """What 9 tokens a row, some of them padding, would give; and how many there are."""
  p = rng.dirichlet(np.full(num_experts, 0.3), (num_layers, batch_size, 9))
  real = rng.random((batch_size, 9)) < 0.7
  real[0] = False
  chosen = np.argsort(-p, axis=-1)[..., :k]
  load = (chosen[..., None] == np.arange(num_experts)).sum(-2)
  load, total = ((x * real[..., None]).sum(2) for x in (load, p))
  return load, total, real.sum()


def test_balance_loss_and_its_gradient_agree_with_the_paper():
  rng, k = np.random.default_rng(2), 2
  value_and_grad = jax.jit(jax.value_and_grad(balance_loss), static_argnums=1)
  for _ in range(20):
    load, total, num_tokens = random_routing(rng)
    share = load.sum(1) / (k * num_tokens)  # f, [L, E]
    expected = np.mean(6 * np.sum(share * total.sum(1) / num_tokens, axis=-1))
    by_total = np.broadcast_to(6 * share[:, None] / num_tokens / 3, total.shape)
    value, gradient = value_and_grad(Routing(jnp.float32(load), jnp.float32(total)), k)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient.probability_BxE, by_total, rtol=1e-5)
    assert not gradient.load_BxE.any()


def test_balance_loss_at_its_ends():
  ones = jnp.ones((2, 3, 6))
  assert balance_loss(Routing(4 * ones, 2 * ones), 2) == pytest.approx(1.0)
  two = ones.at[..., 2:].set(0)  # the same two of six experts, always and with certainty
  assert balance_loss(Routing(6 * two, 3 * two), 2) == pytest.approx(3.0)
  value, gradient = jax.value_and_grad(balance_loss)(Routing(0 * ones, 0 * ones), 2)
  assert value == 0
  assert not any(x.any() for x in gradient)


# The decoder.


def test_the_load_is_that_of_the_last_layer(params, on_one_device):
  """A router of zeros sends everything to the first experts."""
  inputs = rows(2)
  real = np.sum(inputs.segments > 0, axis=1)
  for layer in (0, 1):
    changed = jax.tree.map(lambda x: x, params)
    router = changed["layers"]["mlp"]["router"]
    router["kernel"] = router["kernel"].at[layer].set(0.0)
    (_, outputs), _ = on_one_device(changed, inputs)
    np.testing.assert_array_equal(outputs.expert_load.sum(1), 2 * real)
    to_first = np.stack([real, real, 0 * real, 0 * real], axis=1)
    assert np.array_equal(outputs.expert_load, to_first) == (layer == 1)
  router["kernel"] = jnp.zeros_like(router["kernel"])
  (_, outputs), _ = on_one_device(changed, inputs)
  assert outputs.balance_loss == pytest.approx(1.0)


def test_losses_and_gradients_are_those_without_routing(params, on_one_device):
  inputs = rows(2)
  expected, gradients = plain_loss(params, inputs)
  (total, outputs), with_balance = on_one_device(params, inputs)
  np.testing.assert_allclose(np.sum(outputs.token_loss * inputs.mask), expected, rtol=1e-6)
  cross_entropy = expected / np.sum(inputs.mask)
  np.testing.assert_allclose(total, cross_entropy + 0.1 * outputs.balance_loss, rtol=1e-6)
  # The balance reaches parameters of the router only through its probabilities.
  router = [tree["layers"]["mlp"]["router"]["kernel"] for tree in (gradients, with_balance)]
  assert np.abs(router[0] / np.sum(inputs.mask) - router[1]).max() > 1e-3


def test_padding_never_counts_and_packing_changes_nothing(params, on_one_device):
  packed, apart = rows(2), rows(1)
  noise = np.random.default_rng(3).integers(0, 64, (B, T), dtype=np.int32)
  noisy = packed._replace(tokens=np.where(packed.segments > 0, packed.tokens, noise))
  ((_, a), _), ((_, b), _), ((_, c), _) = (
    jax.device_get(on_one_device(params, inputs)) for inputs in (packed, apart, noisy)
  )
  np.testing.assert_allclose([b.balance_loss, c.balance_loss], a.balance_loss, rtol=1e-5)
  np.testing.assert_array_equal(c.expert_load, a.expert_load)
  in_pairs = b.expert_load.reshape(B // 2, 2, -1).sum(1)
  np.testing.assert_array_equal(a.expert_load, np.concatenate([in_pairs, 0 * in_pairs]))
  assert len(set(a.expert_load.sum(0))) > 1


def test_router_probabilities_of_all_layers_are_not_kept():
  config = dataclasses.replace(CONFIG, num_layers=3, num_experts=7, remat="layer")

  def stacked(name, remat):
    """How often the scans over layers return which shape."""
    model = decoder(dataclasses.replace(config, remat=remat))
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def total(params, *inputs):
      computed = getattr(model, name)(params, *inputs)
      if name == "outputs":
        return jnp.sum(computed.token_loss) + computed.balance_loss
      return jnp.sum(computed)

    inputs = [jax.ShapeDtypeStruct((B, T), jnp.int32)] * 4
    program = jax.make_jaxpr(jax.grad(total))(shapes, *inputs)
    scans = [e for e in program.jaxpr.eqns if e.primitive.name == "scan"]
    return collections.Counter(out.aval.shape for scan in scans for out in scan.outvars)

  for remat in ("layer", "none"):
    more = stacked("outputs", remat) - stacked("token_losses", remat)
    assert more
    assert max(map(math.prod, more)) <= 3 * B * 7, more


# On a mesh.


def placed(params, inputs, mesh):
  specs = MODEL.partition_specs(params)  # those of any decoder
  shardings = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs)
  return jax.device_put(params, shardings), jax.device_put(
    inputs, sharding.batch_sharding(mesh)
  )


@pytest.mark.parametrize(
  "sizes",
  [
    {"data": 8},
    {"fsdp": 8},
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"data": 2, "expert": 4},
    {"fsdp": 2, "expert": 2, "tensor": 2},
  ],
  ids=lambda sizes: "-".join(f"{axis}{size}" for axis, size in sizes.items()),
)
def test_a_device_computes_its_own_tokens_and_experts_only(params, on_one_device, sizes):
  mesh = sharding.make_mesh(**({"data": 1} | sizes))
  inputs = rows(2)
  arguments = placed(params, inputs, mesh)
  with jax.set_mesh(mesh):
    compiled = jax.jit(value_and_grad).lower(*arguments).compile()
  found, expected = jax.device_get((compiled(*arguments), on_one_device(params, inputs)))
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
  flops, all_flops = (x.cost_analysis()["flops"] for x in (compiled, on_one_device))
  assert flops < 1.1 * all_flops / 8
  # The sorted rows are those of all devices along `expert`.
  memory, whole = (x.memory_analysis().temp_size_in_bytes for x in (compiled, on_one_device))
  assert memory < 1.5 * whole / 8 * sizes.get("expert", 1)
  assert ("reduce-scatter(" in compiled.as_text()) == ("expert" in sizes)


def test_bfloat16_compiles_on_cpus():
  """XLA's compiler for CPUs ends the process over some reductions of it."""
  model = decoder(dataclasses.replace(CONFIG, dtype="bfloat16", num_layers=1))
  params, inputs = model.init(jax.random.key(0)), rows(2)

  def loss(params, inputs):
    return jnp.mean(model.token_losses(params, *inputs[:4]))

  expected = loss(params, inputs)
  mesh = sharding.make_mesh(data=1, fsdp=2, expert=2, tensor=2)
  with jax.set_mesh(mesh):
    actual, gradients = jax.jit(jax.value_and_grad(loss))(*placed(params, inputs, mesh))
  np.testing.assert_allclose(actual, expected, rtol=1e-2)
  assert all(np.isfinite(x).all() and x.any() for x in jax.tree.leaves(gradients))


def test_rows_that_do_not_divide_over_a_mesh(params):
  """They are computed on every device, as those of a single prompt."""
  inputs = jax.tree.map(lambda x: x[:3], rows(2))
  expected = MODEL.hidden(params, *(inputs.tokens, inputs.positions, inputs.segments))
  mesh = sharding.make_mesh(data=2, expert=4)
  split, _ = placed(params, rows(2), mesh)
  with jax.set_mesh(mesh):
    actual = jax.jit(MODEL.hidden)(split, inputs.tokens, inputs.positions, inputs.segments)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_parameters_do_not_depend_on_the_mesh_and_experts_are_split(params):
  mesh = sharding.make_mesh(data=1, fsdp=2, expert=4)
  specs = MODEL.partition_specs(params)
  shardings = jax.tree.map(lambda spec: jax.NamedSharding(mesh, spec), specs)
  made = jax.jit(MODEL.init, out_shardings=shardings)(jax.random.key(0))
  for a, b in zip(*map(jax.tree.leaves, (made, params)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
  gate, query = made["layers"]["mlp"]["gate"]["kernel"], made["layers"]["attention"]["query"]
  assert gate.sharding.shard_shape(gate.shape) == (2, 1, 16, 48)
  assert query["kernel"].sharding.shard_shape((2, 32, 32)) == (2, 16, 32)
