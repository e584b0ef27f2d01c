"""Tests of the chunked cross-entropy: its values, its gradients, its memory."""

import math
import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.models import cross_entropy
from jdc.models.base import BATCH_AXES, MESH_AXES
from jdc.models.cross_entropy import (
  default_chunk_size,
  token_cross_entropy,
  token_losses_and_errors,
  weighted_cross_entropy,
  weighted_losses_and_errors,
)

CHUNK_SIZES = [None, "auto", 1, 7, 38, 100]  # of 39 positions


def inputs(batch_size=3, num_positions=13, width=8, vocab_size=37, scale=3.0, seed=0):
  rng = np.random.default_rng(seed)
  hidden = rng.normal(size=(batch_size, num_positions, width)) * scale
  output = rng.normal(size=(width, vocab_size))
  targets = rng.integers(0, vocab_size, (batch_size, num_positions))
  return np.float32(hidden), np.float32(output), np.int32(targets)


def signed_weights(targets, seed=1):
  weights = np.random.default_rng(seed).normal(size=targets.shape)
  weights[weights > 1] = 0
  return np.float32(weights)


def weighted_sum(hidden, output, targets, weights, chunk_size):
  return weighted_cross_entropy(hidden, output, targets, weights, chunk_size)[0]


def sum_of_tokens(hidden, output, targets, weights, chunk_size):
  return jnp.sum(weights * token_cross_entropy(hidden, output, targets, chunk_size))


FORMS = pytest.mark.parametrize("form", [weighted_sum, sum_of_tokens])


def gradients(form, hidden, output, targets, weights, chunk_size):
  grad = jax.jit(jax.grad(form, argnums=(0, 1)), static_argnums=4)
  return grad(*map(jnp.asarray, (hidden, output, targets, weights)), chunk_size)


def reference(hidden, output, targets):
  """-log softmax(h W)[y] and its gradients, token by token, in float64."""
  hidden, output = hidden.astype(np.float64), output.astype(np.float64)
  losses = np.zeros(targets.shape)
  by_logit = np.zeros((*targets.shape, output.shape[1]))
  for b, t in np.ndindex(*targets.shape):
    logits = hidden[b, t] @ output
    top = logits.max()
    total = np.exp(logits - top).sum()
    losses[b, t] = np.log(total) + top - logits[targets[b, t]]
    by_logit[b, t] = np.exp(logits - top) / total
    by_logit[b, t, targets[b, t]] -= 1
  return losses, by_logit


def reference_gradients(hidden, output, targets, weights):
  _, by_logit = reference(hidden, output, targets)
  by_hidden, by_output = np.zeros(hidden.shape), np.zeros(output.shape)
  for b, t in np.ndindex(*targets.shape):
    by_hidden[b, t] = weights[b, t] * (output.astype(np.float64) @ by_logit[b, t])
    by_output += weights[b, t] * np.outer(hidden[b, t], by_logit[b, t])
  return by_hidden, by_output


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_agrees_with_the_equation(chunk_size):
  hidden, output, targets = inputs()
  weights, (expected, _) = signed_weights(targets), reference(hidden, output, targets)
  losses = jax.jit(token_cross_entropy, static_argnums=3)(hidden, output, targets, chunk_size)
  assert losses.dtype == jnp.float32
  np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
  weighted = jax.jit(weighted_cross_entropy, static_argnums=4)
  loss, losses = weighted(hidden, output, targets, weights, chunk_size)
  assert (loss.dtype, losses.dtype) == (jnp.float32, jnp.float32)
  np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(loss, np.sum(weights * expected), rtol=1e-5, atol=1e-4)


@FORMS
@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_gradients_agree_with_the_equation(form, chunk_size):
  hidden, output, targets = inputs()
  weights = signed_weights(targets)
  expected = reference_gradients(hidden, output, targets, weights)
  actual = gradients(form, hidden, output, targets, weights, chunk_size)
  for e, a in zip(expected, actual, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)
  alone = jax.jit(jax.grad(form), static_argnums=4)(
    hidden, output, targets, weights, chunk_size
  )
  np.testing.assert_allclose(alone, expected[0], rtol=1e-5, atol=1e-5)


