"""Selective backprop: the higher a loss stands among recent ones, the likelier it counts."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec
from jdc.policies.weighting import recent
from jdc.policies.weighting.recent import Recent

# Uniform numbers are drawn in steps of 2^-46; probabilities well above that are drawn right.
_MIN_LOG2_PROBABILITY = -44


class SelectiveBackpropState(NamedTuple):
  recent: Recent
  key: jax.Array  # of the run
  num_updates: jax.Array  # i32[]


def selective_backprop(
  beta: float = 1.0, corrected: bool = False, capacity: int = 1024
) -> DataPolicy:
  r"""Keeps each example with probability CDF(l)^beta, the CDF being that of recent losses.

  The losses of the batch enter the buffer of the last `capacity` losses first. Then

    p_i = ((#{h < l_i} + #{h = l_i} / 2) / n)^beta    over its n losses h,

  and independently of each other examples are kept with probability p_i. An example that is
  kept weighs 1, and 1 / p_i if `corrected`; one that is not weighs 0. Rows without target
  tokens and losses that are not finite weigh 0 and do not enter; the latter are counted as
  `num_nonfinite`.

  Without the correction, as in the paper, the gradient is that of another loss, which leans
  towards hard examples, and smaller: about 1 / (beta + 1) of the examples are kept, while the
  loss is divided by all. With it the expected weight is 1, so the gradient is unbiased; the
  weights of easy examples are rare and large, at most (2 capacity)^beta.

  Args:
    beta: at least 0; 0 keeps all. With `corrected`, at most 44 / log2(2 capacity), 4 by
      default, because smaller probabilities cannot be drawn right.
    corrected: whether to divide by the probability.
    capacity: number of losses remembered, at least the examples of a batch.

  Returns:
    A step-scope policy that observes `loss`, `num_tokens` and `example_id`; its decision holds
    `weights` f32[B]. Draws depend on the example and the number of the update, not on the
    place in the batch: an example that is twice in a batch is kept twice or not at all.

  Raises:
    ValueError: if an argument is out of range; in `init`, if the run has no batch size or it is
      more than `capacity`.

  References:
    Jiang et al., "Accelerating Deep Learning by Focusing on the Biggest Losers", 2019,
    arXiv 1910.00762. There the backward pass of a dropped example is saved; here it is weighed
    by 0. Ranks are mid-ranks, so that equal losses have equal probabilities.

  Example:
    >>> spec = RunSpec(9, 1, ("web",), (9,), (1.0,), batch_size=4)
    >>> policy = selective_backprop(corrected=True)
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> stats = ExampleStats(
    ...   example_id=jnp.arange(4),
    ...   loss=jnp.array([1.0, 5.0, 2.0, 4.0]),
    ...   num_tokens=jnp.array([3, 3, 3, 3]),
    ... )
    >>> decision, state = policy.update(stats, state)
    >>> round(decision.metrics["mean_probability"].item(), 3)
    0.5
  """
  least = 2 * capacity if checks.is_count(capacity, 1) else 2
  checks.require(
    (checks.is_finite(beta) and beta >= 0, f"beta must be finite and at least 0, got {beta}"),
    (isinstance(corrected, bool), f"corrected must be a bool, got {corrected!r}"),
    (
      checks.is_count(capacity, 1),
      f"capacity must be a whole number >= 1, got {capacity}",
    ),
    (
      not corrected
      or not checks.is_finite(beta)
      or beta * math.log2(least) <= -_MIN_LOG2_PROBABILITY,
      f"beta must be at most {-_MIN_LOG2_PROBABILITY / math.log2(least):.2f} to correct with "
      f"a capacity of {capacity}, got {beta}",
    ),
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, SelectiveBackpropState]:
    state = SelectiveBackpropState(recent.empty(capacity, spec.batch_size), key, jnp.int32(0))
    metrics = {
      "num_nonfinite": jnp.int32(0),
      "num_kept": jnp.int32(spec.batch_size),
      "mean_probability": jnp.float32(1.0),
    }
    return Decision(weights=jnp.ones(spec.batch_size, jnp.float32), metrics=metrics), state

  def update(
    stats: ExampleStats, state: SelectiveBackpropState
  ) -> tuple[Decision, SelectiveBackpropState]:
    loss_B = stats.loss.astype(jnp.float32)
    valid_B = stats.num_tokens > 0
    usable_B = valid_B & jnp.isfinite(loss_B)
    loss_B = jnp.where(usable_B, loss_B, 0.0)
    held = recent.insert(state.recent, loss_B, usable_B)
    probability_B = jnp.where(usable_B, recent.mid_rank(held, loss_B), 1.0) ** beta

    key = jax.random.fold_in(state.key, state.num_updates)
    is_kept_B = usable_B & (_uniforms(key, stats.example_id) < probability_B)
    weight_B = 1 / probability_B if corrected else jnp.ones_like(loss_B)
    num_usable = jnp.sum(usable_B, dtype=jnp.int32)
    total = jnp.sum(jnp.where(usable_B, probability_B, 0.0))
    metrics = {
      "num_nonfinite": jnp.sum(valid_B, dtype=jnp.int32) - num_usable,
      "num_kept": jnp.sum(is_kept_B, dtype=jnp.int32),
      "mean_probability": total / jnp.maximum(num_usable, 1),
    }
    decision = Decision(weights=jnp.where(is_kept_B, weight_B, 0.0), metrics=metrics)
    return decision, SelectiveBackpropState(held, state.key, state.num_updates + 1)

  observes = frozenset({"loss", "num_tokens", "example_id"})
  return DataPolicy(init, update, observes, scope="step")


def _uniforms(key: jax.Array, example_id_B: jax.Array) -> jax.Array:
  """Returns a number in [0, 1) for each example, fine enough near 0 for small probabilities."""
  draw = lambda i: jax.random.uniform(jax.random.fold_in(key, i), (2,), jnp.float32)
  coarse_B, fine_B = jax.vmap(draw)(example_id_B).T
  return jnp.minimum(coarse_B + fine_B * 2**-23, 1 - 2**-24)
