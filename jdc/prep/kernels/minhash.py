"""MinHash over shingles of words: band keys of documents, and their sets of shingles."""

from typing import Any

import numpy as np

from jdc.prep.jit import jit
from jdc.prep.kernels.hashes import BASE, hash_words, mix, most_words, shingles

_MASK = (1 << 64) - 1
_32 = np.uint64(32)


def permutations(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns (a, b) u32[count] of the bijections x -> a x + b modulo 2^32; every a is odd."""
  drawn, state = [], seed & _MASK
  for _ in range(2 * count):
    state = (state + 0x9E3779B97F4A7C15) & _MASK  # SplitMix64, the same on any platform
    x = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & _MASK
    drawn.append((x ^ x >> 31) >> 32)
  both = np.array(drawn, np.uint32).reshape(2, count)
  return both[0] | np.uint32(1), both[1]


@jit
def band_keys(
  offsets: np.ndarray,
  data: np.ndarray,
  fold: np.ndarray,
  ngram: int,
  rows: int,
  a: np.ndarray,
  b: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the keys of the bands, u64[bands, n], and the words of each text, i32[n].

  Keys of texts without words are 0.
  """
  count, bands = len(offsets) - 1, len(a) // rows
  keys = np.zeros((bands, count), np.uint64)
  num_words = np.zeros(count, np.int32)
  most = most_words(offsets)
  word_hash, shingle = np.empty(most, np.uint64), np.empty(most, np.uint64)
  least, x = np.empty(len(a), np.uint32), np.empty(most + 3, np.uint32)
  for n in range(count):
    found = hash_words(data, offsets[n], offsets[n + 1], fold, word_hash)
    num_words[n] = found
    if found == 0:
      continue
    size = shingles(word_hash, found, ngram, shingle)
    for i in range(size):
      x[i] = np.uint32(shingle[i] >> _32)
    for i in range(size, size + 3):  # the last one again, which changes no minimum
      x[i] = x[size - 1]
    _least(x, size, a, b, least)
    for band in range(bands):
      key = np.uint64(0)
      for row in range(band * rows, (band + 1) * rows):
        key = key * BASE + np.uint64(least[row])
      keys[band, n] = mix(key + np.uint64(1))
  return keys, num_words


@jit
def _least(x: np.ndarray, size: int, a: np.ndarray, b: np.ndarray, least: np.ndarray) -> None:
  least[:] = np.uint32(0xFFFFFFFF)
  for i in range(0, size, 4):  # four at a time: a, b and the minimum are loaded once for them
    x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
    for j in range(len(a)):
      h0, h1 = np.uint32(a[j] * x0 + b[j]), np.uint32(a[j] * x1 + b[j])
      h2, h3 = np.uint32(a[j] * x2 + b[j]), np.uint32(a[j] * x3 + b[j])
      least[j] = min(least[j], min(min(h0, h1), min(h2, h3)))


@jit
def shingle_sets(
  offsets: np.ndarray, data: np.ndarray, fold: np.ndarray, ngram: int, out: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Writes the distinct shingles of each text to `out`, one text after another.

  Args:
    offsets: i64[n + 1], of the texts.
    data: u8[.], their bytes.
    fold: of `hashes.fold_table`.
    ngram: words of a shingle.
    out: u64[.], for hashes other than 0; at least `most_shingles`.

  Returns:
    i64[n], how many are of each text; u64[n], a hash of each set.
  """
  count, most = len(offsets) - 1, most_words(offsets)
  word_hash, shingle = np.empty(most, np.uint64), np.empty(most, np.uint64)
  table = np.zeros(slots(most), np.uint64)
  sizes, signatures = np.zeros(count, np.int64), np.zeros(count, np.uint64)
  end = 0
  for n in range(count):
    found = hash_words(data, offsets[n], offsets[n + 1], fold, word_hash)
    size, begin = shingles(word_hash, found, ngram, shingle), end
    mask = np.uint64(slots(size) - 1)
    table[: np.int64(mask) + 1] = 0
    for i in range(size):
      value = max(shingle[i], np.uint64(1))
      if insert(table, mask, value):
        out[end] = value
        signatures[n] += mix(value)  # in any order
        end += 1
    sizes[n] = end - begin
  return sizes, signatures


def most_shingles(offsets: np.ndarray) -> int:
  """Returns a bound on the shingles of texts: words are parted by a byte at least."""
  return int(offsets[-1] - offsets[0]) // 2 + len(offsets) - 1


@jit
def slots(count: int) -> int:
  """Returns the size of a table that `count` values fill by half at most, a power of two."""
  size: Any = np.int64(4)
  while size < 2 * count:
    size *= 2
  return size


@jit
def insert(table: np.ndarray, mask: np.uint64, value: np.uint64) -> bool:
  """Puts a value other than 0 into a table of open addresses; False if it is there already."""
  place = value & mask
  while table[place] != 0:
    if table[place] == value:
      return False
    place = (place + np.uint64(1)) & mask
  table[place] = value
  return True


@jit
def contains(table: np.ndarray, mask: np.uint64, value: np.uint64) -> bool:
  """Whether `insert` has put the value into the table."""
  place = value & mask
  while table[place] != 0:
    if table[place] == value:
      return True
    place = (place + np.uint64(1)) & mask
  return False
