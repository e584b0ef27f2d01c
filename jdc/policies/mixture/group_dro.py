"""Group DRO as a mixture: domains of high loss are sampled more."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jdc.policies import checks, domains
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec

Absent = Literal["carry", "zero"]
OBSERVES = frozenset({"loss", "num_tokens", "domain"})


class GroupDroState(NamedTuple):
  log_q_K: jax.Array  # f32[K], log q
  loss_K: jax.Array  # f32[K], nats per token when last seen; 0 until then
  seen_K: jax.Array  # bool[K]
  adjustment_K: jax.Array  # f32[K], C / sqrt(n_k)


def group_dro(
  learning_rate: float = 0.01, size_adjustment: float = 0.0, absent: Absent = "carry"
) -> DataPolicy:
  r"""Samples domain k with probability q_k, which grows with its loss.

  With L_k the mean loss per target token of domain k in the batch and N_k its number of rows
  in the pool, in each step

    q_k <- q_k exp(eta (L_k + C / sqrt(N_k))) / sum,

  from uniform. It follows the highest loss, that of noise included; see `doremi` for a rule
  that compares with what can be learnt. Every row weighs 1, as the share of a domain in the
  batch is its q_k already.

  A domain absent from the batch keeps its L_k by default; until it has been seen, its q_k stays
  as it is. A row whose loss is not finite is left out and counted.

  Args:
    learning_rate: eta > 0, per nat.
    size_adjustment: C >= 0, nats; raises domains with few rows.
    absent: "carry" as said above; "zero" takes L_k = 0 for an absent domain, as the authors'
      repository does, so that rare domains grow slowly.

  Returns:
    A step-scope policy that observes `loss`, `num_tokens` and `domain`; its decision holds
    `logits` f32[K] = log q. Metrics: the entropy of q in nats, and `robust_loss` =
    sum_k q_k L_k.

  Raises:
    ValueError: if an argument is unknown or out of range; in `init`, if sizes are adjusted for
      and a domain has no rows.

  References:
    Sagawa, Koh, Hashimoto, Liang, "Distributionally Robust Neural Networks for Group Shifts",
    2020, arXiv 1911.08731; repository kohpangwei/group_DRO. Departures: losses are means over
    tokens, not examples; the paper weights the loss (`weighting.group_dro`) where this policy
    samples; an absent domain carries its loss.

  Example:
    >>> policy = group_dro(learning_rate=1.0)
    >>> spec = RunSpec(8, 2, ("code", "web"), (4, 4), proportions=(0.5, 0.5))
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> stats = ExampleStats(
    ...   domain=jnp.array([0, 1]), loss=jnp.array([1.0, 2.0]), num_tokens=jnp.array([8, 8])
    ... )
    >>> decision, _ = policy.update(stats, state)
    >>> [round(q, 3) for q in jnp.exp(decision.logits).tolist()]
    [0.269, 0.731]
  """
  check_arguments(learning_rate, size_adjustment, absent)

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, GroupDroState]:
    del key  # deterministic
    state, metrics = start(spec, size_adjustment)
    return Decision(logits=state.log_q_K, metrics=metrics), state

  def update(stats: ExampleStats, state: GroupDroState) -> tuple[Decision, GroupDroState]:
    batch = domains.domain_means(stats.loss, stats, state.loss_K.size)
    state, metrics = learn(batch, state, learning_rate, absent)
    return Decision(logits=state.log_q_K, metrics=metrics), state

  return DataPolicy(init, update, OBSERVES, scope="step")


def check_arguments(learning_rate: float, size_adjustment: float, absent: Absent) -> None:
  """Raises a ValueError for arguments that no group DRO takes."""
  checks.require(
    (
      checks.is_finite(learning_rate) and learning_rate > 0,
      f"learning_rate must be positive and finite, got {learning_rate}",
    ),
    (
      checks.is_finite(size_adjustment) and size_adjustment >= 0,
      f"size_adjustment must be at least 0 and finite, got {size_adjustment}",
    ),
    (absent in get_args(Absent), f"absent must be in {get_args(Absent)}, got {absent!r}"),
  )


def start(spec: RunSpec, size_adjustment: float) -> tuple[GroupDroState, dict[str, jax.Array]]:
  """Returns uniform q, and the metrics before any update."""
  sizes_K = np.asarray(spec.domain_sizes, np.float64)
  named = zip(spec.domain_names, spec.domain_sizes, strict=True)
  empty = [name for name, size in named if size_adjustment > 0 and not size > 0]
  checks.require(
    (not empty, f"size_adjustment needs domains with rows, domain_sizes of {empty} are 0")
  )
  zeros_K = jnp.zeros(spec.num_domains, jnp.float32)
  state = GroupDroState(
    log_q_K=jax.nn.log_softmax(zeros_K),
    loss_K=zeros_K,
    seen_K=jnp.zeros(spec.num_domains, bool),
    adjustment_K=jnp.asarray(size_adjustment / np.sqrt(np.maximum(sizes_K, 1)), jnp.float32),
  )
  return state, _metrics(state, jnp.int32(0))


def learn(
  batch: domains.DomainMeans, state: GroupDroState, learning_rate: float, absent: Absent
) -> tuple[GroupDroState, dict[str, jax.Array]]:
  """Returns the state with the losses of the batch and the new q, and the metrics."""
  carries = absent == "carry"
  loss_K = jnp.where(batch.present_K, batch.mean_K, state.loss_K if carries else 0.0)
  seen_K = state.seen_K | batch.present_K
  gain_K = learning_rate * (loss_K + state.adjustment_K)
  known_K = seen_K if carries else jnp.ones_like(seen_K)
  log_q_K = domains.raise_weights(state.log_q_K, gain_K, known_K)
  state = state._replace(log_q_K=log_q_K, loss_K=loss_K, seen_K=seen_K)
  return state, _metrics(state, batch.num_nonfinite)


def _metrics(state: GroupDroState, num_nonfinite: jax.Array) -> dict[str, jax.Array]:
  q_K = jnp.exp(state.log_q_K)
  return {
    "num_nonfinite": num_nonfinite,
    "entropy": jnp.sum(jax.scipy.special.entr(q_K)),
    "robust_loss": jnp.sum(q_K * state.loss_K),
  }
