"""Rows that share a key, and the order among them that decides which one stays."""

from collections.abc import Sequence

import numpy as np

from jdc.prep.jit import jit


def shared(keys: np.ndarray, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Returns the rows whose key another row has too, side by side with those of the same key.

  A sieve, of 4 to 8 bytes a key, sets aside most of those that occur once: only the others are
  sorted.

  Args:
    keys: u64[n].
    rows: the row of each key; default: 0, ..., n-1.

  Returns:
    i64[m] the rows, and i64[m] the number of the key of each: 0, 0, 1, 1, 1, ...

  Example:
    >>> rows, group = shared(np.array([7, 3, 7, 5, 3, 7], np.uint64))
    >>> [sorted(rows[group == g].tolist()) for g in range(2)]
    [[1, 4], [0, 2, 5]]
  """
  some = np.flatnonzero(_maybe_shared(keys))
  few = keys[some]
  order = np.argsort(few)
  ordered = few[order]
  same = ordered[1:] == ordered[:-1]
  member = np.zeros(len(few), bool)
  member[1:] |= same
  member[:-1] |= same
  found = some[order[member]]
  group = np.cumsum(np.concatenate([[True], ~same])[: len(few)][member]) - 1
  return (found if rows is None else rows[found]), group


@jit
def _maybe_shared(keys: np.ndarray) -> np.ndarray:
  """Returns bool[n], true for every key that occurs again and for about one in 16 others."""
  size = 64
  while size < 16 * len(keys):
    size *= 2
  mask, low = np.uint64(size - 1), np.uint64(63)
  once, again = np.zeros(size // 64, np.uint64), np.zeros(size // 64, np.uint64)
  for key in keys:
    word = np.int64((key & mask) >> np.uint64(6))
    bit = np.uint64(1) << (key & low)
    again[word] |= once[word] & bit
    once[word] |= bit
  out = np.empty(len(keys), np.bool_)
  for i in range(len(keys)):
    word = np.int64((keys[i] & mask) >> np.uint64(6))
    out[i] = (again[word] >> (keys[i] & low)) & np.uint64(1) != 0
  return out


def starts(group: np.ndarray) -> np.ndarray:
  """Returns where each group of 0, 0, 1, 1, 1, ... starts, and the end, i64[groups + 1].

  >>> starts(np.array([0, 0, 1, 1, 1])).tolist()
  [0, 2, 5]
  """
  return np.concatenate([np.flatnonzero(np.diff(group, prepend=-1)), [len(group)]])


def precedence(rows: np.ndarray, doc_ids: Sequence[np.ndarray] | None) -> np.ndarray:
  """Returns the order in which rows are kept rather than others: by id, or as in the input.

  Args:
    rows: i64[m], ascending.
    doc_ids: the ids of all rows in parts, u8[., 16] each, compared byte by byte; or None.

  Returns:
    i64[m], places in `rows`.
  """
  if doc_ids is None:
    return np.arange(len(rows))
  ids, begin = [], 0
  for part in doc_ids:
    low, high = np.searchsorted(rows, (begin, begin + len(part)))
    ids.append(np.ascontiguousarray(part[rows[low:high] - begin]).view(">u8"))
    begin += len(part)
  both = np.concatenate([np.zeros((0, 2), ">u8"), *ids])
  return np.lexsort((rows, both[:, 1], both[:, 0]))


def in_order(members: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the members of each group in ascending order, and where the groups start.

  Members are 0 or more, groups ascend.

  >>> members, start = in_order(np.array([2, 5, 3]), np.array([0, 1, 1]))
  >>> members.tolist(), start.tolist()
  ([2, 3, 5], [0, 1, 3])
  """
  first = group * (members.max(initial=0) + 1)
  return np.sort(first + members) - first, starts(group)
