"""`schedule`: one policy after another."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, PolicyState, RunSpec


class ScheduleState(NamedTuple):
  stages: tuple[PolicyState, ...]
  num_updates: jax.Array  # i32[]
  metrics: dict[str, jax.Array]
  reads: jax.Array  # bool[], whether the stage of the next update observes anything


def schedule(stages: Sequence[tuple[int, DataPolicy]]) -> DataPolicy:
  """Hands over from one policy to the next at given updates.

  The stage (start, policy) is in force from update number `start` on, counted from 0, until the
  next one starts. Only the policy in force is updated and scores, and where it observes nothing
  no sweep is due; `observe` of all of them goes on. Each policy starts from its own initial
  state, its key folded with the stage's index. Metrics are those of all stages by name: the
  policy in force sets its own, the others keep their last value; `stage` is the index of the
  one in force.

  Args:
    stages: pairs of a start and a policy, by increasing start, the first at 0. The policies
      must have one scope and decide the same things in the same shapes.

  Returns:
    A policy of the same scope; it observes what any of them observes.

  Raises:
    ValueError: if the starts or scopes do not fit, or only some name the rows to sweep; in
      `init`, if decisions differ in what they decide, in shapes or in the type of a metric.

  Example:
    >>> from jdc import policies
    >>> policy = schedule([(0, policies.mixture.static()), (1000, policies.mixture.odm())])
  """
  stages = tuple(stages)
  checks.raise_all(_stage_problems(stages))
  starts, members = zip(*stages, strict=True)
  later = np.asarray(starts[1:], np.int32)
  observing = np.array([bool(policy.observes) for policy in members])

  def active(state: ScheduleState) -> jax.Array:
    return stage_at(state.num_updates)

  def stage_at(num_updates: jax.Array) -> jax.Array:
    return jnp.sum(num_updates >= later, dtype=jnp.int32)

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, ScheduleState]:
    pairs = [p.init(spec, jax.random.fold_in(key, i)) for i, p in enumerate(members)]
    decisions, states = zip(*pairs, strict=True)
    checks.raise_all(_decision_problems(decisions))
    metrics = {"stage": jnp.int32(0)}
    for decision in reversed(decisions):
      metrics |= decision.metrics or {}
    first = decisions[0]._replace(metrics=metrics)
    reads = jnp.asarray(observing[0])
    return first, ScheduleState(tuple(states), jnp.int32(0), metrics, reads)

  def update(stats: ExampleStats, state: ScheduleState) -> tuple[Decision, ScheduleState]:
    def run(index: int) -> tuple[Decision, tuple[PolicyState, ...]]:
      decision, inner = members[index].update(stats, state.stages[index])
      metrics = {**state.metrics, **(decision.metrics or {}), "stage": jnp.int32(index)}
      states = (*state.stages[:index], inner, *state.stages[index + 1 :])
      return decision._replace(metrics=metrics), states

    branches = [lambda i=i: run(i) for i in range(len(members))]
    decision, states = jax.lax.switch(active(state), branches)
    num_updates = jnp.minimum(state.num_updates + 1, starts[-1])
    reads = jnp.asarray(observing)[stage_at(num_updates)]
    return decision, ScheduleState(states, num_updates, decision.metrics, reads)

  def score(stats: ExampleStats, state: ScheduleState) -> jax.Array:
    return _switch_score(stats, state, members, active(state))

  def sweep_ids(state: ScheduleState) -> jax.Array:
    ids = [p.sweep_ids(s) for p, s in zip(members, state.stages, strict=True) if p.sweep_ids]
    return jax.lax.select_n(active(state), *ids)

  def observe(stats: ExampleStats, state: ScheduleState) -> ScheduleState:
    pairs = zip(members, state.stages, strict=True)
    return state._replace(
      stages=tuple(p.observe(stats, s) if p.observe else s for p, s in pairs)
    )

  def prepare(stats: ExampleStats, state: ScheduleState) -> ScheduleState:
    pairs = zip(members, state.stages, strict=True)
    return state._replace(
      stages=tuple(p.prepare(stats, s) if p.prepare else s for p, s in pairs)
    )

  return DataPolicy(
    init,
    update,
    observes=frozenset().union(*(p.observes for p in members)),
    scope=members[0].scope,
    pointwise=all(p.pointwise for p in members),
    score=score if any(p.score for p in members) else None,
    sweep_ids=sweep_ids if any(p.sweep_ids for p in members) else None,
    observe=observe if any(p.observe for p in members) else None,
    observes_batch=frozenset().union(*(p.observes_batch for p in members)),
    prepare=prepare if any(p.prepare for p in members) else None,
    observes_pool=frozenset().union(*(p.observes_pool for p in members)),
  )


def _stage_problems(stages: Sequence[Any]) -> list[str]:
  pairs = [s for s in stages if isinstance(s, tuple) and len(s) == 2]
  if not stages or len(pairs) < len(stages):
    return [f"stages must be a non-empty sequence of (start, policy), got {stages!r}"]
  starts = [start for start, _ in stages]
  policies = [policy for _, policy in stages]
  if not all(isinstance(policy, DataPolicy) for policy in policies):
    return [f"stages must hold policies, got {[type(p).__name__ for p in policies]}"]
  problems = []
  if not all(checks.is_count(start) for start in starts):
    problems.append(f"starts must be whole numbers >= 0, got {starts}")
  elif starts[0] != 0 or any(a >= b for a, b in itertools.pairwise(starts)):
    problems.append(f"starts must begin at 0 and increase, got {starts}")
  if len({policy.scope for policy in policies}) > 1:
    problems.append(f"stages must have one scope, got {[p.scope for p in policies]}")
  if len({policy.sweep_ids is None for policy in policies}) > 1:
    problems.append("either all stages name the rows to sweep or none")
  return problems


def _decision_problems(decisions: Sequence[Decision]) -> list[str]:
  """How the stages' decisions differ in what must be the same."""
  problems = []
  for name in ("logits", "weights", "token_weights"):
    values = [getattr(decision, name) for decision in decisions]
    shapes = [None if value is None else value.shape for value in values]
    if len(set(shapes)) > 1:
      problems.append(f"stages must agree in the shape of {name}, got {shapes}")
  kinds: dict[str, Any] = {}
  for decision in decisions:
    for name, value in (decision.metrics or {}).items():
      if kinds.setdefault(name, jax.typeof(value)) != jax.typeof(value):
        problems.append(f"stages must agree in the type of metric {name!r}")
  return problems


def _switch_score(
  stats: ExampleStats, state: ScheduleState, members: Sequence[DataPolicy], active: jax.Array
) -> jax.Array:
  """Returns the scores by the policy in force; zeros where it does not score."""
  pairs = list(zip(members, state.stages, strict=True))
  shape = next(jax.eval_shape(p.score, stats, s) for p, s in pairs if p.score)

  def branch(policy: DataPolicy, inner: PolicyState) -> Any:
    score = policy.score
    return lambda: jnp.zeros(shape.shape, shape.dtype) if score is None else score(stats, inner)

  return jax.lax.switch(active, [branch(policy, inner) for policy, inner in pairs])
