"""Rotary positions as transformers 4 and 5 name them."""

from collections.abc import Mapping
from typing import Any

from jdc.models.decoder_config import DecoderConfig, RopeScaling

_LAYER_TYPES = ("full_attention", "sliding_attention")
_KEYS = {
  "default": {"rope_theta", "rope_type", "type"},
  "linear": {"rope_theta", "rope_type", "type", "factor"},
  "llama3": {
    "rope_theta",
    "rope_type",
    "type",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
  },
}


def read_rope(raw: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
  """The fields of `DecoderConfig` about rotary positions.

  Args:
    raw: a `config.json` with defaults, either with `rope_parameters` (transformers 5; by type
      of layer for Gemma 3) or with `rope_theta`, `rope_scaling` and `rope_local_base_freq`.
    problems: what the decoder does not implement is appended.
  """
  new, old = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
  if raw["model_type"] != "gemma3_text":
    # transformers, too, reads the old key where both are there.
    base, scaling = _one_kind("rope", old or new, raw, raw["rope_theta"], problems)
    return {"rope_base": base, "rope_scaling": scaling}
  by_type = set(new) <= set(_LAYER_TYPES)
  if not by_type:
    problems.append(f"rope_parameters {new!r} (accepted: by type of layer)")
    new = {}
  full = {**(new.get("full_attention") or {}), **old}
  local = new.get("sliding_attention") or {}
  base, scaling = _one_kind("rope", full, raw, raw["rope_theta"], problems)
  local_default = raw["rope_local_base_freq"]
  local_base, local_scaling = _one_kind("local rope", local, raw, local_default, problems)
  if local_scaling is not None:
    problems.append(f"rope_parameters of sliding_attention {local!r} (accepted: default)")
  return {"rope_base": base, "rope_scaling": scaling, "local_rope_base": local_base}


def write_rope(config: DecoderConfig) -> dict[str, Any]:
  """The keys of both versions: version 4 would take its default base for one not found."""
  scaling = _scaling_keys(config.rope_scaling)
  old: dict[str, Any] = {"rope_theta": config.rope_base, "rope_scaling": scaling or None}
  new = {"rope_type": "default", **scaling, "rope_theta": config.rope_base}
  if config.family != "gemma3_text":
    return {**old, "rope_parameters": new}
  local = config.rope_base if config.local_rope_base is None else config.local_rope_base
  by_type = {
    "full_attention": new,
    "sliding_attention": {"rope_type": "default", "rope_theta": local},
  }
  return {**old, "rope_local_base_freq": local, "rope_parameters": by_type}


def _one_kind(
  what: str,
  given: Mapping[str, Any],
  raw: Mapping[str, Any],
  default_base: float,
  problems: list[str],
) -> tuple[Any, RopeScaling | None]:
  """The base and scaling of one kind of layers."""
  kind = given.get("rope_type", given.get("type", "default"))
  base = given.get("rope_theta", default_base)
  if kind not in _KEYS:
    problems.append(f"{what} scaling {kind!r} (accepted: {', '.join(_KEYS)})")
    return base, None
  neutral = {"partial_rotary_factor": 1, "attention_factor": 1}
  problems.extend(
    f"{what} scaling {kind!r} with {key} {given[key]!r}"
    for key in sorted(given.keys() - _KEYS[kind])
    if given[key] is not None and given[key] != neutral.get(key)
  )
  if kind == "default":
    return base, None
  length = given.get("original_max_position_embeddings") or raw["max_position_embeddings"]
  wanted = {"factor"} if kind == "linear" else {"factor", "low_freq_factor", "high_freq_factor"}
  absent = sorted(wanted - given.keys())
  if kind == "llama3" and not length:
    absent.append("original_max_position_embeddings")
  if absent:
    problems.append(f"{what} scaling {kind!r} without {', '.join(absent)}")
    return base, None
  if kind == "linear":
    return base, RopeScaling("linear", given["factor"])
  low, high = given["low_freq_factor"], given["high_freq_factor"]
  return base, RopeScaling("llama3", given["factor"], low, high, length)


def _scaling_keys(scaling: RopeScaling | None) -> dict[str, Any]:
  if scaling is None:
    return {}
  if scaling.kind == "linear":
    return {"rope_type": "linear", "factor": scaling.factor}
  return {
    "rope_type": "llama3",
    "factor": scaling.factor,
    "low_freq_factor": scaling.low_frequency_factor,
    "high_freq_factor": scaling.high_frequency_factor,
    "original_max_position_embeddings": scaling.original_length,
  }
