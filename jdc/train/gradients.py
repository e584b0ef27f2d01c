"""The gradient of the weighted loss, in one piece or accumulated over microbatches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdc.data.loader import Batch
from jdc.policies.base import Decision
from jdc.policies.combine import Policies
from jdc.train import objective
from jdc.train.observe import num_tokens
from jdc.train.passes import Microbatch, Passes, Seen
from jdc.train.state import Fixed, Params, full_params, slots


class Gradients(NamedTuple):
  """The gradient of one optimizer step, and what came with it."""

  loss: jax.Array  # f32[], the weighted loss
  balance_loss: jax.Array | None  # f32[], of a mixture of experts, as it was added to the loss
  grads: Any
  seen: Seen
  decisions: dict[str, Decision]
  weight: jax.Array | None  # f32[B] or [B, S]
  states: dict[str, Any]  # of the policies


def make_gradients(
  passes: Passes,
  update: Callable,
  policies: Policies,
  trained: set[str],
  weighted: frozenset[str],
  row_weights: bool,
  average: objective.LossAverage,
  accumulation_steps: int,
) -> Callable[..., Gradients]:
  """Returns `(params, fixed, opt_state, rows, key, context, states) -> Gradients`.

  Args:
    passes: of `make_passes`.
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

  def weights_of(rows: Microbatch, w: Any, u: Any) -> jax.Array:
    inputs, tokens = rows.inputs, num_tokens(rows.batch, rows.inputs)
    return objective.loss_weights(inputs.mask, inputs.segments, tokens, w, u, average)

  def whole(
    params: Params, fixed: Fixed, opt_state: Any, rows: Microbatch, key: jax.Array,
    context: dict, states: dict,
  ) -> Gradients:  # fmt: skip
    total = objective.denominator(num_tokens(rows.batch, rows.inputs), average)
    shared = passes.share(params, fixed, opt_state, key)
    by_row = not (weighted or row_weights)  # the weights of a row's tokens are the same
    shares = passes.aligned is not None and by_row
    known = frozenset({"target_alignment"}) if shares else frozenset[str]()
    told = passes.besides(params, fixed, rows, shared, known)
    context = context | passes.together(params, fixed, rows.inputs, key)

    def decide(seen: Seen) -> tuple[dict[str, Decision], dict]:
      return update(*rows[:2], seen, context, states, trained, observe=True)

    if shares:
      assert passes.aligned is not None
      weight_BxT = weights_of(rows, None, None) / total
      grads, loss, seen = passes.aligned(params, rows, weight_BxT, shared)
      seen = seen._replace(**told)
      decisions, states = decide(seen)
      return Gradients(loss, None, grads, seen, decisions, None, states)

    def loss_fn(trained_params: Any) -> tuple[jax.Array, tuple]:
      current = full_params(trained_params, params.frozen)
      if weighted:
        seen, balance = passes.look(current, rows)
        seen = seen._replace(**told)
        decisions, new_states = decide(seen)
        w, u = weigh(rows.batch, decisions)
        loss = jnp.sum(seen.token_loss * weights_of(rows, w, u)) / total
      else:
        w, u = weigh(rows.batch, {})
        loss, seen, balance = passes.weighted(current, rows, weights_of(rows, w, u))
        loss, seen = loss / total, seen._replace(**told)
        decisions, new_states = decide(seen)
      return _plus(loss, balance), (loss, balance, seen, decisions, w, new_states)

    grads, aux = jax.grad(loss_fn, has_aux=True)(params.trained)
    loss, balance, seen, decisions, w, states = aux
    return Gradients(loss, balance, grads, seen, decisions, w, states)

  def accumulated(
    params: Params, fixed: Fixed, opt_state: Any, rows: Microbatch, key: jax.Array,
    context: dict, states: dict,
  ) -> Gradients:  # fmt: skip
    split, join = splitter(accumulation_steps)
    shared = passes.share(params, fixed, opt_state, key)
    context = context | passes.together(params, fixed, rows.inputs, key)
    total = objective.denominator(num_tokens(rows.batch, rows.inputs), average)
    noise = None if rows.key is None else jax.random.split(rows.key, accumulation_steps)
    parts = Microbatch(split(rows.batch), split(rows.inputs), noise)
    pointwise = weighted and all(slots(policies)[name].pointwise for name in weighted)
    told: dict[str, Any] | None = None
    decisions: dict[str, Decision] = {}
    if weighted and not pointwise:
      # Weights that depend on the whole batch need its losses before any gradient.

      def observed(part: Microbatch) -> tuple[Seen, dict[str, Any]]:
        seen, _ = passes.look(full_params(params.trained, params.frozen), part)
        return seen, passes.besides(params, fixed, part, shared)

      first, told = jax.lax.map(observed, parts)
      seen = join(first._replace(**told))
      decisions, _ = update(
        rows.batch, rows.inputs, seen, context, states, trained, observe=False
      )
    known = None if pointwise else split(weigh(rows.batch, decisions))

    def accumulate(grads: Any, each: tuple[Microbatch, Any, Any]) -> tuple[Any, tuple]:
      part, weights, told = each
      told = passes.besides(params, fixed, part, shared) if told is None else told

      def loss_fn(trained_params: Any) -> tuple[jax.Array, tuple]:
        current = full_params(trained_params, params.frozen)
        if weights is not None:
          loss, seen, balance = passes.weighted(current, part, weights_of(part, *weights))
          loss, seen = loss / total, seen._replace(**told)
        else:
          seen, balance = passes.look(current, part)
          seen = seen._replace(**told)
          chosen, _ = update(*part[:2], seen, context, states, weighted, observe=False)
          weight_BxT = weights_of(part, *weigh(part.batch, chosen))
          loss = jnp.sum(seen.token_loss * weight_BxT) / total
        balance = None if balance is None else balance / accumulation_steps
        return _plus(loss, balance), (loss, balance, seen)

      new, aux = jax.grad(loss_fn, has_aux=True)(params.trained)
      return jax.tree.map(jnp.add, grads, new), aux

    # In float32, whatever the parameters: small gradients would vanish in a bfloat16 sum.
    zeros = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), params.trained)
    grads, (losses, balances, seen) = jax.lax.scan(accumulate, zeros, (parts, known, told))
    grads = jax.tree.map(lambda g, x: g.astype(x.dtype), grads, params.trained)
    seen = join(seen)
    decisions, states = update(
      rows.batch, rows.inputs, seen, context, states, trained, observe=True
    )
    w, _ = weigh(rows.batch, decisions)
    balance = None if balances is None else jnp.sum(balances)
    return Gradients(jnp.sum(losses), balance, grads, seen, decisions, w, states)

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


def _plus(loss: jax.Array, balance: jax.Array | None) -> jax.Array:
  return loss if balance is None else loss + balance


def _product(factors: list[jax.Array]) -> jax.Array | None:
  if not factors:
    return None
  product = factors[0]
  for factor in factors[1:]:
    product = product * factor
  return product
