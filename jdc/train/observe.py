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
from jdc.train.state import slots

# The statistics that a training step can provide.
PROVIDED = frozenset({
    "example_id", "domain", "num_tokens", "sampling_probability", "domain_probability",
    "loss", "token_loss", "token_mask", "step", "learning_rate",
})  # fmt: skip


def example_stats(
  batch: Batch,
  inputs: RowInputs,
  token_loss_BxT: jax.Array,
  observed: frozenset[str],
  scalars: dict[str, jax.Array],
) -> ExampleStats:
  """Returns the statistics named by `observed`, replicated and constant for the gradient."""
  num_tokens_B = num_tokens(inputs)
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
  return ExampleStats(**replicate(jax.lax.stop_gradient(fields)))


def make_updater(policies: Policies) -> Callable[..., tuple[dict[str, Decision], dict]]:
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


def num_tokens(inputs: RowInputs) -> jax.Array:
  """Returns the target tokens of each row, i32[B]."""
  return jnp.sum(inputs.mask, axis=1, dtype=jnp.int32)


def replicate(tree: Any) -> Any:
  """Gathers statistics, so that a policy is plain array code on any mesh."""
  return jax.tree.map(lambda x: jax.sharding.reshard(x, jax.P()), tree)
