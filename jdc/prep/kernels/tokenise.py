"""Words and lines of documents, in one pass over their UTF-8 bytes.

A word is a maximal run of characters without white space (Unicode White_Space), except in
scripts that put no spaces between words (`jdc.prep.text.scripts`: Chinese, Japanese, Thai, Lao,
Khmer, Burmese), where each character with the combining marks that follow it is a word. So
"C4规则, ok" has the words C4, 规, 则 and ",", ok.

A line is what stands between LINE FEEDs (U+000A), without the white space at its ends; a line
of nothing but white space is blank and counts as none. A CR before the LF is such white space;
lone CRs, U+0085, U+2028 and U+2029 part words but not lines. A paragraph is a maximal run of
lines with no blank line between them.
"""

from typing import Any

import numba
import numpy as np
import pyarrow as pa

from jdc.prep.kernels import tokenise_classes as classes
from jdc.prep.text.buffers import to_buffers

# Rows of `spans`.
START, END, FIRST, AFTER = 0, 1, 2, 3
# Rows of `lines`.
WORD, PARAGRAPH, JAVASCRIPT = 0, 1, 2
# Entries of `counts`.
CHARS, NEWLINES, HASHES, ELLIPSES, CURLY, UNSPACED_CHARS, PARAGRAPHS = range(7)
NUM_COUNTS = 7

_SPACE, _UNSPACED, _MARK = classes.SPACE, classes.UNSPACED, classes.MARK
_SPECIAL = classes.SPECIAL
_STOPS = classes.SPACE | classes.SPECIAL
_BREAKS = classes.SPACE | classes.UNSPACED
_SEED = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0x100000001B3)
_MIX_A = np.uint64(0xFF51AFD7ED558CCD)
_MIX_B = np.uint64(0xC4CEB9FE1A85EC53)
_SHIFT = np.uint64(32)
_JAVASCRIPT = np.frombuffer(b"javascript", np.uint8)

_LONG = 1 << 20

jit = numba.njit(cache=True, nogil=True)


@jit
def decode(data: np.ndarray, i: int) -> tuple[int, int]:
  """Returns (code point, bytes) of the character of valid UTF-8 at i."""
  c: Any = np.int64(data[i])  # unsigned numbers would turn sums into floats
  if c < 0x80:
    return c, 1
  if c < 0xE0:
    return (c & 0x1F) << 6 | (data[i + 1] & 0x3F), 2
  if c < 0xF0:
    return (c & 0x0F) << 12 | np.int64(data[i + 1] & 0x3F) << 6 | (data[i + 2] & 0x3F), 3
  high = (c & 0x07) << 18 | np.int64(data[i + 1] & 0x3F) << 12
  return high | np.int64(data[i + 2] & 0x3F) << 6 | (data[i + 3] & 0x3F), 4


@jit
def mix(key: np.uint64) -> np.uint64:
  """Returns a u64 with every bit of `key` spread over all of it."""
  key = (key ^ (key >> _SHIFT)) * _MIX_A
  key = (key ^ (key >> _SHIFT)) * _MIX_B
  return key ^ (key >> _SHIFT)


@jit
def combine(key: np.uint64, other: np.uint64) -> np.uint64:
  """Returns the hash of a sequence from that of its beginning and of its last element."""
  key = (key * _MIX_A) ^ other
  key = (key ^ (key >> _SHIFT)) * _MIX_B
  return key ^ (key >> _SHIFT)


@jit
def matches(data: np.ndarray, i: int, b: int, word: np.ndarray) -> bool:
  """Whether the bytes at i are the letters of `word`, in either case."""
  if i + word.size > b:
    return False
  for k in range(word.size):  # noqa: SIM110
    if data[i + k] | 0x20 != word[k]:
      return False
  return True


@jit
def _look_twice(
  data: np.ndarray,
  i: int,
  b: int,
  code: int,
  state: int,
  lines: np.ndarray,
  line: int,
  counts: np.ndarray,
) -> int:
  """Counts what a special character stands for; `state` is where the last ellipsis ends."""
  if code == 0x23:
    counts[HASHES] += 1
  elif code == 0x7B:
    counts[CURLY] += 1
  elif code == 0x2026:
    counts[ELLIPSES] += 1
  elif code == 0x2E:
    if i >= state and i + 2 < b and data[i + 1] == 0x2E and data[i + 2] == 0x2E:
      counts[ELLIPSES] += 1
      return i + 3
  elif matches(data, i, b, _JAVASCRIPT):
    lines[line, JAVASCRIPT] = 1
  return state


