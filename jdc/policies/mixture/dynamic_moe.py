"""Dynamic mixing of a mixture of experts: domains that are routed unlike the others."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jdc.policies import checks, domains
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec
from jdc.policies.mixture.static import constant

Distance = Literal["l2", "cosine"]


class DynamicMoeState(NamedTuple):
  log_weight_K: jax.Array  # f32[K], log w
  load_KxE: jax.Array  # f32[K, E], o, each row sums to 1
  distance_K: jax.Array  # f32[K], delta of the last update
  num_updates: jax.Array  # i32[], calls modulo `every_steps`


def dynamic_moe(
  distance: Distance = "l2",
  learning_rate: float = 10.0,
  smoothing: float = 0.05,
  every_steps: int = 100,
) -> DataPolicy:
  r"""Raises the domains whose tokens go to other experts than those of the other domains.

  With o_k the load of each expert by the target tokens of domain k, normalised to sum 1, at
  every n-th call

    delta_k = mean over all domains j of |o_k - o_j|_2,      or of 1 - cos(o_k, o_j),
    w'_k ~ w_k exp(eta delta_k),
    w_k  = (1 - c) w'_k + c / K,

  from the base proportions; w is held between. A domain without load (a row of zeros) counts as
  loaded evenly. One whose row is not finite or has negative entries keeps its previous load,
  at first an even one, and is counted.

  Args:
    distance: between loads, "l2" or "cosine".
    learning_rate: eta > 0.
    smoothing: c in [0, 1).
    every_steps: n, the calls from one update to the next, at least 1.

  Returns:
    A step-scope policy that observes `domain_expert_load`; its decision holds `logits` f32[K] =
    log w. Metrics: the largest and the mean delta of the last update.

  Raises:
    ValueError: if an argument is unknown or out of range; in `init`, if the run has fewer than
      two domains or experts; in `update`, if the loads are not those of the run's domains and
      experts.

  References:
    Zhu et al., "Dynamic Data Mixing Maximizes Instruction Tuning for Mixture-of-Experts", 2024,
    arXiv 2406.11256. Which layer's load counts is the provider's choice; the authors'
    repository, Spico197/MoE-SFT, takes the last.

  Example:
    >>> policy = dynamic_moe(every_steps=1)
    >>> spec = RunSpec(9, 3, ("a", "b", "c"), (3, 3, 3), (1 / 3, 1 / 3, 1 / 3), num_experts=2)
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> stats = ExampleStats(domain_expert_load=jnp.array([[60, 40], [60, 40], [40, 60]]))
    >>> decision, _ = policy.update(stats, state)
    >>> [round(p, 3) for p in jnp.exp(decision.logits).tolist()]
    [0.225, 0.225, 0.551]
  """
  checks.require(
    (
      distance in get_args(Distance),
      f"distance must be in {get_args(Distance)}, got {distance!r}",
    ),
    (
      checks.is_finite(learning_rate) and learning_rate > 0,
      f"learning_rate must be positive and finite, got {learning_rate}",
    ),
    (
      checks.is_number(smoothing) and 0 <= smoothing < 1,
      f"smoothing must be in [0, 1), got {smoothing}",
    ),
    (
      checks.is_count(every_steps, 1),
      f"every_steps must be a whole number >= 1, got {every_steps}",
    ),
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, DynamicMoeState]:
    del key  # deterministic
    K, E = spec.num_domains, spec.num_experts
    checks.require(
      (K >= 2, f"dynamic_moe compares domains, num_domains must be at least 2, got {K}"),
      (E >= 2, f"dynamic_moe compares loads, num_experts must be at least 2, got {E}"),
    )
    decision, base = constant(np.asarray(spec.proportions, np.float64))
    state = DynamicMoeState(
      log_weight_K=base.logits_K,
      load_KxE=jnp.full((K, E), 1 / E, jnp.float32),
      distance_K=jnp.zeros(K, jnp.float32),
      num_updates=jnp.int32(0),
    )
    return decision._replace(metrics=_metrics(state, jnp.int32(0))), state

  def renew(load_KxE: jax.Array, state: DynamicMoeState) -> tuple[DynamicMoeState, jax.Array]:
    normal_KxE, usable_K = _normalised(load_KxE.astype(jnp.float32))
    load_KxE = jnp.where(usable_K[:, None], normal_KxE, state.load_KxE)
    distance_K = _distances(load_KxE, distance)
    known_K = jnp.ones_like(usable_K)
    log_weight_K = domains.raise_weights(
      state.log_weight_K, learning_rate * distance_K, known_K
    )
    state = state._replace(
      log_weight_K=domains.mix_with_uniform(log_weight_K, smoothing),
      load_KxE=load_KxE,
      distance_K=distance_K,
    )
    return state, jnp.sum(~usable_K, dtype=jnp.int32)

  def update(stats: ExampleStats, state: DynamicMoeState) -> tuple[Decision, DynamicMoeState]:
    _check_shape(stats.domain_expert_load, state.load_KxE)
    num_updates = (state.num_updates + 1) % every_steps
    state, num_nonfinite = jax.lax.cond(
      num_updates == 0,
      renew,
      lambda _, state: (state, jnp.int32(0)),
      stats.domain_expert_load,
      state,
    )
    state = state._replace(num_updates=num_updates)
    metrics = _metrics(state, num_nonfinite)
    return Decision(logits=state.log_weight_K, metrics=metrics), state

  return DataPolicy(init, update, frozenset({"domain_expert_load"}), scope="step")


def _check_shape(given: jax.Array, expected: jax.Array) -> None:
  checks.require(
    (
      given.shape == expected.shape,
      f"domain_expert_load must have shape {expected.shape} of the run's domains and experts, "
      f"got {given.shape}",
    )
  )


def _normalised(load_KxE: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns rows of sum 1, uniform for zeros, and which rows are loads at all."""
  usable_K = jnp.all(jnp.isfinite(load_KxE) & (load_KxE >= 0), axis=1)
  load_KxE = jnp.where(usable_K[:, None], load_KxE, 0.0)
  # Scaled down where large, so that no sum overflows; nor may its reciprocal, by which XLA
  # multiplies instead of dividing, be so small that processors take it for 0.
  large_Kx1 = jnp.max(load_KxE, axis=1, keepdims=True) > 1e18
  load_KxE = jnp.where(large_Kx1, load_KxE * 1e-19, load_KxE)
  total_Kx1 = jnp.sum(load_KxE, axis=1, keepdims=True)
  loaded_Kx1 = total_Kx1 >= jnp.finfo(jnp.float32).tiny
  share_KxE = load_KxE / jnp.where(loaded_Kx1, total_Kx1, 1.0)
  return jnp.where(loaded_Kx1, share_KxE, 1 / load_KxE.shape[1]), usable_K


def _distances(load_KxE: jax.Array, distance: Distance) -> jax.Array:
  """Returns delta, the mean distance of each domain to all, itself included."""
  if distance == "cosine":
    load_KxE = load_KxE / jnp.linalg.norm(load_KxE, axis=1, keepdims=True)
  gap_KxK = jnp.sum((load_KxE[:, None] - load_KxE[None]) ** 2, axis=2)
  # Of unit vectors, 1 - cos is half the squared distance, which does not cancel.
  return jnp.mean(gap_KxK / 2 if distance == "cosine" else jnp.sqrt(gap_KxK), axis=1)


def _metrics(state: DynamicMoeState, num_nonfinite: jax.Array) -> dict[str, jax.Array]:
  return {
    "num_nonfinite": num_nonfinite,
    "max_distance": jnp.max(state.distance_K),
    "mean_distance": jnp.mean(state.distance_K),
  }
