"""Low-rank adapters of the decoder's linear maps."""

import dataclasses
import fnmatch
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jdc.models.base import Params
from jdc.models.decoder_config import DTYPES, DecoderConfig

LEAVES = ("lora_a", "lora_b")
ATTENTION_MAPS = ("query", "key", "value", "attention_output")
MLP_MAPS = ("gate", "up", "down")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  r"""Adapters: y = x W + b + scale (dropout(x) A) B, scale = alpha / rank.

  A [in, rank] starts uniform in (-1 / sqrt(in), 1 / sqrt(in)), B [rank, out] at 0, so that an
  adapted model starts as the model itself.

  Raises:
    ValueError: naming every field that is out of range.

  References:
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv:2106.09685; the
      initial values are those of the PEFT library.
    Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", 2023,
      arXiv:2312.03732, for `rank_stabilised`.
  """

  rank: int = 16
  alpha: float = 32.0
  dropout: float = 0.0  # share of an adapter's input features set to 0 while training
  # Of modules, as in "layers/attention/*"; see `adaptable` for those that there are.
  targets: tuple[str, ...] = ("layers/attention/*", "layers/mlp/*")
  rank_stabilised: bool = False  # scale = alpha / sqrt(rank)
  dtype: str = "float32"  # of the adapters, whatever that of the model

  def __post_init__(self) -> None:
    problems = [
      f"{name} must be {accepted}, got {getattr(self, name)!r}"
      for name, accepted, right in (
        ("rank", "a positive integer", _is_number(self.rank, int) and self.rank >= 1),
        ("alpha", "positive and finite", _is_number(self.alpha) and 0 < self.alpha < math.inf),
        ("dropout", "in [0, 1)", _is_number(self.dropout) and 0 <= self.dropout < 1),
        ("targets", "at least one pattern", len(self.targets) > 0),
        ("dtype", f"one of {', '.join(DTYPES)}", self.dtype in DTYPES),
      )
      if not right
    ]
    if problems:
      raise ValueError("LoraConfig: " + "; ".join(problems))

  @property
  def scale(self) -> float:
    """What the product of the two maps is multiplied by."""
    return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

  def adapts(self, module: str) -> bool:
    """Whether a module, such as "layers/attention/query", matches one of the targets."""
    return any(fnmatch.fnmatchcase(module, pattern) for pattern in self.targets)


def _is_number(value: Any, kinds: Any = int | float) -> bool:
  return isinstance(value, kinds) and not isinstance(value, bool)


def adaptable(config: DecoderConfig) -> tuple[str, ...]:
  """Returns the modules of a decoder that can have an adapter: its dense linear maps."""
  maps = [f"layers/attention/{name}" for name in ATTENTION_MAPS]
  if not config.num_experts:
    maps += [f"layers/mlp/{name}" for name in MLP_MAPS]
  return tuple(maps)


def check_targets(lora: LoraConfig, config: DecoderConfig) -> None:
  """Raises a ValueError that names every pattern that matches no adaptable module."""
  known = adaptable(config)
  without = [p for p in lora.targets if not fnmatch.filter(known, p)]
  if without:
    raise ValueError(
      f"lora.targets {', '.join(without)} match no linear map; known: {', '.join(known)}"
    )


def merged(params: Params, lora: LoraConfig, *, donate: bool = False) -> Params:
  """Returns parameters without adapters, each kernel W replaced by W + scale A B.

  The product is taken in float32, layer by layer, and rounded once to the kernel's type.

  Args:
    params: of a decoder with adapters, a nested dict.
    lora: what the adapters were made with.
    donate: gives the memory of the adapted kernels to the merged ones; `params` cannot be used
      afterwards.
  """
  result = {}
  for name, value in params.items():
    if name in LEAVES:
      continue
    nested = isinstance(value, Mapping)
    result[name] = merged(value, lora, donate=donate) if nested else value
  if "lora_a" in params:
    add = _add_donated if donate else _add
    result["kernel"] = add(params["kernel"], params["lora_a"], params["lora_b"], lora.scale)
  return result


def _add_product(kernel: Any, lora_a: Any, lora_b: Any, scale: float) -> jax.Array:
  def one_layer(layer: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    kernel, *factors = layer
    a, b = (x.astype(jnp.float32) for x in factors)
    product = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(jnp.float32) + scale * product).astype(kernel.dtype)

  return jax.lax.map(one_layer, (kernel, lora_a, lora_b))


_add, _add_donated = jax.jit(_add_product), jax.jit(_add_product, donate_argnums=0)
