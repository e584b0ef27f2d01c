"""Attention under a mask, and the fused kernels of TPUs and GPUs.

All take queries [B, T, N, H], keys and values [B, S, M, H], M a divisor of N, and the scale of
the logits, `None` for 1 / sqrt(H); they return [B, T, N, H].
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jdc.models.base import BATCH_AXES

SPLASH_MULTIPLE = 128  # rows are padded to a multiple of the kernel's blocks
MASK_BLOCK, MASK_BLOCKS = 64, 8  # queries at a time, at least; blocks of a row, at most


def masked(
  q: jax.Array, k: jax.Array, v: jax.Array, mask_BxTxS: jax.Array, scale: float | None
) -> jax.Array:
  """A softmax over keys where the mask is True; with S = T, of none after the query."""
  # Some queries at a time, whose logits fit a cache and are computed again in the backward
  # pass. On one CPU core, 8 rows of 256: 0.4 times the time of all at once, both passes.
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


def cudnn(
  mask_BxTxT: jax.Array, scale: float | None, q: jax.Array, k: jax.Array, v: jax.Array
) -> jax.Array:
  """The fused kernel of cuDNN, in bfloat16; the mask has to be causal."""
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


def splash(
  segments_BxT: jax.Array,
  window: int | None,
  scale: float | None,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
) -> jax.Array:
  """The kernel on each device's rows and heads; padding after a row is seen by none of it."""
  from jax.experimental.pallas.ops.tpu import splash_attention as pallas

  length, scale = q.shape[1], q.shape[-1] ** -0.5 if scale is None else scale
  q = (q.astype(jnp.float32) * scale).astype(q.dtype)
  q, k, v, segments_BxT = (_pad_rows(x, SPLASH_MULTIPLE) for x in (q, k, v, segments_BxT))
  padded = q.shape[1]
  block = math.gcd(padded, 512)
  blocks = pallas.BlockSizes(
    block_q=block,
    block_kv=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  mask = pallas.LocalMask((padded, padded), (None if window is None else window - 1, 0), 0)

  def on_device(q: jax.Array, k: jax.Array, v: jax.Array, segments_BxT: jax.Array) -> jax.Array:
    kernel = pallas.make_splash_mha_single_device(
      pallas.MultiHeadMask([mask] * q.shape[2]),
      block_sizes=blocks,
      interpret=jax.default_backend() != "tpu",
    )
    heads_first = (x.swapaxes(1, 2) for x in (q, k, v))
    return jax.vmap(kernel)(*heads_first, pallas.SegmentIds(segments_BxT, segments_BxT))

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
