"""Group DRO as a weighting: domains of high loss count more."""

import jax
import jax.numpy as jnp

from jdc.policies import checks, domains
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec
from jdc.policies.mixture.group_dro import (
  OBSERVES,
  Absent,
  GroupDroState,
  check_arguments,
  learn,
  start,
)


def group_dro(
  learning_rate: float = 0.01, size_adjustment: float = 0.0, absent: Absent = "carry"
) -> DataPolicy:
  r"""Weights the domains in the loss by q_k, which grows with the loss of the domain.

  With L_k the mean loss per target token of domain k in the batch, N_k its number of rows in
  the pool, n_i the target tokens of example i, n_k those of domain k in the batch and n those
  of the whole batch, in each step

    q_k <- q_k exp(eta (L_k + C / sqrt(N_k))) / sum,    w_i = q_d(i) n / n_d(i),

  from uniform, so that the loss, averaged by token, is sum_k q_k L_k over the domains in the
  batch. Weight 1 all over when q_k = n_k / n. It follows the highest loss, that of noise
  included.

  A domain absent from the batch keeps its L_k by default; until it has been seen, its q_k stays
  as it is. A row whose loss is not finite weighs 0, is left out of L_k and n_k, and counted.

  Args:
    learning_rate: eta > 0, per nat.
    size_adjustment: C >= 0, nats; raises domains with few rows.
    absent: "carry" as said above; "zero" takes L_k = 0 for an absent domain, as the authors'
      repository does, so that rare domains grow slowly.

  Returns:
    A step-scope policy that observes `loss`, `num_tokens` and `domain`; its decision holds
    `weights` f32[B]. Metrics: the entropy of q in nats, and `robust_loss` = sum_k q_k L_k.

  Raises:
    ValueError: if an argument is unknown or out of range; in `init`, if the run has no batch
      size, or sizes are adjusted for and a domain has no rows.

  References:
    Sagawa, Koh, Hashimoto, Liang, "Distributionally Robust Neural Networks for Group Shifts",
    2020, arXiv 1911.08731; repository kohpangwei/group_DRO. Departures: losses are means over
    tokens, not examples; an absent domain carries its loss.

  Example:
    >>> policy = group_dro(learning_rate=1.0)
    >>> spec = RunSpec(8, 2, ("code", "web"), (4, 4), proportions=(0.5, 0.5), batch_size=2)
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> stats = ExampleStats(
    ...   domain=jnp.array([0, 1]), loss=jnp.array([1.0, 2.0]), num_tokens=jnp.array([8, 8])
    ... )
    >>> decision, _ = policy.update(stats, state)
    >>> [round(w, 3) for w in decision.weights.tolist()]
    [0.538, 1.462]
  """
  check_arguments(learning_rate, size_adjustment, absent)

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, GroupDroState]:
    del key  # deterministic
    checks.require((spec.batch_size > 0, f"batch_size must be positive, got {spec.batch_size}"))
    state, metrics = start(spec, size_adjustment)
    return Decision(weights=jnp.ones(spec.batch_size, jnp.float32), metrics=metrics), state

  def update(stats: ExampleStats, state: GroupDroState) -> tuple[Decision, GroupDroState]:
    batch = domains.domain_means(stats.loss, stats, state.loss_K.size)
    state, metrics = learn(batch, state, learning_rate, absent)
    num_tokens = jnp.sum(stats.num_tokens).astype(jnp.float32)
    weight_K = jnp.exp(state.log_q_K) * num_tokens / jnp.maximum(batch.tokens_K, 1.0)
    weights_B = jnp.where(batch.usable_B, weight_K[stats.domain], 0.0)
    return Decision(weights=weights_B, metrics=metrics), state

  return DataPolicy(init, update, OBSERVES, scope="step")
