"""What the rest of the project asks of a model: a few pure functions."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Params = Any  # a pytree of arrays; the decoder uses nested dicts with string keys

# The axes of a mesh: replicas of the model, shards of the parameters (and of the batch), and
# shards of the arithmetic inside a layer.
MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # those over which the rows of a batch are split


class LanguageModel(NamedTuple):
  """A language model as pure functions, so that any code base can offer one.

  All of them can be jitted, differentiated, vmapped and sharded. `tokens`, `targets`,
  `positions` and `segments` are i32[B, T]; positions count from 0 in each segment, and segment
  0 is padding. Tokens see earlier tokens of their own segment only.
  """

  init: Callable[[jax.Array], Params]  # key -> params
  # (params, tokens, positions, segments) -> [B, T, D], hidden states after the final norm
  hidden: Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]
  # (params, tokens, targets, positions, segments) -> f32[B, T], -log p(target), nats; finite
  # but arbitrary where the target is padding
  token_losses: Callable[[Params, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
  # (params, tokens, positions, segments) -> f32[B, T, V]
  logits: Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]
  # shapes of the params (from `jax.eval_shape(init, key)`) -> the same tree of `jax.P`
  partition_specs: Callable[[Params], Any]
  vocab_size: int
  # axis sizes of a mesh -> None; ValueError where the model cannot be split over it
  check_partition: Callable[[Mapping[str, int]], None] | None = None
