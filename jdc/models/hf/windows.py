"""Which layers have a sliding window, as transformers 4 and 5 say it."""

from collections.abc import Mapping
from typing import Any

from jdc.models.decoder_config import DecoderConfig

_KINDS = {"full_attention": "global", "sliding_attention": "local"}


def read_windows(
  raw: Mapping[str, Any], windows: str, num_layers: int, problems: list[str]
) -> tuple[int | None, tuple[str, ...]]:
  """The window and the types of layers, which are empty where all are alike.

  Args:
    raw: a `config.json` with defaults.
    windows: which layers of the architecture may have one, as in `Family`.
    num_layers: layers of the model.
    problems: what the decoder does not implement is appended.
  """
  window = raw.get("sliding_window")
  if raw["model_type"].startswith("qwen") and not raw.get("use_sliding_window"):
    window = None
  if windows == "none" and window is not None:
    problems.append(f"sliding_window {window!r} of a {raw['model_type']}")
  if windows == "each":
    derived = _derived(raw, window, num_layers)
  else:
    derived = [window is not None] * num_layers
    split = raw.get("max_window_layers")
    if raw["model_type"] == "qwen3_moe" and window is not None and split:
      # Versions of transformers differ in whether the layers before it have a window.
      problems.append(f"max_window_layers {split!r} of a qwen3_moe with a window (accepted: 0)")
  local = _stated(raw, problems) or derived
  if windows != "each" and local != derived:
    problems.append(f"layer_types {raw['layer_types']!r} of a {raw['model_type']}")
  if any(local) and window is None:
    problems.append("layer_types with sliding_attention but no sliding_window")
  if not any(local):
    return None, ()
  return window, () if all(local) else tuple(
    "local" if is_local else "global" for is_local in local
  )


def write_windows(config: DecoderConfig, windows: str) -> dict[str, Any]:
  """The keys of both versions about windows."""
  local = config.local_layers
  window = config.sliding_window if any(local) else None
  if windows == "none":
    return {}
  result: dict[str, Any] = {"sliding_window": window}
  if config.family.startswith("qwen"):
    result["use_sliding_window"] = window is not None
    first = local.index(True) if any(local) else config.num_layers
    if all(local[first:]):
      result["max_window_layers"] = first
  if windows == "each":
    result["layer_types"] = ["sliding_attention" if x else "full_attention" for x in local]
  if config.family == "gemma3_text":
    period = local.index(False) + 1 if not all(local) else config.num_layers + 1
    if all(is_local == bool((i + 1) % period) for i, is_local in enumerate(local)):
      result["sliding_window_pattern"] = period
  return result


def _derived(raw: Mapping[str, Any], window: Any, num_layers: int) -> list[bool]:
  """Whether each layer is local by the rules of before `layer_types`."""
  if raw["model_type"] == "gemma3_text":
    period = raw.get("sliding_window_pattern") or raw.get("_sliding_window_pattern") or 6
    return [bool((i + 1) % period) for i in range(num_layers)]
  return [window is not None and i >= raw["max_window_layers"] for i in range(num_layers)]


def _stated(raw: Mapping[str, Any], problems: list[str]) -> list[bool]:
  kinds = raw.get("layer_types") or []
  unknown = sorted({repr(kind) for kind in kinds if kind not in _KINDS})
  if unknown:
    problems.append(f"layer_types {', '.join(unknown)} (accepted: {', '.join(_KINDS)})")
  return [kind == "sliding_attention" for kind in kinds]
