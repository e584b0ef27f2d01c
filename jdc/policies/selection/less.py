"""LESS: rows whose training step would lower the loss of a target set are preferred."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec
from jdc.policies.selection import running_mean
from jdc.policies.selection.influence import (
  Aggregate,
  Direction,
  aggregate_tasks,
  num_nonfinite,
  spec_problems,
  task_influence,
  task_sizes,
)
from jdc.policies.selection.running_mean import RunningMean

Checkpoints = Literal["current", "sum"]


class LessState(NamedTuple):
  task_S: jax.Array  # i32[S], 0 to S - 1
  running: RunningMean | None  # for `sum`, over rounds weighted by their learning rates


def less(
  direction: Direction = "update_direction",
  aggregate: Aggregate = "submax",
  checkpoints: Checkpoints = "current",
) -> DataPolicy:
  r"""Prefers rows whose training step points to where the target's loss falls.

  With x_i the projected `direction` of row i, and g_m the projected gradients of the n_k target
  examples of task k, the influence of i on k is

    I_ik = 1/n_k sum_{m in k} cos(x_i, g_m),

  and the logit of row i is its influence on all tasks,

    submax  max_k I_ik                            a task counts however small it is
    mean    sum_k n_k I_ik / sum_k n_k            the mean over all target examples

  A cosine divides by norms of at least 1e-12, so that a zero vector has cosine 0. With
  checkpoints="sum", I_ik is a mean over the rounds r in which row i was swept, weighted by
  their learning rates eta_r, taken before tasks are aggregated:

    I_ik = sum_r eta_r I_ikr / sum_r eta_r;       while sum_r eta_r = 0, that of the last round.

  Logits are in [-1, 1]: they are meant for `top_k`, which takes the largest; for other draws,
  `jdc.policies.temperature` sharpens them.

  A row whose direction is not finite in a round is not drawn, and is counted as
  `num_nonfinite`; its sum goes on without that round. Target examples whose gradient is not
  finite are left out and counted as `num_nonfinite_targets`. A task with no others is left out
  for the round, and keeps its mean; without any task no row has an influence.

  Which step an `update_direction` is, the provider of features says, by its option
  `direction` (in a run's configuration `features.direction`). Under Adam with moments m and v,

    option        bias correction     epsilon      the rule of
    "optimizer"   the optimizer's     outside      the step that the run would really take
    "paper"       yes                 inside       the paper, m / sqrt(v + eps)
    "official"    no                  inside       the authors' code
    "dataflex"    no                  outside      DataFlex, m / (sqrt(v) + eps)

  Args:
    direction: of a row; `gradient` is the step of SGD.
    aggregate: over tasks. `submax` is the authors' rule, `mean` that of DataFlex.
    checkpoints: whether rounds are summed, as in the paper, or the last alone counts. A sum is
      kept for each of the N rows and S tasks.

  Returns:
    A round-scope policy that observes `direction`, `target` (gradients and tasks) and
    `example_id`; to sum checkpoints `learning_rate` and `score_age` too, so that a score kept
    from an earlier round is summed once. `score` returns f32[b, S]; `update` reads `score`
    f32[C, S]. Its decision holds `logits` f32[C], before the first sweep 0 for all; metrics
    count the rows sampled from, `num_eligible`, and the two above.

  Raises:
    ValueError: if an argument is unknown; in `init`, if the run sweeps no rows, or has no
      target set or features.

  References:
    Xia et al., "LESS: Selecting Influential Data for Targeted Instruction Tuning", 2024, arXiv
    2402.04333. The order of mean and cosine is that of the authors' code. There a checkpoint is
    the end of an epoch of a warm-up on 5 % of the data, and eta the epoch's mean learning rate;
    here it is the start of a round, with the learning rate of its first step.

  Example:
    >>> from jdc.policies import TargetStats
    >>> spec = RunSpec(3, 1, ("web",), (3,), (1.0,), sweep_size=3)
    >>> spec = spec._replace(num_targets=3, num_tasks=2, feature_size=2)
    >>> policy = less("gradient")
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> target = TargetStats(
    ...   gradient=jnp.array([[1.0, 0.0], [0.0, 3.0], [1.0, 0.0]]), task=jnp.array([0, 1, 0])
    ... )
    >>> gradient = jnp.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> score = policy.score(ExampleStats(gradient=gradient, target=target), state)
    >>> swept = ExampleStats(example_id=jnp.arange(3), score=score, target=target)
    >>> policy.update(swept, state)[0].logits.tolist()
    [1.0, 1.0, 0.0]
  """
  checks.require(
    *(
      (value in get_args(kinds), f"{name} must be in {get_args(kinds)}, got {value!r}")
      for name, value, kinds in (
        ("direction", direction, Direction),
        ("aggregate", aggregate, Aggregate),
        ("checkpoints", checkpoints, Checkpoints),
      )
    )
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, LessState]:
    del key  # deterministic
    checks.raise_all(spec_problems("less", spec))
    metrics = {
      "num_nonfinite": jnp.int32(0),
      "num_eligible": jnp.int32(spec.sweep_size),
      "num_nonfinite_targets": jnp.int32(0),
    }
    decision = Decision(logits=jnp.zeros(spec.sweep_size, jnp.float32), metrics=metrics)
    task_S = jnp.arange(spec.num_tasks, dtype=jnp.int32)
    if checkpoints == "current":
      return decision, LessState(task_S, None)
    return decision, LessState(task_S, running_mean.empty(spec.num_examples, spec.num_tasks))

  def score(stats: ExampleStats, state: LessState) -> jax.Array:
    assert stats.target is not None
    target, num_tasks = stats.target, state.task_S.shape[0]
    return task_influence(getattr(stats, direction), target.gradient, target.task, num_tasks)

  def update(stats: ExampleStats, state: LessState) -> tuple[Decision, LessState]:
    assert stats.target is not None
    target_MxR, num_tasks = stats.target.gradient, state.task_S.shape[0]
    size_S = task_sizes(target_MxR, stats.target.task, num_tasks)
    score_CxS = stats.score.astype(jnp.float32)
    real_C = stats.example_id >= 0
    influence_C = aggregate_tasks(score_CxS, size_S, aggregate)
    eligible_C = real_C & jnp.isfinite(influence_C)
    if state.running is not None:
      rate = stats.learning_rate.astype(jnp.float32)
      told = stats.example_id, stats.score_age, score_CxS
      running = running_mean.add(state.running, *told, rate)
      state = state._replace(running=running)
      influence_C = aggregate_tasks(running.mean_NxS[stats.example_id], size_S, aggregate)
      eligible_C &= jnp.isfinite(influence_C)
    num_eligible = jnp.sum(eligible_C, dtype=jnp.int32)
    metrics = {
      "num_nonfinite": jnp.sum(real_C, dtype=jnp.int32) - num_eligible,
      "num_eligible": num_eligible,
      "num_nonfinite_targets": num_nonfinite(target_MxR),
    }
    return Decision(jnp.where(eligible_C, influence_C, -jnp.inf), metrics=metrics), state

  observes = {direction, "target", "example_id"}
  if checkpoints == "sum":
    observes |= {"learning_rate", "score_age"}
  return DataPolicy(init, update, frozenset(observes), scope="round", score=score)
