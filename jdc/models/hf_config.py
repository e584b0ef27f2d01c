"""Decoders as `config.json` of the Hugging Face library transformers, read and written."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jdc.models.decoder_config import DecoderConfig
from jdc.models.hf_rope import read_rope, write_rope

_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_LAYER_TYPES = {"full_attention": "global", "sliding_attention": "local"}
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


class Family(NamedTuple):
  """What an architecture of transformers fixes, and what it leaves open."""

  architecture: str  # the class that AutoModelForCausalLM makes
  fixed: Mapping[str, Any]  # fields of DecoderConfig that it does not leave open
  windows: str = "none"  # which layers may have a window: "none", "all" of them, or "each"
  defaults: Mapping[str, Any] = {}  # what transformers reads into keys that are absent
  experts: str | None = None  # the key of the width of an expert; None: dense
  free_heads: bool = True  # heads times their size may differ from the width


_DENSE = {
  "attention_bias": False,
  "qk_norm": "none",
  "norm_offset": 0.0,
  "post_norms": False,
  "scale_embeddings": False,
  "attention_scale": None,
  "local_rope_base": None,
}
_QWEN3 = _DENSE | {"qk_norm": "head"}
_GEMMA3 = {
  "attention_bias": False,
  "qk_norm": "head",
  "norm_offset": 1.0,
  "post_norms": True,
  "scale_embeddings": True,
}
# Published text parts of Gemma 3 leave out even sizes.
_GEMMA3_DEFAULTS = {
  "vocab_size": 262_208,
  "num_attention_heads": 8,
  "num_key_value_heads": 4,
  "head_dim": 256,
  "max_position_embeddings": 131_072,
  "hidden_act": "gelu_pytorch_tanh",
  "rope_theta": 1_000_000.0,
  "rope_local_base_freq": 10_000.0,
  "query_pre_attn_scalar": 256,
  "sliding_window": 4096,
  "tie_word_embeddings": True,
}
_WINDOW = {"sliding_window": 4096}

FAMILIES: Mapping[str, Family] = {
  "llama": Family("LlamaForCausalLM", _DENSE),
  "mistral": Family("MistralForCausalLM", _DENSE, "all", _WINDOW),
  "qwen2": Family("Qwen2ForCausalLM", _DENSE | {"attention_bias": True}, "each", _WINDOW),
  "qwen3": Family("Qwen3ForCausalLM", _QWEN3, "each", {**_WINDOW, "head_dim": 128}),
  "gemma3_text": Family("Gemma3ForCausalLM", _GEMMA3, "each", _GEMMA3_DEFAULTS),
  "mixtral": Family(
    "MixtralForCausalLM",
    _DENSE | {"normalise_experts": True},
    "all",
    {"rope_theta": 1_000_000.0, "rms_norm_eps": 1e-5},
    "intermediate_size",
  ),
  "qwen3_moe": Family("Qwen3MoeForCausalLM", _QWEN3, "all", _WINDOW, "moe_intermediate_size"),
  "olmoe": Family(
    "OlmoeForCausalLM",
    _DENSE | {"qk_norm": "all_heads"},
    "none",
    {"rms_norm_eps": 1e-5},
    "intermediate_size",
    free_heads=False,
  ),
}

# Keys that would change what a model computes, and the only values that change nothing here.
# `None`, and an absent key, never change anything.
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
  "pruned_heads": ({},),
  "quantization_config": (),
  "router_jitter_noise": (0,),
  "shared_expert_intermediate_size": (0,),
  "use_bidirectional_attention": (False,),
  "use_mrope": (False,),
}


def from_hf_config(
  source: Mapping[str, Any] | str | os.PathLike[str], **changes: Any
) -> DecoderConfig:
  """The decoder that a `config.json` of transformers 4 or 5 describes.

  Keys that are absent have the value that transformers gives them. Keys that only concern
  transformers itself, generation or the auxiliary loss of a router are not read; neither is the
  precision, which is the caller's choice.

  Args:
    source: the content of the file, its path, or the path of its folder. Of a multimodal
      `gemma3` the text part is read.
    **changes: fields of `DecoderConfig` with other values, such as dtype="bfloat16".

  Returns:
    The decoder. `head_size` is always stated; layers that are all alike have no `layer_types`.

  Raises:
    ValueError: listing every key, with its value, that asks for what the decoder lacks.

  Example:
    >>> sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
    >>> layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    >>> from_hf_config({"model_type": "qwen2", **sizes, **layers}).attention_bias
    True
    >>> from_hf_config({"model_type": "llama", "mlp_bias": True, **sizes, **layers})
    Traceback (most recent call last):
    ValueError: the decoder does not implement mlp_bias True
  """
  raw = _text_part(_content(source))
  family = FAMILIES.get(str(raw.get("model_type")))
  problems = list(_not_implemented(raw))
  if family is None:
    known = ", ".join(FAMILIES)
    problems.insert(0, f"model_type {raw.get('model_type')!r} (accepted: {known})")
    raise ValueError(_message(problems))
  raw = {**family.defaults, **{k: v for k, v in raw.items() if v is not None or k in _NULLABLE}}
  fields = dict(family.fixed)
  fields |= _sizes(raw, family, problems)
  window, layer_types = _windows(raw, family, problems)
  fields |= {"sliding_window": window, "layer_types": layer_types}
  fields |= read_rope(raw, window is not None, problems)
  fields |= _others(raw, family, problems)
  if problems:
    raise ValueError(_message(problems))
  return DecoderConfig(**{"family": raw["model_type"], **fields, **changes})


def to_hf_config(
  config: DecoderConfig,
  *,
  dtype: str | None = None,
  token_ids: Mapping[str, int | list[int] | None] | None = None,
) -> dict[str, Any]:
  """The `config.json` of a decoder, for transformers 4 and 5 alike.

  Rotary positions are written as both versions name them, since version 4 would take its own
  base where it does not find the name it knows.

  Args:
    config: the decoder.
    dtype: of the weights in the files; `None`: `config.parameter_dtype`.
    token_ids: `bos_token_id`, `eos_token_id`, `pad_token_id`; those absent are written as null,
      for the defaults of transformers belong to other vocabularies.

  Returns:
    What is to be written as JSON.

  Raises:
    ValueError: listing every field that the family `config.family` does not have in
      transformers, and every token id outside the vocabulary.
  """
  family = FAMILIES.get(config.family)
  if family is None:
    raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {config.family!r}")
  problems = [*_not_in_family(config, family), *_token_problems(config, token_ids or {})]
  if problems:
    raise ValueError(f"a {config.family} of transformers cannot have: " + "; ".join(problems))
  activation = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[config.activation]
  is_gemma = config.family == "gemma3_text"
  result: dict[str, Any] = {
    "architectures": [family.architecture],
    "model_type": config.family,
    "vocab_size": config.vocab_size,
    "hidden_size": config.width,
    "intermediate_size": config.mlp_width,
    "num_hidden_layers": config.num_layers,
    "num_attention_heads": config.num_heads,
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.features_per_head,
    "hidden_activation" if is_gemma else "hidden_act": activation,
    "max_position_embeddings": config.context_length,
    "rms_norm_eps": config.norm_epsilon,
    "tie_word_embeddings": config.tie_embeddings,
    "dtype": dtype or config.parameter_dtype,
    **{name: (token_ids or {}).get(name) for name in TOKEN_IDS},
    **write_rope(config),
    **_write_windows(config, family),
    **_write_experts(config, family),
  }
  if is_gemma:
    result["query_pre_attn_scalar"] = _query_scalar(config)
  elif config.family != "qwen2":
    result["attention_bias"] = False
  return result


def read_token_ids(source: Mapping[str, Any] | str | os.PathLike[str]) -> dict[str, Any]:
  """The token ids that a `config.json` states, as `to_hf_config` takes them."""
  content = _content(source)
  content = {**content, **(content.get("text_config") or {}), **_stated(content)}
  return _stated(content)


def _stated(content: Mapping[str, Any]) -> dict[str, Any]:
  return {name: content[name] for name in TOKEN_IDS if content.get(name) is not None}


def _content(source: Mapping[str, Any] | str | os.PathLike[str]) -> dict[str, Any]:
  if isinstance(source, Mapping):
    return dict(source)
  path = Path(source)
  path = path / "config.json" if path.is_dir() else path
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise ValueError(f"{path} does not exist") from None
  except ValueError as error:
    raise ValueError(f"{path} is not JSON: {error}") from None
  if not isinstance(content, dict):
    raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
  return content


def _text_part(raw: dict[str, Any]) -> dict[str, Any]:
  """The text model of a multimodal Gemma 3, which shares the keys of the whole."""
  if raw.get("model_type") != "gemma3" or not isinstance(raw.get("text_config"), Mapping):
    return raw
  shared = {k: raw[k] for k in ("tie_word_embeddings", "quantization_config") if k in raw}
  return {**shared, **raw["text_config"], "model_type": "gemma3_text"}


def _message(problems: list[str]) -> str:
  return "the decoder does not implement " + "; ".join(problems)
