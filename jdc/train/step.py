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
from jdc.policies import sampling
from jdc.policies.base import Decision, ExampleStats
from jdc.policies.combine import Policies
from jdc.train import objective
from jdc.train.state import TrainState, slots

# The statistics that a training step can provide.
PROVIDED = frozenset({
    "example_id", "domain", "num_tokens", "sampling_probability", "domain_probability",
    "loss", "token_loss", "token_mask", "step", "learning_rate",
})  # fmt: skip

CandidateDraw = Literal["top_k", "gumbel_top_k", "multinomial"]


class StepOutput(NamedTuple):
  """What the host reads of a step, replicated; rows are those trained."""

  loss: jax.Array  # f32[], the weighted loss
  grad_norm: jax.Array  # f32[], before clipping
  learning_rate: jax.Array  # f32[]
  skipped: jax.Array  # bool[], loss or gradient not finite: no update
  skipped_in_row: jax.Array  # i32[]
  example_id: jax.Array  # i32[B]
  domain: jax.Array  # i32[B]
  loss_B: jax.Array  # f32[B], mean per target token, nats
  num_tokens_B: jax.Array  # i32[B]
  weight_B: jax.Array | None  # f32[B], where one acts
  mixture_logits: jax.Array | None  # f32[K], of a step-scope mixture
  metrics: dict[str, Any]  # of each policy by slot


@dataclasses.dataclass(frozen=True)
class StepOptions:
  """How a step computes, apart from what it computes with."""

  loss_average: objective.LossAverage = "token"
  accumulation_steps: int = 1  # microbatches of one optimizer step
  num_kept: int = 0  # rows that a step-scope selection keeps, 0 without one
  candidate_draw: CandidateDraw = "top_k"
  weights: bool = False  # rows carry weights of a round decision
  weighted_slots: frozenset[str] = frozenset()  # step-scope slots whose decision has weights


