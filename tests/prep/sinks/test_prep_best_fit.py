"""Cutting and packing against plain loops; what a good packing must satisfy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdc.prep.sinks.best_fit import best_fit, cut


def plain_cut(lengths, capacity):
  """Pieces (document, offset, length) by stepping through each document."""
  found = []
  for document, n in enumerate(lengths):
    offset = 0
    while True:
      length = min(capacity, n - offset)
      found.append((document, offset, length))
      if offset + length == n:
        break
      offset += length - 1
  return found


def plain_best_fit(lengths, capacity):
  """Best-fit decreasing by looking at every row."""
  rows = []  # (room, moment of the last change, pieces)
  for moment, piece in enumerate(sorted(range(len(lengths)), key=lambda i: -lengths[i])):
    fitting = [row for row in rows if row[0] >= lengths[piece]]
    if fitting:
      best = min(fitting, key=lambda row: (row[0], -row[1]))
    else:
      best = [capacity, 0, []]
      rows.append(best)
    best[0], best[1] = best[0] - lengths[piece], moment
    best[2].append(piece)
  rows.sort(key=lambda row: min(row[2]))
  return [next(r for r, row in enumerate(rows) if i in row[2]) for i in range(len(lengths))]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(2, 12))
def test_agree_with_the_rules(lengths, capacity):
  pieces = cut(np.array(lengths), capacity)
  listed = list(zip(*(part.tolist() for part in pieces), strict=True))
  assert listed == plain_cut(lengths, capacity)
  row_P = best_fit(pieces.length, capacity)
  assert row_P.tolist() == plain_best_fit(pieces.length.tolist(), capacity)
  # Every token but a document's first is predicted once, and rows hold what they can hold.
  assert sum(length - 1 for _, _, length in listed) == sum(n - 1 for n in lengths)
  assert np.bincount(row_P, pieces.length).max() <= capacity
  assert set(row_P.tolist()) == set(range(row_P.max() + 1))


@pytest.mark.parametrize(
  ("length", "expected"),
  [(1, [1]), (4, [4]), (5, [5]), (6, [5, 2]), (9, [5, 5]), (10, [5, 5, 2])],
)
def test_around_the_capacity(length, expected):
  assert cut(np.array([length]), 5).length.tolist() == expected


def test_fills_rows():
  lengths = np.random.default_rng(0).geometric(1 / 300, 20_000).clip(2, 2049)
  row_P = best_fit(lengths, 2049)
  assert lengths.sum() / ((row_P.max() + 1) * 2049) > 0.995


def test_refuses_what_cannot_be_cut():
  with pytest.raises(ValueError, match="capacity must be at least 2 and lengths at least 1"):
    cut(np.array([3, 0]), 5)
  with pytest.raises(ValueError, match=r"got 1 and \[3\]"):
    cut(np.array([3]), 1)
