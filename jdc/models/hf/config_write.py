"""The `config.json` of a decoder, for transformers."""

from collections.abc import Iterator, Mapping
from typing import Any

from jdc.models.decoder_config import DecoderConfig
from jdc.models.hf.config import SIZES, TOKEN_IDS
from jdc.models.hf.families import ACTIVATIONS, FAMILIES, Family, not_in_family
from jdc.models.hf.rope import write_rope
from jdc.models.hf.windows import write_windows


def to_hf_config(
  config: DecoderConfig,
  *,
  dtype: str | None = None,
  token_ids: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """The `config.json` of a decoder, for transformers 4 and 5 alike.

  Args:
    config: the decoder.
    dtype: of the weights in the files; `None`: `config.parameter_dtype`.
    token_ids: `bos_token_id`, `eos_token_id`, `pad_token_id`, where there are any. Those absent
      are written as null, since the defaults of transformers belong to other vocabularies.

  Returns:
    What is to be written as JSON.

  Raises:
    ValueError: listing every field that the architecture `config.family` does not have, and
      every token id outside the vocabulary.

  Example:
    >>> config = DecoderConfig(
    ...   vocab_size=64,
    ...   width=32,
    ...   num_layers=2,
    ...   num_heads=4,
    ...   num_kv_heads=2,
    ...   mlp_width=48,
    ...   qk_norm="head",
    ...   context_length=128,
    ... )
    >>> to_hf_config(config)
    Traceback (most recent call last):
    ValueError: a llama in transformers cannot have qk_norm 'head' (only 'none')
  """
  family = FAMILIES.get(config.family)
  if family is None:
    raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {config.family!r}")
  token_ids = token_ids or {}
  problems = [*not_in_family(config, family), *_gemma_problems(config)]
  problems += _token_problems(config, token_ids)
  if problems:
    raise ValueError(f"a {config.family} in transformers cannot have {'; '.join(problems)}")
  is_gemma = config.family == "gemma3_text"
  activation = {ours: theirs for theirs, ours in ACTIVATIONS.items()}[config.activation]
  dtype = dtype or config.parameter_dtype
  return {
    "architectures": [family.architecture],
    "model_type": config.family,
    **{key: getattr(config, name) for key, name in SIZES.items()},
    "num_key_value_heads": config.num_kv_heads,
    "head_dim": config.features_per_head,
    "intermediate_size": config.mlp_width,
    "hidden_activation" if is_gemma else "hidden_act": activation,
    "max_position_embeddings": config.context_length,
    "rms_norm_eps": config.norm_epsilon,
    "tie_word_embeddings": config.tie_embeddings,
    **({"query_pre_attn_scalar": _query_scalar(config)} if is_gemma else {}),
    **write_rope(config),
    **write_windows(config, family.windows),
    **_expert_keys(config, family),
    **{name: token_ids.get(name) for name in TOKEN_IDS},
    "dtype": dtype,
    "torch_dtype": dtype,  # the name before version 4.56
  }


def _expert_keys(config: DecoderConfig, family: Family) -> dict[str, Any]:
  if family.expert_width is None:
    return {}
  name = "num_local_experts" if config.family == "mixtral" else "num_experts"
  keys: dict[str, Any] = {name: config.num_experts}
  keys["num_experts_per_tok"] = config.experts_per_token
  keys[family.expert_width] = config.mlp_width
  if config.family != "mixtral":
    keys["norm_topk_prob"] = config.normalise_experts
  return keys


def _query_scalar(config: DecoderConfig) -> int:
  if config.attention_scale is None:
    return config.features_per_head
  return round(config.attention_scale**-2)


def _gemma_problems(config: DecoderConfig) -> Iterator[str]:
  if config.family != "gemma3_text":
    return
  scale = config.attention_scale
  if scale is not None and (_query_scalar(config) or -1) ** -0.5 != scale:
    yield f"attention_scale {scale!r} (only 1 / sqrt(n), n a whole number)"
  if any(config.local_layers) and config.rope_scaling and config.local_rope_base is None:
    yield "rope_scaling of local layers (local_rope_base must be stated)"


def _token_problems(config: DecoderConfig, token_ids: Mapping[str, Any]) -> Iterator[str]:
  for name, value in token_ids.items():
    if name not in TOKEN_IDS:
      yield f"{name} among token_ids (only {', '.join(TOKEN_IDS)})"
      continue
    ids = value if isinstance(value, list) and name == "eos_token_id" else [value]
    for token in ids:
      known = isinstance(token, int) and 0 <= token < config.vocab_size
      if token is not None and not known:
        yield f"{name} {token!r} (only 0 to {config.vocab_size - 1})"
