"""The jitted training step, with a slot for every policy."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jdc.data.batch import RowInputs, inputs_and_targets
from jdc.data.loader import Batch
from jdc.models.base import LanguageModel
from jdc.policies.base import Decision
from jdc.policies.combine import Policies
from jdc.stats.gradients import Features
from jdc.train import objective
from jdc.train.candidates import CandidateDraw, select
from jdc.train.gradients import make_gradients
from jdc.train.observe import (
  make_updater,
  mean_loss,
  num_tokens,
  observed_of,
  replicate,
  target_fields,
)
from jdc.train.passes import Microbatch, make_passes
from jdc.train.state import TrainState, slots

_DROPOUT = 1  # a stream of the step's key; the choice among candidates has the key itself


class StepOutput(NamedTuple):
  """What the host reads of a step, replicated; B counts the examples trained.

  Packed rows of S records have B S of them.
  """

  loss: jax.Array  # f32[], the weighted loss
  balance_loss: jax.Array | None  # f32[], of a mixture of experts, as added to the loss
  grad_norm: jax.Array  # f32[], before clipping
  learning_rate: jax.Array  # f32[]
  skipped: jax.Array  # bool[], loss or gradient not finite, or no gradient: no update
  skipped_in_row: jax.Array  # i32[]
  example_id: jax.Array  # i32[B]
  domain: jax.Array  # i32[B]
  loss_B: jax.Array  # f32[B], mean per target token, nats
  num_tokens_B: jax.Array  # i32[B]
  weight_B: jax.Array | None  # f32[B], where one acts
  mixture_logits: jax.Array | None  # f32[K], of a step-scope mixture
  share_filled: jax.Array | None  # f32[], of the positions of packed rows that hold tokens
  metrics: dict[str, Any]  # of each policy by slot
  # For the table of examples; `None` where it is not kept or there is no such thing.
  piece_loss: jax.Array | None = None  # f32[B, S], mean per target token of each segment
  target_alignment: jax.Array | None = None  # f32[B], where a policy observes it
  candidate_id: jax.Array | None = None  # i32[C], what a step-scope selection chose from


@dataclasses.dataclass(frozen=True)
class StepOptions:
  """How a step computes, apart from what it computes with."""

  loss_average: objective.LossAverage = "token"
  accumulation_steps: int = 1  # microbatches of one optimizer step
  num_kept: int = 0  # rows that a step-scope selection keeps, 0 without one
  candidate_draw: CandidateDraw = "top_k"
  # What `target_alignment` is by; "low_rank" by the gradient of the last refresh.
  alignment: Literal["exact", "linear_maps", "low_rank"] = "exact"
  num_target_rows: int = 8  # drawn in a step, where `target_alignment` and such are observed
  row_weights: bool = False  # rows carry weights: of a round decision, or of their selection
  weighted_slots: frozenset[str] = frozenset()  # step-scope slots whose decision has weights
  # Segments of a row whose losses are told apart, for a table of examples; 0: none is kept.
  num_pieces: int = 0


def make_train_step(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  learning_rate: optax.Schedule,
  policies: Policies,
  options: StepOptions,
  reference: LanguageModel | None = None,
  features: Features | None = None,
  products: Callable[..., dict[str, jax.Array]] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepOutput]]:
  """Returns the function of one optimizer step; jit it with the state donated.

  Args:
    model: the network.
    optimizer: applied to the gradient of the weighted loss.
    learning_rate: of the optimizer by its own step count, for policies and logs.
    policies: what acts; step-scope slots are updated in the step.
    options: loss, accumulation and the choice among candidates.
    reference: a frozen model that policies compare with; its parameters are in the state.
    features: computes the gradients of single rows, where policies observe them.
    products: computes the inner products of all pairs of these.
  """
  observed = observed_of(policies, "step")
  passes = make_passes(
    model, reference, observed, options.num_target_rows, features, products,
    options.accumulation_steps, options.alignment,
  )  # fmt: skip
  update = make_updater(policies)
  in_step = {name for name, policy in slots(policies).items() if policy.scope == "step"}
  selects = "selection" in in_step
  trained = in_step & {"weighting"} if selects else in_step
  gradients = make_gradients(
    passes, update, policies, trained, options.weighted_slots & trained,
    options.row_weights, options.loss_average, options.accumulation_steps,
  )  # fmt: skip

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepOutput]:
    rate = jnp.asarray(learning_rate(state.step - state.skipped), jnp.float32)
    context = {"step": state.step, "learning_rate": rate, **target_fields(state.target)}
    params, fixed = state.parts, state.read
    key = jax.random.fold_in(state.key, state.step)
    decisions: dict[str, Decision] = {}
    states = state.policies
    candidate_id = batch.example_id if selects and options.num_pieces else None
    if selects:
      batch, decisions, states = select(
        passes, update, options.accumulation_steps, options.num_kept, options.candidate_draw,
        key, params, fixed, state.opt_state, batch, context, states,
      )  # fmt: skip
    inputs = inputs_and_targets(batch.tokens, batch.segments)
    noise = jax.random.fold_in(key, _DROPOUT) if model.dropout else None
    rows = Microbatch(batch, inputs, noise)
    found = gradients(params, fixed, state.opt_state, rows, key, context, states)
    loss, grads, states = found.loss, found.grads, found.states
    decisions |= found.decisions
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    # A selection may have kept no row, or all weights may be 0; an update would be of momentum
    # and decay alone.
    useful = finite & jnp.any(inputs.mask) & (grad_norm > 0)

    def apply(params: Any, opt_state: Any, grads: Any) -> tuple[Any, Any]:
      updates, opt_state = optimizer.update(grads, opt_state, params)
      return optax.apply_updates(params, updates), opt_state

    # Without a gradient parameters and optimizer stay; plan and policies go on.
    params, opt_state = jax.lax.cond(
      useful, apply, lambda *kept: kept[:2], state.params, state.opt_state, grads
    )
    skipped_in_row = jnp.where(useful, 0, state.skipped_in_row + 1)
    new_state = state._replace(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      policies=states,
      skipped=state.skipped + ~useful,
      skipped_in_row=skipped_in_row,
    )
    examples = {
      "example_id": batch.example_id,
      "domain": batch.domain,
      "loss_B": mean_loss(batch, inputs, found.seen.token_loss),
      "num_tokens_B": num_tokens(batch, inputs),
      "weight_B": found.weight,
    }
    packed = batch.max_segments is not None
    if options.num_pieces:
      examples |= {"target_alignment": found.seen.target_alignment}
      examples |= {"candidate_id": candidate_id}
    filled = jnp.mean(batch.segments != 0, dtype=jnp.float32) if packed else None
    output = StepOutput(
      loss=loss,
      balance_loss=found.balance_loss,
      grad_norm=grad_norm,
      learning_rate=rate,
      skipped=~useful,
      skipped_in_row=skipped_in_row,
      mixture_logits=decisions["mixture"].logits if "mixture" in decisions else None,
      metrics={name: d.metrics for name, d in decisions.items() if d.metrics is not None},
      share_filled=filled,
      piece_loss=_piece_loss(batch, inputs, found.seen.token_loss, options.num_pieces),
      **replicate(jax.tree.map(lambda x: x.reshape(-1), examples)),
    )
    return new_state, output

  return train_step


def _piece_loss(
  batch: Batch, inputs: RowInputs, token_loss_BxT: jax.Array, num_pieces: int
) -> jax.Array | None:
  """The mean loss of each segment, f32[B, S]; `None` where a row is one, or holds records."""
  if num_pieces <= 1 or batch.max_segments is not None:
    return None
  segments, mask = inputs.segments, inputs.mask
  count = objective.example_sums(mask.astype(jnp.int32), segments, num_pieces)
  return replicate(objective.mean_loss(token_loss_BxT, mask, segments, count))
