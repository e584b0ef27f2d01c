"""What the rest of the project asks of a model: a few pure functions."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdc.models.taps import LinearMap

Params = Any  # a pytree of arrays; the decoder uses nested dicts with string keys

# The axes of a mesh: replicas of the model, shards of the parameters, shards of the experts,
# and shards of the arithmetic in a layer. What communicates more comes later, as neighbouring
# devices differ in the last axes.
MESH_AXES = ("data", "fsdp", "expert", "tensor")
BATCH_AXES = ("data", "fsdp", "expert")  # those over which the rows of a batch are split


class Cache(NamedTuple):
  """Keys and values of the tokens of B rows so far, in S slots; L layers, M heads of size H.

  All rows fill the same slots; a slot that is not valid, such as one of the padding before a
  short prompt, is never seen.
  """

  keys: jax.Array  # [L, B, S, M, H], rotated, in the activations' dtype
  values: jax.Array  # [L, B, S, M, H]
  positions: jax.Array  # i32[B, S], of the token in each slot
  valid: jax.Array  # bool[B, S]
  length: jax.Array  # i32[], slots that are filled


class Outputs(NamedTuple):
  """What one forward pass tells of B rows."""

  token_loss: jax.Array  # f32[B, T], as from `token_losses`
  hidden: jax.Array  # [B, T, D], as from `hidden`, of the same pass
  # Of a mixture of experts; `None` in other models.
  balance_loss: jax.Array | None = None  # f32[], lower where experts share the tokens evenly
  expert_load: jax.Array | None = None  # f32[B, E], tokens that the last layer sends to each
  # From `error_outputs`: f32[B, T], |softmax(logits) - onehot(target)|_2, of the same logits as
  # the losses; constants for the gradient
  token_error: jax.Array | None = None


class LanguageModel(NamedTuple):
  """A language model as pure functions, so that any code base can offer one.

  All of them can be jitted, differentiated, vmapped (but for a mixture of experts) and sharded;
  losses computed in chunks have reverse-mode derivatives only. `tokens`, `targets`,
  `positions` and `segments` are i32[B, T]; positions count from 0 in each segment, and segment
  0 is padding. Tokens see earlier tokens of their own segment only.
  """

  init: Callable[[jax.Array], Params]  # key -> params
  # (params, tokens, positions, segments) -> [B, T, D], hidden states after the final norm
  hidden: Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]
  # (params, tokens, targets, positions, segments) -> f32[B, T], -log p(target), nats; finite
  # but arbitrary where the target is padding. With `dropout` it takes `key=` as well.
  token_losses: Callable[..., jax.Array]
  # (params, tokens, positions, segments) -> f32[B, T, V]
  logits: Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]
  # shapes of the params (from `jax.eval_shape(init, key)`) -> the same tree of `jax.P`
  partition_specs: Callable[[Params], Any]
  vocab_size: int
  # axis sizes of a mesh -> None; ValueError where the model cannot be split over it
  check_partition: Callable[[Mapping[str, int]], None] | None = None
  # As token_losses, with weights f32[B, T] before `key`, -> (f32[], f32[B, T]): the sum of
  # weights times losses, and the losses, constants for the gradient. It may be cheaper where
  # weights are known beforehand; `None`: it is not offered. Replace it with token_losses.
  weighted_loss: Callable[..., tuple[jax.Array, jax.Array]] | None = None
  # For generation: (batch_size, length) -> an empty cache of `length` slots, and
  # (params, tokens, positions, valid, cache) -> (f32[B, V], cache), the logits after the last
  # of the T tokens that are appended to the cache; `valid` is bool[B, T].
  empty_cache: Callable[[int, int], Cache] | None = None
  extend: Callable[..., tuple[jax.Array, Cache]] | None = None
  dropout: bool = False  # whether training draws noise
  # As token_losses -> `Outputs`. `None`: hidden states of the training pass are not offered.
  outputs: Callable[..., Outputs] | None = None
  # params -> [D, V], by which the hidden states of `outputs` are multiplied to give logits.
  # `None`: it is not offered, as where logits are something else than a product.
  output_matrix: Callable[[Params], jax.Array] | None = None
  # As `outputs`, with the errors of tokens. `None`: they are not offered.
  error_outputs: Callable[..., Outputs] | None = None
  # As `weighted_loss`, with the errors of tokens as a third; `None`: `error_outputs` serves.
  weighted_error_loss: Callable[..., tuple[jax.Array, jax.Array, jax.Array]] | None = None
  balance_weight: float = 0.0  # times `balance_loss` is added to the training loss
  # shapes of the params -> the linear maps that `tapped_losses` lets be tapped, by the path of
  # their matrix: those that map every token by itself
  linear_maps: Callable[[Params], dict[str, LinearMap]] | None = None
  # (params, taps, tokens, targets, positions, segments, top_layers=0) -> f32[B, T], as from
  # `token_losses`. The arrays of a tap have a leading axis for the layers of its map. With
  # `top_layers` taps are of these last ones, and no gradient goes below them.
  tapped_losses: Callable[..., jax.Array] | None = None
  # (params, tokens, targets, positions, segments, top_layers=0) -> f32[B, T], as from
  # `token_losses`, with derivatives in forward mode; none by what is below the `top_layers`.
  # `None`: those of `token_losses` are asked for.
  forward_mode_losses: Callable[..., jax.Array] | None = None
  # Whether a target of -1 says that no loss is asked for: it is 0, and may cost nothing.
  skips_targets: bool = False

  def asked(self, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns targets whose losses are asked for where the mask is True."""
    return jnp.where(mask, targets, -1) if self.skips_targets else targets
