"""Records packed into rows once, for a pass over them such as an evaluation."""

from collections.abc import Sequence

import numpy as np

from jdc.data.fill import fill
from jdc.data.records import RecordTable


class FilledTable:
  """Rows of several records each, which read like those of `rows.RowTable`.

  Args:
    table: the records.
    ids: those to pack, i64[n].
    max_segments: records of a row at most.
  """

  def __init__(self, table: RecordTable, ids: Sequence[int] | np.ndarray, max_segments: int):
    self.sequence_length = table.sequence_length
    self._table = table
    self._rows: list[np.ndarray] = []
    capacity, left = table.sequence_length + 1, np.asarray(ids, np.int64)
    while len(left):
      lengths = table.lengths[left].astype(np.int64)
      num_rows = -(-int(lengths.sum()) // capacity)
      placed = fill(lengths, num_rows, capacity, max_segments).row
      self._rows += [left[placed == row] for row in range(num_rows) if np.any(placed == row)]
      left = left[placed < 0]
    # i32[R], UTF-8 bytes of each row's target tokens
    self.num_bytes = np.array([table.num_bytes[row].sum() for row in self._rows], np.int32)

  def __len__(self) -> int:
    return len(self._rows)

  def rows(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and segments i32[b, T + 1], as `batch.inputs_and_targets` reads them."""
    shape = (len(ids), self.sequence_length + 1)
    tokens_BxT, segments_BxT = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for at, row in enumerate(ids):
      start = 0
      for place, (tokens, counts) in enumerate(
        zip(*self._table.read(self._rows[row]), strict=True)
      ):
        part = np.s_[at, start : start + len(tokens)]
        tokens_BxT[part], segments_BxT[part] = tokens, np.where(counts, 1, -1) * (place + 1)
        start += len(tokens)
    return tokens_BxT, segments_BxT
