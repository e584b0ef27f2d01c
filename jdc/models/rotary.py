"""Rotary positions: the frequencies of each kind of layer, and the rotation."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdc.models.decoder_config import DecoderConfig, RopeScaling


class Rotation(NamedTuple):
  """The angles by which pairs of features turn; H is half the features of a head."""

  cos_BxTx1xH: jax.Array  # f32
  sin_BxTx1xH: jax.Array


def frequencies(config: DecoderConfig, *, local: bool) -> np.ndarray:
  """Returns the angle per position of each pair of features, f32[H], in radians.

    frequency_i = base^(-i / H), i = 0 .. H - 1, slowed down by the scaling of global layers

  Args:
    config: the decoder.
    local: of layers with a sliding window, where these have a base of their own.
  """
  half = config.features_per_head // 2
  own = local and config.local_rope_base is not None
  base = config.local_rope_base if own else config.rope_base
  assert base is not None
  frequency_H = base ** (-np.arange(half, dtype=np.float64) / half)
  if config.rope_scaling is not None and not own:
    frequency_H = _scaled(frequency_H, config.rope_scaling)
  return frequency_H.astype(np.float32)


def rotation(positions_BxT: jax.Array, frequency_H: np.ndarray) -> Rotation:
  """Returns the rotation of each position."""
  angle_BxTx1xH = positions_BxT[:, :, None, None].astype(jnp.float32) * frequency_H
  return Rotation(jnp.cos(angle_BxTx1xH), jnp.sin(angle_BxTx1xH))


def rotate(x_BxTxNxH: jax.Array, by: Rotation) -> jax.Array:
  """Turns the pair of features (i, i + H / 2) by its angle, in float32."""
  a, b = jnp.split(x_BxTxNxH.astype(jnp.float32), 2, axis=-1)
  cos, sin = by
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BxTxNxH.dtype)


def _scaled(frequency_H: np.ndarray, scaling: RopeScaling) -> np.ndarray:
  if scaling.kind == "linear":
    return frequency_H / scaling.factor
  # The share of each frequency that is left as it is: 1 for short wavelengths, 0 for long ones.
  turns_H = scaling.original_length * frequency_H / (2 * math.pi)
  low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
  kept_H = np.clip((turns_H - low) / (high - low), 0.0, 1.0)
  return kept_H * frequency_H + (1 - kept_H) * frequency_H / scaling.factor
