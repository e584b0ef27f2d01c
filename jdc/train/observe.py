"""What policies observe of a batch, and their update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jdc.data.batch import RowInputs
from jdc.data.loader import Batch
from jdc.policies.base import Decision, ExampleStats
from jdc.policies.combine import Policies
from jdc.train import objective
from jdc.train.passes import Seen
from jdc.train.state import slots

# Statistics of a batch that need nothing but its losses.
PLAIN = frozenset({
  "example_id", "domain", "num_tokens", "sampling_probability", "domain_probability",
  "loss", "token_loss", "token_mask", "token_segment",
})  # fmt: skip
# Those that are not of a batch.
CONTEXT = frozenset({
  "step", "learning_rate", "target", "domain_target_loss", "domain_expert_load",
  "target_reward",
})  # fmt: skip


def example_stats(
  batch: Batch,
  inputs: RowInputs,
  seen: Seen,
  observed: frozenset[str],
  context: dict[str, Any],
) -> ExampleStats:
  """Returns the statistics named by `observed`, replicated and constant for the gradient.

  Of packed rows, those of their B S examples, in order.

  Args:
    batch: the rows.
    inputs: the same, split into inputs and targets.
    seen: what the passes over them told.
    observed: fields of `ExampleStats`.
    context: the observed fields that are in `CONTEXT`, `gradient_product` and
      `target_curvature`.
  """
  tokens = num_tokens(batch, inputs)

  def example_mean(token_BxT: jax.Array | None) -> jax.Array:
    assert token_BxT is not None
    return mean_loss(batch, inputs, token_BxT).reshape(-1)

  provided: dict[str, Callable[[], Any]] = {
    "example_id": lambda: batch.example_id.reshape(-1),
    "domain": lambda: batch.domain.reshape(-1),
    "num_tokens": lambda: tokens.reshape(-1),
    "sampling_probability": lambda: batch.sampling_probability.reshape(-1),
    "domain_probability": lambda: batch.domain_probability.reshape(-1),
    "loss": lambda: example_mean(seen.token_loss),
    "token_loss": lambda: seen.token_loss,
    "token_mask": lambda: inputs.mask.astype(jnp.float32),
    "token_segment": lambda: _token_segment(batch, inputs),
    "reference_loss": lambda: example_mean(seen.reference_token_loss),
    "reference_token_loss": lambda: seen.reference_token_loss,
    "target_alignment": lambda: seen.target_alignment,
    "gradient": lambda: seen.gradient,
    "update_direction": lambda: seen.update_direction,
    "gradient_norm": lambda: seen.gradient_norm,
    "el2n": lambda: example_mean(seen.token_error),
    "logit_nuclear_norm": lambda: seen.logit_nuclear_norm,
    "logit_projection": lambda: seen.logit_projection,
  }
  fields = {name: provided[name]() for name in sorted(observed & provided.keys())}
  fields |= {
    name: pooled.reshape(-1, pooled.shape[-1])
    for name, pooled in seen.embeddings.items()
    if name in observed
  }
  fields |= {name: value for name, value in context.items() if name in observed}
  return ExampleStats(**replicate(jax.lax.stop_gradient(fields)))


def make_updater(policies: Policies) -> Callable[..., tuple[dict[str, Decision], dict]]:
  """Returns a function that updates step-scope slots by name and lets round-scope ones look.

  A name whose slot is of round scope, or empty, is passed over.
  """
  active = slots(policies)

  def update(
      batch: Batch, inputs: RowInputs, seen: Seen, context: dict, states: dict,
      names: set[str], *, observe: bool,
  ) -> tuple[dict[str, Decision], dict]:  # fmt: skip
    decisions, states = {}, dict(states)
    for name, policy in active.items():
      if name in names and policy.scope == "step":
        stats = example_stats(batch, inputs, seen, policy.observes, context)
        decisions[name], states[name] = policy.update(stats, states[name])
      elif observe and policy.scope == "round" and policy.observe is not None:
        stats = example_stats(batch, inputs, seen, policy.observes_batch, context)
        states[name] = policy.observe(stats, states[name])
    return decisions, states

  return update


def observed_of(policies: Policies, scope: str) -> frozenset[str]:
  """Returns all fields that policies read in a training step, or in a round."""
  fields: frozenset[str] = frozenset()
  for policy in slots(policies).values():
    fields |= policy.observes if policy.scope == scope else frozenset()
    fields |= policy.observes_batch if scope == "step" else frozenset()
  return fields


def target_fields(target: Any) -> dict[str, Any]:
  """Returns the statistics of the target set that are there, by field of `ExampleStats`."""
  if target is None:
    return {}
  fields = {
    "target": target.stats,
    "domain_target_loss": target.domain_target_loss,
    "domain_expert_load": target.domain_expert_load,
    "target_reward": target.reward,
  }
  return {name: value for name, value in fields.items() if value is not None}


def num_tokens(batch: Batch, inputs: RowInputs) -> jax.Array:
  """Returns the target tokens of each example, i32[B], or i32[B, S] of packed rows."""
  mask = inputs.mask.astype(jnp.int32)
  return objective.example_sums(mask, inputs.segments, batch.max_segments)


def mean_loss(batch: Batch, inputs: RowInputs, token_loss_BxT: jax.Array) -> jax.Array:
  """Returns the mean loss of each example's target tokens, like `num_tokens`."""
  return objective.mean_loss(
    token_loss_BxT, inputs.mask, inputs.segments, num_tokens(batch, inputs)
  )


def _token_segment(batch: Batch, inputs: RowInputs) -> jax.Array:
  """The place of each position's example in the statistics, i32[B, T]; -1 is padding."""
  row_Bx1 = jnp.arange(inputs.segments.shape[0], dtype=jnp.int32)[:, None]
  if batch.max_segments is None:
    return jnp.where(inputs.segments > 0, row_Bx1, -1)
  place_BxT = row_Bx1 * batch.max_segments + inputs.segments - 1
  return jnp.where(inputs.segments > 0, place_BxT, -1)


def replicate(tree: Any) -> Any:
  """Gathers statistics, so that a policy is plain array code on any mesh."""
  return jax.tree.map(lambda x: jax.sharding.reshard(x, jax.P()), tree)
