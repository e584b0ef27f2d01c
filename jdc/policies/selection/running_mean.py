"""The mean of each row's scores over the rounds that swept it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class RunningMean(NamedTuple):
  """Of each row of the pool; S scores a row."""

  mean_NxS: jax.Array  # f32[N, S]; -inf until measured
  weight_N: jax.Array  # f32[N], the weights of the rounds that swept a row, summed


def empty(size: int, num_scores: int = 1) -> RunningMean:
  """Returns the mean before the first round."""
  return RunningMean(
    mean_NxS=jnp.full((size, num_scores), -jnp.inf, jnp.float32),
    weight_N=jnp.zeros(size, jnp.float32),
  )


def add(
  running: RunningMean,
  id_C: jax.Array,
  age_C: jax.Array,
  score_CxS: jax.Array,
  weight: jax.Array | float = 1.0,
) -> RunningMean:
  """Returns the means after a round.

  Args:
    running: those before it.
    id_C: i32[C], the rows; -1 is padding.
    age_C: i32[C], steps since the scores were computed; those of earlier rounds, which are not
      0, are in the mean already.
    score_CxS: f32[C, S]. A row with a NaN stays as it was; a score that is infinite leaves that
      mean of the row alone.
    weight: of the round, at least 0; while they sum to 0, the last score counts alone.
  """
  size = running.weight_N.shape[0]
  fresh_C = (id_C >= 0) & (age_C == 0) & ~jnp.any(jnp.isnan(score_CxS), axis=1)
  row_C = jnp.where(fresh_C, id_C, size)  # past the end: dropped
  mean_CxS = running.mean_NxS[jnp.minimum(row_C, size - 1)]
  weight_C = running.weight_N[jnp.minimum(row_C, size - 1)] + weight
  share_Cx1 = jnp.where(weight_C > 0, weight / weight_C, 1.0)[:, None]
  # As a mean, not a sum: what a round says of one score does not depend on the others.
  known_CxS, told_CxS = jnp.isfinite(mean_CxS), jnp.isfinite(score_CxS)
  moved_CxS = (1 - share_Cx1) * mean_CxS + share_Cx1 * score_CxS
  moved_CxS = jnp.where(known_CxS, moved_CxS, score_CxS)
  mean_CxS = jnp.where(told_CxS, moved_CxS, mean_CxS)
  return RunningMean(
    running.mean_NxS.at[row_C].set(mean_CxS, mode="drop"),
    running.weight_N.at[row_C].set(weight_C, mode="drop"),
  )
