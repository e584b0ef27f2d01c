"""Attention with segments, windows and caches, and how each platform computes it.

`DecoderConfig.attention` says how, and `choose` what "auto" means:

  mask    plain products and a softmax under a mask; everywhere, and always over a cache
  splash  the Pallas kernel of TPUs, which takes segments and skips what they exclude
  cudnn   the fused kernel of CUDA GPUs, bfloat16 only, with segments and windows as a mask
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdc.models.base import BATCH_AXES
from jdc.models.decoder_config import DecoderConfig
from jdc.models.rotary import Rotation, frequencies, rotation

SPLASH_MULTIPLE = 128  # rows are padded to a multiple of the kernel's blocks
CUDNN_MULTIPLE = 8  # of the features of a head
CUDNN_HEAD_SIZE = 128  # the largest that every supported GPU takes
MASK_BLOCK, MASK_BLOCKS = 64, 8  # queries at a time, at least; blocks of a row, at most

# (q [B, T, N, H], k [B, T, M, H], v [B, T, M, H]) -> [B, T, N, H]
Kernel = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class LayerContext(NamedTuple):
  """What layers of one kind read beside their input; T queries, S keys."""

  rotation: Rotation
  mask_BxTxS: jax.Array | None = None  # bool, True where attention may look
  kernel: Kernel | None = None  # in place of the mask


class Context(NamedTuple):
  """What all layers read; a kind that no layer is of is `None`."""

  everywhere: LayerContext | None  # of global layers
  window: LayerContext | None  # of local ones

  def of(self, local: bool | jax.Array) -> LayerContext:
    """Returns that of a local or global layer; a traced flag selects."""
    if isinstance(local, bool):
      found = self.window if local else self.everywhere
      assert found is not None
      return found
    assert self.window is not None
    assert self.everywhere is not None
    here, there = self.window, self.everywhere
    turned, mask = jax.tree.map(lambda a, b: jnp.where(local, a, b), here[:2], there[:2])
    if here.kernel is None or there.kernel is None:
      return LayerContext(turned, mask)
    return LayerContext(
      turned, None, functools.partial(jax.lax.cond, local, here.kernel, there.kernel)
    )


def choose(config: DecoderConfig, backend: str) -> str:
  """How a decoder computes attention over whole rows on a platform.

  "auto" is splash on TPUs; on GPUs cuDNN where activations are bfloat16 and heads have a
  multiple of 8 features, 128 at most; the mask anywhere else.

  Args:
    config: the decoder.
    backend: the platform, as `jax.default_backend()` names it.

  Returns:
    "mask", "splash" or "cudnn".

  Raises:
    ValueError: if the config names one that cannot serve it, saying why.

  Example:
    >>> config = DecoderConfig(
    ...   vocab_size=256, width=64, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=192
    ... )
    >>> choose(config, "cpu"), choose(config, "tpu"), choose(config, "gpu")
    ('mask', 'splash', 'mask')
  """
  if config.attention == "mask":
    return "mask"
  if config.attention == "auto":
    served = (kind for kind in ("splash", "cudnn") if not _obstacles(kind, config, backend))
    return next(served, "mask")
  problems = _obstacles(config.attention, config, backend)
  if problems:
    raise ValueError(
      f'attention "{config.attention}" cannot serve this decoder: {"; ".join(problems)}; '
      'accepted here: "auto" or "mask"'
    )
  return config.attention


def packed_context(
  config: DecoderConfig, positions_BxT: jax.Array, segments_BxT: jax.Array
) -> Context:
  """Returns the context of whole rows: a token sees earlier ones of its own segment.

  Args:
    config: the decoder, its `attention` what `choose` returned.
    positions_BxT: i32, from 0 in each segment.
    segments_BxT: i32, the segment of each token. Padding is a segment like any other, since a
      softmax over nothing is undefined.
  """

  def layer(local: bool) -> LayerContext:
    window = config.sliding_window if local else None
    turned = rotation(positions_BxT, frequencies(config, local=local))
    if config.attention == "splash":
      kernel = functools.partial(_splash, segments_BxT, window, config.attention_scale)
      return LayerContext(turned, kernel=kernel)
    mask_BxTxT = _packed_mask(segments_BxT, window)
    if config.attention == "cudnn":
      kernel = functools.partial(_cudnn, mask_BxTxT, config.attention_scale)
      return LayerContext(turned, kernel=kernel)
    return LayerContext(turned, mask_BxTxT)

  return _context(config, layer)


def cached_context(
  config: DecoderConfig,
  positions_BxT: jax.Array,
  cache_positions_BxS: jax.Array,
  cache_valid_BxS: jax.Array,
) -> Context:
  """Returns the context of tokens that follow those of a cache, which holds them already."""
  ago_BxTxS = positions_BxT[:, :, None] - cache_positions_BxS[:, None, :]
  seen_BxTxS = cache_valid_BxS[:, None, :] & (ago_BxTxS >= 0)

  def layer(local: bool) -> LayerContext:
    turned = rotation(positions_BxT, frequencies(config, local=local))
    if not local:
      return LayerContext(turned, seen_BxTxS)
    assert config.sliding_window is not None  # checked by the config
    return LayerContext(turned, seen_BxTxS & (ago_BxTxS < config.sliding_window))

  return _context(config, layer)


def attend(
  q_BxTxNxH: jax.Array,
  k_BxSxMxH: jax.Array,
  v_BxSxMxH: jax.Array,
  context: LayerContext,
  scale: float | None,
) -> jax.Array:
  """Returns the mix of values that each query asks for, [B, T, N, H].

  Args:
    q_BxTxNxH: rotated queries of N heads.
    k_BxSxMxH: rotated keys of M heads, M a divisor of N.
    v_BxSxMxH: values.
    context: what each query may see.
    scale: of the logits; `None` for 1 / sqrt(H).
  """
  if context.kernel is not None:
    return context.kernel(q_BxTxNxH, k_BxSxMxH, v_BxSxMxH)
  assert context.mask_BxTxS is not None
  return _masked(q_BxTxNxH, k_BxSxMxH, v_BxSxMxH, context.mask_BxTxS, scale)


def _obstacles(kind: str, config: DecoderConfig, backend: str) -> list[str]:
  """Why a kernel cannot serve a decoder on a platform."""
  if kind == "splash":
    return [] if backend == "tpu" else [f"it runs on TPUs, and this platform is {backend}"]
  size, problems = config.features_per_head, []
  if backend not in ("gpu", "cuda"):
    problems.append(f"it runs on CUDA GPUs, and this platform is {backend}")
  if config.dtype != "bfloat16":
    problems.append(f"dtype must be bfloat16, got {config.dtype}")
  if size % CUDNN_MULTIPLE or size > CUDNN_HEAD_SIZE:
    problems.append(
      f"head_size must be a multiple of {CUDNN_MULTIPLE} up to {CUDNN_HEAD_SIZE}, got {size}"
    )
  return problems


def _context(config: DecoderConfig, layer: Callable[[bool], LayerContext]) -> Context:
  kinds = set(config.local_layers)
  return Context(*(layer(local) if local in kinds else None for local in (False, True)))


def _packed_mask(segments_BxT: jax.Array, window: int | None) -> jax.Array:
  length = segments_BxT.shape[1]
  ago_TxT = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
  near_TxT = ago_TxT >= 0 if window is None else (ago_TxT >= 0) & (ago_TxT < window)
  return (segments_BxT[:, :, None] == segments_BxT[:, None, :]) & near_TxT


def _masked(
  q: jax.Array, k: jax.Array, v: jax.Array, mask_BxTxS: jax.Array, scale: float | None
) -> jax.Array:
  # Some queries at a time, whose logits fit a cache and are computed again in the backward
  # pass. Of whole rows no query sees a later key, so that these take no part. On one CPU core,
  # 8 rows of 256 or 4 of 512: 0.4 times the time of all at once, forward and backward.
  length, num_keys = mask_BxTxS.shape[1:]
  block = max(MASK_BLOCK, -(-length // MASK_BLOCKS))
  scale = q.shape[-1] ** -0.5 if scale is None else scale
  k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
  mixed = []
  for start in range(0, length, block):
    queries = slice(start, start + block)
    keys = slice(start + block if length == num_keys else num_keys)
    # Keys are sliced inside, since what comes in is what is kept for the backward pass.
    of_block = jax.checkpoint(functools.partial(_mask_block, scale, keys))
    mixed.append(of_block(q[:, queries], k, v, mask_BxTxS[:, queries]))
  return mixed[0] if len(mixed) == 1 else jnp.concatenate(mixed, axis=1)


def _mask_block(
  scale: float,
  keys: slice,
  q_BxTxNxH: jax.Array,
  k_BxMxSxH: jax.Array,
  v_BxMxSxH: jax.Array,
  mask_BxTxS: jax.Array,
) -> jax.Array:
  k, v = k_BxMxSxH[:, :, keys], v_BxMxSxH[:, :, keys]
  batch_size, length, _, size = q_BxTxNxH.shape
  num_kv_heads, num_keys = k.shape[1:3]
  # The queries of all heads that share a key are the rows of one matrix.
  q = q_BxTxNxH.reshape(batch_size, length, num_kv_heads, -1, size).transpose(0, 2, 3, 1, 4)
  q_BxMxRxH = q.reshape(batch_size, num_kv_heads, -1, size)
  # Stated, as the gradient would be taken in another precision than the product otherwise.
  precision = jax.lax.DotAlgorithmPreset.BF16_BF16_F32 if q.dtype == jnp.bfloat16 else None
  product = functools.partial(
    jnp.einsum, precision=precision, preferred_element_type=jnp.float32
  )
  logits_BxMxRxS = product("bmrh,bmsh->bmrs", q_BxMxRxH, k)
  logits = logits_BxMxRxS.reshape(batch_size, num_kv_heads, -1, length, num_keys) * scale
  seen = mask_BxTxS[:, None, None, :, keys]
  logits = jnp.where(seen, logits, -0.7 * jnp.finfo(jnp.float32).max)
  # A softmax whose division comes after the product, where there is less to divide.
  largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
  weights = jnp.exp(logits - largest)
  total_BxMxRx1 = jnp.sum(weights, axis=-1).reshape(*q_BxMxRxH.shape[:3], 1)
  weights_BxMxRxS = weights.astype(v.dtype).reshape(logits_BxMxRxS.shape)
  mixed_BxMxRxH = product("bmrs,bmsh->bmrh", weights_BxMxRxS, v)
  mixed = (mixed_BxMxRxH / total_BxMxRx1).astype(v.dtype).reshape(q.shape)
  return mixed.transpose(0, 3, 1, 2, 4).reshape(q_BxTxNxH.shape)


def _cudnn(
  mask_BxTxT: jax.Array, scale: float | None, q: jax.Array, k: jax.Array, v: jax.Array
) -> jax.Array:
  length = q.shape[1]
  q, k, v = (_pad_rows(x, 2) for x in (q, k, v))
  mask_BxTxT = _pad_rows(_pad_rows(mask_BxTxT, 2).swapaxes(1, 2), 2).swapaxes(1, 2)
  # The kernel's rule for vmap, which takes per-example gradients of one row each, knows biases
  # of every head only.
  heads = q.shape[2] if q.shape[0] == 1 else 1
  mask = jnp.broadcast_to(mask_BxTxT[:, None], (q.shape[0], heads, *mask_BxTxT.shape[1:]))
  attended = jax.nn.dot_product_attention(
    q, k, v, mask=mask, scale=scale, is_causal=True, implementation="cudnn"
  )
  return attended[:, :length]


def _splash(
  segments_BxT: jax.Array,
  window: int | None,
  scale: float | None,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
) -> jax.Array:
  """The kernel on each device's rows and heads; padding after a row is seen by none of it."""
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  length, scale = q.shape[1], q.shape[-1] ** -0.5 if scale is None else scale
  q = (q.astype(jnp.float32) * scale).astype(q.dtype)
  q, k, v, segments_BxT = (_pad_rows(x, SPLASH_MULTIPLE) for x in (q, k, v, segments_BxT))
  padded = q.shape[1]
  block = math.gcd(padded, 512)
  blocks = splash.BlockSizes(
    block_q=block,
    block_kv=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  mask = splash.LocalMask((padded, padded), (None if window is None else window - 1, 0), 0)

  def on_device(q: jax.Array, k: jax.Array, v: jax.Array, segments_BxT: jax.Array) -> jax.Array:
    kernel = splash.make_splash_mha_single_device(
      splash.MultiHeadMask([mask] * q.shape[2]),
      block_sizes=blocks,
      interpret=jax.default_backend() != "tpu",
    )
    heads_first = (x.swapaxes(1, 2) for x in (q, k, v))
    return jax.vmap(kernel)(*heads_first, splash.SegmentIds(segments_BxT, segments_BxT))

  attended = _on_devices(on_device, q, k, v, segments_BxT)
  return attended.swapaxes(1, 2)[:, :length]


def _on_devices(
  function: Callable[..., jax.Array], q: jax.Array, k: jax.Array, *rest: jax.Array
) -> jax.Array:
  """Calls a kernel that the compiler cannot split: on each device's rows and heads."""
  mesh = jax.sharding.get_abstract_mesh()
  axes = set(mesh.auto_axes)
  if not axes:
    return function(q, k, *rest)
  rows = tuple(axis for axis in BATCH_AXES if axis in axes)
  if q.shape[0] % math.prod(mesh.shape[axis] for axis in rows):
    rows = ()
  heads = "tensor" if "tensor" in axes and k.shape[2] % mesh.shape["tensor"] == 0 else None
  spec = jax.P(rows, None, heads, None)
  return jax.shard_map(
    function,
    in_specs=(spec, spec, spec, jax.P(rows, None)),
    out_specs=jax.P(rows, heads, None, None),
    axis_names=axes,
    check_vma=False,  # the kernel does not say over which axes its output varies
  )(q, k, *rest)


def _pad_rows(x: jax.Array, multiple: int) -> jax.Array:
  """Pads the second axis with zeros to a multiple."""
  return jnp.pad(x, [(0, 0), (0, -x.shape[1] % multiple)] + [(0, 0)] * (x.ndim - 2))
