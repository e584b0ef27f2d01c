"""Puts drawn records into rows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_CANDIDATES = 48  # records among which a row looks for those that fill it best


class Filled(NamedTuple):
  """Where each record goes."""

  row: np.ndarray  # i64[n], -1: carried over to the next step
  segment: np.ndarray  # i64[n], its place in the row, from 0; -1: carried over


def wanted_tokens(num_rows: int, capacity: int) -> int:
  """Returns the tokens C (R + max(12, R / 2)) to have drawn, or carried over, before `fill`."""
  return capacity * (num_rows + max(12, num_rows // 2))


def fill(
  lengths: np.ndarray, num_rows: int, capacity: int, max_segments: int, num_carried: int = 0
) -> Filled:
  r"""Fills R rows of C tokens from a queue of records in the order of drawing.

  Row r gets record r of the queue, so that the oldest R are placed whatever comes after them,
  and then those records that leave the least of it empty: a subset with the largest sum of
  lengths that fits, found by dynamic programming over the 48 oldest ones left that would fit
  alone; among subsets that do equally well, one of older records. Where that subset has more
  than S - 1 records, the longest that fit are taken instead, S - 1 at most.

  What is not placed is carried over and heads the next step's queue in the same order. With q
  records before it in the queue, a record thus waits at most floor(q / R) steps more.

  The more was drawn, the fuller the rows, and the longer records wait. With `wanted_tokens`
  and 7,449 instructions of 51 to 4,525 bytes, rows of T = 1,024 were filled over 100 steps, in
  percent, with (greatest wait in steps):

    R     bytes      8,000 BPE tokens
    2     95.7 (10)  100.0 (9)
    8     96.1 (3)   100.0 (3)
    32    96.2 (1)   100.0 (2)

  where those above 1,025 tokens are set aside; truncated ones fill a row of their own.

  Args:
    lengths: i64[n], tokens of each record, those carried over first.
    num_rows: R.
    capacity: C, tokens of a row; T + 1.
    max_segments: S, records of a row at most.
    num_carried: how many of the records were carried over; only checked, for their place at the
      head of the queue is all that counts.

  Raises:
    ValueError: if a length is not in [1, C], or a size is out of range.

  Example:
    >>> filled = fill(np.array([3, 6, 9, 4, 7]), num_rows=2, capacity=10, max_segments=4)
    >>> filled.row.tolist(), filled.segment.tolist()
    ([0, 1, -1, 1, 0], [0, 0, -1, 1, 1])
  """
  lengths = np.asarray(lengths, np.int64)
  _check(lengths, num_rows, capacity, max_segments, num_carried)
  row_n, segment_n = np.full(len(lengths), -1, np.int64), np.full(len(lengths), -1, np.int64)
  sizes: list[int] = lengths.tolist()
  first = range(min(num_rows, len(sizes)))
  left = list(range(len(first), len(sizes)))
  for row in first:
    places = _best(sizes, left, capacity - sizes[row], max_segments - 1)
    placed = [row, *(left[place] for place in places)]
    for place in reversed(places):
      del left[place]
    row_n[placed], segment_n[placed] = row, np.arange(len(placed))
  return Filled(row_n, segment_n)


def _best(sizes: Sequence[int], left: Sequence[int], room: int, most: int) -> list[int]:
  """Returns places in `left` of at most `most` records that fill `room` best, ascending."""
  if not most or not room:
    return []
  places: list[int] = []
  for place, record in enumerate(left):
    if sizes[record] <= room:
      places.append(place)
      if len(places) == _CANDIDATES:
        break
  best = _subset([sizes[left[place]] for place in places], room)
  if len(best) <= most:
    return [places[k] for k in best]
  chosen: list[int] = []
  for place in sorted(places, key=lambda place: -sizes[left[place]]):
    if sizes[left[place]] <= room and len(chosen) < most:
      chosen.append(place)
      room -= sizes[left[place]]
  return sorted(chosen)


def _subset(sizes: Sequence[int], room: int) -> list[int]:
  """Returns the indices of a subset with the largest sum <= room, ascending, early ones first.

  Bit s of `reached[k]` tells whether some subset of the first k sizes has the sum s.
  """
  reached, mask = [1], (2 << room) - 1
  for size in sizes:
    reached.append(reached[-1] | (reached[-1] << size & mask))
    if reached[-1] >> room:
      break
  total = reached[-1].bit_length() - 1
  chosen = []
  for k in range(len(reached) - 1, 0, -1):
    if not reached[k - 1] >> total & 1:
      chosen.append(k - 1)
      total -= sizes[k - 1]
  return chosen[::-1]


def _check(
  lengths: np.ndarray, num_rows: int, capacity: int, max_segments: int, num_carried: int
) -> None:
  sizes = {"num_rows": num_rows, "capacity": capacity, "max_segments": max_segments}
  problems = [
    f"{name} must be at least 1, got {size}" for name, size in sizes.items() if size < 1
  ]
  if not 0 <= num_carried <= len(lengths):
    problems.append(f"num_carried must be in [0, {len(lengths)}], got {num_carried}")
  if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= capacity:
    problems.append(
      f"lengths must be in [1, {capacity}], got {lengths.min()} to {lengths.max()}"
    )
  if problems:
    raise ValueError("; ".join(problems))
