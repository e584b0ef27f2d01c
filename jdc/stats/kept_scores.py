"""Scores of rows that later sweeps left out, kept for a while."""

from typing import NamedTuple

import numpy as np

NEVER = np.iinfo(np.int32).min  # in place of the step of rows that were never swept


class Kept(NamedTuple):
  """The newest score of each row of the pool."""

  score_N: np.ndarray  # f32[N] or [N, S]
  step_N: np.ndarray  # i32[N], the optimizer step at which it was computed

  def usable(self, step: int, max_age: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns all rows, their scores and ages; the id is -1 where the score is too old.

    Args:
      step: of now.
      max_age: the oldest that counts, in steps.

    Returns:
      Ids i32[N], scores f32[N] or [N, S], and ages i32[N]; 0 where there is no score.
    """
    age_N = np.where(self.step_N == NEVER, 0, step - self.step_N).astype(np.int32)
    counts_N = (self.step_N != NEVER) & (age_N <= max_age)
    ids_N = np.arange(len(self.step_N), dtype=np.int32)
    return np.where(counts_N, ids_N, np.int32(-1)), self.score_N, age_N


def merged(
  kept: Kept | None, score_C: np.ndarray, ids_C: np.ndarray, num_rows: int, step: int
) -> Kept:
  """Returns the newest scores after a sweep of the rows `ids_C`, -1 pads; copies.

  Example:
    >>> first = merged(None, np.float32([0.5]), np.int32([2]), num_rows=3, step=0)
    >>> second = merged(first, np.float32([0.25]), np.int32([0]), num_rows=3, step=10)
    >>> [x.tolist() for x in second.usable(step=10, max_age=10)]
    [[0, -1, 2], [0.25, 0.0, 0.5], [0, 0, 10]]
    >>> second.usable(step=11, max_age=10)[0].tolist()
    [0, -1, -1]
  """
  if kept is None:
    score_N = np.zeros((num_rows, *score_C.shape[1:]), np.float32)
    step_N = np.full(num_rows, NEVER, np.int32)
  else:
    score_N, step_N = kept.score_N.copy(), kept.step_N.copy()
  real_C = ids_C >= 0
  score_N[ids_C[real_C]] = score_C[real_C]
  step_N[ids_C[real_C]] = step
  return Kept(score_N, step_N)
