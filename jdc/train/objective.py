"""The one definition of the training loss, in which a weight of 1 is neutral."""

from typing import Literal

import jax
import jax.numpy as jnp

LossAverage = Literal["token", "example"]


def example_sums(
  x_BxT: jax.Array, segments_BxT: jax.Array, max_segments: int | None
) -> jax.Array:
  """Returns the sum over the positions of each example.

  Args:
    x_BxT: one number for each position.
    segments_BxT: i32[B, T], the example of each position, from 1 on; 0 is padding.
    max_segments: S, the most examples of a row; `None` where the row is the example.

  Returns:
    [B], or [B, S] with 0 for examples that are not there.
  """
  if max_segments is None:
    return jnp.sum(x_BxT, axis=1)
  # A masked reduction and no scatter: exact in float32, and in the same order every time.
  is_in_BxTxS = segments_BxT[:, :, None] == jnp.arange(1, max_segments + 1)
  return jnp.sum(jnp.where(is_in_BxTxS, x_BxT[:, :, None], 0), axis=1)


def spread(x: jax.Array, segments_BxT: jax.Array) -> jax.Array:
  """Returns, for each position, the number of its example: of x [B], or [B, S] when packed."""
  if x.ndim == 1:
    return jnp.broadcast_to(x[:, None], segments_BxT.shape)
  return jnp.take_along_axis(x, jnp.maximum(segments_BxT - 1, 0), axis=1)


def denominator(num_tokens_B: jax.Array, average: LossAverage) -> jax.Array:
  """Returns what the weighted sum of losses is divided by; no weight enters it.

  Args:
    num_tokens_B: i32[B] or [B, S], target tokens of every example of the optimizer step.
    average: `"token"` counts target tokens, `"example"` examples that have any.
  """
  counts_B = num_tokens_B if average == "token" else num_tokens_B > 0
  # A batch of padding has loss 0, not NaN.
  return jnp.maximum(jnp.sum(counts_B, dtype=jnp.float32), 1.0)


def loss_weights(
  mask_BxT: jax.Array,
  segments_BxT: jax.Array,
  num_tokens: jax.Array,
  weight: jax.Array | None,
  token_weight_BxT: jax.Array | None,
  average: LossAverage,
) -> jax.Array:
  r"""Returns what each token's loss is multiplied by before the division, constant.

  sum over t of it times l_t is sum_i w_i sum_t u_it m_it l_it, each example over its n_i when
  averaging by example.

  Args:
    mask_BxT: bool[B, T], m, where a token counts.
    segments_BxT: i32[B, T], the example of each position.
    num_tokens: i32[B], or [B, S] of packed rows, n, of each example.
    weight: f32 like `num_tokens`, w, or `None` for 1.
    token_weight_BxT: f32[B, T], u, or `None` for 1.
    average: `"token"` or `"example"`.
  """
  weight_BxT = mask_BxT.astype(jnp.float32)
  if token_weight_BxT is not None:
    weight_BxT = weight_BxT * token_weight_BxT
  if average == "example":
    share = 1.0 / jnp.maximum(num_tokens, 1)
    weight = share if weight is None else weight * share
  if weight is not None:
    weight_BxT = weight_BxT * spread(weight, segments_BxT)
  return jax.lax.stop_gradient(weight_BxT)


def mean_loss(
  token_loss_BxT: jax.Array,
  mask_BxT: jax.Array,
  segments_BxT: jax.Array,
  num_tokens: jax.Array,
) -> jax.Array:
  """Returns the mean loss of each example's target tokens, like `num_tokens`; 0 without any."""
  max_segments = num_tokens.shape[1] if num_tokens.ndim == 2 else None
  total = example_sums(token_loss_BxT * mask_BxT, segments_BxT, max_segments)
  return total / jnp.maximum(num_tokens, 1)