@jit
def scan(
  data: np.ndarray,
  a: int,
  b: int,
  table: np.ndarray,
  spans: np.ndarray,
  hashes: np.ndarray,
  kinds: np.ndarray,
  lines: np.ndarray,
  counts: np.ndarray,
) -> tuple[int, int]:
  """Writes the words, lines and counts of the document in data[a:b].

  Args:
    data: u8[m], UTF-8.
    a, b: first byte and the one after the last.
    table: the classes of characters.
    spans: i32[w,4], of each word its bytes START to END and its characters FIRST to AFTER,
      both from the document's beginning.
    hashes: u64[w], of the characters of each word.
    kinds: u16[w], the classes that a character of the word has.
    lines: i32[w,3], of each line its first WORD, its PARAGRAPH, and whether it has JAVASCRIPT.
    counts: i64[NUM_COUNTS].

  Returns:
    The numbers of words and of lines.
  """
  counts[:] = 0
  i, position, word, line, dots = a, 0, 0, 0, a
  paragraph, gap, is_open = -1, True, False
  while i < b:
    code, size = decode(data, i)
    kind = table[code]
    if kind & _SPACE:
      if code == 10:
        counts[NEWLINES] += 1
        gap = gap or not is_open
        is_open = False
      i += size
      position += 1
      continue
    if not is_open:
      paragraph += gap
      gap, is_open = False, True
      lines[line, WORD], lines[line, PARAGRAPH], lines[line, JAVASCRIPT] = word, paragraph, 0
      line += 1
    spans[word, START], spans[word, FIRST] = i - a, position
    key, kinds_seen = _SEED, kind
    if kind & _UNSPACED:
      counts[UNSPACED_CHARS] += 1
      while True:
        key = (key ^ np.uint64(code)) * _PRIME
        kinds_seen |= kind
        i += size
        position += 1
        if i >= b:
          break
        code, size = decode(data, i)
        kind = table[code]
        if not kind & _MARK:
          break
    else:
      while True:
        if kind & _SPECIAL:
          dots = _look_twice(data, i, b, code, dots, lines, line - 1, counts)
        key = (key ^ np.uint64(code)) * _PRIME
        kinds_seen |= kind
        i += size
        position += 1
        run = i
        while i < b and data[i] < 0x80:
          kind = table[data[i]]
          if kind & _STOPS:
            break
          key = (key ^ np.uint64(data[i])) * _PRIME
          kinds_seen |= kind
          i += 1
        position += i - run
        if i >= b:
          break
        code, size = decode(data, i)
        kind = table[code]
        if kind & _BREAKS:
          break
    spans[word, END], spans[word, AFTER] = i - a, position
    hashes[word], kinds[word] = mix(key), kinds_seen
    word += 1
  counts[CHARS], counts[PARAGRAPHS] = position, paragraph + 1
  return word, line


def max_words(offsets: np.ndarray, data: np.ndarray) -> int:
  """Returns a bound on the words of the longest document, close where it is above 1 MB.

  Two words next to each other have a separator of at least a byte between them, or else one of
  them is of a script whose characters take three bytes: at most a word every other byte.
  """
  sizes = np.diff(offsets)
  longest = int(sizes.max(initial=0))
  if longest <= _LONG:
    return longest // 2 + 1
  long = np.flatnonzero(sizes > _LONG)
  return int(_count_separators(data, offsets[long], offsets[long + 1]))


@jit
def _count_separators(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> int:
  """Returns the most words that the white space and the wide characters of a document allow."""
  most = 0
  for document in range(starts.size):
    words = 1
    for i in range(starts[document], ends[document]):
      c = data[i]
      words += (c <= 0x20) + (c == 0xC2) + 2 * (c >= 0xE0)
    most = max(most, words)
  return max(most, _LONG // 2 + 1)


def word_hashes(text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the 64-bit hashes of all words, document after document.

  Returns:
    offsets: i64[N+1], where the words of each document begin.
    hashes: u64[W].

  Raises:
    ValueError: if the text is not of type string, holds nulls or is not valid UTF-8.

  Example:
    >>> offsets, hashes = word_hashes(pa.array(["a b", "", "b 好b"]))
    >>> offsets.tolist(), bool(hashes[1] == hashes[2] == hashes[4])
    ([0, 2, 2, 5], True)
  """
  offsets, data = checked_buffers(text)
  total = int(offsets[-1] - offsets[0]) // 2 + len(text) + 1
  hashes = np.empty(total, np.uint64)
  ends = _hash_documents(
    data, offsets, classes.table(), hashes, *scratch(max_words(offsets, data))
  )
  return ends, hashes[: ends[-1]].copy()


@jit
def _hash_documents(
  data: np.ndarray,
  offsets: np.ndarray,
  table: np.ndarray,
  out: np.ndarray,
  spans: np.ndarray,
  hashes: np.ndarray,
  kinds: np.ndarray,
  lines: np.ndarray,
  counts: np.ndarray,
) -> np.ndarray:
  ends = np.zeros(offsets.size, np.int64)
  for document in range(offsets.size - 1):
    a, b = offsets[document], offsets[document + 1]
    number, _ = scan(data, a, b, table, spans, hashes, kinds, lines, counts)
    first = ends[document]
    out[first : first + number] = hashes[:number]
    ends[document + 1] = first + number
  return ends


def scratch(words: int) -> tuple[np.ndarray, ...]:
  """Returns the arrays that `scan` writes to, for documents of up to so many words."""
  return (
    np.empty((words, 4), np.int32),
    np.empty(words, np.uint64),
    np.empty(words, np.uint16),
    np.empty((words, 3), np.int32),
    np.empty(NUM_COUNTS, np.int64),
  )


def checked_buffers(text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
  """Returns (offsets i64[N+1], bytes u8[m]) of strings that are proven to be UTF-8."""
  offsets, data = to_buffers(text)
  try:
    text.validate(full=True)
  except pa.ArrowInvalid as error:
    raise ValueError(f"text is not valid UTF-8: {error}") from error
  data = data.view()
  data.setflags(write=False)  # one type to compile for, whoever made the array
  return offsets, data
