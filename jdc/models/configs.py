"""Decoders by name: the shapes of published checkpoints.

Each function returns what the checkpoint's `config.json` says; `changes` are fields with other
values, such as `dtype="bfloat16"`. Parameter counts count a tied embedding once.
"""

from typing import Any

from jdc.models.decoder_config import DecoderConfig as DecoderConfig
from jdc.models.decoder_config import RopeScaling as RopeScaling

_LLAMA3: dict[str, Any] = {
  "family": "llama",
  "vocab_size": 128_256,
  "num_kv_heads": 8,
  "context_length": 131_072,
  "rope_base": 500_000.0,
  "norm_epsilon": 1e-5,
}
_QWEN2_5: dict[str, Any] = {
  "family": "qwen2",
  "vocab_size": 151_936,
  "context_length": 131_072,
  "attention_bias": True,
  "rope_base": 1_000_000.0,
}
_QWEN3: dict[str, Any] = {
  "family": "qwen3",
  "vocab_size": 151_936,
  "num_heads": 16,
  "num_kv_heads": 8,
  "head_size": 128,
  "context_length": 40_960,
  "qk_norm": "head",
  "rope_base": 1_000_000.0,
  "tie_embeddings": True,
}
_GEMMA3: dict[str, Any] = {
  "family": "gemma3_text",
  "vocab_size": 262_144,
  "num_heads": 4,
  "num_kv_heads": 1,
  "head_size": 256,
  "context_length": 32_768,
  "activation": "gelu_tanh",
  "qk_norm": "head",
  "sliding_window": 512,
  "rope_base": 1_000_000.0,
  "local_rope_base": 10_000.0,
  "norm_offset": 1.0,
  "post_norms": True,
  "scale_embeddings": True,
  "tie_embeddings": True,
}


def llama2_7b(**changes: Any) -> DecoderConfig:
  """Llama 2 7B: 6,738,415,616 parameters."""
  own: dict[str, Any] = {
    "vocab_size": 32_000,
    "width": 4096,
    "num_layers": 32,
    "num_heads": 32,
    "num_kv_heads": 32,
    "mlp_width": 11_008,
    "head_size": 128,
    "context_length": 4096,
    "norm_epsilon": 1e-5,
  }
  return DecoderConfig(**(own | changes))


def llama3_1_8b(**changes: Any) -> DecoderConfig:
  """Llama 3.1 8B: 8,030,261,248 parameters."""
  own: dict[str, Any] = {
    "width": 4096,
    "num_layers": 32,
    "num_heads": 32,
    "mlp_width": 14_336,
    "head_size": 128,
    "rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
  }
  return DecoderConfig(**(_LLAMA3 | own | changes))


def llama3_2_1b(**changes: Any) -> DecoderConfig:
  """Llama 3.2 1B: 1,235,814,400 parameters.

  Example:
    >>> llama3_2_1b(remat="layer").width
    2048
  """
  own: dict[str, Any] = {
    "width": 2048,
    "num_layers": 16,
    "num_heads": 32,
    "mlp_width": 8192,
    "head_size": 64,
    "rope_scaling": RopeScaling("llama3", 32.0, 1.0, 4.0, 8192),
    "tie_embeddings": True,
  }
  return DecoderConfig(**(_LLAMA3 | own | changes))


def llama3_2_3b(**changes: Any) -> DecoderConfig:
  """Llama 3.2 3B: 3,212,749,824 parameters."""
  own: dict[str, Any] = {
    "width": 3072,
    "num_layers": 28,
    "num_heads": 24,
    "mlp_width": 8192,
    "head_size": 128,
    "rope_scaling": RopeScaling("llama3", 32.0, 1.0, 4.0, 8192),
    "tie_embeddings": True,
  }
  return DecoderConfig(**(_LLAMA3 | own | changes))


def mistral_7b(**changes: Any) -> DecoderConfig:
  """Mistral 7B v0.1, the one with a sliding window: 7,241,732,096 parameters.

  v0.3 is `mistral_7b(vocab_size=32_768, rope_base=1_000_000.0, sliding_window=None)`.
  """
  own: dict[str, Any] = {
    "family": "mistral",
    "vocab_size": 32_000,
    "width": 4096,
    "num_layers": 32,
    "num_heads": 32,
    "num_kv_heads": 8,
    "mlp_width": 14_336,
    "head_size": 128,
    "context_length": 32_768,
    "sliding_window": 4096,
    "norm_epsilon": 1e-5,
  }
  return DecoderConfig(**(own | changes))


