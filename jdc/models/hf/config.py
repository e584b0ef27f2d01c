"""The decoder that a `config.json` of transformers describes."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jdc.models.decoder_config import DecoderConfig
from jdc.models.hf.families import (
  ACTIVATIONS,
  FAMILIES,
  Family,
  not_implemented,
)
from jdc.models.hf.files import read_json
from jdc.models.hf.rope import read_rope
from jdc.models.hf.windows import read_windows

Source = Mapping[str, Any] | str | os.PathLike[str]

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
SIZES = {
  "vocab_size": "vocab_size",
  "hidden_size": "width",
  "num_hidden_layers": "num_layers",
  "num_attention_heads": "num_heads",
}
_NULL_MEANS = ("num_key_value_heads", "sliding_window")  # something else than an absent key


def from_hf_config(source: Source, **changes: Any) -> DecoderConfig:
  """The decoder that a `config.json` of transformers 4 or 5 describes.

  Absent keys have the value that transformers gives them. Keys that concern transformers
  itself or generation are not read; neither are the precision and the auxiliary loss of a
  router, which are the caller's choice. What transformers adds to a loss with
  `output_router_logits`, which published checkpoints do not set, and `router_aux_loss_coef` = c
  is balance_weight = c * num_experts_per_tok: its shares of the k choices sum to k. It takes
  them over all layers together, where `jdc.models.moe.balance_loss` averages over layers.

  Args:
    source: the content of the file, its path, or the path of its folder. Of a multimodal
      `gemma3` the text part is read.
    **changes: fields of `DecoderConfig` with other values, such as dtype="bfloat16".

  Returns:
    The decoder. `head_size` is always stated; layers that are all alike have no `layer_types`.

  Raises:
    ValueError: listing every key, with its value, that is absent or asks for what the decoder
      does not implement.

  Example:
    >>> sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48}
    >>> heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    >>> from_hf_config({"model_type": "qwen2"} | sizes | heads).attention_bias
    True
    >>> from_hf_config({"model_type": "llama", "mlp_bias": True} | sizes | heads)
    Traceback (most recent call last):
    ValueError: config.json: not implemented: mlp_bias True
  """
  raw = _text_part(_content(source))
  family = FAMILIES.get(str(raw.get("model_type")))
  problems = list(not_implemented(raw))
  if family is None:
    accepted = ", ".join(FAMILIES)
    problems.insert(0, f"model_type {raw.get('model_type')!r} (accepted: {accepted})")
    raise ValueError(f"config.json: not implemented: {'; '.join(problems)}")
  stated = {k: v for k, v in raw.items() if v is not None or k in _NULL_MEANS}
  raw = {**family.defaults, **stated}
  rope = read_rope(raw, problems)
  sizes = list(_size_problems(raw, family))
  if sizes:  # what follows computes with them
    raise ValueError(f"config.json: not implemented: {'; '.join(sizes + problems)}")
  fields = {**family.fixed, **_fields(raw, family, problems), **rope}
  window, kinds = read_windows(raw, family.windows, raw["num_hidden_layers"], problems)
  if window is None:
    fields["local_rope_base"] = None
  if problems:
    raise ValueError(f"config.json: not implemented: {'; '.join(problems)}")
  return DecoderConfig(**(fields | {"sliding_window": window, "layer_types": kinds} | changes))


def read_token_ids(source: Source) -> dict[str, Any]:
  """The token ids in a `config.json`, as `to_hf_config` takes them."""
  content = _content(source)
  content = {**(content.get("text_config") or {}), **content}
  return {name: content[name] for name in TOKEN_IDS if content.get(name) is not None}


def _content(source: Source) -> dict[str, Any]:
  if isinstance(source, Mapping):
    return dict(source)
  path = Path(source)
  return read_json(path / "config.json" if path.is_dir() else path)


def _text_part(raw: dict[str, Any]) -> dict[str, Any]:
  """The text model of a multimodal Gemma 3; some keys are stated for the whole only."""
  if raw.get("model_type") != "gemma3" or not isinstance(raw.get("text_config"), Mapping):
    return raw
  whole = {k: raw[k] for k in ("tie_word_embeddings", "quantization_config") if k in raw}
  return {**whole, **raw["text_config"], "model_type": "gemma3_text"}


def _size_problems(raw: Mapping[str, Any], family: Family) -> Iterator[str]:
  """Yields what the rest of the reading computes with and is not a positive whole number."""
  needed = [*SIZES, family.expert_width or "intermediate_size"]
  if family.expert_width:
    raw = {**raw, "num_experts": _num_experts(raw)}
    needed += ["num_experts", "num_experts_per_tok"]
  optional = ["num_key_value_heads", "head_dim", "query_pre_attn_scalar", "sliding_window"]
  for key in needed + [key for key in optional if raw.get(key) is not None]:
    value = raw.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      yield f"{key} {value!r} (accepted: whole numbers from 1)"


def _fields(raw: Mapping[str, Any], family: Family, problems: list[str]) -> dict[str, Any]:
  """The fields that are a matter of one key each."""
  heads = raw["num_attention_heads"]
  fields = {name: raw[key] for key, name in SIZES.items()}
  head_size = raw.get("head_dim") or raw["hidden_size"] // heads
  if family.width_is_heads and head_size * heads != raw["hidden_size"]:
    problems.append(f"head_dim {head_size} of a {raw['model_type']}")
  key = "hidden_activation" if raw["model_type"] == "gemma3_text" else "hidden_act"
  if raw[key] not in ACTIVATIONS:
    problems.append(f"{key} {raw[key]!r} (accepted: {', '.join(ACTIVATIONS)})")
  if raw["model_type"] == "gemma3_text":
    scalar = raw["query_pre_attn_scalar"]
    fields["attention_scale"] = None if scalar == head_size else scalar**-0.5
  if family.expert_width:
    fields["num_experts"] = _num_experts(raw)
    fields["experts_per_token"] = raw["num_experts_per_tok"]
    fields["normalise_experts"] = raw.get("norm_topk_prob", True)
  return fields | {
    "family": raw["model_type"],
    "mlp_width": raw[family.expert_width or "intermediate_size"],
    "num_kv_heads": raw.get("num_key_value_heads") or heads,
    "head_size": head_size,
    "context_length": raw["max_position_embeddings"],
    "activation": ACTIVATIONS.get(raw[key]),
    "norm_epsilon": raw["rms_norm_eps"],
    "tie_embeddings": raw["tie_word_embeddings"],
  }


def _num_experts(raw: Mapping[str, Any]) -> Any:
  return raw.get("num_local_experts", raw.get("num_experts"))
