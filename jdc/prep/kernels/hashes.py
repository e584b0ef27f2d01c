"""Words of UTF-8 text, without case and punctuation, and 64-bit hashes of them."""

import functools
import unicodedata
from typing import Any

import numpy as np
import pyarrow as pa

from jdc.prep.jit import jit
from jdc.prep.kernels.tokenise_classes import WHITE_SPACE
from jdc.prep.text.buffers import map_rows, to_buffers
from jdc.prep.text.scripts import UNSPACED

# What a code point is: a gap between words, part of a word, a word by itself, or white space,
# which is a gap too. `fold_table` has it above the folded code point.
GAP, WORD, ALONE, SPACE = range(4)
KIND = np.uint32(30)
CODE = np.uint32((1 << 21) - 1)
_COMPOSES = np.uint32(1 << 29)  # NFC may change a text that holds the code point
_LIMIT = 0x32400  # beyond it Unicode 15 has no letter, digit or mark but variation selectors
# Letters of no case that NFC leaves alone, which need no look at each.
_PLAIN = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x20000, 0x2F7FF))

SEED = np.uint64(0xCBF29CE484222325)
PRIME = np.uint64(0x100000001B3)
BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


@functools.cache
def fold_table() -> np.ndarray:
  """Returns kind, NFC mark and folded code point of each code point, u32[205824].

  Letters, marks and numbers of Unicode make words, those of scripts without spaces between them
  by themselves. Each is case-folded to one code point: to its lower case where the full folding
  is longer.
  """
  table, kind = np.arange(_LIMIT, dtype=np.uint32), np.zeros(_LIMIT, np.uint32)
  looked_up = np.ones(_LIMIT, bool)
  for first, last in _PLAIN:
    looked_up[first : last + 1], kind[first : last + 1] = False, WORD
  for code in np.flatnonzero(looked_up).tolist():
    char = chr(code)
    category = unicodedata.category(char)
    if category[0] in "LMN":
      kind[code] = WORD
      folded = char.casefold()
      table[code] = ord(folded if len(folded) == 1 else char.lower()[0])
    elif char in WHITE_SPACE:
      kind[code] = SPACE
    jamo = 0x1160 <= code < 0x1200
    if category[0] == "M" or jamo or not unicodedata.is_normalized("NFC", char):
      table[code] |= _COMPOSES
  for first, last in UNSPACED:
    unspaced = kind[first : last + 1]
    unspaced[unspaced == WORD] = ALONE
  return table | kind << KIND


