"""The shape of a decoder."""

import dataclasses
import math
from collections.abc import Iterator

DTYPES = ("float32", "bfloat16")
REMAT = ("none", "layer")
ACTIVATIONS = ("silu", "gelu_tanh")
QK_NORMS = ("none", "head", "all_heads")
LAYER_TYPES = ("global", "local")
ROPE_SCALINGS = ("linear", "llama3")
ATTENTIONS = ("auto", "mask", "splash", "cudnn")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """How rotary frequencies are slowed down for contexts longer than a model's first one.

  "linear" divides all of them by `factor`. "llama3" does so only where a wavelength exceeds
  original_length / low_frequency_factor, leaves those below
  original_length / high_frequency_factor as they are, and blends in between.
  """

  kind: str  # "linear" or "llama3"
  factor: float
  low_frequency_factor: float = 1.0  # these three are read by "llama3" only
  high_frequency_factor: float = 4.0
  original_length: int = 8192  # positions of the first training


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """A decoder-only transformer; checked as a whole when it is made.

  Raises:
    ValueError: naming every field that is out of range, its value and what is accepted.

  Example:
    >>> DecoderConfig(
    ...   vocab_size=256, width=64, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=192
    ... ).features_per_head
    16
  """

  vocab_size: int  # tokens
  width: int  # features of the residual stream
  num_layers: int
  num_heads: int  # query heads
  num_kv_heads: int  # key and value heads; divides num_heads, and 1 is multi-query attention
  mlp_width: int  # features between the two linear maps of the gated unit, or of each expert
  head_size: int | None = None  # features of a head, even; None: width / num_heads
  family: str = "llama"  # the Hugging Face architecture as which weights are read and written
  context_length: int = 0  # positions that the weights were trained for; 0: not known
  activation: str = "silu"  # of the gated unit: silu or gelu_tanh
  # Attention.
  attention: str = "auto"  # how it is computed: see `jdc.models.attention`
  attention_bias: bool = False  # biases of the query, key and value maps
  attention_scale: float | None = None  # of its logits; None: 1 / sqrt(head_size)
  qk_norm: str = "none"  # RMSNorm of queries and keys: in each "head", or across "all_heads"
  sliding_window: int | None = None  # positions that a local layer sees, its own included
  layer_types: tuple[str, ...] = ()  # "global" or "local"; empty: local if there is a window
  # Rotary positions.
  rope_base: float = 10_000.0  # the longest rotary wavelength is 2 pi times nearly this
  rope_scaling: RopeScaling | None = None  # of global layers
  local_rope_base: float | None = None  # of local layers; None: those of global ones
  # Norms and embeddings.
  norm_epsilon: float = 1e-6  # added to the mean square inside RMSNorm
  norm_offset: float = 0.0  # added to the learned scale of RMSNorm, which starts at 1 minus it
  post_norms: bool = False  # RMSNorm also after attention and after the gated unit
  scale_embeddings: bool = False  # by sqrt(width)
  tie_embeddings: bool = False  # the output matrix is the embedding matrix
  # Mixture of experts, in every layer; 0 experts: a dense gated unit.
  num_experts: int = 0
  experts_per_token: int = 0
  normalise_experts: bool = True  # the weights of the chosen experts sum to 1
  balance_weight: float = 0.0  # times `jdc.models.moe.balance_loss` is added in training
  # Precision, memory, initial values.
  dtype: str = "float32"  # of activations: float32 or bfloat16
  parameter_dtype: str = "float32"  # of parameters: float32 or bfloat16
  remat: str = "none"  # "layer" keeps only layer inputs and recomputes the rest in the backward
  initializer_scale: float = 1.0  # times the initial standard deviation, sqrt(2 / (5 width))

  def __post_init__(self) -> None:
    problems = list(_problems(self))
    if problems:
      raise ValueError("DecoderConfig: " + "; ".join(problems))

  @property
  def features_per_head(self) -> int:
    """Features of one attention head."""
    return self.width // self.num_heads if self.head_size is None else self.head_size

  @property
  def local_layers(self) -> tuple[bool, ...]:
    """Whether each layer sees the sliding window only."""
    if not self.layer_types:
      return (self.sliding_window is not None,) * self.num_layers
    return tuple(kind == "local" for kind in self.layer_types)