def qwen2_5_0_5b(**changes: Any) -> DecoderConfig:
  """Qwen2.5 0.5B: 494,032,768 parameters."""
  own: dict[str, Any] = {
    "width": 896,
    "num_layers": 24,
    "num_heads": 14,
    "num_kv_heads": 2,
    "mlp_width": 4864,
    "head_size": 64,
    "context_length": 32_768,
    "tie_embeddings": True,
  }
  return DecoderConfig(**(_QWEN2_5 | own | changes))


def qwen2_5_1_5b(**changes: Any) -> DecoderConfig:
  """Qwen2.5 1.5B: 1,543,714,304 parameters; the instruct model states 32,768 positions."""
  own: dict[str, Any] = {
    "width": 1536,
    "num_layers": 28,
    "num_heads": 12,
    "num_kv_heads": 2,
    "mlp_width": 8960,
    "head_size": 128,
    "tie_embeddings": True,
  }
  return DecoderConfig(**(_QWEN2_5 | own | changes))


def qwen2_5_7b(**changes: Any) -> DecoderConfig:
  """Qwen2.5 7B: 7,615,616,512 parameters; the instruct model states 32,768 positions."""
  own: dict[str, Any] = {
    "vocab_size": 152_064,
    "width": 3584,
    "num_layers": 28,
    "num_heads": 28,
    "num_kv_heads": 4,
    "mlp_width": 18_944,
    "head_size": 128,
  }
  return DecoderConfig(**(_QWEN2_5 | own | changes))


def qwen3_0_6b(**changes: Any) -> DecoderConfig:
  """Qwen3 0.6B: 596,049,920 parameters."""
  own: dict[str, Any] = {"width": 1024, "num_layers": 28, "mlp_width": 3072}
  return DecoderConfig(**(_QWEN3 | own | changes))


def qwen3_1_7b(**changes: Any) -> DecoderConfig:
  """Qwen3 1.7B: 1,720,574,976 parameters."""
  own: dict[str, Any] = {"width": 2048, "num_layers": 28, "mlp_width": 6144}
  return DecoderConfig(**(_QWEN3 | own | changes))


def qwen3_30b_a3b(**changes: Any) -> DecoderConfig:
  """Qwen3 30B-A3B, 128 experts of which 8 are chosen: 30,532,122,624 parameters."""
  own: dict[str, Any] = {
    "family": "qwen3_moe",
    "width": 2048,
    "num_layers": 48,
    "num_heads": 32,
    "num_kv_heads": 4,
    "mlp_width": 768,
    "tie_embeddings": False,
    "num_experts": 128,
    "experts_per_token": 8,
  }
  return DecoderConfig(**(_QWEN3 | own | changes))


def gemma3_270m(**changes: Any) -> DecoderConfig:
  """Gemma 3 270M: 268,098,176 parameters."""
  own: dict[str, Any] = {"width": 640, "num_layers": 18, "mlp_width": 2048}
  return _gemma3(own | changes)


def gemma3_1b(**changes: Any) -> DecoderConfig:
  """Gemma 3 1B: 999,885,952 parameters."""
  own: dict[str, Any] = {"width": 1152, "num_layers": 26, "mlp_width": 6912}
  return _gemma3(own | changes)


def mixtral_8x7b(**changes: Any) -> DecoderConfig:
  """Mixtral 8x7B v0.1, 8 experts of which 2 are chosen: 46,702,792,704 parameters."""
  own: dict[str, Any] = {
    "family": "mixtral",
    "vocab_size": 32_000,
    "width": 4096,
    "num_layers": 32,
    "num_heads": 32,
    "num_kv_heads": 8,
    "mlp_width": 14_336,
    "head_size": 128,
    "context_length": 32_768,
    "rope_base": 1_000_000.0,
    "norm_epsilon": 1e-5,
    "num_experts": 8,
    "experts_per_token": 2,
  }
  return DecoderConfig(**(own | changes))


def olmoe_1b_7b(**changes: Any) -> DecoderConfig:
  """OLMoE 1B-7B 0924, 64 experts of which 8 are chosen: 6,919,161,856 parameters."""
  own: dict[str, Any] = {
    "family": "olmoe",
    "vocab_size": 50_304,
    "width": 2048,
    "num_layers": 16,
    "num_heads": 16,
    "num_kv_heads": 16,
    "mlp_width": 1024,
    "head_size": 128,
    "context_length": 4096,
    "qk_norm": "all_heads",
    "norm_epsilon": 1e-5,
    "num_experts": 64,
    "experts_per_token": 8,
    "normalise_experts": False,
  }
  return DecoderConfig(**(own | changes))


def _gemma3(fields: dict[str, Any]) -> DecoderConfig:
  """Five local layers before each global one, however many layers there are."""
  kinds = ["global" if i % 6 == 5 else "local" for i in range(fields["num_layers"])]
  return DecoderConfig(**(_GEMMA3 | {"layer_types": tuple(kinds)} | fields))
