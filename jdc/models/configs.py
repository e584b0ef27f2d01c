"""Decoders by name: the shapes of published checkpoints."""

import dataclasses
from typing import Any

from jdc.models.decoder_config import DecoderConfig as DecoderConfig
from jdc.models.decoder_config import RopeScaling as RopeScaling


def llama3_2_1b(**changes: Any) -> DecoderConfig:
  """Llama 3.2 1B; `changes` are fields with other values, such as dtype="bfloat16".

  Example:
    >>> llama3_2_1b(remat="layer").width
    2048
  """
  return dataclasses.replace(
    DecoderConfig(
      vocab_size=128_256,
      width=2048,
      num_layers=16,
      num_heads=32,
      num_kv_heads=8,
      mlp_width=8192,
      head_size=64,
      context_length=131_072,
      rope_base=500_000.0,
      rope_scaling=RopeScaling("llama3", 32.0, 1.0, 4.0, 8192),
      norm_epsilon=1e-5,
      tie_embeddings=True,
    ),
    **changes,
  )
