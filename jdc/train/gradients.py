"""The gradient of the weighted loss, in one piece or accumulated over microbatches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdc.data.batch import RowInputs
from jdc.data.loader import Batch
from jdc.models.base import LanguageModel
from jdc.policies.base import Decision
from jdc.policies.combine import Policies
from jdc.train import objective
from jdc.train.observe import num_tokens
from jdc.train.state import Params, full_params, slots


def make_forward(model: LanguageModel) -> Callable[..., jax.Array]:
  """Returns `(params, inputs, key=None) -> f32[B, T]`, the token losses of rows.

  A key draws the noise of training, in models that have it; without one there is none.
  """

  def forward(params: Any, inputs: RowInputs, key: jax.Array | None = None) -> jax.Array:
    noise = {} if key is None else {"key": key}
    return model.token_losses(
      params, inputs.tokens, inputs.targets, inputs.positions, inputs.segments, **noise
    )

  return forward


def make_loss_sum(model: LanguageModel) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Returns `(params, inputs, weights f32[B, T], key=None) -> (f32[], f32[B, T])`.

  The sum of weights times losses, and the losses, which are constants for the gradient.
  """
  forward, offered = make_forward(model), model.weighted_loss

  def plain(
    params: Any, inputs: RowInputs, weight_BxT: jax.Array, key: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    token_loss = forward(params, inputs, key)
    return jnp.sum(token_loss * weight_BxT), jax.lax.stop_gradient(token_loss)

  def own(
    params: Any, inputs: RowInputs, weight_BxT: jax.Array, key: jax.Array | None = None
  ) -> tuple[jax.Array, jax.Array]:
    assert offered is not None
    noise, (tokens, targets, positions, segments, _) = (
      {} if key is None else {"key": key},
      inputs,
    )
    return offered(params, tokens, targets, positions, segments, weight_BxT, **noise)

  return plain if offered is None else own


class Microbatch(NamedTuple):
  """What the losses of some rows are computed from."""

  batch: Batch
  inputs: RowInputs
  key: jax.Array | None  # of the noise of training


def make_gradients(
  forward: Callable,
  loss_sum: Callable,
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
    forward: of `make_forward`.
    loss_sum: of `make_loss_sum`.
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
      decisions[n].weights.reshape(batch.example_id.shape)
      for n in sorted(weighted)
      if decisions[n].weights is not None
    ]
    tokens = [decisions[n].token_weights for n in sorted(weighted)]
    return _product(weights), _product([u for u in tokens if u is not None])

  def weights_of(part: Microbatch, w: Any, u: Any) -> jax.Array:
    inputs, tokens = part.inputs, num_tokens(part.batch, part.inputs)
    return objective.loss_weights(inputs.mask, inputs.segments, tokens, w, u, average)

  def losses(params: Params, part: Microbatch) -> jax.Array:
    return forward(full_params(params.trained, params.frozen), part.inputs, part.key)

  def weighted_loss(
    params: Params, part: Microbatch, w: Any, u: Any
  ) -> tuple[jax.Array, jax.Array]:
    """The weighted sum of losses and the losses, for weights known before them."""
    model_params, weight_BxT = (
      full_params(params.trained, params.frozen),
      weights_of(part, w, u),
    )
    return loss_sum(model_params, part.inputs, weight_BxT, part.key)

  def whole(params: Params, part: Microbatch, scalars: dict, states: dict) -> tuple:
    total = objective.denominator(num_tokens(part.batch, part.inputs), average)

    def decide(token_loss: jax.Array) -> tuple[dict[str, Decision], dict]:
      return update(part.batch, part.inputs, token_loss, scalars, states, trained, observe=True)

    def loss_fn(trained_params: Any) -> tuple[jax.Array, tuple]:
      current = params._replace(trained=trained_params)
      if not weighted:
        w, u = weigh(part.batch, {})
        loss, token_loss = weighted_loss(current, part, w, u)
        return loss / total, (token_loss, *decide(token_loss), w)
      token_loss = losses(current, part)
      decisions, new_states = decide(token_loss)
      w, u = weigh(part.batch, decisions)
      loss = jnp.sum(token_loss * weights_of(part, w, u)) / total
      return loss, (token_loss, decisions, new_states, w)

    (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(params.trained)
    token_loss, decisions, states, w = aux
    return loss, grads, token_loss, decisions, w, states

  def accumulated(params: Params, part: Microbatch, scalars: dict, states: dict) -> tuple:
    split, join = splitter(accumulation_steps)
    batch, inputs, key = part
    total = objective.denominator(num_tokens(batch, inputs), average)
    keys = None if key is None else jax.random.split(key, accumulation_steps)
    parts = Microbatch(split(batch), split(inputs), keys)
    pointwise = weighted and all(slots(policies)[name].pointwise for name in weighted)
    decisions: dict[str, Decision] = {}
    if weighted and not pointwise:
      # Weights that depend on the whole batch need its losses before any gradient.
      token_loss = join(jax.lax.map(lambda part: losses(params, part), parts))
      decisions, _ = update(batch, inputs, token_loss, scalars, states, trained, observe=False)
    known = None if pointwise else split(weigh(batch, decisions))

    def accumulate(grads: Any, each: tuple[Microbatch, Any]) -> tuple[Any, tuple]:
      part, weights = each

      def loss_fn(trained_params: Any) -> tuple[jax.Array, jax.Array]:
        current = params._replace(trained=trained_params)
        if weights is not None:
          loss, token_loss = weighted_loss(current, part, *weights)
          return loss / total, token_loss
        token_loss = losses(current, part)
        seen, _ = update(*part[:2], token_loss, scalars, states, weighted, observe=False)
        weight_BxT = weights_of(part, *weigh(part.batch, seen))
        return jnp.sum(token_loss * weight_BxT) / total, token_loss

      (loss, token_loss), new = jax.value_and_grad(loss_fn, has_aux=True)(params.trained)
      return jax.tree.map(jnp.add, grads, new), (loss, token_loss)

    # In float32, whatever the parameters: small gradients would vanish in a bfloat16 sum.
    zeros = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), params.trained)
    grads, (sums, token_loss) = jax.lax.scan(accumulate, zeros, (parts, known))
    grads = jax.tree.map(lambda g, x: g.astype(x.dtype), grads, params.trained)
    token_loss = join(token_loss)
    decisions, states = update(
      batch, inputs, token_loss, scalars, states, trained, observe=True
    )
    w, _ = weigh(batch, decisions)
    return jnp.sum(sums), grads, token_loss, decisions, w, states

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
