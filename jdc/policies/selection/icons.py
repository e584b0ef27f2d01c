"""ICONS: rows that are influential for many target tasks are preferred."""

from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec
from jdc.policies.selection.influence import (
  Direction,
  num_nonfinite,
  spec_problems,
  task_influence,
  task_sizes,
)
from jdc.policies.selection.quantiles import quantiles


class IconsState(NamedTuple):
  task_S: jax.Array  # i32[S], 0 to S - 1


def icons(share: float, direction: Direction = "update_direction") -> DataPolicy:
  r"""Prefers rows that are among the most influential for many tasks of the target set.

  With x_i the projected `direction` of row i, g_m the projected gradients of the n_k target
  examples of task k, p = `share`, and the quantile by linear interpolation over the rows that
  may be drawn,

    I_ik = 1/n_k sum_{m in k} cos(x_i, g_m),
    t_k = the (1 - p)-quantile of I_k,    votes_i = #{k: I_ik >= t_k},

  rows are in the order of their votes, those with equal votes in that of their mean influence
  over tasks, those with equal means in that of their index:

    logit_i = votes_i + (1 + mean_k I_ik) / 4.

  In float32, means less than 2e-6 apart may count as equal; from 8 votes on, 2e-5, from 64 on
  2e-4. The logits are meant for `top_k`, with the same share as its fraction.

  A cosine divides by norms of at least 1e-12, so that a zero vector has cosine 0. A row whose
  direction is not finite is not drawn, and is counted as `num_nonfinite`. Target examples whose
  gradient is not finite are left out and counted as `num_nonfinite_targets`; a task with no
  others neither votes nor counts in the mean, and without any task no row may be drawn.

  Args:
    share: p in (0, 1], the share of rows that each task votes for: the share to be selected.
    direction: of a row; which step an `update_direction` is, the provider of features says, see
      `jdc.policies.selection.less`.

  Returns:
    A round-scope policy that observes `direction`, `target` (gradients and tasks) and
    `example_id`. `score` returns f32[b, S]; `update` reads `score` f32[C, S]. Its decision
    holds `logits` f32[C], before the first sweep 0 for all; metrics count the rows sampled
    from, `num_eligible`, and the two above.

  Raises:
    ValueError: if an argument is unknown or out of range; in `init`, if the run sweeps no rows,
      or has no target set or features.

  References:
    Wu, Xia, Shao, Deng, Koh, Russakovsky, "ICONS: Influence Consensus for Vision-Language Data
    Selection", 2025, arXiv 2501.00654. The order of rows with equal votes is ours.

  Example:
    >>> from jdc.policies import TargetStats
    >>> spec = RunSpec(3, 1, ("web",), (3,), (1.0,), sweep_size=3)
    >>> spec = spec._replace(num_targets=2, num_tasks=2, feature_size=2)
    >>> policy = icons(0.5, "gradient")
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> target = TargetStats(gradient=jnp.eye(2), task=jnp.arange(2))
    >>> gradient = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    >>> score = policy.score(ExampleStats(gradient=gradient, target=target), state)
    >>> swept = ExampleStats(example_id=jnp.arange(3), score=score, target=target)
    >>> [round(x, 3) for x in policy.update(swept, state)[0].logits.tolist()]
    [1.375, 2.427, 1.375]
  """
  checks.require(
    (checks.is_number(share) and 0 < share <= 1, f"share must be in (0, 1], got {share}"),
    (
      direction in get_args(Direction),
      f"direction must be in {get_args(Direction)}, got {direction!r}",
    ),
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, IconsState]:
    del key  # deterministic
    checks.raise_all(spec_problems("icons", spec))
    metrics = {
      "num_nonfinite": jnp.int32(0),
      "num_eligible": jnp.int32(spec.sweep_size),
      "num_nonfinite_targets": jnp.int32(0),
    }
    decision = Decision(logits=jnp.zeros(spec.sweep_size, jnp.float32), metrics=metrics)
    return decision, IconsState(jnp.arange(spec.num_tasks, dtype=jnp.int32))

  def score(stats: ExampleStats, state: IconsState) -> jax.Array:
    assert stats.target is not None
    target, num_tasks = stats.target, state.task_S.shape[0]
    return task_influence(getattr(stats, direction), target.gradient, target.task, num_tasks)

  def update(stats: ExampleStats, state: IconsState) -> tuple[Decision, IconsState]:
    assert stats.target is not None
    target_MxR = stats.target.gradient
    voting_S = task_sizes(target_MxR, stats.target.task, state.task_S.shape[0]) > 0
    influence_CxS = jnp.where(voting_S, stats.score.astype(jnp.float32), 0.0)
    real_C = stats.example_id >= 0
    eligible_C = real_C & jnp.all(jnp.isfinite(influence_CxS), axis=1) & jnp.any(voting_S)
    votes_C = jnp.sum(_votes(influence_CxS, eligible_C, share) & voting_S, axis=1)
    mean_C = jnp.sum(influence_CxS, axis=1) / jnp.maximum(jnp.sum(voting_S), 1)
    logits_C = votes_C + (1 + mean_C) / 4
    num_eligible = jnp.sum(eligible_C, dtype=jnp.int32)
    metrics = {
      "num_nonfinite": jnp.sum(real_C, dtype=jnp.int32) - num_eligible,
      "num_eligible": num_eligible,
      "num_nonfinite_targets": num_nonfinite(target_MxR),
    }
    return Decision(jnp.where(eligible_C, logits_C, -jnp.inf), metrics=metrics), state

  observes = frozenset({direction, "target", "example_id"})
  return DataPolicy(init, update, observes, scope="round", score=score)


def _votes(influence_CxS: jax.Array, eligible_C: jax.Array, share: float) -> jax.Array:
  """Returns bool[C, S], whether a row is in the share of a task."""

  def of_task(influence_C: jax.Array) -> jax.Array:
    (threshold,) = quantiles(influence_C, eligible_C, (1 - share,))
    return influence_C >= threshold

  return jax.vmap(of_task, in_axes=1, out_axes=1)(influence_CxS)
