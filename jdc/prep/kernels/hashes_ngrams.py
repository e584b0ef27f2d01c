"""Runs of words that occur in given texts, found by hash and compared letter by letter."""

import numpy as np

from jdc.prep.jit import jit
from jdc.prep.kernels.hashes import BASE, CODE, decode, entry, mix, most_words, words


@jit
def all_words(
  offsets: np.ndarray, data: np.ndarray, fold: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Returns the words of n texts: hash u64[W], bytes first and last i64[W], starts i64[n+1]."""
  count = len(offsets) - 1
  most = (offsets[-1] - offsets[0]) // 2 + count
  word_hash = np.empty(most, np.uint64)
  first, last = np.empty(most, np.int64), np.empty(most, np.int64)
  starts = np.zeros(count + 1, np.int64)
  for n in range(count):
    w = starts[n]
    begin, end = offsets[n], offsets[n + 1]
    starts[n + 1] = w + words(data, begin, end, fold, word_hash[w:], first[w:], last[w:])
  end = starts[count]
  return word_hash[:end].copy(), first[:end].copy(), last[:end].copy(), starts


@jit
def runs(word_hash: np.ndarray, place: np.ndarray, length: np.ndarray) -> np.ndarray:
  """Returns the hashes of runs of `length` words that start at `place`, u64[r]."""
  out = np.empty(len(place), np.uint64)
  for r in range(len(place)):
    total = np.uint64(0)
    for w in range(place[r], place[r] + length[r]):
      total = total * BASE + word_hash[w]
    out[r] = mix(total + np.uint64(length[r]))
  return out


@jit
def make_table(hashes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns a table of open addresses, i64[size] places in `hashes` or -1, and a sieve of it.

  The sieve, u64[size / 4], has 16 bits a slot, of which one is set for each hash: it is small
  enough for a cache, and says at once that most runs of words are in no table.
  """
  table = np.full(size, -1, np.int64)
  sieve = np.zeros(size // 4, np.uint64)
  for r in range(len(hashes)):
    place = np.int64(hashes[r] & np.uint64(size - 1))
    while table[place] >= 0:
      place = (place + 1) & (size - 1)
    table[place] = r
    bit = np.int64((hashes[r] >> np.uint64(8)) & np.uint64(16 * size - 1))
    sieve[bit >> 6] |= np.uint64(1) << np.uint64(bit & 63)
  return table, sieve


@jit
def find_runs(
  offsets: np.ndarray,
  data: np.ndarray,
  fold: np.ndarray,
  lengths: np.ndarray,
  table: np.ndarray,
  sieve: np.ndarray,
  hashes: np.ndarray,
  place: np.ndarray,
  length: np.ndarray,
  other: np.ndarray,
  other_first: np.ndarray,
  other_last: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns how many runs of words of each text are in the table, and the first of them.

  Args:
    offsets: i64[n + 1], of the texts.
    data: u8[.], their bytes.
    fold: of `hashes.fold_table`.
    lengths: i64[.], all that runs have, ascending.
    table: of `make_table`.
    sieve: of `make_table`.
    hashes: u64[r], of the runs.
    place: i64[r], the word where each starts.
    length: i64[r], its words.
    other: u8[.], bytes of the texts that the runs are from.
    other_first: i64[W], where its words begin in `other`.
    other_last: i64[W], where they end.

  Returns:
    i32[n], and i64[n] the number of a run, or -1.
  """
  count, most = len(offsets) - 1, most_words(offsets)
  word_hash, total = np.empty(most, np.uint64), np.zeros(most + 1, np.uint64)
  first, last = np.empty(most, np.int64), np.empty(most, np.int64)
  hits, match = np.zeros(count, np.int32), np.full(count, -1, np.int64)
  power = np.ones(lengths[-1] + 1, np.uint64)
  for i in range(lengths[-1]):
    power[i + 1] = power[i] * BASE
  bits, mask = np.uint64(64 * len(sieve) - 1), np.uint64(len(table) - 1)
  for n in range(count):
    found = words(data, offsets[n], offsets[n + 1], fold, word_hash, first, last)
    for w in range(found):
      total[w + 1] = total[w] * BASE + word_hash[w]
    for w in range(found):
      for size in lengths:
        if w + size > found:
          break
        h = mix(total[w + size] - total[w] * power[size] + np.uint64(size))
        bit = np.int64((h >> np.uint64(8)) & bits)
        if not (sieve[bit >> 6] >> np.uint64(bit & 63)) & np.uint64(1):
          continue
        slot = np.int64(h & mask)
        while table[slot] >= 0:
          r = table[slot]
          if hashes[r] == h and length[r] == size and _same(
            data, first, last, w, other, other_first, other_last, place[r], size, fold
          ):  # fmt: skip
            hits[n] += 1
            if match[n] < 0:
              match[n] = r
            break
          slot = (slot + 1) & np.int64(mask)
  return hits, match


@jit
def _same(
  a: np.ndarray,
  a_first: np.ndarray,
  a_last: np.ndarray,
  i: int,
  b: np.ndarray,
  b_first: np.ndarray,
  b_last: np.ndarray,
  j: int,
  size: int,
  fold: np.ndarray,
) -> bool:
  for w in range(size):
    x, x_end, y, y_end = a_first[i + w], a_last[i + w], b_first[j + w], b_last[j + w]
    while x < x_end and y < y_end:
      code_x, size_x = decode(a, x, x_end)
      code_y, size_y = decode(b, y, y_end)
      if (entry(fold, code_x) ^ entry(fold, code_y)) & CODE:
        return False
      x, y = x + size_x, y + size_y
    if x < x_end or y < y_end:
      return False
  return True
