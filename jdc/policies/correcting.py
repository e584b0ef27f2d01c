"""Weights that undo what a policy changes about the probabilities of examples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, PolicyState, RunSpec
from jdc.policies.combinators import around


class CorrectedState(NamedTuple):
  inner: PolicyState
  base_K: jax.Array  # f32[K], base probability of each row of domain k


def importance_corrected(policy: DataPolicy) -> DataPolicy:
  """Weights each example by p_base / p_drawn, so that the loss estimates the base mixture's.

  p_base is the row's probability under the base proportions, uniform inside its domain; p_drawn
  is its `sampling_probability`. Weights that the policy decides itself are multiplied. A row
  that is padding, or whose probability is not a positive number, gets weight 0; the latter is
  counted in the metric `num_without_probability`.

  Args:
    policy: a step-scope policy: a mixture, or the weighting of a run whose rows are drawn by
      other slots. To correct a selection, put
      `importance_corrected(loss_reweighting("uniform"))` into the weighting slot.

  Returns:
    The policy, with weights f32[batch_size].

  Raises:
    ValueError: if the policy has round scope; in `init`, if rows are drawn by `top_k`, which
      gives some of them probability 0, or if the policy sees more candidates than are trained.

  Example:
    >>> from jdc import policies
    >>> policy = importance_corrected(policies.mixture.odm())
    >>> sorted(policy.observes - policies.mixture.odm().observes)
    ['example_id', 'sampling_probability']
  """
  checks.require(
    (
      policy.scope == "step",
      "importance_corrected takes a step-scope policy, which sees the rows drawn, got scope "
      f"{policy.scope!r}; correct a selection by a policy in the weighting slot",
    )
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, CorrectedState]:
    decision, inner = policy.init(spec, key)
    checks.require(
      (spec.draw != "top_k", "importance_corrected cannot correct draw='top_k'"),
      (spec.batch_size > 0, f"batch_size must be positive, got {spec.batch_size}"),
      (
        decision.logits is None or spec.num_candidates in (0, spec.batch_size),
        f"importance_corrected needs the trained rows, but the policy sees "
        f"{spec.num_candidates} candidates; put it into the weighting slot",
      ),
    )
    sizes_K = np.maximum(np.asarray(spec.domain_sizes, np.float64), 1)
    base_K = jnp.asarray(np.asarray(spec.proportions) / sizes_K, jnp.float32)
    weights_B = decision.weights
    if weights_B is None:
      weights_B = jnp.ones(spec.batch_size, jnp.float32)
    return _corrected(decision, weights_B, jnp.int32(0)), CorrectedState(inner, base_K)

  def update(stats: ExampleStats, state: CorrectedState) -> tuple[Decision, CorrectedState]:
    decision, inner = policy.update(stats, state.inner)
    drawn_B = stats.sampling_probability.astype(jnp.float32)
    possible_B = jnp.isfinite(drawn_B) & (drawn_B > 0)
    weights_B = state.base_K[stats.domain] / jnp.where(possible_B, drawn_B, 1.0)
    if decision.weights is not None:
      weights_B *= decision.weights
    real_B = stats.example_id >= 0
    usable_B = real_B & possible_B & jnp.isfinite(weights_B)
    missing = jnp.sum(real_B & ~usable_B, dtype=jnp.int32)
    decision = _corrected(decision, jnp.where(usable_B, weights_B, 0.0), missing)
    return decision, state._replace(inner=inner)

  observes = policy.observes | {"sampling_probability", "domain", "example_id"}
  return around(policy, init, update)._replace(observes=observes)


def _corrected(decision: Decision, weights_B: jax.Array, missing: jax.Array) -> Decision:
  metrics = {**(decision.metrics or {}), "num_without_probability": missing}
  return decision._replace(weights=weights_B, metrics=metrics)