@FORMS
def test_gradients_equal_the_plain_form(form):
  # A width of more than one block of rows, the last one cut.
  hidden, output, targets = inputs(width=300, scale=0.3)
  weights = signed_weights(targets)
  plain = gradients(sum_of_tokens, hidden, output, targets, weights, None)
  for e, a in zip(plain, gradients(form, hidden, output, targets, weights, 8), strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


def some_unasked(targets, seed=2):
  return np.where(np.random.default_rng(seed).random(targets.shape) < 0.6, -1, targets)


@FORMS
@pytest.mark.parametrize("chunk_size", [None, 1, 7, 38])
def test_no_loss_where_the_target_is_negative(form, chunk_size):
  hidden, output, targets = inputs()
  weights, some = signed_weights(targets), some_unasked(targets)
  expected, _ = reference(hidden, output, targets)
  losses = token_cross_entropy(*map(jnp.asarray, (hidden, output, some)), chunk_size)
  np.testing.assert_allclose(losses, np.where(some < 0, 0, expected), rtol=1e-5, atol=1e-5)
  asked = np.where(some < 0, 0, weights)
  expected = reference_gradients(hidden, output, targets, asked)
  actual = gradients(form, hidden, output, some, weights, chunk_size)
  for e, a in zip(expected, actual, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


@FORMS
@pytest.mark.parametrize("argnums", [(0, 1), 0, 1])
def test_chunks_without_targets_are_not_computed(form, argnums):
  hidden, output, targets = inputs()
  weights, some = np.ones(targets.shape, np.float32), targets.copy()
  some[:, 4:] = -1
  # Infinite where no loss is asked for: it would make every sum not a number.
  hidden[:, 4:] = np.inf
  arguments = [jnp.asarray(x) for x in (hidden, output, some, weights)]
  found = jax.jit(jax.value_and_grad(form, argnums), static_argnums=4)(*arguments, 3)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


@pytest.fixture
def small_cache(monkeypatch):
  """Chunks of "auto" have 7 positions of 37 logits."""
  monkeypatch.setattr(cross_entropy, "_CACHED_LOGITS", 7 * 37)
  monkeypatch.setattr(cross_entropy, "_MIN_CACHED_POSITIONS", 1)


@FORMS
@pytest.mark.usefixtures("small_cache")
def test_chunks_for_a_cache(form):
  hidden, output, targets = inputs()
  weights, some = signed_weights(targets), some_unasked(targets)
  expected = reference_gradients(hidden, output, targets, np.where(some < 0, 0, weights))
  for e, a in zip(
    expected, gradients(form, hidden, output, some, weights, "auto"), strict=True
  ):
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)

  def num_products(chunk_size):
    grad = jax.grad(lambda *args: form(*args, chunk_size), argnums=(0, 1))
    return str(jax.make_jaxpr(grad)(hidden, output, targets, weights)).count("dot_general")

  # They are few enough to keep the logits of losses whose weights come later.
  assert num_products("auto") == 3
  assert num_products(7) == (4 if form is sum_of_tokens else 3)


@FORMS
@pytest.mark.usefixtures("small_cache")
@pytest.mark.parametrize("argnum", [0, 1])
def test_second_derivatives_of_chunks_for_a_cache(form, argnum):
  check_second_derivatives(form, argnum, "auto")


def test_large_logits_stay_finite():
  hidden, output, targets = inputs(scale=1e4)
  expected, _ = reference(hidden, output, targets)
  for chunk_size in (None, 4):
    losses = token_cross_entropy(hidden, output, targets, chunk_size)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=0.1)


@FORMS
def test_gradients_of_large_logits(form):
  hidden, output, targets = inputs(scale=1e3)
  weights = signed_weights(targets)
  expected = reference_gradients(hidden, output, targets, weights)
  for e, a in zip(expected, gradients(form, hidden, output, targets, weights, 4), strict=True):
    np.testing.assert_allclose(a, e, rtol=0, atol=1e-3 * np.abs(e).max())


@FORMS
def test_a_cotangent_scales_the_gradients(form):
  hidden, output, targets = inputs()
  weights = signed_weights(targets)
  scaled = lambda *args: 3.0 * form(*args) + 1.0
  for e, a in zip(
    gradients(form, hidden, output, targets, weights, 4),
    gradients(scaled, hidden, output, targets, weights, 4),
    strict=True,
  ):
    np.testing.assert_allclose(a, 3 * np.asarray(e), rtol=1e-5, atol=1e-5)


