"""The baseline of mixtures that follow the loss: proportions by a softmax of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdc.policies import checks, domains, sampling
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec
from jdc.policies.mixture.static import constant


class LossProportionalState(NamedTuple):
  loss_K: jax.Array  # f32[K], nats per token; 0 until a domain has been seen
  seen_K: jax.Array  # bool[K]
  base_K: jax.Array  # f32[K], log base proportions


def loss_proportional(temperature: float = 1.0, smoothing: float = 0.0) -> DataPolicy:
  r"""Samples domain k with probability softmax(L / T)_k, L_k its loss when last seen.

  With l_k the mean loss per target token of domain k in the batch,

    L_k <- a L_k + (1 - a) l_k,    and L_k = l_k when the domain is first seen.

  An absent domain keeps its L_k. A domain not seen yet is sampled as if its loss were the mean
  over the domains seen; before any has been, the base proportions are in force. A row whose
  loss is not finite is left out and counted. Every domain is sampled, also one whose base
  proportion is 0.

  Args:
    temperature: T in [0, inf], nats. Small values sharpen: 0 samples the domains of the highest
      loss only, inf is uniform.
    smoothing: a in [0, 1).

  Returns:
    A step-scope policy that observes `loss`, `num_tokens` and `domain`; its decision holds
    `logits` f32[K], log probabilities. Metric: their entropy in nats.

  Raises:
    ValueError: if an argument is out of range.

  Example:
    >>> policy = loss_proportional(temperature=2.0)
    >>> spec = RunSpec(8, 2, ("code", "web"), (4, 4), proportions=(0.5, 0.5))
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> stats = ExampleStats(
    ...   domain=jnp.array([0, 1]), loss=jnp.array([1.0, 3.0]), num_tokens=jnp.array([8, 8])
    ... )
    >>> decision, _ = policy.update(stats, state)
    >>> [round(p, 3) for p in jnp.exp(decision.logits).tolist()]
    [0.269, 0.731]
  """
  checks.require(
    (
      checks.is_number(temperature) and temperature >= 0,
      f"temperature must be in [0, inf], got {temperature}",
    ),
    (
      checks.is_number(smoothing) and 0 <= smoothing < 1,
      f"smoothing must be in [0, 1), got {smoothing}",
    ),
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, LossProportionalState]:
    del key  # deterministic
    decision, base = constant(np.asarray(spec.proportions, np.float64))
    state = LossProportionalState(
      loss_K=jnp.zeros(spec.num_domains, jnp.float32),
      seen_K=jnp.zeros(spec.num_domains, bool),
      base_K=base.logits_K,
    )
    return decision._replace(metrics=_metrics(base.logits_K, jnp.int32(0))), state

  def update(
    stats: ExampleStats, state: LossProportionalState
  ) -> tuple[Decision, LossProportionalState]:
    batch = domains.domain_means(stats.loss, stats, state.loss_K.size)
    state = _learn(batch, state, smoothing)
    num_seen = jnp.maximum(jnp.sum(state.seen_K), 1)
    typical = jnp.sum(jnp.where(state.seen_K, state.loss_K / num_seen, 0.0))
    loss_K = jnp.where(state.seen_K, state.loss_K, typical)
    logits_K = jax.nn.log_softmax(sampling.temper(loss_K, temperature))
    logits_K = jnp.where(jnp.any(state.seen_K), logits_K, state.base_K)
    metrics = _metrics(logits_K, batch.num_nonfinite)
    return Decision(logits=logits_K, metrics=metrics), state

  return DataPolicy(init, update, frozenset({"loss", "num_tokens", "domain"}), scope="step")


def _learn(
  batch: domains.DomainMeans, state: LossProportionalState, smoothing: float
) -> LossProportionalState:
  averaged_K = smoothing * state.loss_K + (1 - smoothing) * batch.mean_K
  new_K = jnp.where(state.seen_K, averaged_K, batch.mean_K)
  return state._replace(
    loss_K=jnp.where(batch.present_K, new_K, state.loss_K),
    seen_K=state.seen_K | batch.present_K,
  )


def _metrics(logits_K: jax.Array, num_nonfinite: jax.Array) -> dict[str, jax.Array]:
  entropy = jnp.sum(jax.scipy.special.entr(jnp.exp(logits_K)))
  return {"num_nonfinite": num_nonfinite, "entropy": entropy}
