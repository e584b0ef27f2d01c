"""The shape of a decoder."""

import dataclasses
import math
from collections.abc import Iterator

DTYPES = ("float32", "bfloat16")
REMAT = ("none", "layer")


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
  mlp_width: int  # features between the two linear maps of the SwiGLU
  head_size: int | None = None  # features of a head, even; None: width / num_heads
  rope_base: float = 10_000.0  # the longest rotary wavelength is 2 pi times nearly this
  norm_epsilon: float = 1e-6  # added to the mean square inside RMSNorm
  tie_embeddings: bool = False  # the output matrix is the embedding matrix
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


def _problems(config: DecoderConfig) -> Iterator[str]:
  """Yields one sentence per field, or pair of fields, that cannot be used."""
  sizes = ["vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "mlp_width"]
  if config.head_size is not None:
    sizes.append("head_size")
  bad_sizes = {name for name in sizes if not _is_size(getattr(config, name))}
  for name in sizes:
    if name in bad_sizes:
      yield f"{name} must be a positive integer, got {getattr(config, name)!r}"
  for name in ("rope_base", "norm_epsilon", "initializer_scale"):
    if not _is_positive(getattr(config, name)):
      yield f"{name} must be positive and finite, got {getattr(config, name)!r}"
  for name, accepted in [("dtype", DTYPES), ("parameter_dtype", DTYPES), ("remat", REMAT)]:
    if getattr(config, name) not in accepted:
      yield f"{name} must be one of {', '.join(accepted)}, got {getattr(config, name)!r}"
  if not isinstance(config.tie_embeddings, bool):
    yield f"tie_embeddings must be True or False, got {config.tie_embeddings!r}"
  heads_known = not bad_sizes & {"num_heads", "num_kv_heads"}
  if heads_known and config.num_heads % config.num_kv_heads:
    heads, kv_heads = config.num_heads, config.num_kv_heads
    yield f"num_heads {heads} must be a multiple of num_kv_heads {kv_heads}"
  if not bad_sizes & {"width", "num_heads", "head_size"}:
    yield from _head_problems(config)


def _head_problems(config: DecoderConfig) -> Iterator[str]:
  if config.head_size is None and config.width % config.num_heads:
    yield (
      f"width {config.width} must be a multiple of num_heads {config.num_heads} when "
      "head_size is None"
    )
  elif config.features_per_head % 2:
    yield f"head_size must be even for rotary positions, got {config.features_per_head}"


def _is_size(value: object) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_positive(value: object) -> bool:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and 0 < value < math.inf  # type: ignore[operator]
