"""What a deduplication decides: which rows go, and what each of them duplicates."""

from typing import NamedTuple

import numpy as np


class Duplicates(NamedTuple):
  """The R rows that go, ascending; every other row stays.

  Attributes:
    row: i64[R], place in the input, counted over all tables of keys.
    kept: i64[R], the one row of its cluster that stays.
    neighbour: i64[R], a row of the cluster that it is similar to itself: `kept`, if that is.
    similarity: f64[R], Jaccard similarity of row and neighbour; NaN where it was not verified.
  """

  row: np.ndarray
  kept: np.ndarray
  neighbour: np.ndarray
  similarity: np.ndarray
