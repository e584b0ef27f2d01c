"""Attention with segments, windows and caches, and how each platform computes it.

`DecoderConfig.attention` says how, and `choose` what "auto" means:

  mask    plain products and a softmax under a mask; everywhere, and always over a cache
  splash  the Pallas kernel of TPUs, which takes segments and skips what they exclude
  cudnn   the fused kernel of CUDA GPUs, bfloat16 only, with segments and windows as a mask
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdc.models import attention_kernels
from jdc.models.decoder_config import DecoderConfig
from jdc.models.rotary import Rotation, frequencies, rotation

CUDNN_MULTIPLE = 8  # of the features of a head
CUDNN_HEAD_SIZE = 128  # the largest that every supported GPU takes

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
    window, scale = config.sliding_window if local else None, config.attention_scale
    turned = rotation(positions_BxT, frequencies(config, local=local))
    if config.attention == "splash":
      kernel = functools.partial(
        attention_kernels.splash, segments_BxT, window, config.attention_scale
      )
      return LayerContext(turned, kernel=kernel)
    mask_BxTxT = _packed_mask(segments_BxT, window)
    if config.attention == "cudnn":
      kernel = functools.partial(attention_kernels.cudnn, mask_BxTxT, scale)
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
  return attention_kernels.masked(q_BxTxNxH, k_BxSxMxH, v_BxSxMxH, context.mask_BxTxS, scale)


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
