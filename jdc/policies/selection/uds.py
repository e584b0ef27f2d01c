"""UDS: candidates of rich logits that differ from what was selected lately."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec


class UdsState(NamedTuple):
  buffer_SxQ: jax.Array  # f32[S, Q], projected logits of the rows selected last; 0 where empty
  num_held: jax.Array  # i32[], up to S
  place: jax.Array  # i32[], of the next row in the buffer
  slot_k: jax.Array  # i32[k], 0 to k - 1: as many as are kept of a batch


def uds(alpha: float = 2.5e-3, capacity: int = 1024) -> DataPolicy:
  r"""Keeps the candidates of the largest utility and diversity.

  With Z_i the logits [T, V] at the target tokens of candidate i, p_i their random projection
  and b_1 to b_n those of the rows selected last, up to S of them,

    logit_i = ||Z_i||_* + alpha (1 / n) sum_j |p_i - b_j|_2;    the second term is 0 for n = 0.

  The nuclear norm, the sum of singular values, is large for a row on which the model is
  decided and whose predictions differ among themselves. After the choice the k rows kept
  replace the oldest ones of the buffer. They are known here since the largest logits are kept,
  ties to the lower index: a run must draw with `plan.candidate_draw="top_k"`.

  Rows without target tokens and rows whose statistics are not finite are never kept; the latter
  are counted as `num_nonfinite`. So are rows of which eight times the squared length of p
  overflows.

  Args:
    alpha: weight of the distance, in [0, 1e30].
    capacity: S, the rows in the buffer, at least the batch size.

  Returns:
    A step-scope policy that observes `logit_nuclear_norm` f32[B], `logit_projection` f32[B, Q],
    `num_tokens` and `example_id` of the candidates; its decision holds `logits`
    f32[num_candidates], before the first batch 0 for all. The metrics count the rows that may
    be kept, `num_eligible`, those in the buffer before the choice, `num_held`, and tell the
    mean distance of the eligible rows from these, `mean_distance`.

  Raises:
    ValueError: if an argument is out of range; in `init`, if the run has fewer candidates than
      rows in a batch, no batch size, more of it than the capacity, no projection of logits, or
      does not draw by `top_k`.

  References:
    Zou et al., "Utility-Diversity Aware Online Batch Selection for LLM Supervised Fine-tuning",
    2025, arXiv 2510.16882. There padding counts as rows of logits, which are 0 here, and the
    projection is a subsampled Fourier transform; here `jdc.stats.logits` says which.

  Example:
    >>> spec = RunSpec(9, 1, ("web",), (9,), (1.0,), batch_size=1, num_candidates=2)
    >>> policy = uds(alpha=1.0)
    >>> _, state = policy.init(spec._replace(logit_projection_size=2), jax.random.key(0))
    >>> stats = ExampleStats(
    ...   example_id=jnp.arange(2),
    ...   num_tokens=jnp.array([5, 5]),
    ...   logit_nuclear_norm=jnp.array([7.0, 6.0]),
    ...   logit_projection=jnp.array([[0.0, 0.0], [3.0, 4.0]]),
    ... )
    >>> first, state = policy.update(stats, state)
    >>> first.logits.tolist(), policy.update(stats, state)[0].logits.tolist()
    ([7.0, 6.0], [7.0, 11.0])
  """
  checks.require(
    (
      checks.is_number(alpha) and 0 <= alpha <= 1e30,
      f"alpha must be in [0, 1e30], got {alpha}",
    ),
    (checks.is_count(capacity, 1), f"capacity must be a whole number >= 1, got {capacity}"),
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, UdsState]:
    del key  # deterministic
    _check(spec, capacity)
    state = UdsState(
      buffer_SxQ=jnp.zeros((capacity, spec.logit_projection_size), jnp.float32),
      num_held=jnp.int32(0),
      place=jnp.int32(0),
      slot_k=jnp.arange(spec.batch_size, dtype=jnp.int32),
    )
    metrics = {
      "num_nonfinite": jnp.int32(0),
      "num_eligible": jnp.int32(spec.num_candidates),
      "num_held": jnp.int32(0),
      "mean_distance": jnp.float32(0),
    }
    return Decision(logits=jnp.zeros(spec.num_candidates, jnp.float32), metrics=metrics), state

  def update(stats: ExampleStats, state: UdsState) -> tuple[Decision, UdsState]:
    norm_B = stats.logit_nuclear_norm.astype(jnp.float32)
    projection_BxQ = stats.logit_projection.astype(jnp.float32)
    # What is bounded so has a finite distance from all others that are.
    bounded_B = jnp.isfinite(8 * jnp.sum(jnp.square(projection_BxQ), axis=1))
    projection_BxQ = jnp.where(bounded_B[:, None], projection_BxQ, 0.0)
    distance_B = _mean_distances(projection_BxQ, state)
    logits_B = norm_B + alpha * distance_B
    valid_B = (stats.example_id >= 0) & (stats.num_tokens > 0)
    eligible_B = valid_B & bounded_B & jnp.isfinite(logits_B)
    logits_B = jnp.where(eligible_B, logits_B, -jnp.inf)
    num_eligible = jnp.sum(eligible_B, dtype=jnp.int32)
    share_B = eligible_B / jnp.maximum(num_eligible, 1)
    metrics = {
      "num_nonfinite": jnp.sum(valid_B, dtype=jnp.int32) - num_eligible,
      "num_eligible": num_eligible,
      "num_held": state.num_held,
      "mean_distance": jnp.sum(share_B * distance_B),
    }
    return Decision(logits_B, metrics=metrics), _push(state, logits_B, projection_BxQ)

  observes = frozenset({"logit_nuclear_norm", "logit_projection", "num_tokens", "example_id"})
  return DataPolicy(init, update, observes, scope="step")


def _check(spec: RunSpec, capacity: int) -> None:
  checks.require(
    (
      0 < spec.batch_size <= spec.num_candidates,
      f"uds needs a batch size and at least as many candidates, got batch_size "
      f"{spec.batch_size} and num_candidates {spec.num_candidates}",
    ),
    (
      spec.batch_size <= capacity,
      f"uds needs a capacity of at least batch_size {spec.batch_size}, got {capacity}",
    ),
    (
      spec.logit_projection_size > 0,
      "uds needs a model that offers its hidden states and its output matrix, got "
      f"logit_projection_size {spec.logit_projection_size}",
    ),
    (
      spec.candidate_draw == "top_k",
      "uds must know which candidates are kept: candidate_draw must be 'top_k', got "
      f"{spec.candidate_draw!r}",
    ),
  )


def _mean_distances(projection_BxQ: jax.Array, state: UdsState) -> jax.Array:
  """Returns the mean distance of each row from those in the buffer, 0 while it is empty."""
  held_S = jnp.arange(state.buffer_SxQ.shape[0]) < state.num_held

  # One row at a time: products would lose small distances, and all differences do not fit.
  def of_row(projection_Q: jax.Array) -> jax.Array:
    squared_S = jnp.sum(jnp.square(projection_Q - state.buffer_SxQ), axis=1)
    return jnp.sum(jnp.where(held_S, jnp.sqrt(squared_S), 0.0))

  return jax.lax.map(of_row, projection_BxQ) / jnp.maximum(state.num_held, 1)


def _push(state: UdsState, logits_B: jax.Array, projection_BxQ: jax.Array) -> UdsState:
  """Returns the state after the rows that are kept have replaced the oldest ones."""
  capacity, num_kept = state.buffer_SxQ.shape[0], state.slot_k.shape[0]
  kept_k = jax.lax.top_k(logits_B, num_kept)[1]
  # In decreasing order, so that those that are not drawn are the last.
  num_drawn = jnp.minimum(jnp.sum(logits_B > -jnp.inf, dtype=jnp.int32), num_kept)
  place_k = (state.place + state.slot_k) % capacity
  place_k = jnp.where(state.slot_k < num_drawn, place_k, capacity)  # past the end: dropped
  buffer_SxQ = state.buffer_SxQ.at[place_k].set(projection_BxQ[kept_k], mode="drop")
  return state._replace(
    buffer_SxQ=buffer_SxQ,
    num_held=jnp.minimum(state.num_held + num_drawn, capacity),
    place=(state.place + num_drawn) % capacity,
  )
