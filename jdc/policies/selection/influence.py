"""Influence by directions: how well a step on an example serves each task of a target set.

The influence of example b on task k is the mean, over the task's target examples m, of

  cos(x_b, g_m) = <x_b, g_m> / (max(|x_b|, f) max(|g_m|, f)),    f = 1e-12,

with x_b the projected gradient or update direction of b and g_m the projected gradient of m.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from jdc.policies.base import RunSpec
from jdc.policies.weighting import directions

Direction = Literal["update_direction", "gradient"]
Aggregate = Literal["submax", "mean"]

NORM_FLOOR = 1e-12


def task_influence(
  direction_BxR: jax.Array, target_MxR: jax.Array, task_M: jax.Array, num_tasks: int
) -> jax.Array:
  """Returns the mean cosine of each row to the target examples of each task.

  Target examples that are not finite are left out; vectors of norm 0 have cosine 0 to all.

  Args:
    direction_BxR: f[B, R], of the rows.
    target_MxR: f[M, R], of the target examples.
    task_M: i32[M], the task of each.
    num_tasks: S.

  Returns:
    f32[B, S], in [-1, 1] up to rounding; NaN for rows that are not finite, -inf for tasks
    without a finite target example.

  Example:
    >>> target = jnp.array([[2.0, 0.0], [0.0, 3.0], [0.0, -1.0]])
    >>> task_influence(jnp.array([[4.0, 0.0]]), target, jnp.array([0, 0, 1]), 2).tolist()
    [[0.5, 0.0]]
  """
  member_SxM = _members(target_MxR, task_M, num_tasks)
  size_S = jnp.sum(member_SxM, axis=1)
  finite_Mx1 = directions.finite(target_MxR)[:, None]
  unit_MxR = _unit(jnp.where(finite_Mx1, target_MxR, 0.0))
  # The mean of the cosines to unit vectors is the inner product with their mean.
  mean_SxR = directions.dot(member_SxM, unit_MxR) / jnp.maximum(size_S, 1.0)[:, None]
  influence_BxS = directions.dot(_unit(direction_BxR), mean_SxR.T)
  influence_BxS = jnp.where(size_S > 0, influence_BxS, -jnp.inf)
  return jnp.where(directions.finite(direction_BxR)[:, None], influence_BxS, jnp.nan)


def task_sizes(target_MxR: jax.Array, task_M: jax.Array, num_tasks: int) -> jax.Array:
  """Returns f32[S], the number of finite target examples of each task."""
  return jnp.sum(_members(target_MxR, task_M, num_tasks), axis=1)


def aggregate_tasks(influence_BxS: jax.Array, size_S: jax.Array, rule: Aggregate) -> jax.Array:
  """Returns f32[B], one influence for all tasks that have target examples.

  Args:
    influence_BxS: of each row on each task, finite for tasks with examples.
    size_S: how many examples each task has.
    rule: `submax`, the largest over tasks; `mean`, over all target examples.

  Returns:
    Numbers that are not finite for rows that are not, and without any target example.
  """
  if rule == "submax":
    return jnp.max(jnp.where(size_S > 0, influence_BxS, -jnp.inf), axis=1)
  weighted_BxS = jnp.where(size_S > 0, size_S * influence_BxS, 0.0)
  return jnp.sum(weighted_BxS, axis=1) / jnp.sum(size_S)


def num_nonfinite(target_MxR: jax.Array) -> jax.Array:
  """Returns i32[], the number of target examples that are not finite."""
  return jnp.sum(~directions.finite(target_MxR), dtype=jnp.int32)


def spec_problems(name: str, spec: RunSpec) -> list[str]:
  """Returns what a run lacks for the influence of swept rows on tasks."""
  needed = ("sweep_size", "num_targets", "num_tasks", "feature_size")
  sizes = {field: getattr(spec, field) for field in needed}
  return [f"{name} needs {field} > 0, got {n}" for field, n in sizes.items() if n <= 0]


def _members(target_MxR: jax.Array, task_M: jax.Array, num_tasks: int) -> jax.Array:
  """Returns f32[S, M], 1 where a finite target example is of a task."""
  member_SxM = task_M == jnp.arange(num_tasks)[:, None]
  return (member_SxM & directions.finite(target_MxR)).astype(jnp.float32)


def _unit(x: jax.Array) -> jax.Array:
  """Returns the rows of x over their norm, or over the floor where that is larger."""
  x = x.astype(jnp.float32)
  largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
  # Squares must not overflow; those that vanish are of vectors below the floor.
  power = jnp.where(largest > 2.0**40, 2.0**-80, 1.0)
  scaled = x * power
  norm = jnp.sqrt(jnp.sum(scaled**2, axis=-1, keepdims=True))
  return scaled / jnp.maximum(norm, NORM_FLOOR * power)