def test_losses_and_weights_are_constants_for_the_gradient():
  hidden, output, targets = inputs()
  weights = jnp.asarray(signed_weights(targets))

  def by_losses(hidden, output, weights):
    loss, losses = weighted_cross_entropy(hidden, output, targets, weights, 4)
    return loss + jnp.sum(losses**2)

  actual = jax.grad(by_losses, argnums=(0, 1, 2))(hidden, output, weights)
  expected = gradients(weighted_sum, hidden, output, targets, weights, 4)
  for e, a in zip((*expected, np.zeros_like(weights)), actual, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-7)


def check_second_derivatives(form, argnum, chunk_size):
  *arrays, targets = inputs(batch_size=1, num_positions=15, scale=0.5)
  arrays, weights = [jnp.asarray(x) for x in arrays], signed_weights(targets)

  def squared_norm(form, chunk_size):
    grad = jax.grad(lambda *args: form(*args, targets, weights, chunk_size), argnum)
    return jax.grad(lambda *args: jnp.sum(grad(*args) ** 2), argnum)(*arrays)

  expected = squared_norm(sum_of_tokens, None)
  np.testing.assert_allclose(squared_norm(form, chunk_size), expected, rtol=1e-4, atol=1e-5)


@FORMS
@pytest.mark.parametrize("argnum", [0, 1])
def test_second_derivatives_equal_the_plain_form(form, argnum):
  check_second_derivatives(form, argnum, 2)


@FORMS
def test_not_a_number_reaches_the_loss(form):
  hidden, output, targets = inputs()
  hidden[1, 3, 2] = np.nan
  weights = np.ones(targets.shape, np.float32)
  assert np.isnan(form(hidden, output, targets, weights, 4))
  for gradient in gradients(form, hidden, output, targets, weights, 4):
    assert np.isnan(gradient).any()
  losses = weighted_cross_entropy(hidden, output, targets, weights, 4)[1]
  assert np.argwhere(np.isnan(losses)).tolist() == [[1, 3]]


def test_bfloat16_logits_accumulate_in_float32():
  hidden, output, targets = inputs(width=512, scale=0.2)
  low, high = jnp.asarray(hidden, jnp.bfloat16), np.float32(jnp.asarray(hidden, jnp.bfloat16))
  rounded = np.float32(jnp.asarray(output, jnp.bfloat16))
  expected, _ = reference(high, rounded, targets)
  for chunk_size in (None, 4):
    losses = token_cross_entropy(low, jnp.asarray(output), jnp.asarray(targets), chunk_size)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-4)


@FORMS
def test_bfloat16_gradients(form):
  hidden, output, targets = inputs(batch_size=2, num_positions=256, scale=1.0)
  low = jnp.asarray(hidden, jnp.bfloat16)
  weights = np.ones(targets.shape, np.float32)
  rounded = np.float32(jnp.asarray(output, jnp.bfloat16))
  expected = reference_gradients(np.float32(low), rounded, targets, weights)
  # With 512 chunks, a sum kept in bfloat16 would lose most of its digits.
  by_hidden, by_output = gradients(form, low, output, targets, weights, 1)
  assert (by_hidden.dtype, by_output.dtype) == (jnp.bfloat16, jnp.float32)
  assert np.abs(np.float32(by_hidden) - expected[0]).max() < 0.01 * np.abs(expected[0]).max()
  assert np.abs(by_output - expected[1]).max() < 0.01 * np.abs(expected[1]).max()
  low_output = jnp.asarray(output, jnp.bfloat16)
  assert gradients(form, low, low_output, targets, weights, 4)[1].dtype == jnp.bfloat16


@FORMS
def test_repeats_bitwise(form):
  hidden, output, targets = inputs()
  weights = signed_weights(targets)
  first = gradients(form, hidden, output, targets, weights, 4)
  for e, a in zip(first, gradients(form, hidden, output, targets, weights, 4), strict=True):
    np.testing.assert_array_equal(a, e)


