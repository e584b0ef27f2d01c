"""Embeddings as unit vectors, read some at a time."""

from collections.abc import Iterator, Sequence

import numpy as np

_PART = 1 << 14  # rows read at a time


class Vectors:
  """Embeddings in parts, as unit vectors; the parts may be memory maps.

  Args:
    tables: f32[., D] each.
  """

  def __init__(self, tables: Sequence[np.ndarray]):
    self._tables = tables
    self._starts = np.concatenate([[0], np.cumsum([len(table) for table in tables])])

  def __len__(self) -> int:
    return int(self._starts[-1])

  def parts(self) -> Iterator[np.ndarray]:
    """Yields all rows, some at a time; zero rows stay zero."""
    for table in self._tables:
      for begin in range(0, len(table), _PART):
        yield unit(table[begin : begin + _PART])

  def take(self, rows: np.ndarray) -> np.ndarray:
    """Returns some rows, in any order, f32[m, D]."""
    part = np.searchsorted(self._starts, rows, side="right") - 1
    out = np.empty((len(rows), self._tables[0].shape[1]), np.float32)
    for number in np.unique(part).tolist():
      here = part == number
      out[here] = self._tables[number][rows[here] - self._starts[number]]
    return unit(out)

  def norms(self) -> np.ndarray:
    """Returns the length of each row, f32[N]; NaN or infinite where a number of it is."""
    found = [np.zeros(0, np.float32)]
    for table in self._tables:
      parts = (table[begin : begin + _PART] for begin in range(0, len(table), _PART))
      found += [_norm(np.asarray(part, np.float32)) for part in parts]
    return np.concatenate(found)


def _norm(x: np.ndarray) -> np.ndarray:
  """Returns lengths; the largest number is taken out first, so that squares stay finite."""
  largest = np.max(np.abs(x), axis=1, initial=0.0)
  safe = np.where((largest > 0) & np.isfinite(largest), largest, 1.0).astype(np.float32)
  with np.errstate(invalid="ignore", over="ignore"):
    scaled = np.sqrt(np.sum(np.square(x / safe[:, None]), axis=1))
    return scaled * safe


def unit(x: np.ndarray) -> np.ndarray:
  """Returns the rows scaled to length 1; zero rows stay zero.

  >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
  [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
  """
  x = np.asarray(x, np.float32)
  largest = np.max(np.abs(x), axis=1, keepdims=True, initial=0.0)
  x = x / np.where(largest > 0, largest, 1.0)
  norm = np.sqrt(np.sum(np.square(x), axis=1, keepdims=True))
  return (x / np.where(norm > 0, norm, 1.0)).astype(np.float32)
