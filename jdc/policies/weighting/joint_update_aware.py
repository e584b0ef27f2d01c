"""Joint-update-aware weighting: the batch's update, as a whole, should follow the target's."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, PolicyState, RunSpec
from jdc.policies.weighting import directions
from jdc.policies.weighting.loss_reweighting import normalized

Objective = Literal["joint", "alignment", "diversity", "uniform"]


def joint_update_aware(
  objective: Objective = "joint",
  beta: float = 0.1,
  temperature: float = 0.05,
  damping: float = 1.0,
  iterations: int = 5,
) -> DataPolicy:
  r"""Prefers examples that are aligned with the target set and not redundant in the batch.

  With z_i the unit embeddings of the B' rows that have target tokens and a finite embedding,
  u the unit mean embedding of the target set, s_i = <u, z_i> and G_ij = <z_i, z_j>, the
  weights p on the simplex that maximise

    s'p - (beta/2) p'Gp + tau H(p),    H the entropy,

  are approached by a fixed number of iterations from uniform p,

    p <- (1 - rho) p + rho softmax((s - beta G p) / tau),    w_i = B' p_i.

    joint      the above
    alignment  beta = 0: only likeness to the target
    diversity  s = 0: only redundancy inside the batch
    uniform    w = 1

  The mean of w is 1. All other rows weigh 0; those with target tokens are counted as
  `num_nonfinite`. A zero vector has no direction: s_i = G_ij = 0. Target examples that are not
  finite are left out of the mean and counted as `num_nonfinite_targets`.

  The iteration need not converge where beta ||G|| / tau is large: the metric `residual` is
  sum_i |softmax(...)_i - p_i| at the p returned, between 0 and 2; lower rho if it stays large.

  Args:
    objective: which terms count.
    beta: >= 0, price of redundancy.
    temperature: tau > 0; small values concentrate the weights.
    damping: rho in (0, 1].
    iterations: at least 1.

  Returns:
    A step-scope policy that observes `embedding`, of the examples and of `target`, and
    `num_tokens`; its decision holds `weights` f32[B].

  Raises:
    ValueError: if an argument is unknown or out of range; in `init`, if the run has no batch
      size or no target set.

  References:
    The joint-update-aware weighting of DataFlex 1.1.0, 2026, from its equations. G is never
    formed: G p = Z (Z'p).

  Example:
    >>> from jdc.policies import TargetStats
    >>> spec = RunSpec(9, 1, ("web",), (9,), (1.0,), batch_size=3, num_targets=1)
    >>> policy = joint_update_aware(temperature=1.0, beta=1.0)
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> stats = ExampleStats(
    ...   embedding=jnp.array([[1.0, 1.0], [1.0, 1.0], [1.0, -1.0]]),
    ...   num_tokens=jnp.array([5, 5, 5]),
    ...   target=TargetStats(embedding=jnp.array([[2.0, 0.0]])),
    ... )
    >>> [round(w, 3) for w in policy.update(stats, state)[0].weights.tolist()]
    [0.919, 0.919, 1.161]
  """
  checks.require(
    (
      objective in get_args(Objective),
      f"objective must be in {get_args(Objective)}, got {objective!r}",
    ),
    (checks.is_finite(beta) and beta >= 0, f"beta must be finite and at least 0, got {beta}"),
    (
      checks.is_finite(temperature) and temperature > 0,
      f"temperature must be positive and finite, got {temperature}",
    ),
    (
      checks.is_number(damping) and 0 < damping <= 1,
      f"damping must be in (0, 1], got {damping}",
    ),
    (
      checks.is_count(iterations, 1),
      f"iterations must be a whole number >= 1, got {iterations}",
    ),
  )
  alignment = 1.0 if objective in ("joint", "alignment") else 0.0
  redundancy = beta if objective in ("joint", "diversity") else 0.0

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, PolicyState]:
    del key  # deterministic
    checks.require(
      (spec.batch_size > 0, f"batch_size must be positive, got {spec.batch_size}"),
      (
        spec.num_targets > 0,
        f"joint_update_aware needs num_targets > 0, got {spec.num_targets}",
      ),
    )
    metrics = {
      "num_nonfinite": jnp.int32(0),
      "num_nonfinite_targets": jnp.int32(0),
      "residual": jnp.float32(0.0),
    }
    return Decision(weights=jnp.ones(spec.batch_size, jnp.float32), metrics=metrics), ()

  def update(stats: ExampleStats, state: PolicyState) -> tuple[Decision, PolicyState]:
    assert stats.target is not None
    target_MxD = stats.target.embedding
    valid_B, finite_M = stats.num_tokens > 0, directions.finite(target_MxD)
    usable_B = valid_B & directions.finite(stats.embedding)
    z_BxD = directions.unit(stats.embedding)
    aligned_B = alignment * directions.dot(z_BxD, _mean_direction(target_MxD, finite_M))
    num_usable = jnp.sum(usable_B, dtype=jnp.float32)

    def target_weights(weights_B: jax.Array) -> jax.Array:
      pull_D = directions.dot(weights_B, z_BxD) / jnp.maximum(num_usable, 1.0)
      objective_B = aligned_B - redundancy * directions.dot(z_BxD, pull_D)
      return normalized(objective_B / temperature, usable_B)

    weights_B = usable_B.astype(jnp.float32)
    for _ in range(iterations):
      weights_B = weights_B + damping * (target_weights(weights_B) - weights_B)
    change = jnp.sum(jnp.abs(target_weights(weights_B) - weights_B))
    metrics = {
      "num_nonfinite": jnp.sum(valid_B & ~usable_B, dtype=jnp.int32),
      "num_nonfinite_targets": jnp.sum(~finite_M, dtype=jnp.int32),
      "residual": change / jnp.maximum(num_usable, 1.0),
    }
    return Decision(weights=weights_B, metrics=metrics), state

  return DataPolicy(
    init, update, frozenset({"embedding", "num_tokens", "target"}), scope="step"
  )


def _mean_direction(embedding_MxD: jax.Array, finite_M: jax.Array) -> jax.Array:
  """Returns the direction of the mean of the embeddings that are finite."""
  used_MxD = jnp.where(finite_M[:, None], embedding_MxD, 0.0)
  return directions.unit(jnp.sum(directions.moderate(used_MxD), axis=0))
