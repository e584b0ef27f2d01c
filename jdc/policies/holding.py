"""`every`: a policy that is updated at every n-th call only."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, PolicyState, RunSpec
from jdc.policies.combinators import around
from jdc.policies.stages import ScheduleState


class EveryState(NamedTuple):
  inner: PolicyState
  position: jax.Array  # i32[], calls so far modulo `steps`
  held: Decision
  batches: dict[str, jax.Array]  # step scope: the last `steps` batches of each statistic


# Shape of one example's entry, by the names of sizes in RunSpec. What is not listed here is
# about the domains, the target set or the optimizer: there the latest value counts.
_PER_EXAMPLE: dict[str, tuple[Any, tuple[str, ...]]] = {
  "example_id": (jnp.int32, ()),
  "domain": (jnp.int32, ()),
  "num_tokens": (jnp.int32, ()),
  "sampling_probability": (jnp.float32, ()),
  "domain_probability": (jnp.float32, ()),
  "loss": (jnp.float32, ()),
  "token_loss": (jnp.float32, ("sequence_length",)),
  "token_mask": (jnp.float32, ("sequence_length",)),
  "reference_loss": (jnp.float32, ()),
  "reference_token_loss": (jnp.float32, ("sequence_length",)),
  "gradient": (jnp.float32, ("feature_size",)),
  "update_direction": (jnp.float32, ("feature_size",)),
  "gradient_norm": (jnp.float32, ()),
  "el2n": (jnp.float32, ()),
  "logit_nuclear_norm": (jnp.float32, ()),
  "logit_projection": (jnp.float32, ("logit_projection_size",)),
  "embedding": (jnp.float32, ("embedding_size",)),
  "position_weighted_embedding": (jnp.float32, ("embedding_size",)),
  "last_token_embedding": (jnp.float32, ("embedding_size",)),
  "target_alignment": (jnp.float32, ()),
  "target_curvature": (jnp.float32, ()),
}


def every(steps: int, policy: DataPolicy) -> DataPolicy:
  """Updates the policy only at every `steps`-th call; between, decision and state are held.

  Round scope: the first call updates, then every `steps`-th after it. In the rounds between,
  `score` is not needed (`sweep_due` tells) and `sweep_ids` names no rows. `observe` goes on.

  Step scope: the policy must be a mixture. The statistics of its batches are collected, and
  calls number `steps`, 2 `steps`, ... update it once on the last `steps` batches concatenated:
  B is `steps` times the rows of a batch, oldest batch first. What is collected are the observed
  fields with one entry per example, in float32 or int32; fields of the domains, of the target
  set and of the optimizer are those of the latest batch. The state holds the collected batches.

  Args:
    steps: number of updates, at least 1.
    policy: a round-scope policy, or a step-scope mixture.

  Returns:
    A policy of the same scope.

  Raises:
    ValueError: if `steps` is not a whole number of at least 1 or the policy observes
      `token_segment`, which cannot be concatenated; in `init`, if a step-scope policy decides
      about the rows of a batch, which are other rows between updates, or a size is missing; in
      `update`, if a statistic has another shape than the run's sizes say.

  Example:
    >>> from jdc import policies
    >>> policy = every(100, policies.mixture.odm())
  """
  checks.require(
    (checks.is_count(steps, 1), f"steps must be a whole number >= 1, got {steps}"),
    (
      policy.scope == "round" or "token_segment" not in policy.observes,
      "every cannot concatenate token_segment over batches",
    ),
  )
  return _every_round(steps, policy) if policy.scope == "round" else _every_step(steps, policy)


def _every_round(steps: int, policy: DataPolicy) -> DataPolicy:
  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, EveryState]:
    decision, inner = policy.init(spec, key)
    return decision, EveryState(inner, jnp.int32(0), decision, {})

  def update(stats: ExampleStats, state: EveryState) -> tuple[Decision, EveryState]:
    held, inner = jax.lax.cond(
      state.position == 0,
      lambda: policy.update(stats, state.inner),
      lambda: (state.held, state.inner),
    )
    return held, EveryState(inner, (state.position + 1) % steps, held, {})

  outer, sweep_ids = around(policy, init, update), policy.sweep_ids
  if sweep_ids is None:
    return outer
  due_ids = lambda state: jnp.where(state.position == 0, sweep_ids(state.inner), -1)
  return outer._replace(sweep_ids=due_ids)


def _every_step(steps: int, policy: DataPolicy) -> DataPolicy:
  collected = sorted(policy.observes & _PER_EXAMPLE.keys())

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, EveryState]:
    decision, inner = policy.init(spec, key)
    _check_holdable(decision, spec)
    batches = {name: _empty(name, steps, spec) for name in collected}
    return decision, EveryState(inner, jnp.int32(0), decision, batches)

  def update(stats: ExampleStats, state: EveryState) -> tuple[Decision, EveryState]:
    batches = {
      name: _insert(name, state.batches[name], getattr(stats, name), state.position, steps)
      for name in collected
    }
    latest = {name: getattr(stats, name) for name in policy.observes - batches.keys()}
    seen: dict[str, Any] = {**batches, **latest}
    held, inner = jax.lax.cond(
      state.position == steps - 1,
      lambda: policy.update(ExampleStats(**seen), state.inner),
      lambda: (state.held, state.inner),
    )
    return held, EveryState(inner, (state.position + 1) % steps, held, batches)

  return around(policy, init, update)


def _check_holdable(decision: Decision, spec: RunSpec) -> None:
  shape = None if decision.logits is None else decision.logits.shape
  weighted = [n for n in ("weights", "token_weights") if getattr(decision, n) is not None]
  checks.require(
    (not weighted, f"every cannot hold {weighted} of a batch for the rows of later ones"),
    (
      shape in (None, (spec.num_domains,)),
      f"every cannot hold logits of shape {shape} for the rows of later batches; "
      f"accepted are logits of the {spec.num_domains} domains",
    ),
  )


def _empty(name: str, steps: int, spec: RunSpec) -> jax.Array:
  """Returns room for the statistics of `steps` batches, filled with padding."""
  dtype, sizes = _PER_EXAMPLE[name]
  rows = spec.num_candidates or spec.batch_size
  lengths = {"batch_size": rows, **{size: getattr(spec, size) for size in sizes}}
  missing = sorted(size for size, length in lengths.items() if not length > 0)
  checks.require(
    (not missing, f"every collects {name}, which needs {missing} in the run's spec")
  )
  shape = (steps * rows, *(lengths[size] for size in sizes))
  return jnp.full(shape, -1 if name == "example_id" else 0, dtype)


def _insert(
  name: str, batches: jax.Array, batch: jax.Array, position: jax.Array, steps: int
) -> jax.Array:
  expected = (batches.shape[0] // steps, *batches.shape[1:])
  if batch.shape != expected:
    raise ValueError(f"every expected {name} of shape {expected}, got {batch.shape}")
  start = position * expected[0]
  return jax.lax.dynamic_update_slice_in_dim(batches, batch.astype(batches.dtype), start, 0)


def sweep_due(state: PolicyState) -> jax.Array | bool:
  """Whether a round-scope policy's next update reads a new sweep of the pool.

  Args:
    state: of the policy, whatever combinators it went through.

  Returns:
    A bool or bool[]: False only in the rounds in which `every` holds the decision, or in which
    the stage of a `schedule` observes nothing.

  Example:
    >>> from jdc import policies
    >>> sweep_due(())
    True
  """
  if isinstance(state, EveryState):
    return (state.position == 0) & sweep_due(state.inner)
  if isinstance(state, ScheduleState):
    return state.reads
  if isinstance(state, tuple) and hasattr(state, "inner"):
    return sweep_due(state.inner)
  return True