@FORMS
@pytest.mark.parametrize("transform", ["remat", "scan", "nested jit", "tied"])
def test_gradients_under_transformations(form, transform):
  hidden, output, targets = inputs()
  weights = signed_weights(targets)
  plain = lambda *args: form(*args, 4)

  def accumulated(hidden, output, targets, weights):
    rows = tuple(x[:, None] for x in (hidden, targets, weights))

    def add(total, row):
      hidden, targets, weights = row
      return total + form(hidden, output, targets, weights, 4), None

    return jax.lax.scan(add, jnp.float32(0), rows)[0]

  transformed = {
    "remat": jax.checkpoint(plain),
    "scan": accumulated,
    "nested jit": jax.jit(plain),
    "tied": lambda hidden, output, *rest: plain(hidden, jnp.asarray(output.T).T, *rest),
  }[transform]
  expected = reference_gradients(hidden, output, targets, weights)
  arguments = hidden, jnp.asarray(output), targets, weights
  actual = jax.jit(jax.grad(transformed, argnums=(0, 1)))(*arguments)
  for e, a in zip(expected, actual, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


@FORMS
def test_per_example_gradients(form):
  hidden, output, targets = inputs()
  weights = signed_weights(targets)

  def one(hidden, targets, weights):
    loss = lambda output: form(hidden[None], output, targets[None], weights[None], 4)
    return jax.grad(loss)(jnp.asarray(output))

  actual = jax.jit(jax.vmap(one))(hidden, targets, weights)
  for b in range(len(hidden)):
    row = slice(b, b + 1)
    _, expected = reference_gradients(hidden[row], output, targets[row], weights[row])
    np.testing.assert_allclose(actual[b], expected, rtol=1e-5, atol=1e-5)


def make_mesh(*shape):
  axis_types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  devices = jax.devices()[: math.prod(shape)]
  return jax.make_mesh(shape, MESH_AXES, axis_types=axis_types, devices=devices)


def on_mesh(mesh, hidden, output, targets, weights):
  specs = (jax.P(BATCH_AXES), jax.P("fsdp", "tensor"), jax.P(BATCH_AXES), jax.P(BATCH_AXES))
  arrays = (hidden, output, targets, weights)
  return [
    jax.device_put(x, jax.NamedSharding(mesh, spec))
    for x, spec in zip(arrays, specs, strict=True)
  ]


@FORMS
@pytest.mark.parametrize(
  ("shape", "dtype"),
  [
    ((2, 2, 1, 2), "float32"),
    ((1, 4, 2, 1), "float32"),
    ((2, 1, 1, 4), "bfloat16"),
  ],
)
def test_sharded_equals_a_single_device(form, shape, dtype):
  hidden, output, targets = inputs(batch_size=8, width=16, vocab_size=64, scale=1.0)
  weights = signed_weights(targets)
  hidden = jnp.asarray(hidden, dtype)
  single = jax.jit(jax.value_and_grad(form, argnums=(0, 1)), static_argnums=4)
  expected = single(hidden, output, targets, weights, 5)
  mesh = make_mesh(*shape)
  with jax.set_mesh(mesh):
    sharded = jax.jit(jax.value_and_grad(form, argnums=(0, 1)), static_argnums=4)
    actual = sharded(*on_mesh(mesh, hidden, output, targets, weights), 5)
  tolerance = 1e-5 if dtype == "float32" else 1e-2
  for e, a in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
    e, a = np.float32(e), np.float32(a)
    np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance * np.abs(e).max())


@FORMS
def test_devices_compute_their_own_positions_and_communicate_once(form):
  arguments = inputs(batch_size=8, num_positions=32, width=16, vocab_size=64)
  mesh = make_mesh(4, 2, 1, 1)
  with jax.set_mesh(mesh):
    arguments = on_mesh(mesh, *arguments, signed_weights(arguments[2]))
    grad = jax.jit(jax.grad(form, argnums=(0, 1)), static_argnums=4)
    text = grad.lower(*arguments, 8).compile().as_text()
  entry = text.index("\nENTRY ")
  assert "while(" in text[entry:]
  for collective in ("all-reduce(", "all-gather(", "all-to-all(", "collective-permute("):
    assert collective not in text[:entry], collective
  shapes = [map(int, shape.split(",")) for shape in re.findall(r"f32\[([\d,]+)\]", text)]
  # Neither the hidden states of all positions nor the logits of a chunk of theirs.
  assert max(map(math.prod, shapes)) < min(8 * 32 * 16, 8 * 8 * 64)


@FORMS
def test_rows_that_do_not_divide_over_the_mesh(form):
  hidden, output, targets = inputs(batch_size=3, width=16, vocab_size=64)
  weights = signed_weights(targets)
  expected = gradients(form, hidden, output, targets, weights, 5)
  with jax.set_mesh(make_mesh(2, 2, 1, 2)):
    actual = gradients(form, hidden, output, targets, weights, 5)
  for e, a in zip(expected, actual, strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * np.abs(e).max())


