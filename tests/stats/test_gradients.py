"""Features of single gradients: against a loop of `jax.grad` and the projection's matrix."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.data.batch import RowInputs, inputs_and_targets
from jdc.models import subsets
from jdc.models.base import LanguageModel
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.models.lora import LoraConfig
from jdc.stats import kron
from jdc.stats.directions import Adam, Moments
from jdc.stats.gradients import FIELDS, Options, make_features
from jdc.stats.projection import make_projection
from jdc.train import sharding
from jdc.train.state import Params

B, T, V, SIZE = 8, 7, 16, 64
CONFIG = DecoderConfig(
  vocab_size=V, width=8, num_layers=3, num_heads=2, num_kv_heads=2, mlp_width=8
)
ADAM = Adam(b1=0.9, b2=0.99, epsilon=1e-3, clip_norm=1.0)
KEY = jax.random.key(11)
OPTIONS = {
  "small": Options(size=SIZE, microbatch_size=3),
  "half": Options(size=SIZE, microbatch_size=8, projection="rademacher"),
  "frozen": Options(size=SIZE, microbatch_size=8, parameters=("*/table", "map/*")),
  "whole": Options(size=SIZE, microbatch_size=4),
  "top": Options(size=SIZE, microbatch_size=4, top_layers=2),
  "lora": Options(size=SIZE, microbatch_size=3, projection="rademacher"),
  "experts": Options(size=SIZE, microbatch_size=4, parameters=("layers/mlp/*",)),
}


def small_model(width):
  """Embeds a token and predicts the next one; its parameters may have any type."""

  def token_losses(params, tokens, targets, positions, segments):
    hidden = jnp.tanh(params["embedding"]["table"].astype(jnp.float32)[tokens])
    logits = hidden @ params["map"]["kernel"].astype(jnp.float32) + params["map"]["bias"]
    return (
      jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    )

  def init(key):
    draw = lambda i, *shape: 0.5 * jax.random.normal(jax.random.fold_in(key, i), shape)
    return {
      "embedding": {"table": draw(0, V, width)},
      "map": {"kernel": draw(1, width, V), "bias": draw(2, V)},
    }

  specs = {
    "embedding": {"table": jax.P("tensor", "fsdp")},
    "map": {"kernel": jax.P("fsdp", "tensor"), "bias": jax.P("tensor")},
  }
  return LanguageModel(init, None, token_losses, None, lambda shapes: specs, V)


@functools.cache
def model_of(name):
  if name in ("small", "half", "frozen"):
    return small_model(6)
  if name == "experts":
    return decoder(dataclasses.replace(CONFIG, num_experts=3, experts_per_token=2))
  return decoder(CONFIG, lora=LoraConfig(rank=2) if name == "lora" else None)


@functools.cache
def params_of(name):
  """Parameters in two parts; adapters, which start with one factor 0, get another."""
  if name == "top":
    return params_of("whole")
  params = jax.jit(model_of(name).init)(jax.random.key(1))
  if name == "half":
    return Params(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), None)
  trained = {"frozen": "map/*", "lora": "*/lora_*"}.get(name)
  if trained is None:
    return Params(params, None)
  params = jax.tree.map(lambda x: x + 0.02, params)
  return Params(*subsets.split(params, subsets.matcher([trained])))


@functools.cache
def rows():
  """Rows with prompts, two documents and padding; the third has no target."""
  rng = np.random.default_rng(0)
  segments = np.zeros((B, T + 1), np.int32)
  for row in segments:
    first, both = sorted(rng.integers(3, T + 2, 2))
    row[:both], row[:first] = 2, 1
    row[: rng.integers(0, first - 1)] = -1
  segments[2] = -np.abs(segments[2])
  return inputs_and_targets(rng.integers(0, V, segments.shape).astype(np.int32), segments)


def moments(params):
  draw = lambda seed: jax.tree.map(
    lambda x: np.float32(0.02 * np.random.default_rng([seed, x.size]).normal(size=x.shape)),
    params.trained,
  )
  return Moments(draw(0), jax.tree.map(np.square, draw(1)), np.int32(4))


def chosen(name, tree):
  """Leaves by path of the parameters that count, the last layers of them alone."""
  accepts = {
    "lora": subsets.matcher(["*/lora_*"]),
    "top": subsets.matcher(["layers/*"]),
    "experts": subsets.matcher(["layers/mlp/*"]),
  }.get(name, lambda path: True)
  last = 2 if name == "top" else 0
  return {path: x[-last:] for path, x in subsets.leaves(tree) if accepts(path)}


@functools.cache
def gradient_of(model):
  @jax.jit
  @jax.grad
  def gradient(params, row):
    losses = model.token_losses(params, *row[:4])
    return jnp.sum(losses * row.mask) / jnp.maximum(jnp.sum(row.mask), 1)

  return gradient


@functools.cache
def gradients(name):
  """The gradient of each row, f64[B, P] in the order of paths; in float32 until then."""
  trained, frozen = params_of(name)
  full = trained if frozen is None else subsets.join(trained, frozen)
  full = jax.tree.map(lambda x: x.astype(jnp.float32), full)
  kind = {"half": "small", "frozen": "small", "top": "whole"}.get(name, name)
  gradient = gradient_of(model_of(kind))
  each = (gradient(full, RowInputs(*(x[i : i + 1] for x in rows()))) for i in range(B))
  return np.stack([flat(chosen(name, one)) for one in each])


def flat(leaves):
  parts = [np.asarray(leaves[path], np.float64).ravel() for path in sorted(leaves)]
  return np.concatenate(parts)


def matrix(name):
  """f64[P, R]: what the unit vectors are projected to, in the same order."""
  trained, frozen = params_of(name)
  leaves = chosen(name, trained if frozen is None else subsets.join(trained, frozen))
  unit, tree, start = np.eye(sum(x.size for x in leaves.values()), dtype=np.float32), {}, 0
  for path in sorted(leaves):
    size = leaves[path].size
    tree[path] = unit[:, start : start + size].reshape(-1, *leaves[path].shape)
    start += size
  # A flat dict has the paths of the nested one.
  project = jax.jit(make_projection(OPTIONS[name].projection, SIZE, KEY))
  return np.asarray(project(tree), np.float64)


@functools.cache
def expected(name):
  gradient_BxP, matrix_PxR, params = gradients(name), matrix(name), params_of(name)
  norm_B = np.linalg.norm(gradient_BxP, axis=1)
  found = {"gradient": gradient_BxP @ matrix_PxR, "gradient_norm": norm_B}
  if name in ("frozen", "experts"):
    return found
  state = moments(params)
  mu, nu = (flat(chosen(name, x)) for x in state[:2])
  t = int(state.count) + 1
  clipped = gradient_BxP * np.minimum(1, ADAM.clip_norm / np.maximum(norm_B, 1e-30))[:, None]
  mean = (ADAM.b1 * mu + (1 - ADAM.b1) * clipped) / (1 - ADAM.b1**t)
  square = (ADAM.b2 * nu + (1 - ADAM.b2) * clipped**2) / (1 - ADAM.b2**t)
  found["update_direction"] = (mean / (np.sqrt(square) + ADAM.epsilon)) @ matrix_PxR
  found["update_direction"][2] = 0  # momentum is no reason to take a row without targets
  return found


def check(name, found):
  right = expected(name)
  for field, value in found.items():
    scale = np.linalg.norm(right[field].reshape(B, -1), axis=1)
    error = np.linalg.norm((value - right[field]).reshape(B, -1), axis=1)
    assert (error <= 1e-5 * scale).all(), (field, error / scale)
    assert value.dtype == jnp.float32
    assert np.all(value[2] == 0)


def compute(name, wanted, batches=None, **changes):
  options = OPTIONS[name]._replace(**changes)
  shapes = jax.eval_shape(lambda: params_of(name))
  made = make_features(model_of(name), shapes, frozenset(wanted), options, KEY, ADAM, batches)
  assert made.size == SIZE
  return jax.jit(made.compute)


@pytest.mark.parametrize(
  ("name", "wanted"),
  [
    ("small", FIELDS),
    ("half", FIELDS),
    ("frozen", {"gradient", "gradient_norm"}),
    ("whole", {"update_direction", "gradient_norm"}),
    ("top", {"gradient"}),
    ("lora", {"update_direction"}),
    ("experts", {"gradient"}),
  ],
)
def test_agrees_with_gradients_one_by_one(name, wanted):
  params = params_of(name)
  state = moments(params) if "update_direction" in wanted else None
  found = compute(name, wanted)(params, state, rows())
  assert found.keys() == set(wanted)
  check(name, found)


def test_some_gradients_are_clipped_and_some_are_not():
  norm_B = np.linalg.norm(np.delete(gradients("small"), 2, axis=0), axis=1)
  assert 0 < np.sum(norm_B > ADAM.clip_norm) < len(norm_B)


@pytest.mark.parametrize(("size", "wanted"), [(1, "update_direction"), (50, "gradient")])
def test_microbatches_and_other_fields_do_not_matter(size, wanted):
  params = params_of("small")
  found = compute("small", {wanted}, microbatch_size=size)(params, moments(params), rows())
  check("small", found)


@pytest.mark.parametrize(("name", "size"), [("small", 3), ("small", 4), ("whole", 4)])
def test_devices_do_not_matter(name, size):
  params, mesh = params_of(name), sharding.make_mesh(data=2, fsdp=2, tensor=2)
  batches = sharding.batch_sharding(mesh)
  specs = model_of(name).partition_specs(params.trained)
  place = lambda tree: jax.tree.map(
    lambda x, spec: jax.device_put(x, jax.NamedSharding(mesh, spec)), tree, specs
  )
  mu, nu, count = moments(params)
  state = Moments(place(mu), place(nu), count)
  fields = FIELDS if size == 3 else {"update_direction"}
  with jax.set_mesh(mesh):
    found = compute(name, fields, batches, microbatch_size=size)(
      Params(place(params.trained), None), state, jax.device_put(rows(), batches)
    )
  check(name, {field: np.asarray(x) for field, x in found.items()})


def test_top_layers_need_no_backward_pass_below():
  """Only the losses that stop there are differentiated."""
  model, params = model_of("whole"), params_of("whole")
  model = model._replace(token_losses=None)
  made = make_features(model, params, frozenset({"gradient"}), OPTIONS["top"], KEY)
  assert jax.eval_shape(made.compute, params, None, rows())["gradient"].shape == (B, SIZE)
  made = make_features(model, params, frozenset({"gradient"}), OPTIONS["whole"], KEY)
  with pytest.raises(TypeError, match="not callable"):
    jax.eval_shape(made.compute, params, None, rows())


def test_memory_does_not_grow_with_the_rows():
  model = small_model(1024)
  params = Params(jax.eval_shape(model.init, jax.random.key(0)), None)
  state = Moments(params.trained, params.trained, jax.ShapeDtypeStruct((), jnp.int32))
  options = Options(size=32, microbatch_size=4)
  made = make_features(model, params, FIELDS, options, KEY, ADAM)

  def held(num_rows):
    numbers = jax.ShapeDtypeStruct((num_rows, T), jnp.int32)
    inputs = RowInputs(*[numbers] * 4, jax.ShapeDtypeStruct((num_rows, T), bool))
    lowered = jax.jit(made.compute).lower(params, state, inputs)
    return lowered.compile().memory_analysis().temp_size_in_bytes

  gradient = 4 * sum(x.size for x in jax.tree.leaves(params.trained))
  few, many = held(8), held(64)
  assert many - few < 0.01 * 56 * gradient
  assert 4 * gradient < few < 16 * gradient  # of 4 rows, and what becomes of them


def test_kron_is_another_provider(monkeypatch):
  seen = []
  monkeypatch.setattr(kron, "make_kron", lambda *arguments: seen.append(arguments) or "made")
  model, params = model_of("whole"), params_of("whole")
  options = Options(provider="kron", projection="rademacher", size=3 * 7 * 4)
  wanted = frozenset({"gradient", "gradient_norm"})
  assert make_features(model, params, wanted, options, KEY, ADAM) == "made"
  assert seen[0][0] is model
  assert seen[0][2:] == (wanted, options, KEY, None)


def test_all_wrong_options_are_named_at_once():
  model, params = model_of("lora"), params_of("lora")
  options = Options("ghost", ("*/lora_c",), -1, 40, "rademacher", "adam", 0)
  message = (
    r"features.provider must be one of .*'ghost'.*top_layers.*-1.*direction.*'adam'.*"
    r"microbatch_size.*at least 1, got 0.*features.size.*multiple of 32.*got 40.*"
    r"wanted.*\['x'\]"
  )
  with pytest.raises(ValueError, match=message):
    make_features(model, params, frozenset({"x"}), options, KEY)


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    (
      "lora",
      Options(parameters=("*/lora_c",)),
      r"'\*/lora_c' match no parameter; known:.*lora_a",
    ),
    ("lora", Options(parameters="*/lora_a"), "features.parameters must be a tuple of patterns"),
    ("lora", Options(parameters=("*/gate/*",)), "are frozen: layers/mlp/gate/kernel$"),
    ("lora", Options(top_layers=4), r"features.top_layers must be in 0\.\.3, got 4"),
    (
      "whole",
      Options(parameters=("output/*", "layers/*"), top_layers=1),
      "must be under layers/ where features.top_layers is 1.*: output/kernel$",
    ),
    ("whole", Options(provider="kron"), "features.provider 'kron' has no update_direction"),
  ],
)
def test_options_that_do_not_fit_are_named(name, options, message):
  model, params = model_of(name), params_of(name)
  with pytest.raises(ValueError, match=message):
    make_features(model, params, FIELDS, options, KEY, ADAM)


def test_what_the_model_or_the_call_lacks_is_named():
  model, params = model_of("lora"), params_of("lora")
  with pytest.raises(ValueError, match="settings of Adam"):
    make_features(model, params, FIELDS, Options(), KEY)
  without = model._replace(tapped_losses=None)
  with pytest.raises(
    ValueError, match="top_layers must be 0 for a model without `tapped_losses`"
  ):
    make_features(without, params, FIELDS, Options(top_layers=1), KEY, ADAM)
  with pytest.raises(ValueError, match="moments of the optimizer, got None"):
    compute("lora", FIELDS)(params, None, rows())
