"""Delta-Loss: a window walks from rows whose loss fell much to those where it fell little."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec


class DeltaLossState(NamedTuple):
  initial_N: jax.Array  # f32[N], nats per token; inf until recorded, -inf where not finite
  num_updates: jax.Array  # i32[], up to U
  # Of each update u = 1 to U: the places [start, end) of the window in the order of the rows.
  start_U: jax.Array  # i32[U]
  end_U: jax.Array  # i32[U]


def delta_loss(
  window: float = 0.2,
  steepness: float = 10.0,
  outside: float = 0.025,
  update_times: int | None = None,
) -> DataPolicy:
  r"""Samples a window of the rows in the order of how much their loss has fallen.

  The first update records the losses l0 and decides for all rows alike. Update u > 1 sorts the
  rows by delta_i = l0_i - l_i, the largest first and equal ones by index, and gives weight 1 to
  the places [start, end) of that order, `outside` to all others, with

    s = (u - 1) / (U - 1),  0 for U = 1;     sig = 1 / (1 + exp(-steepness (s - 1/2))),
    start = floor(sig (N - window N)),       end = floor(sig (N - window N) + window N).

  Rows whose loss has risen are never inside: where there are any, end is at most the place of
  the first. A window without rows gives all the same weight. Later updates than U keep the last
  window.

  A row whose delta is not finite comes last in the order and is never sampled; its loss, then
  or at the first update, is counted as `num_nonfinite`.

  Args:
    window: share of the rows inside, in (0, 1].
    steepness: of the way of the window, >= 0; large values stay at both ends for longer.
    outside: weight of the rows outside, in (0, 1].
    update_times: U >= 1, the number of updates; by default the rounds of the run,
      ceil(num_steps / steps_per_round). To be given where rounds end by exhaustion, or where
      `every` leaves updates out.

  Returns:
    A round-scope policy that observes `loss` and `example_id`. `score` returns f32[b], the loss
    of each row of a chunk; `update` reads `score` f32[C] and `example_id` i32[C], -1 for
    padding. Its decision holds `logits` f32[C], the logarithms of the weights, before the first
    sweep 0 for all; metrics count the rows sampled from, `num_eligible`, the above, and those
    inside the window, `num_inside`.

  Raises:
    ValueError: if an argument is out of range; in `init`, if the run does not sweep its whole
      pool, or the number of updates is neither given nor known.

  References:
    The rule of the delta-loss selector of DataFlex, there without a paper. Here rows whose
    delta is not finite are excluded, and U = 1 does not divide by 0.

  Example:
    >>> spec = RunSpec(4, 1, ("web",), (4,), (1.0,), sweep_size=4)
    >>> policy = delta_loss(window=0.5, update_times=3)
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> swept = lambda *losses: ExampleStats(example_id=jnp.arange(4), score=jnp.array(losses))
    >>> _, state = policy.update(swept(4.0, 4.0, 4.0, 4.0), state)
    >>> decision, state = policy.update(swept(1.0, 4.0, 3.0, 2.0), state)
    >>> [round(w, 3) for w in jnp.exp(decision.logits).tolist()]
    [0.025, 0.025, 1.0, 1.0]
  """
  checks.require(
    (
      checks.is_number(window) and 0 < window <= 1,
      f"window must be in (0, 1], got {window}",
    ),
    (
      checks.is_finite(steepness) and steepness >= 0,
      f"steepness must be finite and at least 0, got {steepness}",
    ),
    (
      checks.is_number(outside) and 0 < outside <= 1,
      f"outside must be in (0, 1], got {outside}",
    ),
    (
      update_times is None or checks.is_count(update_times, 1),
      f"update_times must be None or a whole number >= 1, got {update_times}",
    ),
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, DeltaLossState]:
    del key  # deterministic
    _check(spec, update_times)
    size = spec.num_examples
    times = update_times or -(-spec.num_steps // spec.steps_per_round)
    start_U, end_U = _windows(size, times, window, steepness)
    state = DeltaLossState(
      initial_N=jnp.full(size, jnp.inf, jnp.float32),
      num_updates=jnp.int32(0),
      start_U=jnp.asarray(start_U, jnp.int32),
      end_U=jnp.asarray(end_U, jnp.int32),
    )
    metrics = {
      "num_nonfinite": jnp.int32(0),
      "num_eligible": jnp.int32(size),
      "num_inside": jnp.int32(0),
    }
    return Decision(logits=jnp.zeros(size, jnp.float32), metrics=metrics), state

  def score(stats: ExampleStats, state: DeltaLossState) -> jax.Array:
    del state
    return stats.loss.astype(jnp.float32)

  def update(stats: ExampleStats, state: DeltaLossState) -> tuple[Decision, DeltaLossState]:
    real_C, loss_C = stats.example_id >= 0, stats.score.astype(jnp.float32)
    initial_N = _record(state.initial_N, stats.example_id, loss_C)
    delta_C = initial_N[stats.example_id] - loss_C
    eligible_C = real_C & jnp.isfinite(delta_C)
    inside_C = _inside(delta_C, eligible_C, state) & (state.num_updates > 0)
    weight_C = jnp.where(inside_C | ~jnp.any(inside_C), 0.0, jnp.float32(math.log(outside)))
    num_eligible = jnp.sum(eligible_C, dtype=jnp.int32)
    metrics = {
      "num_nonfinite": jnp.sum(real_C, dtype=jnp.int32) - num_eligible,
      "num_eligible": num_eligible,
      "num_inside": jnp.sum(inside_C, dtype=jnp.int32),
    }
    # Counting stops at U, so that it never overflows.
    num_updates = jnp.minimum(state.num_updates + 1, state.start_U.shape[0])
    state = state._replace(initial_N=initial_N, num_updates=num_updates)
    return Decision(jnp.where(eligible_C, weight_C, -jnp.inf), metrics=metrics), state

  observes = frozenset({"loss", "example_id"})
  return DataPolicy(init, update, observes, scope="round", score=score)


def _check(spec: RunSpec, update_times: int | None) -> None:
  known = spec.num_steps > 0 and spec.steps_per_round > 0
  checks.require(
    (
      0 < spec.sweep_size == spec.num_examples,
      f"delta_loss needs a sweep of the whole pool: sweep_size {spec.sweep_size} must be "
      f"num_examples {spec.num_examples}",
    ),
    (
      update_times is not None or known,
      f"update_times is None, and the rounds of the run are not known from num_steps "
      f"{spec.num_steps} and steps_per_round {spec.steps_per_round}",
    ),
  )


def _windows(
  size: int, times: int, window: float, steepness: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the window's first place at each update, and the one after its last."""
  s_U = np.arange(times) / max(times - 1, 1)
  sigmoid_U = (1 + np.tanh(steepness * (s_U - 0.5) / 2)) / 2  # cannot overflow
  first_U = sigmoid_U * (size - window * size)
  return np.floor(first_U), np.floor(first_U + window * size)


