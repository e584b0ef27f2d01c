"""Learning to reweight: examples count by how well their gradients fit the target's."""

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, PolicyState, RunSpec
from jdc.policies.weighting import directions


def learning_to_reweight() -> DataPolicy:
  r"""Weights each example by the inner product of its gradient with the target loss's.

  With g_i the gradient of the mean loss of example i, g the gradient of the mean loss of the
  target set, and B' the number of rows that have target tokens and a finite inner product,

    w_i = B' max(<g, g_i>, 0) / sum_j max(<g, g_j>, 0).

  This is the step in example weights from 0 that lowers the target loss fastest, one virtual
  SGD step of the parameters ahead, cut at 0 and normalised to mean 1. Where no inner product is
  positive all weights are 0, so that the step changes nothing; the metric `num_positive` tells.
  All other rows weigh 0; those with target tokens are counted as `num_nonfinite`.

  Returns:
    A step-scope policy that observes `target_alignment` = <g, g_i> and `num_tokens`; its
    decision holds `weights` f32[B].

  Raises:
    ValueError: in `init`, if the run has no batch size or no target set.

  References:
    Ren, Zeng, Yang, Urtasun, "Learning to Reweight Examples for Robust Deep Learning", 2018,
    arXiv 1803.09050. Weights are normalised over the batch of an optimizer step. The virtual
    step is one of SGD, whatever the optimizer.

  Example:
    >>> spec = RunSpec(9, 1, ("web",), (9,), (1.0,), batch_size=3, num_targets=1)
    >>> policy = learning_to_reweight()
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> stats = ExampleStats(
    ...   target_alignment=jnp.array([1.0, -4.0, 2.0]), num_tokens=jnp.array([5, 5, 5])
    ... )
    >>> policy.update(stats, state)[0].weights.tolist()
    [1.0, 0.0, 2.0]
  """

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, PolicyState]:
    del key  # deterministic
    checks.require(
      (spec.batch_size > 0, f"batch_size must be positive, got {spec.batch_size}"),
      (
        spec.num_targets > 0,
        f"learning_to_reweight needs num_targets > 0, got {spec.num_targets}",
      ),
    )
    metrics = {"num_nonfinite": jnp.int32(0), "num_positive": jnp.int32(spec.batch_size)}
    return Decision(weights=jnp.ones(spec.batch_size, jnp.float32), metrics=metrics), ()

  def update(stats: ExampleStats, state: PolicyState) -> tuple[Decision, PolicyState]:
    alignment_B = stats.target_alignment.astype(jnp.float32)
    valid_B = stats.num_tokens > 0
    usable_B = valid_B & jnp.isfinite(alignment_B)
    gain_B = jnp.where(usable_B, jnp.maximum(alignment_B, 0.0), 0.0)
    gain_B = directions.moderate(gain_B)
    highest = jnp.max(gain_B, initial=0.0)
    # A quotient of equal numbers need not be 1 where it is computed as a product.
    gain_B = jnp.where(gain_B == highest, 1.0, gain_B / jnp.where(highest > 0, highest, 1.0))
    gain_B = jnp.where(usable_B & (highest > 0), gain_B, 0.0)
    total = jnp.sum(gain_B)
    weights_B = gain_B * (jnp.sum(usable_B) / jnp.where(total > 0, total, 1.0))
    metrics = {
      "num_nonfinite": jnp.sum(valid_B & ~usable_B, dtype=jnp.int32),
      "num_positive": jnp.sum(weights_B > 0, dtype=jnp.int32),
    }
    return Decision(weights=weights_B, metrics=metrics), state

  observes = frozenset({"target_alignment", "num_tokens"})
  return DataPolicy(init, update, observes, scope="step")
