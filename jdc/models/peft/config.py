"""The `adapter_config.json` of the PEFT library, read and written."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jdc.models.decoder_config import DecoderConfig
from jdc.models.hf.files import read_json
from jdc.models.hf.names import Layout, leaves
from jdc.models.lora import LoraConfig, adaptable

CONFIG = "adapter_config.json"
# Keys that say nothing of what an adapter computes beside a given base model.
_INFORMATION = frozenset({
  "auto_mapping", "base_model_name_or_path", "eva_config", "inference_mode", "layers_pattern",
  "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config",
})  # fmt: skip
_READ = frozenset({
  "bias", "exclude_modules", "init_lora_weights", "lora_alpha", "lora_dropout", "peft_type",
  "r", "target_modules", "task_type", "use_rslora",
})  # fmt: skip
# The initial values that leave the base model as it is; others subtract them from its weights.
_INITIAL = (True, False, "gaussian", "orthogonal", "eva", "mica")
_ABSENT = object()


def module_names(config: DecoderConfig, prefix: str = "model.") -> dict[str, str]:
  """The linear maps of a decoder that can have an adapter, as transformers names them.

  Args:
    config: the decoder.
    prefix: what the names begin with.

  Returns:
    By module, such as "layers/attention/query", its name with {layer} for the layer.
  """
  table = leaves(config, Layout(prefix))
  return {
    module: table[*module.split("/"), "kernel"].template.removesuffix(".weight")
    for module in adaptable(config)
  }


def read_config(path: Path, config: DecoderConfig, prefix: str, dtype: str) -> LoraConfig:
  """Reads an `adapter_config.json`.

  Args:
    path: the file.
    config: the decoder that is adapted.
    prefix: what the names of modules begin with.
    dtype: of the adapters, which the file does not say.

  Raises:
    ValueError: listing every key that asks for what the decoder's adapters lack.
  """
  content = read_json(path)
  problems = [*_problems(content), *_number_problems(content)]
  targets: tuple[str, ...] = ()
  try:
    targets = _targets(content, module_names(config, prefix), config.num_layers)
  except ValueError as error:
    problems.append(str(error))
  if problems:
    raise ValueError(f"{path}: not an adapter of this decoder: " + "; ".join(problems))
  return LoraConfig(
    rank=content["r"],
    alpha=content["lora_alpha"],
    dropout=content.get("lora_dropout", 0.0),
    targets=targets,
    rank_stabilised=content.get("use_rslora", False),
    dtype=dtype,
  )


def to_config(
  lora: LoraConfig, config: DecoderConfig, base_model_name: str | None
) -> dict[str, Any]:
  """The content of an `adapter_config.json`."""
  names = module_names(config)
  adapted = [names[module].rpartition(".")[2] for module in names if lora.adapts(module)]
  return {
    "base_model_name_or_path": base_model_name,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
    "lora_dropout": lora.dropout,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": lora.rank,
    "target_modules": adapted,
    "task_type": "CAUSAL_LM",
    "use_rslora": lora.rank_stabilised,
  }


def _problems(content: Mapping[str, Any]) -> Iterator[str]:
  absent = [key for key in ("peft_type", "r", "lora_alpha") if key not in content]
  if absent:
    yield f"{', '.join(absent)} must be given"
  for key, accepted in (
    ("peft_type", ("LORA",)),
    ("task_type", (None, "CAUSAL_LM")),
    ("bias", ("none",)),
    ("init_lora_weights", _INITIAL),
  ):
    if key in content and content[key] not in accepted:
      yield f"{key} {content[key]!r} (accepted: {', '.join(map(str, accepted))})"
  for key in sorted(content.keys() - _INFORMATION - _READ):
    if content[key] not in (None, False, "", [], {}):
      yield f"{key} {content[key]!r}"


def _number_problems(content: Mapping[str, Any]) -> Iterator[str]:
  for key, accepted, right in (
    ("r", "a positive integer", lambda v: isinstance(v, int) and v >= 1),
    ("lora_alpha", "positive", lambda v: v > 0),
    ("lora_dropout", "in [0, 1)", lambda v: 0 <= v < 1),
    ("use_rslora", "true or false", lambda v: isinstance(v, bool)),
  ):
    value = content.get(key, _ABSENT)
    is_number = isinstance(value, int | float) and (key == "use_rslora") == (
      isinstance(value, bool)
    )
    if value is not _ABSENT and not (is_number and right(value)):
      yield f"{key} {value!r} must be {accepted}"


def _targets(
  content: Mapping[str, Any], modules: Mapping[str, str], num_layers: int
) -> tuple[str, ...]:
  """The adapted maps, by PEFT's own rules applied to the names of all modules."""
  given = content.get("target_modules")
  wanted = _matcher("target_modules", given)
  without = _matcher("exclude_modules", content.get("exclude_modules") or [])
  everything = isinstance(given, str) and given.lower() == "all-linear"

  def adapts(name: str) -> bool:
    return bool(everything or wanted(name)) and not without(name)

  problems, targets = [], []
  for module, name in modules.items():
    layers = [i for i in range(num_layers) if adapts(name.format(layer=i))]
    if len(layers) == num_layers:
      targets.append(module)
    elif layers:
      only, short = ", ".join(map(str, layers)), name.partition("{layer}.")[2]
      problems.append(f"{short} is adapted in layers {only} only, not in all {num_layers}")
  prefix = next(iter(modules.values())).partition("layers.")[0]
  others = () if everything else ("lm_head", f"{prefix}embed_tokens")
  problems += [f"{name} is adapted" for name in others if adapts(name)]
  if not targets and not problems:
    problems.append(f"target_modules {given!r} match no linear map")
  if problems:
    raise ValueError("; ".join(problems))
  return tuple(targets)


def _matcher(key: str, patterns: Any) -> Any:
  if isinstance(patterns, str):
    try:
      pattern = re.compile(patterns)
    except re.error as error:
      raise ValueError(f"{key} {patterns!r} is no regular expression: {error}") from None
    return pattern.fullmatch
  if not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns):
    raise ValueError(f"{key} {patterns!r} must be a list of names, or a string")
  suffixes = tuple(f".{p}" for p in patterns)
  return lambda name: name in patterns or name.endswith(suffixes)