@FORMS
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_computes_no_gradient_of_what_is_frozen(form, wrap):
  batch_size, num_positions, width, vocab_size = 2, 16, 24, 640
  hidden, output, targets = inputs(batch_size, num_positions, width, vocab_size)
  arguments = hidden, output, targets, signed_weights(targets)

  def products(function):
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return sorted(x.aval.shape for x in _outputs_of(jaxpr, "dot_general"))

  length = 8
  loss = wrap(lambda *args: form(*args, length))
  logits, by_hidden, by_output = (length, vocab_size), (width, length), (width, vocab_size)
  recomputed = [logits] * (wrap is jax.checkpoint)
  assert products(loss) == [logits]
  # The gradient by a hidden state is known but for its weight; that of the matrix is not.
  assert products(jax.grad(loss, 0)) == sorted([logits, by_hidden, *recomputed])
  recomputed += [logits] * (form is sum_of_tokens)
  assert products(jax.grad(loss, 1)) == sorted([logits, by_output, *recomputed])
  both = sorted([logits, by_hidden, by_output, *recomputed])
  assert products(jax.grad(loss, (0, 1))) == both


def _outputs_of(jaxpr, primitive):
  for equation in jaxpr.eqns:
    if equation.primitive.name == primitive:
      yield from equation.outvars
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from _outputs_of(inner, primitive)


def temporary_bytes(form, shape, dtype, argnums, chunk_size="auto"):
  batch_size, num_positions, width, vocab_size = shape
  positions = batch_size, num_positions
  arguments = [
    jax.ShapeDtypeStruct((*positions, width), dtype),
    jax.ShapeDtypeStruct((width, vocab_size), jnp.float32),
    jax.ShapeDtypeStruct(positions, jnp.int32),
    jax.ShapeDtypeStruct(positions, jnp.float32),
    jax.ShapeDtypeStruct((), jnp.float32),
  ]

  def loss(hidden, output, targets, weights, total):
    return form(hidden, output, targets, weights, chunk_size) / total

  compiled = jax.jit(jax.grad(loss, argnums=argnums)).lower(*arguments).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@FORMS
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("argnums", [(0, 1), 0])
def test_memory_of_a_large_vocabulary(form, dtype, argnums):
  shape = (8, 1024, 2048, 131_072)
  chunk = 512 * 131_072 * 4
  # How many arrays of a chunk's logits are alive at once depends on the processor.
  # Besides these, only the matrix in the activations' dtype fits: neither all logits, 16
  # chunks, nor a gradient of the matrix, 4, for each of them. Their sum is an output.
  cast = 0 if dtype == jnp.float32 else 2048 * 131_072 * 2
  assert temporary_bytes(form, shape, dtype, argnums) < 3 * chunk + cast


def test_a_single_chunk_holds_all_logits():
  shape = (4, 256, 16, 4096)
  logits = 4 * 256 * 4096 * 4
  assert temporary_bytes(sum_of_tokens, shape, jnp.float32, (0, 1), None) >= logits
  assert temporary_bytes(weighted_sum, shape, jnp.float32, (0, 1), None) >= logits
  assert temporary_bytes(sum_of_tokens, shape, jnp.float32, (0, 1), 64) < logits / 4
  assert temporary_bytes(weighted_sum, shape, jnp.float32, (0, 1), 64) < logits / 4


def test_default_chunk_size_fits_the_cache_of_a_cpu():
  assert default_chunk_size(4096, 8192, "cpu") == 512
  assert default_chunk_size(4096, 32_000, "cpu") == 256
  assert default_chunk_size(4096, 1_000_000, "cpu") == 67


def test_default_chunk_size_bounds_the_logits():
  for num_positions in (1, 128, 1000, 8192, 10**6):
    for vocab_size in (2, 256, 50_257, 262_144, 100_000_000):
      chunk_size = default_chunk_size(num_positions, vocab_size, "gpu")
      if chunk_size is None:
        assert num_positions * vocab_size <= 2**26 or num_positions == 1
      else:
        assert 1 <= chunk_size < num_positions
        assert chunk_size * vocab_size <= 2**26 or chunk_size == 1


# Errors of tokens.


def weighted_with_errors(hidden, output, targets, weights, chunk_size):
  loss, losses, errors = weighted_losses_and_errors(
    hidden, output, targets, weights, chunk_size
  )
  return loss, (losses, errors)


def sum_with_errors(hidden, output, targets, weights, chunk_size):
  losses, errors = token_losses_and_errors(hidden, output, targets, chunk_size)
  return jnp.sum(weights * losses), (losses, errors)


