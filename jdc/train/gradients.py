"""The gradient of the weighted loss, in one piece or accumulated over microbatches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jdc.data.batch import RowInputs
from jdc.data.loader import Batch
from jdc.models.base import LanguageModel
from jdc.policies.base import Decision
from jdc.policies.combine import Policies
from jdc.train import objective
from jdc.train.observe import num_tokens
from jdc.train.state import slots


def make_forward(model: LanguageModel) -> Callable[[Any, RowInputs], jax.Array]:
  """Returns `(params, inputs) -> f32[B, T]`, the token losses of rows."""

  def forward(params: Any, inputs: RowInputs) -> jax.Array:
    return model.token_losses(
      params, inputs.tokens, inputs.targets, inputs.positions, inputs.segments
    )

  return forward


def make_gradients(
  forward: Callable,
  update: Callable,
  policies: Policies,
  trained: set[str],
  weighted: frozenset[str],
  row_weights: bool,
  average: objective.LossAverage,
  accumulation_steps: int,
) -> Callable:
  """Returns the function of loss, gradient, token losses, decisions, weights and states.

  Args:
    forward: `(params, inputs) -> f32[B, T]`, token losses.
    update: of `observe.make_updater`.
    policies: the slots.
    trained: the step-scope slots that observe the trained rows.
    weighted: of these, the ones whose decision has weights.
    row_weights: whether the rows of a batch carry weights.
    average: what the loss is averaged over.
    accumulation_steps: microbatches of one optimizer step.
  """

  def weigh(batch: Batch, decisions: dict[str, Decision]) -> tuple[Any, Any]:
    weights = [batch.weight] if row_weights else []
    weights += [
      decisions[n].weights for n in sorted(weighted) if decisions[n].weights is not None
    ]
    tokens = [decisions[n].token_weights for n in sorted(weighted)]
    return _product(weights), _product([u for u in tokens if u is not None])

  def loss_sum(token_loss: jax.Array, inputs: RowInputs, w: Any, u: Any) -> jax.Array:
    num_tokens_B = num_tokens(inputs)
    return objective.weighted_sum(token_loss, inputs.mask, num_tokens_B, w, u, average)

  def whole(params: Any, batch: Batch, inputs: RowInputs, scalars: dict, states: dict) -> tuple:
    def loss_fn(params: Any) -> tuple[jax.Array, tuple]:
      token_loss = forward(params, inputs)
      decisions, new_states = update(
        batch, inputs, token_loss, scalars, states, trained, observe=True
      )
      w, u = weigh(batch, decisions)
      total = objective.denominator(num_tokens(inputs), average)
      loss = loss_sum(token_loss, inputs, w, u) / total
      return loss, (token_loss, decisions, w, new_states)

    (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    token_loss, decisions, w, states = aux
    return loss, grads, token_loss, decisions, w, states

  def accumulated(
    params: Any, batch: Batch, inputs: RowInputs, scalars: dict, states: dict
  ) -> tuple:
    split, join = splitter(accumulation_steps)
    total = objective.denominator(num_tokens(inputs), average)
    micro = split((batch, inputs))
    pointwise = all(slots(policies)[name].pointwise for name in weighted)
    fixed = weighted and not pointwise
    if fixed:  # Weights that depend on the whole batch need its losses before any gradient.
      token_loss = join(jax.lax.map(lambda m: forward(params, m[1]), micro))
      decisions, _ = update(batch, inputs, token_loss, scalars, states, trained, observe=False)
      micro += (split(weigh(batch, decisions)),)

    def accumulate(grads: Any, part: tuple) -> tuple[Any, tuple]:
      def loss_fn(params: Any) -> tuple[jax.Array, jax.Array]:
        token_loss = forward(params, part[1])
        if fixed:
          w, u = part[2]
        else:
          seen, _ = update(*part, token_loss, scalars, states, weighted, observe=False)
          w, u = weigh(part[0], seen)
        return loss_sum(token_loss, part[1], w, u) / total, token_loss

      (loss, token_loss), new = jax.value_and_grad(loss_fn, has_aux=True)(params)
      return jax.tree.map(jnp.add, grads, new), (loss, token_loss)

    # In float32, whatever the parameters: small gradients would vanish in a bfloat16 sum.
    zeros = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), params)
    grads, (losses, token_loss) = jax.lax.scan(accumulate, zeros, micro)
    grads = jax.tree.map(lambda g, x: g.astype(x.dtype), grads, params)
    token_loss = join(token_loss)
    decisions, states = update(
      batch, inputs, token_loss, scalars, states, trained, observe=True
    )
    w, _ = weigh(batch, decisions)
    return jnp.sum(losses), grads, token_loss, decisions, w, states

  return whole if accumulation_steps == 1 else accumulated


def splitter(parts: int) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
  """Returns `split` [B, ...] -> [parts, B / parts, ...] and its inverse.

  Row i goes to part i mod parts, so that every device keeps its own rows.
  """

  def split(tree: Any) -> Any:
    return jax.tree.map(
      lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), tree
    )

  def join(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)

  return split, join


def _product(factors: list[jax.Array]) -> jax.Array | None:
  if not factors:
    return None
  product = factors[0]
  for factor in factors[1:]:
    product = product * factor
  return product