def composed(text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
  """Returns (offsets i64[n+1], bytes u8[m]) of n strings in Unicode's normal form C."""
  offsets, data = to_buffers(text)
  if data[offsets[0] : offsets[-1]].max(initial=0) < 128:
    return offsets, data
  change = _may_compose(offsets, data, fold_table())
  if not change.any():
    return offsets, data
  # Not by Arrow, whose form "NFC" decomposes (25.0).
  return to_buffers(map_rows(text, change, functools.partial(unicodedata.normalize, "NFC")))


@jit
def mix(x: np.uint64) -> np.uint64:
  """Returns the last steps of SplitMix64, a bijection."""
  x = (x ^ (x >> _30)) * _MIX1
  x = (x ^ (x >> _27)) * _MIX2
  return x ^ (x >> _31)


@jit
def decode(data: np.ndarray, i: int, end: int) -> tuple[int, int]:
  """Returns the code point that begins at byte i of UTF-8, and its length in bytes."""
  first: Any = np.int64(data[i])
  if first < 0x80:
    return first, 1
  if first < 0xE0:
    size, code = 2, first & 31
  elif first < 0xF0:
    size, code = 3, first & 15
  else:
    size, code = 4, first & 7
  for k in range(i + 1, min(i + size, end)):
    code = code << 6 | (np.int64(data[k]) & 63)
  return code, size


@jit
def entry(fold: np.ndarray, code: int) -> np.uint32:
  """Returns the entry of `fold_table` for any code point; high ones are gaps."""
  return fold[code] if code < len(fold) else np.uint32(0)


@jit
def _may_compose(offsets: np.ndarray, data: np.ndarray, fold: np.ndarray) -> np.ndarray:
  found = np.zeros(len(offsets) - 1, np.bool_)
  for n in range(len(found)):
    i, end = offsets[n], offsets[n + 1]
    while i < end and not found[n]:
      if data[i] < 128:
        i += 1
        continue
      code, size = decode(data, i, end)
      found[n] = (entry(fold, code) & _COMPOSES) != 0
      i += size
  return found


@jit
def words(
  data: np.ndarray,
  start: int,
  end: int,
  fold: np.ndarray,
  word_hash: np.ndarray,
  first: np.ndarray,
  last: np.ndarray,
) -> int:
  """Writes the hash and the bytes [first, last) of each word of [start, end); returns how many.

  A word of one byte has another byte after it, so that `most_words` bounds their number.
  """
  code: Any
  begin: Any = np.int64(-1)
  i: Any = np.int64(start)
  count, h = 0, SEED
  while i < end:
    code, size = np.int64(data[i]), 1
    if code >= 128:
      code, size = decode(data, i, end)
    value = entry(fold, code)
    kind = value >> KIND
    if kind == WORD:
      if begin < 0:
        begin = i
      h = (h ^ np.uint64(value & CODE)) * PRIME
    else:
      if begin >= 0:
        word_hash[count], first[count], last[count] = mix(h), begin, i
        count, begin, h = count + 1, np.int64(-1), SEED
      if kind == ALONE:
        word_hash[count] = mix((SEED ^ np.uint64(value & CODE)) * PRIME)
        first[count], last[count] = i, i + size
        count += 1
    i += size
  if begin >= 0:
    word_hash[count], first[count], last[count] = mix(h), begin, end
    count += 1
  return count


@jit
def hash_words(
  data: np.ndarray, start: int, end: int, fold: np.ndarray, word_hash: np.ndarray
) -> int:
  """Writes the hash of each word as `words` does, but not where it stands, in half the time.

  Where a word ends is no branch, since a processor cannot foresee it.
  """
  place: Any
  until: Any = np.int64(end)
  # Unsigned places, which need no look at whether they count from the end.
  i, stop, count = np.uint64(start), np.uint64(end), np.uint64(0)
  h, inside = SEED, np.uint64(0)
  while i < stop:
    byte, size = data[i], np.uint64(1)
    if byte < 128:
      value = fold[byte]
    else:
      place = np.int64(i)
      code, length = decode(data, place, until)
      value, size = entry(fold, code), np.uint64(length)
      if value >> KIND == ALONE:
        word_hash[count] = h
        count += inside
        word_hash[count] = (SEED ^ np.uint64(value & CODE)) * PRIME
        count += np.uint64(1)
        h, inside, i = SEED, np.uint64(0), i + size
        continue
    begun, inside = inside, np.uint64(value >> KIND == WORD)
    word_hash[count] = h  # which counts if the word ended here
    count += begun & ~inside
    h = (h ^ np.uint64(value & CODE)) * PRIME if inside else SEED
    i += size
  word_hash[count] = h
  number: Any = np.int64(count + inside)
  for k in range(number):
    word_hash[k] = mix(word_hash[k])
  return number


@jit
def most_words(offsets: np.ndarray) -> int:
  """Returns a bound on the words of any one text."""
  most: Any = np.int64(0)
  for n in range(len(offsets) - 1):
    most = max(most, offsets[n + 1] - offsets[n])
  return most // 2 + 1


@jit
def shingles(word_hash: np.ndarray, count: int, ngram: int, out: np.ndarray) -> int:
  """Writes a hash of each run of `ngram` words, or of all if they are fewer; returns how many.

  With words w_1, ..., w_k of a run, and all modulo 2^64: mix(sum_i w_i b^(k-i)).
  """
  if count == 0:
    return 0
  total, power = np.uint64(0), np.uint64(1)
  for i in range(min(count, ngram)):
    total = total * BASE + word_hash[i]
    power *= BASE
  out[0] = mix(total)
  for i in range(ngram, count):
    total = total * BASE + (word_hash[i] - power * word_hash[i - ngram])
    out[i - ngram + 1] = mix(total)
  return max(count - ngram + 1, 1)