def _record(initial_N: jax.Array, id_C: jax.Array, loss_C: jax.Array) -> jax.Array:
  """Returns the first losses of all rows swept so far."""
  size = initial_N.shape[0]
  first_C = (id_C >= 0) & (initial_N[id_C] == jnp.inf)
  loss_C = jnp.where(jnp.isfinite(loss_C), loss_C, -jnp.inf)
  return initial_N.at[jnp.where(first_C, id_C, size)].set(loss_C, mode="drop")


def _inside(delta_C: jax.Array, eligible_C: jax.Array, state: DeltaLossState) -> jax.Array:
  """Returns bool[C], the eligible rows in the window of this update."""
  size = delta_C.shape[0]
  order_C = jnp.argsort(jnp.where(eligible_C, -delta_C, jnp.inf), stable=True)
  place_C = jnp.zeros(size, jnp.int32).at[order_C].set(jnp.arange(size, dtype=jnp.int32))
  now = jnp.minimum(state.num_updates, state.start_U.shape[0] - 1)
  # Places of rows whose loss has risen come right after those of the others.
  num_fallen = jnp.sum(eligible_C & (delta_C >= 0))
  risen = jnp.any(eligible_C & (delta_C < 0))
  end = jnp.where(risen, jnp.minimum(state.end_U[now], num_fallen), state.end_U[now])
  return eligible_C & (place_C >= state.start_U[now]) & (place_C < end)
