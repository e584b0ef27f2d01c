"""Attention with segments, windows and caches, and how each platform computes it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdc.models.decoder_config import DecoderConfig
from jdc.models.rotary import Rotation, frequencies, rotation


class LayerContext(NamedTuple):
  """What layers of one kind read beside their input; T queries, S keys."""

  rotation: Rotation
  mask_Bx1xTxS: jax.Array  # bool, True where attention may look


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
    return jax.tree.map(lambda a, b: jnp.where(local, a, b), self.window, self.everywhere)


def packed_context(
  config: DecoderConfig, positions_BxT: jax.Array, segments_BxT: jax.Array
) -> Context:
  """Returns the context of whole rows: a token sees earlier ones of its own segment."""
  length = segments_BxT.shape[1]
  # Padding is a segment like any other, since a softmax over nothing is undefined.
  same_BxTxT = segments_BxT[:, :, None] == segments_BxT[:, None, :]
  ago_TxT = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
  return _context(config, positions_BxT, same_BxTxT & (ago_TxT >= 0), ago_TxT)


def cached_context(
  config: DecoderConfig,
  positions_BxT: jax.Array,
  cache_positions_BxS: jax.Array,
  cache_valid_BxS: jax.Array,
) -> Context:
  """Returns the context of tokens that follow those of a cache, which holds them already."""
  ago_BxTxS = positions_BxT[:, :, None] - cache_positions_BxS[:, None, :]
  seen_BxTxS = cache_valid_BxS[:, None, :] & (ago_BxTxS >= 0)
  return _context(config, positions_BxT, seen_BxTxS, ago_BxTxS)


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
  return jax.nn.dot_product_attention(
    q_BxTxNxH, k_BxSxMxH, v_BxSxMxH, mask=context.mask_Bx1xTxS, scale=scale
  )


def _context(
  config: DecoderConfig, positions_BxT: jax.Array, seen: jax.Array, ago: jax.Array
) -> Context:
  """A context from which keys may be seen, and how many positions ago each is."""
  kinds = set(config.local_layers)

  def layer(local: bool, seen: jax.Array) -> LayerContext:
    turned = rotation(positions_BxT, frequencies(config, local=local))
    return LayerContext(turned, seen[:, None])

  everywhere = layer(False, seen) if False in kinds else None
  if True not in kinds:
    return Context(everywhere, None)
  assert config.sliding_window is not None  # checked by the config
  return Context(everywhere, layer(True, seen & (ago < config.sliding_window)))
