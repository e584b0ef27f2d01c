"""Losses as functions of the parameters, for statistics made of their gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jdc.data.batch import RowInputs
from jdc.models import subsets
from jdc.models.base import LanguageModel


def full_params(params: tuple[Any, Any]) -> Any:
  """Returns the parameters of a model from those that are trained and the frozen ones."""
  trained, frozen = params
  return trained if frozen is None else subsets.join(trained, frozen)


def make_example_losses(model: LanguageModel) -> Callable[[Any, RowInputs], jax.Array]:
  """Returns `(params, inputs) -> f32[B]`, the mean loss of each row's target tokens; 0 without.

  No noise of training is drawn, as in the next one.
  """
  sums = _sums(model)

  def example_losses(params: Any, inputs: RowInputs) -> jax.Array:
    sum_B, tokens_B = sums(params, inputs)
    return sum_B / jnp.maximum(tokens_B, 1)

  return example_losses


def make_mean_loss(model: LanguageModel) -> Callable[[Any, RowInputs], jax.Array]:
  """Returns `(params, inputs) -> f32[]`, the mean over all target tokens of the rows."""
  loss_sum = make_loss_sum(model)

  def mean_loss(params: Any, inputs: RowInputs) -> jax.Array:
    total, num_tokens = loss_sum(params, inputs)
    return total / jnp.maximum(num_tokens, 1)

  return mean_loss


def make_loss_sum(
  model: LanguageModel,
) -> Callable[[Any, RowInputs], tuple[jax.Array, jax.Array]]:
  """Returns `(params, inputs) -> (f32[], f32[])`, the sum of losses and the target tokens."""
  sums = _sums(model)

  def loss_sum(params: Any, inputs: RowInputs) -> tuple[jax.Array, jax.Array]:
    sum_B, tokens_B = sums(params, inputs)
    return jnp.sum(sum_B), jnp.sum(tokens_B)

  return loss_sum


def _sums(model: LanguageModel) -> Callable[[Any, RowInputs], tuple[jax.Array, jax.Array]]:
  def sums(params: Any, inputs: RowInputs) -> tuple[jax.Array, jax.Array]:
    tokens, targets, positions, segments, mask = inputs
    asked = model.asked(targets, mask)
    token_loss = model.token_losses(params, tokens, asked, positions, segments)
    sum_B = jnp.sum(jnp.where(mask, token_loss, 0), axis=1, dtype=jnp.float32)
    return sum_B, jnp.sum(mask, axis=1, dtype=jnp.float32)

  return sums
