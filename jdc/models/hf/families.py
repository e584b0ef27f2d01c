"""The architectures of transformers that the decoder covers, and what each of them fixes."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jdc.models.decoder_config import DecoderConfig

ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}


class Family(NamedTuple):
  """An architecture: what it fixes, and what it leaves open."""

  architecture: str  # the class that AutoModelForCausalLM makes
  fixed: Mapping[str, Any]  # fields of DecoderConfig with the only value that it has
  defaults: Mapping[str, Any]  # what transformers takes where config.json lacks a key
  windows: str = "none"  # which layers may have a window: "none", "all" of them, or "each"
  expert_width: str | None = None  # the key of the width of an expert; None: dense
  width_is_heads: bool = False  # the width must be heads times their size


_DENSE = {
  "attention_bias": False,
  "qk_norm": "none",
  "norm_offset": 0.0,
  "post_norms": False,
  "scale_embeddings": False,
  "attention_scale": None,
  "local_rope_base": None,
}
_GEMMA3 = {
  "attention_bias": False,
  "qk_norm": "head",
  "norm_offset": 1.0,
  "post_norms": True,
  "scale_embeddings": True,
}
_DEFAULTS = {
  "hidden_act": "silu",
  "max_position_embeddings": 0,
  "rms_norm_eps": 1e-6,
  "rope_theta": 10_000.0,
  "tie_word_embeddings": False,
}
# The published text parts of multimodal checkpoints leave out even sizes.
_GEMMA3_DEFAULTS = {
  "vocab_size": 262_208,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "head_dim": 256,
  "max_position_embeddings": 131_072,
  "hidden_activation": "gelu_pytorch_tanh",
  "rope_theta": 1_000_000.0,
  "rope_local_base_freq": 10_000.0,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
  "tie_word_embeddings": True,
}

FAMILIES: Mapping[str, Family] = {
  "llama": Family("LlamaForCausalLM", _DENSE, _DEFAULTS),
  "mistral": Family(
    "MistralForCausalLM",
    _DENSE,
    _DEFAULTS | {"num_key_value_heads": 8, "sliding_window": 4096},
    windows="all",
  ),
  "qwen2": Family(
    "Qwen2ForCausalLM",
    _DENSE | {"attention_bias": True},
    _DEFAULTS | {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    windows="each",
  ),
  "qwen3": Family(
    "Qwen3ForCausalLM",
    _DENSE | {"qk_norm": "head"},
    _DEFAULTS
    | {"num_key_value_heads": 32, "head_dim": 128}
    | {"sliding_window": 4096, "max_window_layers": 28},
    windows="each",
  ),
  "gemma3_text": Family(
    "Gemma3ForCausalLM", _GEMMA3, _DEFAULTS | _GEMMA3_DEFAULTS, windows="each"
  ),
  "mixtral": Family(
    "MixtralForCausalLM",
    _DENSE | {"normalise_experts": True},
    _DEFAULTS | {"num_key_value_heads": 8, "rope_theta": 1_000_000.0, "rms_norm_eps": 1e-5},
    windows="all",
    expert_width="intermediate_size",
  ),
  "qwen3_moe": Family(
    "Qwen3MoeForCausalLM",
    _DENSE | {"qk_norm": "head"},
    _DEFAULTS | {"num_key_value_heads": 4, "sliding_window": 4096, "norm_topk_prob": False},
    windows="all",
    expert_width="moe_intermediate_size",
  ),
  "olmoe": Family(
    "OlmoeForCausalLM",
    _DENSE | {"qk_norm": "all_heads"},
    _DEFAULTS | {"rms_norm_eps": 1e-5, "norm_topk_prob": False},
    expert_width="intermediate_size",
    width_is_heads=True,
  ),
}

# Keys that would change what a model computes, and the values with which they do not. An absent
# key and null never do.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
  "add_cross_attention": (False,),
  "attention_bias": (False,),
  "attention_dropout": (0,),
  "attn_logit_softcapping": (),
  "auto_map": (),
  "clip_qkv": (),
  "decoder_sparse_step": (1,),
  "final_logit_softcapping": (),
  "is_encoder_decoder": (False,),
  "mlp_bias": (False,),
  "mlp_only_layers": ([],),
  "n_shared_experts": (0,),
  "num_nextn_predict_layers": (0,),
  "partial_rotary_factor": (1,),
  "per_layer_config": ({}, []),
  "quantization_config": (),
  "router_jitter_noise": (0,),
  "shared_expert_intermediate_size": (0,),
  "use_bidirectional_attention": (False,),
  "use_mrope": (False,),
}


def not_implemented(raw: Mapping[str, Any]) -> Iterator[str]:
  """Yields each key of a `config.json`, with its value, that asks for what no decoder has."""
  for key, neutral in _NEUTRAL.items():
    ignored = (
      key == "attention_bias" and raw.get("model_type") == "qwen2"
    )  # by transformers too
    if raw.get(key) is not None and raw[key] not in neutral and not ignored:
      yield f"{key} {raw[key]!r}"


def not_in_family(config: DecoderConfig, family: Family) -> Iterator[str]:
  """Yields each field of a decoder, with its value, that its architecture does not have."""
  for name, value in family.fixed.items():
    if name == "normalise_experts" and not config.num_experts:
      continue
    if getattr(config, name) != value:
      yield f"{name} {getattr(config, name)!r} (only {value!r})"
  local = config.local_layers
  if any(local) and (family.windows == "none" or (family.windows == "all" and not all(local))):
    some = "every layer or none" if family.windows == "all" else "no layer"
    yield f"sliding_window {config.sliding_window} of {sum(local)} layers (only of {some})"
  if bool(config.num_experts) != (family.expert_width is not None):
    accepted = "at least 1" if family.expert_width else "only 0"
    yield f"num_experts {config.num_experts} ({accepted})"
  heads = config.num_heads * config.features_per_head
  if family.width_is_heads and heads != config.width:
    yield f"head_size {config.features_per_head} (only width / num_heads)"
  elif config.family in ("llama", "gemma3_text") and config.width % config.num_heads:
    yield f"width {config.width} (only multiples of num_heads {config.num_heads})"
  if not config.context_length:
    yield "context_length 0 (it must be stated)"
