"""In-run data Shapley: what each row has done for the target's loss, step by step."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec
from jdc.policies.weighting import directions

Order = Literal["first", "second"]
Step = Literal["mean", "sum"]
Aggregate = Literal["sum", "mean"]


class InRunShapleyState(NamedTuple):
  value_N: jax.Array  # f32[N], sums over the steps so far, in nats of the target's loss
  count_N: jax.Array  # i32[N], steps that each row was valued in
  lost_N: jax.Array  # bool[N], the last value was not finite


def in_run_shapley(
  order: Order = "first",
  step: Step = "mean",
  aggregate: Aggregate = "sum",
  temperature: float = 1.0,
  drop_negative: bool = False,
) -> DataPolicy:
  r"""Prefers rows by the sum of their Shapley values in the steps they were trained in.

  A step of gradient descent on the rows S of a batch moves the parameters by -eta sum_{i in S}
  g_i. With L the loss of the target rows, g its gradient and H its Hessian, that lowers L by

    U(S) = eta sum_{i in S} <g, g_i> - eta^2/2 (sum_{i in S} g_i)' H (sum_{i in S} g_i)

  up to third order. The Shapley value of row i in this game, its mean contribution over all
  orders in which the rows may join, is in closed form

    v_i = eta <g, g_i>  [- eta^2/2 g_i' H sum_{j in batch} g_j  with order="second"],

  and the values of a batch sum to U of the whole batch. A positive value helps. Values of all
  batches are added for each row of the pool; with V_i the sum, or the mean over the steps that
  the row was seen in,

    logit_i = V_i / (temperature s),    s^2 the mean square of V over the rows seen,

  so that rows never seen have logit 0, as those of no effect do. Whatever the temperature,
  `top_k` keeps the rows of the largest values. A row that is no longer drawn keeps its value.

  A row whose value is not finite is never sampled, until it is seen with a finite one, and is
  counted as `num_nonfinite`. Where no value of a batch is finite, the target's gradient or the
  parameters are at fault: that batch counts for nothing.

  Args:
    order: of the expansion of the target's loss.
    step: how the rows' mean losses make the loss that is trained on. By "mean", eta = learning
      rate / B' with the B' rows of the batch that have target tokens; by "sum", as in the
      paper, eta = learning rate. Where losses are averaged over tokens, a row's share of the
      step is that of its tokens, 1 / B' for rows of one length only.
    aggregate: over the steps that a row was seen in.
    temperature: in [1e-30, inf).
    drop_negative: whether rows with V_i < 0 get logit -inf, as where the paper curates a pool.

  Returns:
    A round-scope policy that observes, of every training batch, `target_alignment` = <g, g_i>,
    `learning_rate`, `num_tokens`, `example_id` and, of second order, `target_curvature` =
    g_i' H sum_j g_j. Its decision holds `logits` f32[N], before the first batch 0 for all.
    Metrics count the rows with finite logits, `num_eligible`, the above, those seen,
    `num_seen`, and those of negative value, `num_negative`.

  Raises:
    ValueError: if an argument is unknown or out of range; in `init`, if the run has no target
      set.

  References:
    Wang, Mittal, Song, Jia, "Data Shapley in One Training Run", 2024, arXiv 2406.11011. The
    step valued is one of plain gradient descent, whatever the optimizer and the weights of the
    rows.

  Example:
    >>> spec = RunSpec(4, 1, ("web",), (4,), proportions=(1.0,), num_targets=1)
    >>> policy = in_run_shapley()
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> batch = ExampleStats(
    ...   example_id=jnp.array([2, 0]),
    ...   num_tokens=jnp.array([5, 5]),
    ...   target_alignment=jnp.array([3.0, -3.0]),
    ...   learning_rate=jnp.float32(0.1),
    ... )
    >>> state = policy.observe(batch, state)
    >>> decision, _ = policy.update(ExampleStats(), state)
    >>> [round(logit, 3) for logit in decision.logits.tolist()]
    [-1.0, 0.0, 1.0, 0.0]
  """
  known = lambda name, value, kind: (
    value in get_args(kind),
    f"{name} must be in {get_args(kind)}, got {value!r}",
  )
  checks.require(
    known("order", order, Order),
    known("step", step, Step),
    known("aggregate", aggregate, Aggregate),
    (
      checks.is_finite(temperature) and temperature >= 1e-30,
      f"temperature must be in [1e-30, inf), got {temperature}",
    ),
    (
      isinstance(drop_negative, bool),
      f"drop_negative must be a bool, got {drop_negative!r}",
    ),
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, InRunShapleyState]:
    del key  # deterministic
    if spec.num_targets <= 0:
      raise ValueError(f"in_run_shapley needs num_targets > 0, got {spec.num_targets}")
    size = spec.num_examples
    counts = {"num_nonfinite": 0, "num_eligible": size, "num_seen": 0, "num_negative": 0}
    metrics = {name: jnp.int32(count) for name, count in counts.items()}
    state = InRunShapleyState(
      value_N=jnp.zeros(size, jnp.float32),
      count_N=jnp.zeros(size, jnp.int32),
      lost_N=jnp.zeros(size, bool),
    )
    return Decision(logits=jnp.zeros(size, jnp.float32), metrics=metrics), state

  def observe(stats: ExampleStats, state: InRunShapleyState) -> InRunShapleyState:
    valid_B = (stats.example_id >= 0) & (stats.num_tokens > 0)
    eta = stats.learning_rate.astype(jnp.float32)
    if step == "mean":
      eta = eta / jnp.maximum(jnp.sum(valid_B), 1)
    value_B = eta * stats.target_alignment.astype(jnp.float32)
    if order == "second":
      value_B = value_B - eta / 2 * (eta * stats.target_curvature.astype(jnp.float32))
    return _accumulate(state, stats.example_id, value_B, valid_B)

  def update(
    stats: ExampleStats, state: InRunShapleyState
  ) -> tuple[Decision, InRunShapleyState]:
    del stats
    value_N, seen_N = state.value_N, state.count_N > 0
    if aggregate == "mean":
      value_N = value_N / jnp.maximum(state.count_N, 1)
    negative_N = value_N < 0
    eligible_N = ~(state.lost_N | negative_N if drop_negative else state.lost_N)
    logits_N = _over_root_mean_square(value_N, seen_N) / temperature
    metrics = {
      "num_nonfinite": jnp.sum(state.lost_N, dtype=jnp.int32),
      "num_eligible": jnp.sum(eligible_N, dtype=jnp.int32),
      "num_seen": jnp.sum(seen_N, dtype=jnp.int32),
      "num_negative": jnp.sum(negative_N, dtype=jnp.int32),
    }
    return Decision(jnp.where(eligible_N, logits_N, -jnp.inf), metrics=metrics), state

  of_batch = {"target_alignment", "learning_rate", "num_tokens", "example_id"}
  return DataPolicy(
    init,
    update,
    frozenset(),
    scope="round",
    observe=observe,
    observes_batch=frozenset(of_batch | ({"target_curvature"} if order == "second" else set())),
  )


def _accumulate(
  state: InRunShapleyState, id_B: jax.Array, value_B: jax.Array, valid_B: jax.Array
) -> InRunShapleyState:
  """Adds the values of a batch; copies of a row are added up before, in a fixed order."""
  finite_B = valid_B & jnp.isfinite(value_B)
  same_BxB = (id_B[:, None] == id_B).astype(jnp.float32)
  added_B = directions.dot(same_BxB, jnp.where(finite_B, value_B, 0.0))
  copies_B = directions.dot(same_BxB, finite_B.astype(jnp.float32)).astype(jnp.int32)
  sum_B = state.value_N[id_B] + added_B
  found_B = (copies_B > 0) & jnp.isfinite(sum_B)
  # Places of rows that are not written are outside.
  size = state.value_N.shape[0]
  found_at_B = jnp.where(valid_B & found_B, id_B, size)
  lost_at_B = jnp.where(valid_B & ~found_B & jnp.any(finite_B), id_B, size)
  lost_N = state.lost_N.at[found_at_B].set(False, mode="drop")
  return InRunShapleyState(
    value_N=state.value_N.at[found_at_B].set(sum_B, mode="drop"),
    count_N=state.count_N.at[found_at_B].set(state.count_N[id_B] + copies_B, mode="drop"),
    lost_N=lost_N.at[lost_at_B].set(True, mode="drop"),
  )


def _over_root_mean_square(value_N: jax.Array, seen_N: jax.Array) -> jax.Array:
  """Returns the values over the root of their mean square, that of the rows seen."""
  value_N = directions.moderate(value_N)
  highest = jnp.max(jnp.abs(value_N), initial=0.0)
  value_N = value_N / jnp.where(highest > 0, highest, 1.0)
  mean = jnp.sum(value_N**2 * seen_N) / jnp.maximum(jnp.sum(seen_N), 1)
  return value_N / jnp.sqrt(jnp.where(mean > 0, mean, 1.0))
