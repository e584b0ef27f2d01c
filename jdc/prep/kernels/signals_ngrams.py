"""Shares of a document's characters that its repeated n-grams of words cover.

Only n-grams that occur twice or more count, and an n-gram can do so only if both (n-1)-grams
within it do. So one table pass over all pairs finds the few places where longer ones may
repeat, and each longer n looks at what the one before has left. Nothing is approximated, and
ordinary text costs little more than the first of the nine passes.
"""

from typing import Any

import numpy as np

from jdc.prep.jit import jit
from jdc.prep.kernels import tokenise

TOP = (2, 3, 4)
DUPLICATE = (5, 6, 7, 8, 9, 10)
NUM_SHARES = len(TOP) + len(DUPLICATE)

_TOP_UP_TO = TOP[-1]
_LONGEST = DUPLICATE[-1]
_FEW = 1 << 14  # entries, whose slots take 1 MiB
_EPOCH = np.uint64(32)
_INDEX = np.uint64(0xFFFFFFFF)


def table_size(words: int) -> int:
  """Returns the slots that documents of up to so many words need: a power of two."""
  return int(slot_mask(words)) + 1


@jit
def slot_mask(entries: int) -> np.uint64:
  """Returns a mask that leaves at least two slots an entry, or four of few entries.

  Then fewer collide, and what they take fits the caches still.
  """
  least, size = (4 if entries <= _FEW else 2) * entries, 16
  while size < least:
    size *= 2
  return np.uint64(size - 1)


@jit
def first_index(
  table: np.ndarray, mask: np.uint64, epoch: np.uint64, key: np.uint64, index: int
) -> int:
  """Returns the index under which a key was first seen in this epoch; adds it where it is new.

  Args:
    table: u64[slots,2], key, and epoch and index in one number. What older epochs left counts
      as free, so nothing is cleared between documents.
  """
  slot = key & mask
  while True:
    held = table[slot, 1]
    if held >> _EPOCH != epoch:
      table[slot, 0] = key
      table[slot, 1] = epoch << _EPOCH | np.uint64(index)
      return index
    if table[slot, 0] == key:
      found: Any = np.int64(held & _INDEX)
      return found
    slot = (slot + np.uint64(1)) & mask


@jit
def _count(
  places: np.ndarray,
  keys: np.ndarray,
  first: np.ndarray,
  count: np.ndarray,
  table: np.ndarray,
  epoch: np.uint64,
) -> int:
  """Counts the n-grams at some places, and returns the highest count."""
  mask, most = slot_mask(places.size), 0
  for p in range(places.size):
    i = places[p]
    j = first_index(table, mask, epoch, keys[i], i)
    first[i] = j
    count[j] = 1 if i == j else count[j] + 1
    most = max(most, count[j])
  return most


@jit
def _covered(
  places: np.ndarray, first: np.ndarray, only: int, spans: np.ndarray, n: int
) -> int:
  """Returns how many characters n-grams cover, none of them counted twice.

  Args:
    only: covers the n-grams that equal the one at this place; -1: all that occurred before.
  """
  total = 0
  until: Any = 0
  for p in range(places.size):
    i = places[p]
    if first[i] == only if only >= 0 else first[i] != i:
      begin: Any = max(until, np.int64(spans[i, tokenise.FIRST]))
      until = np.int64(spans[i + n - 1, tokenise.AFTER])
      total += until - begin
  return total


@jit
def _most_frequent(places: np.ndarray, first: np.ndarray, count: np.ndarray, most: int) -> int:
  for p in range(places.size):
    if count[first[places[p]]] == most:
      return places[p]
  return -1


@jit
def scratch(words: int) -> tuple[np.ndarray, ...]:
  """Returns the arrays that `covered_characters` writes to, for documents of so many words.

  They are: keys u64, places, first and count i32, and reach u8, the longest n for which the
  n-gram that begins at a word occurs more than once.
  """
  return (
    np.empty(words, np.uint64),
    np.empty(words, np.int32),
    np.empty(words, np.int32),
    np.empty(words, np.int32),
    np.empty(words, np.uint8),
  )


@jit
def _pairs(
  words: int, hashes: np.ndarray, keys: np.ndarray, places: np.ndarray, reach: np.ndarray
) -> int:
  for i in range(words - 1):
    keys[i] = tokenise.combine(hashes[i], hashes[i + 1])
    places[i] = i
    reach[i] = 1
  if words:
    reach[words - 1] = 1
  return max(words - 1, 0)


@jit
def _lengthen(
  n: int,
  hashes: np.ndarray,
  keys: np.ndarray,
  places: np.ndarray,
  number: int,
  reach: np.ndarray,
) -> int:
  """Keeps the places at which an n-gram may repeat, with its key; returns how many."""
  kept = 0
  for p in range(number):
    i = places[p]
    if reach[i] >= n - 1 and reach[i + 1] >= n - 1:
      keys[i] = tokenise.combine(keys[i], hashes[i + n - 1])
      places[kept] = i
      kept += 1
  return kept


@jit
def covered_characters(
  words: int,
  spans: np.ndarray,
  hashes: np.ndarray,
  table: np.ndarray,
  epoch: np.uint64,
  memory: tuple[np.ndarray, ...],
  result: np.ndarray,
) -> np.uint64:
  """Writes the characters covered, i64[9]: by top 2- to 4-grams, by repeated 5- to 10-grams.

  Args:
    words: of the document; `spans` and `hashes` are those of `tokenise.scan`.
    table, epoch: of `first_index`; nine epochs from this one on may be used up.
    memory: of `scratch`.

  Returns:
    The next free epoch.
  """
  keys, places, first, count, reach = memory
  result[:] = 0
  number = _pairs(words, hashes, keys, places, reach)
  for n in range(2, _LONGEST + 1):
    if n > 2:
      number = _lengthen(n, hashes, keys, places, number, reach)
    here = places[:number]
    most = _count(here, keys, first, count, table, epoch)
    epoch += np.uint64(1)
    if most < 2:
      break
    only = _most_frequent(here, first, count, most) if n <= _TOP_UP_TO else -1
    result[n - 2] = _covered(here, first, only, spans, n)
    for p in range(number):
      if count[first[here[p]]] >= 2:
        reach[here[p]] = n
  return epoch