def _problems(config: DecoderConfig) -> Iterator[str]:
  """Yields one sentence per field, or pair of fields, that cannot be used."""
  sizes = ["vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "mlp_width"]
  sizes += [n for n in ("head_size", "sliding_window") if getattr(config, n) is not None]
  bad_sizes = {name for name in sizes if not _is_size(getattr(config, name))}
  for name in sizes:
    if name in bad_sizes:
      yield f"{name} must be a positive integer, got {getattr(config, name)!r}"
  positive = ["rope_base", "norm_epsilon", "initializer_scale"]
  optional = ("attention_scale", "local_rope_base")
  positive += [n for n in optional if getattr(config, n) is not None]
  for name in positive:
    if not _is_positive(getattr(config, name)):
      yield f"{name} must be positive and finite, got {getattr(config, name)!r}"
  for name, accepted in [
    ("dtype", DTYPES),
    ("parameter_dtype", DTYPES),
    ("remat", REMAT),
    ("activation", ACTIVATIONS),
    ("qk_norm", QK_NORMS),
    ("attention", ATTENTIONS),
  ]:
    if getattr(config, name) not in accepted:
      yield f"{name} must be one of {', '.join(accepted)}, got {getattr(config, name)!r}"
  for name in (
    "tie_embeddings", "attention_bias", "post_norms", "scale_embeddings", "normalise_experts",
  ):  # fmt: skip
    if not isinstance(getattr(config, name), bool):
      yield f"{name} must be True or False, got {getattr(config, name)!r}"
  heads_known = not bad_sizes & {"num_heads", "num_kv_heads"}
  if heads_known and config.num_heads % config.num_kv_heads:
    heads, kv_heads = config.num_heads, config.num_kv_heads
    yield f"num_heads {heads} must be a multiple of num_kv_heads {kv_heads}"
  if not bad_sizes & {"width", "num_heads", "head_size"}:
    yield from _head_problems(config)
  yield from _rope_problems(config)
  yield from _expert_problems(config)
  if not bad_sizes & {"num_layers", "sliding_window"}:
    yield from _layer_type_problems(config)
  if not _is_count(config.context_length):
    yield f"context_length must be 0 or more positions, got {config.context_length!r}"
  if not isinstance(config.norm_offset, int | float) or not math.isfinite(config.norm_offset):
    yield f"norm_offset must be finite, got {config.norm_offset!r}"


def _head_problems(config: DecoderConfig) -> Iterator[str]:
  if config.head_size is None and config.width % config.num_heads:
    yield (
      f"width {config.width} must be a multiple of num_heads {config.num_heads} when "
      "head_size is None"
    )
  elif config.features_per_head % 2:
    yield f"head_size must be even for rotary positions, got {config.features_per_head}"


def _layer_type_problems(config: DecoderConfig) -> Iterator[str]:
  kinds = config.layer_types
  unknown = sorted({repr(kind) for kind in kinds if kind not in LAYER_TYPES})
  if unknown:
    yield f"layer_types must be {' or '.join(LAYER_TYPES)}, got {', '.join(unknown)}"
  if kinds and len(kinds) != config.num_layers:
    yield f"layer_types must be empty or {config.num_layers}, one a layer, got {len(kinds)}"
  if "local" in kinds and config.sliding_window is None:
    yield "layer_types has local layers, which need a sliding_window"
  if config.local_rope_base is not None and config.sliding_window is None:
    yield f"local_rope_base {config.local_rope_base} is for local layers, which need a window"


def _rope_problems(config: DecoderConfig) -> Iterator[str]:
  scaling = config.rope_scaling
  if scaling is None:
    return
  if not isinstance(scaling, RopeScaling):
    yield f"rope_scaling must be a RopeScaling or None, got {scaling!r}"
    return
  if scaling.kind not in ROPE_SCALINGS:
    kinds = ", ".join(ROPE_SCALINGS)
    yield f"rope_scaling.kind must be one of {kinds}, got {scaling.kind!r}"
  for name in ("factor", "low_frequency_factor", "high_frequency_factor"):
    if not _is_positive(getattr(scaling, name)):
      yield f"rope_scaling.{name} must be positive, got {getattr(scaling, name)!r}"
  if not _is_size(scaling.original_length):
    yield f"rope_scaling.original_length must be positive, got {scaling.original_length!r}"
  if scaling.kind == "llama3" and not (
    scaling.low_frequency_factor < scaling.high_frequency_factor
  ):
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    yield f"rope_scaling.low_frequency_factor {low} must be below the high one, {high}"


def _expert_problems(config: DecoderConfig) -> Iterator[str]:
  experts, chosen = config.num_experts, config.experts_per_token
  if not _is_count(experts) or not _is_count(chosen):
    yield f"num_experts and experts_per_token must be 0 or more, got {experts!r} and {chosen!r}"
  elif bool(experts) != bool(chosen) or chosen > experts:
    yield f"experts_per_token must be in [1, num_experts={experts}], or both 0, got {chosen}"
  weight = config.balance_weight
  if weight != 0 and not _is_positive(weight):
    yield f"balance_weight must be 0 or more and finite, got {weight!r}"
  elif weight and experts == 0:
    yield f"balance_weight {weight} is for a mixture of experts, and num_experts is 0"


def _is_count(value: object) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_size(value: object) -> bool:
  return _is_count(value) and value != 0


def _is_positive(value: object) -> bool:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and 0 < value < math.inf  # type: ignore[operator]
