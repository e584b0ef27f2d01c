"""The one definition of the training loss, in which a weight of 1 is neutral."""

from typing import Literal

import jax
import jax.numpy as jnp

LossAverage = Literal["token", "example"]


def denominator(num_tokens_B: jax.Array, average: LossAverage) -> jax.Array:
  """Returns what the weighted sum of losses is divided by; no weight enters it.

  Args:
    num_tokens_B: i32[B], target tokens of every row of the optimizer step.
    average: `"token"` counts target tokens, `"example"` rows that have any.
  """
  counts_B = num_tokens_B if average == "token" else num_tokens_B > 0
  # A batch of padding has loss 0, not NaN.
  return jnp.maximum(jnp.sum(counts_B, dtype=jnp.float32), 1.0)


def weighted_sum(
  token_loss_BxT: jax.Array,
  mask_BxT: jax.Array,
  num_tokens_B: jax.Array,
  weight_B: jax.Array | None,
  token_weight_BxT: jax.Array | None,
  average: LossAverage,
) -> jax.Array:
  r"""Returns sum_i w_i sum_t u_it m_it l_it, each row over its n_i when averaging by example.

  Weights are constants for the gradient.

  Args:
    token_loss_BxT: f32[B, T], l, nats.
    mask_BxT: f32[B, T], m, 1 where a token counts.
    num_tokens_B: i32[B], n, the row sums of the mask.
    weight_B: f32[B], w, or `None` for 1.
    token_weight_BxT: f32[B, T], u, or `None` for 1.
    average: `"token"` or `"example"`.
  """
  loss_BxT = token_loss_BxT * mask_BxT
  if token_weight_BxT is not None:
    loss_BxT = loss_BxT * jax.lax.stop_gradient(token_weight_BxT)
  loss_B = jnp.sum(loss_BxT, axis=1)
  if average == "example":
    loss_B = loss_B / jnp.maximum(num_tokens_B, 1)
  if weight_B is not None:
    loss_B = loss_B * jax.lax.stop_gradient(weight_B)
  return jnp.sum(loss_B)


def mean_loss(
  token_loss_BxT: jax.Array, mask_BxT: jax.Array, num_tokens_B: jax.Array
) -> jax.Array:
  """Returns the mean loss of each row's target tokens, f32[B]; 0 for rows without any."""
  return jnp.sum(token_loss_BxT * mask_BxT, axis=1) / jnp.maximum(num_tokens_B, 1)
