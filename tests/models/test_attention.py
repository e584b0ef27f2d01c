"""Tests of attention: what a query sees, and that every way of computing it agrees."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.models import attention
from jdc.models.base import MESH_AXES
from jdc.models.decoder import DecoderConfig, decoder

CONFIG = DecoderConfig(
  vocab_size=61,
  width=32,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  mlp_width=40,
  head_size=16,
  initializer_scale=2.5,  # large, so that attention is far from uniform
  attention="mask",
)
WINDOW = 20  # positions, fewer than most documents have


def replace(**changes):
  return dataclasses.replace(CONFIG, **changes)


def packed(batch_size, length, seed=0):
  """Positions and segments of rows: three documents, then padding."""
  rng = np.random.default_rng(seed)
  segments = np.sort(rng.integers(0, 4, (batch_size, length)), axis=1)
  segments = (segments + 1) % 4  # 1, 2, 3, 0
  starts = np.concatenate([np.ones((batch_size, 1), bool), np.diff(segments) != 0], axis=1)
  index = np.arange(length)
  positions = index - np.maximum.accumulate(np.where(starts, index, 0), axis=1)
  return jnp.int32(positions), jnp.int32(segments)


def heads(batch_size, length, num_kv_heads=2, size=16, dtype=jnp.float32, seed=0):
  """Queries of 4 heads, keys, values."""
  keys = jax.random.split(jax.random.key(seed), 3)
  counts = (4, num_kv_heads, num_kv_heads)
  return [
    jax.random.normal(key, (batch_size, length, count, size)).astype(dtype)
    for key, count in zip(keys, counts, strict=True)
  ]


def attended(config, positions, segments, local, q, k, v):
  context = attention.packed_context(config, positions, segments).of(local)
  return attention.attend(q, k, v, context, config.attention_scale)


def signs(out):
  return jnp.sign(jax.random.normal(jax.random.key(9), out.shape)).astype(out.dtype)


def value_and_gradients(config, rows, local, qkv):
  """The output, and the gradients of a sum of it with random signs."""
  positions, segments = rows

  @jax.jit
  def both(qkv):
    out, pull = jax.vjp(lambda *qkv: attended(config, positions, segments, local, *qkv), *qkv)
    return out, *pull(signs(out))

  return [np.asarray(x, np.float32) for x in both(qkv)]


def local_config(**changes):
  return replace(sliding_window=WINDOW, layer_types=("global", "local"), **changes)


# The mask, against a loop over queries in float64.


def reference(segments, window, scale, q, k, v):
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  group = q.shape[2] // k.shape[2]
  out = np.zeros(q.shape)
  for b, t, n in np.ndindex(q.shape[:3]):
    seen = [
      s
      for s in range(t + 1)
      if segments[b, s] == segments[b, t] and (not window or t - s < window)
    ]
    logits = k[b, seen, n // group] @ q[b, t, n] * scale
    weights = np.exp(logits - logits.max())
    out[b, t, n] = weights / weights.sum() @ v[b, seen, n // group]
  return out


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("length", "scale"), [(40, None), (150, 0.7)])
@pytest.mark.parametrize("local", [False, True])
def test_the_mask_agrees_with_a_loop(num_kv_heads, length, scale, local):
  config = local_config(num_kv_heads=num_kv_heads, attention_scale=scale)
  positions, segments = packed(2, length)
  qkv = heads(2, length, num_kv_heads)
  computed = attended(config, positions, segments, local, *qkv)
  window = WINDOW if local else None
  expected = reference(np.asarray(segments), window, scale or 0.25, *qkv)
  np.testing.assert_allclose(computed, expected, atol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_of_the_mask_are_one_attention(dtype):
  rows, qkv = packed(2, 300), heads(2, 300, dtype=jnp.dtype(dtype))
  computed = value_and_gradients(CONFIG, rows, False, qkv)
  mask = attention._packed_mask(rows[1], None)[:, None]

  def plain(*qkv):
    return jax.nn.dot_product_attention(*qkv, mask=mask)

  out, pull = jax.vjp(plain, *qkv)
  tolerance = 5e-6 if dtype == "float32" else 0.04
  for ours, theirs in zip(computed, [out, *pull(signs(out))], strict=True):
    np.testing.assert_allclose(ours, np.asarray(theirs, np.float32), atol=tolerance)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_hidden(bad):
  positions, segments = packed(1, 150)
  q, k, v = heads(1, 150)
  first = int(np.argmax(np.asarray(segments[0]) == 2))
  for broken in ((q.at[0, first].set(bad), k, v), (q, k.at[0, first].set(bad), v)):
    out = attended(CONFIG, positions, segments, False, *broken)
    assert not np.isfinite(out[0, first]).all()
  out = attended(CONFIG, positions, segments, False, q, k, v.at[0, first].set(bad))
  own = np.asarray(segments[0]) == 2
  assert not np.isfinite(out[0, own]).any()


# Splash, in the interpreter, against the mask.


@pytest.fixture
def splash(monkeypatch):
  """Allows splash without a TPU."""
  monkeypatch.setattr(attention, "choose", lambda config, backend: config.attention)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_splash_agrees_with_the_mask(num_kv_heads, local):
  # 300 positions are padded to three blocks.
  rows, qkv = packed(2, 300), heads(2, 300, num_kv_heads)
  config = local_config(num_kv_heads=num_kv_heads, attention_scale=0.3)
  expected = value_and_gradients(config, rows, local, qkv)
  config = dataclasses.replace(config, attention="splash")
  for ours, theirs in zip(value_and_gradients(config, rows, local, qkv), expected, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize(
  ("shape", "batch_size"),
  [((2, 2, 1, 2), 4), ((2, 2, 2, 1), 8), ((2, 2, 1, 2), 3), ((1, 2, 1, 4), 2)],
)
def test_splash_is_split_over_rows_and_heads(shape, batch_size):
  # 3 rows do not divide over 4 devices, nor 2 key heads over 4.
  rows, qkv = packed(batch_size, 128), heads(batch_size, 128)
  expected = value_and_gradients(CONFIG, rows, False, qkv)
  axis_types = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  with jax.set_mesh(jax.make_mesh(shape, MESH_AXES, axis_types=axis_types)):
    computed = value_and_gradients(replace(attention="splash"), rows, False, qkv)
  for ours, theirs in zip(computed, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("per_example", [False, True])
def test_splash_in_a_decoder(splash, per_example):
  # Under the scan over layers, the switch between kinds of layers, and recomputation.
  positions, segments = packed(2, 140)
  tokens = jax.random.randint(jax.random.key(1), segments.shape, 0, 61)
  found = {}
  for method in ("mask", "splash"):
    model = decoder(local_config(attention=method, remat="layer"))

    def loss(params, *rows, model=model):
      rows = [x if x.ndim == 2 else x[None] for x in rows]
      return jnp.mean(model.token_losses(params, rows[0], *rows))

    gradient = jax.grad(loss)
    if per_example:
      gradient = jax.vmap(gradient, (None, 0, 0, 0))
    params = jax.jit(model.init)(jax.random.key(0))
    found[method] = jax.jit(gradient)(params, tokens, positions, segments)
  for ours, theirs in zip(*map(jax.tree.leaves, found.values()), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize(
  ("dtype", "size"), [("float32", 16), ("bfloat16", 64), ("bfloat16", 256)]
)
def test_splash_lowers_for_tpus(monkeypatch, dtype, size):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  positions, segments = packed(1, 300)
  qkv = heads(1, 300, size=size, dtype=jnp.dtype(dtype))
  config = local_config(attention="splash")

  def gradients(local, qkv):
    context = attention.packed_context(config, positions, segments).of(local)
    loss = lambda qkv: attention.attend(*qkv, context, None).astype(jnp.float32).sum()
    return jax.grad(loss)(qkv)

  exported = jax.export.export(jax.jit(gradients), platforms=["tpu"])(jnp.bool_(True), qkv)
  assert exported.mlir_module().count("tpu_custom_call") >= 6  # 3 kernels for each kind


# cuDNN, as far as it goes without a GPU.


def test_cudnn_lowers_for_gpus(monkeypatch):
  fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
  monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
  config = local_config(attention="cudnn", dtype="bfloat16")
  positions, segments = packed(2, 65)  # an odd length

  def gradients(local, positions, segments, *qkv):
    context = attention.packed_context(config, positions, segments).of(local)
    loss = lambda qkv: jnp.square(attention.attend(*qkv, context, None)).sum()
    return jax.grad(loss)(qkv)

  def each(local, *rows):
    return jax.vmap(lambda *row: gradients(local, *(x[None] for x in row)))(*rows)

  qkv = heads(2, 65, dtype=jnp.bfloat16)
  for function in (gradients, each):
    exported = jax.export.export(
      jax.jit(function),
      platforms=["cuda"],
      disabled_checks=[
        jax.export.DisabledSafetyCheck.custom_call("__cudnn$fmhaScaleBiasSoftmax"),
        jax.export.DisabledSafetyCheck.custom_call("__cudnn$fmhaScaleBiasSoftmaxBackward"),
      ],
    )(jnp.bool_(True), positions, segments, *qkv)
    assert exported.mlir_module().count("__cudnn$fmha") >= 4


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a CUDA GPU")
@pytest.mark.parametrize("local", [False, True])
def test_cudnn_agrees_with_the_mask(local):
  rows, qkv = packed(2, 300), heads(2, 300, size=64, dtype=jnp.bfloat16)
  expected = value_and_gradients(local_config(), rows, local, qkv)
  computed = value_and_gradients(local_config(attention="cudnn"), rows, local, qkv)
  for ours, theirs in zip(computed, expected, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=0.04)


# Which is chosen.


@pytest.mark.parametrize(
  ("backend", "changes", "chosen"),
  [
    ("cpu", {}, "mask"),
    ("tpu", {}, "splash"),
    ("gpu", {}, "mask"),
    ("gpu", {"dtype": "bfloat16"}, "cudnn"),
    ("gpu", {"dtype": "bfloat16", "head_size": 12}, "mask"),
    ("gpu", {"dtype": "bfloat16", "head_size": 256}, "mask"),
    ("tpu", {"attention": "mask"}, "mask"),
    ("gpu", {"dtype": "bfloat16", "attention": "cudnn"}, "cudnn"),
  ],
)
def test_chooses_by_platform(backend, changes, chosen):
  assert attention.choose(replace(**{"attention": "auto"} | changes), backend) == chosen


@pytest.mark.parametrize(
  ("backend", "changes", "message"),
  [
    ("cpu", {"attention": "splash"}, "TPUs, and this platform is cpu"),
    ("gpu", {"attention": "cudnn"}, "dtype must be bfloat16, got float32"),
    ("gpu", {"attention": "cudnn", "head_size": 12}, "multiple of 8 up to 128, got 12"),
    ("tpu", {"attention": "cudnn"}, "this platform is tpu; dtype must be bfloat16"),
  ],
)
def test_refuses_what_cannot_serve(backend, changes, message):
  with pytest.raises(ValueError, match=message):
    attention.choose(replace(**changes), backend)


def test_a_decoder_refuses_before_anything_compiles():
  with pytest.raises(ValueError, match='attention "splash" cannot serve'):
    decoder(replace(attention="splash"))
