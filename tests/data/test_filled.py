"""Tests of records packed into rows for an evaluation."""

import numpy as np
import pytest

from jdc.data.chat import Example
from jdc.data.filled import FilledTable
from jdc.data.records import RecordWriter

LENGTH = 32


@pytest.fixture
def table(tmp_path):
  rng = np.random.default_rng(0)
  with RecordWriter(tmp_path / "table", LENGTH, 100) as writer:
    for number in range(50):
      size = int(rng.integers(2, LENGTH + 2))
      counts = np.arange(size) >= rng.integers(1, size)
      example = Example(
        rng.integers(1, 100, size).astype(np.int32), counts, counts.astype(np.int32)
      )
      writer.add(f"file:{number}", example)
    return writer.finish()


@pytest.mark.parametrize("max_segments", [1, 3, 16])
def test_holds_each_record_once_and_whole(table, max_segments):
  chosen = [3, 7, 8, 20, 21, 22, 40, 49]
  filled = FilledTable(table, chosen, max_segments)
  tokens, segments = filled.rows(range(len(filled)))
  assert tokens.shape == segments.shape == (len(filled), LENGTH + 1)
  assert np.abs(segments).max() <= max_segments
  found = []
  for row in range(len(filled)):
    places = np.abs(segments[row])
    for place in range(1, places.max() + 1):
      at = places == place
      found.append((tuple(tokens[row, at]), tuple(segments[row, at] > 0)))
    assert np.all(np.diff(places[places > 0]) >= 0)
    assert not tokens[row, places == 0].any()
  expected = [
    (tuple(ids), tuple(counts)) for ids, counts in zip(*table.read(chosen), strict=True)
  ]
  assert sorted(found) == sorted(expected)
  assert filled.num_bytes.sum() == table.num_bytes[chosen].sum()


def test_fills_rows(table):
  filled = FilledTable(table, range(len(table)), 16)
  assert len(filled) <= 1.15 * table.lengths.sum() / (LENGTH + 1)
