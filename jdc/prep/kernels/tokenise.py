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

import numpy as np
import pyarrow as pa

from jdc.prep.jit import jit
from jdc.prep.kernels import tokenise_classes as classes
from jdc.prep.text.buffers import to_buffers

# Columns of `spans`.
FIRST, START, AFTER, END = 0, 1, 2, 3
# Columns of `lines`.
WORD, PARAGRAPH, JAVASCRIPT = 0, 1, 2
# Entries of `counts`.
CHARS, NEWLINES, HASHES, ELLIPSES, CURLY, UNSPACED_CHARS, PARAGRAPHS = range(7)
NUM_COUNTS = 7

_SPACE, _UNSPACED, _MARK = classes.SPACE, classes.UNSPACED, classes.MARK
_SPECIAL = classes.SPECIAL
_BREAKS = classes.SPACE | classes.UNSPACED
_NEWLINE = 10
_SEED = np.uint64(0xCBF29CE484222325)
_PRIME = np.uint64(0x100000001B3)
_MIX_A = np.uint64(0xFF51AFD7ED558CCD)
_MIX_B = np.uint64(0xC4CEB9FE1A85EC53)
_SHIFT = np.uint64(32)
_ONE = np.uint64(1)
_CHARACTERS = np.uint64(0xFFFFFFFF)
_ASCII = np.uint64(1 << 32 | 1)  # a byte and a character further
_JAVASCRIPT = np.frombuffer(b"javascript", np.uint8)

_LONG = 1 << 20


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
def _end_line(
  lines: np.ndarray, line: int, word: int, paragraph: int, gap: bool
) -> tuple[int, int, bool]:
  """Returns (line, paragraph, gap) after a line whose last word is before `word`."""
  if word == lines[line, WORD]:  # blank
    return line, paragraph, True
  paragraph += gap
  lines[line, PARAGRAPH] = paragraph
  line += 1
  lines[line, WORD], lines[line, JAVASCRIPT] = word, 0
  return line, paragraph, False


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

  Over plain ASCII, where a word begins or ends is no branch, since a processor cannot foresee
  it: what would be written of the word at hand is written at every byte.

  Args:
    data: u8[m], UTF-8.
    a, b: first byte and the one after the last.
    table: the classes of characters.
    spans: i32[w,4], of each word its bytes START to END and its characters FIRST to AFTER,
      both from the document's beginning.
    hashes: u64[w], of the characters of each word.
    kinds: u16[w], the classes that a character of the word has.
    lines: i32[w+1,3], of each line its first WORD, its PARAGRAPH, whether it has JAVASCRIPT.
    counts: i64[NUM_COUNTS].

  Returns:
    The numbers of words and of lines.
  """
  counts[:] = 0
  # Of word w, edges 2 w and 2 w + 1: (byte, character) in one number, as in a row of `spans`.
  edges = spans.reshape(-1).view(np.uint64)
  here, edge = np.uint64(0), np.uint64(0)
  # Unsigned places, which need no look at whether they count from the end.
  i, stop = np.uint64(a), np.uint64(b)
  line, dots, paragraph, gap = 0, a, -1, True
  inside, alone = np.uint64(0), False  # in a word; in one of a script without spaces
  key, seen = _SEED, np.uint16(0)
  lines[0, WORD] = lines[0, JAVASCRIPT] = 0
  while i < stop:
    while i < stop and not alone:
      byte = data[i]
      kind = table[byte]
      if byte >= 0x80 or byte == _NEWLINE or kind & _SPECIAL:
        break
      begun, inside = inside, np.uint64(kind & _SPACE == 0)
      edges[edge], hashes[edge >> _ONE], kinds[edge >> _ONE] = here, key, seen
      edge += begun ^ inside
      key = (key ^ np.uint64(byte)) * _PRIME if inside else _SEED
      seen = seen | kind if inside else np.uint16(0)
      i += _ONE
      here += _ASCII
    if i >= stop:
      break
    at: Any = np.int64(i)
    code, size = decode(data, at)
    kind = table[code]
    if inside and (kind & _BREAKS or (alone and not kind & _MARK)):
      edges[edge], hashes[edge >> _ONE], kinds[edge >> _ONE] = here, key, seen
      edge += _ONE
      inside, alone, key, seen = np.uint64(0), False, _SEED, np.uint16(0)
    if code == _NEWLINE:
      counts[NEWLINES] += 1
      word: Any = np.int64(edge >> _ONE)
      line, paragraph, gap = _end_line(lines, line, word, paragraph, gap)
    elif not kind & _SPACE:
      if not inside:
        edges[edge] = here
        edge += _ONE
        inside, alone = _ONE, kind & _UNSPACED != 0
        counts[UNSPACED_CHARS] += alone
      if kind & _SPECIAL:
        dots = _look_twice(data, at, b, code, dots, lines, line, counts)
      key = (key ^ np.uint64(code)) * _PRIME
      seen |= kind
    i += np.uint64(size)
    here += np.uint64(size) << _SHIFT | _ONE
  if inside:
    edges[edge], hashes[edge >> _ONE], kinds[edge >> _ONE] = here, key, seen
    edge += _ONE
  words: Any = np.int64(edge >> _ONE)
  line, paragraph, gap = _end_line(lines, line, words, paragraph, gap)
  for w in range(words):
    hashes[w] = mix(hashes[w])
  characters: Any = np.int64(here & _CHARACTERS)
  counts[CHARS], counts[PARAGRAPHS] = characters, paragraph + 1
  return words, line


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


def scratch(words: int) -> tuple[np.ndarray, ...]:
  """Returns the arrays that `scan` writes to, for documents of up to so many words."""
  return (
    np.empty((words, 4), np.int32),
    np.empty(words, np.uint64),
    np.empty(words, np.uint16),
    np.empty((words + 1, 3), np.int32),
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