WITH_ERRORS = pytest.mark.parametrize(
  ("form", "plain"), [(weighted_with_errors, weighted_sum), (sum_with_errors, sum_of_tokens)]
)


@WITH_ERRORS
@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_errors_agree_with_the_equation(form, plain, chunk_size):
  """With and without derivatives, of which they are constants."""
  hidden, output, targets = inputs()
  weights, some = signed_weights(targets), some_unasked(targets)
  expected, by_logit = reference(hidden, output, targets)
  expected = np.where(some < 0, 0, [expected, np.linalg.norm(by_logit, axis=-1)])
  arguments = [jnp.asarray(x) for x in (hidden, output, some, weights)]
  found = jax.jit(form, static_argnums=4)(*arguments, chunk_size)[1]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  wanted = gradients(plain, *arguments, chunk_size)
  for argnums, chosen in (((0, 1), wanted), ((0,), wanted[:1]), ((1,), wanted[1:])):
    grad = jax.jit(jax.grad(form, argnums, has_aux=True), static_argnums=4)
    actual, found = grad(*arguments, chunk_size)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for e, a in zip(chosen, actual, strict=True):
      np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


@WITH_ERRORS
@pytest.mark.usefixtures("small_cache")
def test_errors_need_no_logits_of_their_own(form, plain):
  hidden, output, targets = inputs()
  arguments = hidden, output, targets, signed_weights(targets)

  def num_products(function, chunk_size):
    grad = jax.grad(lambda *args: function(*args, chunk_size), (0, 1), has_aux=function is form)
    return str(jax.make_jaxpr(grad)(*arguments)).count("dot_general")

  for chunk_size in ("auto", 7):
    assert num_products(form, chunk_size) == num_products(plain, chunk_size)


@WITH_ERRORS
def test_small_errors_keep_their_digits(form, plain):
  """Where |p|^2 - 2 p_y + 1 would have none left."""
  targets = np.arange(6, dtype=np.int32)[None]
  margin = np.float32([0, 1, 3, 6, 9, 12])
  hidden, output = margin[None, :, None] * np.eye(6, dtype=np.float32), np.eye(6, 37)
  output = output.astype(np.float32)
  _, by_logit = reference(hidden, output, targets)
  expected = np.linalg.norm(by_logit, axis=-1)
  assert expected.min() < 1e-3
  weights = np.ones(targets.shape, np.float32)
  for chunk_size in (None, 2):
    errors = form(*map(jnp.asarray, (hidden, output, targets, weights)), chunk_size)[1][1]
    # Logsumexps of up to 12 are known within 1e-6, and probabilities no better.
    np.testing.assert_allclose(errors, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_second_derivatives_with_errors(chunk_size):
  hidden, output, targets = inputs(batch_size=1, num_positions=15, scale=0.5)
  some, weights = some_unasked(targets), signed_weights(targets)

  def squared_norm(function, output):
    def loss(hidden):
      found = function(hidden, output, some, weights, chunk_size)
      return found[0] if function is sum_with_errors else found

    return jnp.sum(jax.grad(loss)(jnp.asarray(hidden)) ** 2)

  expected, actual = (
    jax.grad(squared_norm, 1)(form, jnp.asarray(output))
    for form in (sum_of_tokens, sum_with_errors)
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@WITH_ERRORS
def test_errors_on_a_mesh(form, plain):
  hidden, output, targets = inputs(batch_size=8, width=16, vocab_size=64, scale=1.0)
  arguments = hidden, output, targets, signed_weights(targets)
  expected = jax.jit(form, static_argnums=4)(*arguments, 5)
  mesh = make_mesh(2, 2, 1, 2)
  with jax.set_mesh(mesh):
    actual = jax.jit(form, static_argnums=4)(*on_mesh(mesh, *arguments), 5)
  for e, a in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
    np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


@WITH_ERRORS
def test_errors_of_a_chunk_take_its_memory(form, plain):
  shape = (4, 256, 16, 4096)
  alone = lambda *args: form(*args)[0] + 0 * jnp.sum(form(*args)[1][1])
  logits = 4 * 256 * 4096 * 4
  assert temporary_bytes(alone, shape, jnp.float32, (0, 1), 64) < logits / 4


@FORMS
@pytest.mark.parametrize("chunk_size", [0, -1])
def test_rejects_a_chunk_of_no_positions(form, chunk_size):
  hidden, output, targets = inputs()
  with pytest.raises(ValueError, match="chunk_size must be"):
    form(hidden, output, targets, signed_weights(targets), chunk_size)
