"""Scores with everything that can be wrong with them, and a plain ranking."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

SIZE = 72  # of all scores, so that an ordering compiles once


def make_scores(seed: int = 0) -> Iterator[np.ndarray]:
  """Yields scores of 1 to 65 rows: ties, NaN, -inf, signed zeros, padding anywhere."""
  rng = np.random.default_rng(seed)
  for num_real in range(1, 66):
    real = rng.normal(size=num_real)
    if num_real % 3 == 0:
      real = rng.integers(-2, 3, num_real) * 1.0
    if num_real % 2 == 0:
      chance = rng.random(num_real)
      real[chance < 0.2] = np.nan
      real[chance > 0.9] = -np.inf
      real[(chance > 0.8) & (chance < 0.85)] = -0.0
    score = np.full(SIZE, np.inf, np.float32)
    at = np.sort(rng.permutation(SIZE)[:num_real]) if num_real % 5 else np.arange(num_real)
    score[at] = real
    yield score
  yield np.full(SIZE, np.nan, np.float32)
  yield np.full(SIZE, np.inf, np.float32)


def rank_rows(score: np.ndarray, descending: bool) -> tuple[list[int], list[int]]:
  """Returns the rows that are no padding in order, NaN last, and the padding."""
  sign = -1 if descending else 1
  real = [i for i in range(len(score)) if score[i] != np.inf]
  rows = sorted(
    real, key=lambda i: (1, 0, i) if np.isnan(score[i]) else (0, sign * score[i], i)
  )
  return rows, [i for i in range(len(score)) if score[i] == np.inf]


@pytest.fixture(scope="session")
def random_scores() -> np.ndarray:
  return np.stack(list(make_scores()))


@pytest.fixture(scope="session")
def by_rank() -> Callable[[np.ndarray, bool], tuple[list[int], list[int]]]:
  return rank_rows
