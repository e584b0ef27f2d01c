"""Which documents share a row: cut what is too long, put the pieces where they fit best."""

from typing import NamedTuple

import numpy as np


class Pieces(NamedTuple):
  """Runs of tokens of documents, in the order of the documents."""

  document: np.ndarray  # i64[P]
  offset: np.ndarray  # i64[P], first token in the document
  length: np.ndarray  # i64[P], tokens


def cut(lengths: np.ndarray, capacity: int) -> Pieces:
  """Cuts documents of n tokens into pieces of at most C that overlap by one token.

  Piece k holds the tokens k (C - 1), ..., min(n, k (C - 1) + C) - 1: every token of a document
  but its first is preceded by another in exactly one piece, where it is predicted. A document
  that fits is one piece.

  Args:
    lengths: i64[D], tokens of each document, at least 1.
    capacity: C, tokens of a row, at least 2.

  Example:
    >>> pieces = cut(np.array([3, 9, 1]), capacity=4)
    >>> pieces.document.tolist(), pieces.offset.tolist(), pieces.length.tolist()
    ([0, 1, 1, 1, 2], [0, 0, 3, 6, 0], [3, 4, 4, 3, 1])
  """
  lengths, step = np.asarray(lengths, np.int64), capacity - 1
  if capacity < 2 or (len(lengths) and lengths.min() < 1):
    raise ValueError(
      "capacity must be at least 2 and lengths at least 1, got "
      f"{capacity} and {lengths.tolist()}"
    )
  count = np.maximum(-(-(lengths - 1) // step), 1)
  document = np.repeat(np.arange(len(lengths)), count)
  place = np.arange(len(document)) - np.repeat(np.cumsum(count) - count, count)
  offset = place * step
  return Pieces(document, offset, np.minimum(capacity, lengths[document] - offset))


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
  r"""Assigns pieces to rows by best-fit decreasing.

  Pieces are taken from the longest to the shortest, equal ones in their order. Each goes into
  the row with the least room that still holds it, among such rows into the one that was filled
  last, or into a new row. Rows are then numbered by their first piece.

  The rule is that of Ding et al. (Fewer Truncations Improve Language Modeling, 2024,
  arXiv:2404.10830), who cut documents without the overlap of one token.

  Args:
    lengths: i64[P], tokens of each piece, in [1, C].
    capacity: C, tokens of a row.

  Returns:
    The row of each piece, i64[P].

  Example:
    >>> best_fit(np.array([3, 6, 4, 9, 7]), capacity=10).tolist()
    [0, 1, 1, 2, 0]
  """
  lengths = np.asarray(lengths, np.int64)
  order = np.argsort(-lengths, kind="stable")
  rows_with: list[list[int]] = [[] for _ in range(capacity + 1)]  # by the room that they have
  found = np.empty(len(lengths), np.int64)
  rooms, num_rows = 0, 0  # bit r of `rooms`: some row has room for r tokens
  placed = []
  for length in lengths[order].tolist():
    if fitting := rooms >> length:
      room = length + (fitting & -fitting).bit_length() - 1
      row = rows_with[room].pop()
      if not rows_with[room]:
        rooms ^= 1 << room
    else:
      room, row = capacity, num_rows
      num_rows += 1
    placed.append(row)
    if left := room - length:
      rows_with[left].append(row)
      rooms |= 1 << left
  found[order] = placed
  return _by_first_piece(found, num_rows)


def _by_first_piece(row_P: np.ndarray, num_rows: int) -> np.ndarray:
  _, first = np.unique(row_P, return_index=True)
  number = np.empty(num_rows, np.int64)
  number[np.argsort(first, kind="stable")] = np.arange(num_rows)
  return number[row_P]