def make_train_step(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  learning_rate: optax.Schedule,
  policies: Policies,
  options: StepOptions,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepOutput]]:
  """Returns the function of one optimizer step; jit it with the state donated.

  Args:
    model: the network.
    optimizer: applied to the gradient of the weighted loss.
    learning_rate: of the optimizer by its own step count, for policies and logs.
    policies: what acts; step-scope slots are updated in the step.
    options: loss, accumulation and the choice among candidates.
  """
  forward = _forward(model)
  update = _slot_updater(policies)
  in_step = {name for name, policy in slots(policies).items() if policy.scope == "step"}
  selects = "selection" in in_step
  trained = in_step & {"weighting"} if selects else in_step
  gradients = _gradients(forward, update, trained, policies, options)

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepOutput]:
    rate = jnp.asarray(learning_rate(state.step - state.skipped), jnp.float32)
    decisions: dict[str, Decision] = {}
    states = state.policies
    if selects:
      batch, decisions, states = _select(forward, update, options, state, batch, rate)
    inputs = inputs_and_targets(batch.tokens, batch.segments)
    scalars = {"step": state.step, "learning_rate": rate}
    loss, grads, token_loss, chosen, weight_B, states = gradients(
      state.params, batch, inputs, scalars, states
    )
    decisions |= chosen
    grad_norm = optax.tree.norm(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    num_tokens_B = _num_tokens(inputs)
    skipped_in_row = jnp.where(finite, 0, state.skipped_in_row + 1)
    new_state = TrainState(
      step=state.step + 1,
      params=_where(finite, params, state.params),
      opt_state=_where(finite, opt_state, state.opt_state),
      policies=states,
      key=state.key,
      skipped=state.skipped + ~finite,
      skipped_in_row=skipped_in_row,
    )
    rows = _replicate((batch.example_id, batch.domain))
    output = StepOutput(
      loss=loss,
      grad_norm=grad_norm,
      learning_rate=rate,
      skipped=~finite,
      skipped_in_row=skipped_in_row,
      example_id=rows[0],
      domain=rows[1],
      loss_B=_replicate(objective.mean_loss(token_loss, inputs.mask, num_tokens_B)),
      num_tokens_B=_replicate(num_tokens_B),
      weight_B=None if weight_B is None else _replicate(weight_B),
      mixture_logits=decisions["mixture"].logits if "mixture" in decisions else None,
      metrics={name: d.metrics for name, d in decisions.items() if d.metrics is not None},
    )
    return new_state, output

  return train_step


def example_stats(
  batch: Batch,
  inputs: RowInputs,
  token_loss_BxT: jax.Array,
  observed: frozenset[str],
  scalars: dict[str, jax.Array],
) -> ExampleStats:
  """Returns the statistics named by `observed`, replicated and constant for the gradient."""
  num_tokens_B = _num_tokens(inputs)
  provided = {
    "example_id": lambda: batch.example_id,
    "domain": lambda: batch.domain,
    "num_tokens": lambda: num_tokens_B,
    "sampling_probability": lambda: batch.sampling_probability,
    "domain_probability": lambda: batch.domain_probability,
    "loss": lambda: objective.mean_loss(token_loss_BxT, inputs.mask, num_tokens_B),
    "token_loss": lambda: token_loss_BxT,
    "token_mask": lambda: inputs.mask.astype(jnp.float32),
    "step": lambda: scalars["step"],
    "learning_rate": lambda: scalars["learning_rate"],
  }
  fields = {name: provided[name]() for name in sorted(observed & provided.keys())}
  return ExampleStats(**_replicate(jax.lax.stop_gradient(fields)))


def _forward(model: LanguageModel) -> Callable[[Any, RowInputs], jax.Array]:
  def forward(params: Any, inputs: RowInputs) -> jax.Array:
    return model.token_losses(
      params, inputs.tokens, inputs.targets, inputs.positions, inputs.segments
    )

  return forward


def _slot_updater(policies: Policies) -> Callable[..., tuple[dict[str, Decision], dict]]:
  """Returns a function that updates step-scope slots by name and lets round-scope ones look."""
  active = slots(policies)

  def update(
      batch: Batch, inputs: RowInputs, token_loss: jax.Array, scalars: dict, states: dict,
      names: set[str], *, observe: bool,
  ) -> tuple[dict[str, Decision], dict]:  # fmt: skip
    decisions, states = {}, dict(states)
    for name, policy in active.items():
      if name in names:
        stats = example_stats(batch, inputs, token_loss, policy.observes, scalars)
        decisions[name], states[name] = policy.update(stats, states[name])
      elif observe and policy.scope == "round" and policy.observe is not None:
        stats = example_stats(batch, inputs, token_loss, policy.observes_batch, scalars)
        states[name] = policy.observe(stats, states[name])
    return decisions, states

  return update


def _gradients(
  forward: Callable,
  update: Callable,
  trained: set[str],
  policies: Policies,
  options: StepOptions,
) -> Callable:
  """Returns the function of loss, gradients, token losses, decisions, weights and states."""
  average, weighted = options.loss_average, options.weighted_slots & trained

  def weigh(batch: Batch, decisions: dict[str, Decision]) -> tuple[Any, Any]:
    weights = [batch.weight] if options.weights else []
    weights += [
      decisions[n].weights for n in sorted(weighted) if decisions[n].weights is not None
    ]
    tokens = [decisions[n].token_weights for n in sorted(weighted)]
    return _product(weights), _product([u for u in tokens if u is not None])

  def loss_sum(token_loss: jax.Array, inputs: RowInputs, w: Any, u: Any) -> jax.Array:
    num_tokens_B = _num_tokens(inputs)
    return objective.weighted_sum(token_loss, inputs.mask, num_tokens_B, w, u, average)

  def whole(params: Any, batch: Batch, inputs: RowInputs, scalars: dict, states: dict) -> tuple:
    def loss_fn(params: Any) -> tuple[jax.Array, tuple]:
      token_loss = forward(params, inputs)
      decisions, new_states = update(
        batch, inputs, token_loss, scalars, states, trained, observe=True
      )
      w, u = weigh(batch, decisions)
      total = objective.denominator(_num_tokens(inputs), average)
      loss = loss_sum(token_loss, inputs, w, u) / total
      return loss, (token_loss, decisions, w, new_states)

    (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    token_loss, decisions, w, states = aux
    return loss, grads, token_loss, decisions, w, states

  def accumulated(
    params: Any, batch: Batch, inputs: RowInputs, scalars: dict, states: dict
  ) -> tuple:
    split, join = _splitter(options.accumulation_steps)
    total = objective.denominator(_num_tokens(inputs), average)
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

    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, (losses, token_loss) = jax.lax.scan(accumulate, zeros, micro)
    token_loss = join(token_loss)
    decisions, states = update(
      batch, inputs, token_loss, scalars, states, trained, observe=True
    )
    w, _ = weigh(batch, decisions)
    return jnp.sum(losses), grads, token_loss, decisions, w, states

  return whole if options.accumulation_steps == 1 else accumulated


def _select(
  forward: Callable,
  update: Callable,
  options: StepOptions,
  state: TrainState,
  batch: Batch,
  rate: jax.Array,
) -> tuple[Batch, dict[str, Decision], dict[str, Any]]:
  """Keeps `num_kept` of the candidates; mixture and selection see all of them."""
  inputs = inputs_and_targets(batch.tokens, batch.segments)
  # Candidates are scored in microbatches of the trained size, which is known to fit.
  split, join = _splitter(
    batch.tokens.shape[0] // options.num_kept * options.accumulation_steps
  )
  token_loss = join(jax.lax.map(lambda part: forward(state.params, part), split(inputs)))
  scalars = {"step": state.step, "learning_rate": rate}
  decisions, states = update(
    batch, inputs, token_loss, scalars, state.policies, {"mixture", "selection"}, observe=False
  )
  logits_C = decisions["selection"].logits
  key = jax.random.fold_in(state.key, state.step)
  kept_B = _draw_candidates(key, logits_C, options)
  usable_B = (kept_B >= 0) & jnp.isfinite(logits_C[kept_B])
  kept = jax.tree.map(lambda x: x[kept_B], batch)
  if options.candidate_draw != "top_k":
    odds_B = jax.nn.softmax(logits_C)[kept_B] * logits_C.shape[0]
    kept = dataclasses.replace(kept, sampling_probability=kept.sampling_probability * odds_B)
  return (
    dataclasses.replace(
      kept,
      # A row that may not be drawn fills the batch without counting.
      segments=jnp.where(usable_B[:, None], kept.segments, 0),
      example_id=jnp.where(usable_B, kept.example_id, -1),
      domain=jnp.where(usable_B, kept.domain, 0),
    ),
    decisions,
    states,
  )


def _draw_candidates(key: jax.Array, logits_C: jax.Array, options: StepOptions) -> jax.Array:
  if options.candidate_draw == "top_k":
    return jax.lax.top_k(logits_C, options.num_kept)[1]
  if options.candidate_draw == "gumbel_top_k":
    return sampling.gumbel_top_k(key, logits_C, options.num_kept)[0]
  return sampling.multinomial(jax.random.uniform(key, (options.num_kept,)), logits_C)


def _splitter(parts: int) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
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


def _num_tokens(inputs: RowInputs) -> jax.Array:
  return jnp.sum(inputs.mask, axis=1, dtype=jnp.int32)


def _product(factors: list[jax.Array]) -> jax.Array | None:
  if not factors:
    return None
  product = factors[0]
  for factor in factors[1:]:
    product = product * factor
  return product


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
  return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def _replicate(tree: Any) -> Any:
  """Gathers statistics, so that a policy is plain array code on any mesh."""
  return jax.tree.map(lambda x: jax.sharding.reshard(x, jax.P()), tree)
