"""What single words, lines and paragraphs of a scanned document add to its signals."""

from typing import Any

import numpy as np

from jdc.prep.jit import jit
from jdc.prep.kernels import signals_ngrams as ngrams
from jdc.prep.kernels import tokenise
from jdc.prep.kernels import tokenise_classes as classes
from jdc.prep.kernels import tokenise_stop_words as stop_words
from jdc.prep.kernels.tokenise import AFTER, END, FIRST, JAVASCRIPT, PARAGRAPH, START, WORD

SHORT_LINE = 30  # characters

# Entries of what `of_words` writes.
WORD_CHARS, NONSYM, SPACED, SPACED_CHARS, ALPHA, SENTENCES, LOREM = range(7)
NUM_OF_WORDS = 7
# Entries of what `of_lines` writes.
BULLETS, ELLIPSES, ENDED, SHORT, SCRIPTS = range(5)
REPEATED, REPEATED_CHARS, PARAGRAPHS_REPEATED, PARAGRAPHS_CHARS = range(5, 9)
NUM_OF_LINES = 9

_ALPHA, _WORDY, _UNSPACED = classes.ALPHA, classes.WORDY, classes.UNSPACED
_ENDS_LINE, _ENDS_SENTENCE = classes.ENDS_LINE, classes.ENDS_SENTENCE
_CLOSES, _BULLET, _LONE = classes.CLOSES, classes.BULLET, classes.LONE_BULLET
_GOLDEN, _SHIFT = stop_words.GOLDEN, stop_words.SHIFT
_MAX_STOP = stop_words.MAX_BYTES
_SLOTS = np.uint64(1023)
_KNOWN = 1 << 15  # words whose slot in the table of stop words is remembered, a power of two
_PARAGRAPH = np.uint64(0xD6E8FEB86659FD93)
_LOREM = np.frombuffer(b"lorem", np.uint8)
_IPSUM = np.frombuffer(b"ipsum", np.uint8)


@jit
def _before(data: np.ndarray, i: int) -> int:
  """Returns where the character that ends before byte i begins."""
  i -= 1
  while data[i] & 0xC0 == 0x80:
    i -= 1
  return i


@jit
def _kind(data: np.ndarray, i: int, table: np.ndarray) -> np.uint16:
  return table[tokenise.decode(data, i)[0]]


@jit
def _ends_sentence(data: np.ndarray, start: int, end: int, table: np.ndarray) -> bool:
  while end > start:
    end = _before(data, end)
    kind = _kind(data, end, table)
    if kind & _ENDS_SENTENCE:
      return True
    if not kind & _CLOSES:
      return False
  return False


@jit
def _stop_key(
  data: np.ndarray, start: int, end: int, table: np.ndarray, lower: np.ndarray
) -> np.uint64:
  """Returns the bytes of a word in lower case, without the symbols around it; 0 if too long."""
  key = np.uint64(0)
  while start < end and not _kind(data, start, table) & _WORDY:
    start += tokenise.decode(data, start)[1]
  while start < end:
    last = _before(data, end)
    if _kind(data, last, table) & _WORDY:
      break
    end = last
  if end - start > _MAX_STOP:
    return key
  i = start
  while i < end:
    c = np.uint64(data[i])
    if 0x41 <= c <= 0x5A:
      c |= np.uint64(0x20)
    if 0xC0 <= c < 0xE0:
      low = np.uint64(lower[tokenise.decode(data, i)[0]])
      key = key << np.uint64(8) | np.uint64(0xC0) | low >> np.uint64(6)
      c = np.uint64(0x80) | low & np.uint64(0x3F)
      i += 1
    key = key << np.uint64(8) | c
    i += 1
  return key


@jit
def known_words() -> np.ndarray:
  """Returns what `of_words` remembers, u64: of a hash the higher 54 bits, and below the slot.

  The lower bits of a hash say where it is remembered.
  """
  known = np.empty(_KNOWN, np.uint64)
  for k in range(_KNOWN):  # what no hash has here: its bit 10 is not that of the place
    known[k] = ~np.uint64(k) & ~_SLOTS
  return known


@jit
def _stop_slot(key: np.uint64, stop_keys: np.ndarray) -> int:
  """Returns the slot of a key, or a free one, whose masks are 0."""
  slot = (key * _GOLDEN) >> _SHIFT
  while stop_keys[slot] and stop_keys[slot] != key:
    slot = (slot + np.uint64(1)) & _SLOTS
  found: Any = np.int64(slot)
  return found


@jit
def _ends_in_lorem(data: np.ndarray, start: int, end: int) -> bool:
  begin = end - _LOREM.size
  return begin >= start and tokenise.matches(data, begin, end, _LOREM)


@jit
def of_words(
  data: np.ndarray,
  a: int,
  words: int,
  table: np.ndarray,
  lower: np.ndarray,
  stop_keys: np.ndarray,
  stop_masks: np.ndarray,
  spans: np.ndarray,
  hashes: np.ndarray,
  kinds: np.ndarray,
  known: np.ndarray,
  result: np.ndarray,
  stops: np.ndarray,
) -> None:
  """Writes counts over words, i64[NUM_OF_WORDS], and the stop words met, bits in u64[2].

  Few words make most of a text: which of them are stop words is looked up by the 64-bit hash of
  a word, as repeated n-grams are told by theirs.
  """
  characters = nonsym = spaced = spaced_characters = alpha = sentences = lorem = 0
  low, high = np.uint64(0), np.uint64(0)
  for w in range(words):
    start, end = a + spans[w, START], a + spans[w, END]
    kind = kinds[w]
    size = spans[w, AFTER] - spans[w, FIRST]
    in_spaced = kind & (_WORDY | _UNSPACED) == _WORDY
    characters += size
    nonsym += kind & _WORDY != 0
    spaced += in_spaced
    spaced_characters += size if in_spaced else 0
    alpha += kind & _ALPHA != 0
    if kind & _ENDS_SENTENCE and _ends_sentence(data, start, end, table):
      sentences += 1
    if data[end - 1] | 0x20 == 0x6D and _ends_in_lorem(data, start, end) and w + 1 < words:
      begin, until = a + spans[w + 1, START], a + spans[w + 1, END]
      lorem += tokenise.matches(data, begin, until, _IPSUM)
    if kind & _WORDY:
      place = hashes[w] & np.uint64(_KNOWN - 1)
      held = known[place]
      if held & ~_SLOTS != hashes[w] & ~_SLOTS:
        key = _stop_key(data, start, end, table, lower)
        held = hashes[w] & ~_SLOTS | np.uint64(_stop_slot(key, stop_keys))
        known[place] = held
      slot = held & _SLOTS
      low |= stop_masks[slot, 0]
      high |= stop_masks[slot, 1]
  result[WORD_CHARS], result[NONSYM], result[SPACED] = characters, nonsym, spaced
  result[SPACED_CHARS], result[ALPHA] = spaced_characters, alpha
  result[SENTENCES], result[LOREM] = sentences, lorem
  stops[0], stops[1] = low, high


@jit
def _is_bullet(data: np.ndarray, a: int, span: np.ndarray, table: np.ndarray) -> bool:
  kind = _kind(data, a + span[START], table)
  return bool(kind & _BULLET or (kind & _LONE and span[AFTER] - span[FIRST] == 1))


@jit
def _is_ellipsis(data: np.ndarray, start: int, end: int) -> bool:
  if end - start < 3:
    return False
  x, y, z = data[end - 3], data[end - 2], data[end - 1]
  return (x == 0x2E and y == 0x2E and z == 0x2E) or (x == 0xE2 and y == 0x80 and z == 0xA6)


@jit
def of_lines(
  data: np.ndarray,
  a: int,
  words: int,
  number: int,
  classes_table: np.ndarray,
  spans: np.ndarray,
  hashes: np.ndarray,
  lines: np.ndarray,
  table: np.ndarray,
  epoch: np.uint64,
  result: np.ndarray,
) -> None:
  """Writes counts over lines and paragraphs, i64[NUM_OF_LINES].

  Two lines are equal when their words are, two paragraphs when their lines are.
  """
  result[:] = 0
  mask = ngrams.slot_mask(2 * number)
  key, begin = np.uint64(0), 0
  for k in range(number):
    first = lines[k, WORD]
    last = (lines[k + 1, WORD] if k + 1 < number else words) - 1
    start, end = a + spans[last, START], a + spans[last, END]
    result[BULLETS] += _is_bullet(data, a, spans[first], classes_table)
    result[ELLIPSES] += _is_ellipsis(data, start, end)
    result[ENDED] += bool(_kind(data, _before(data, end), classes_table) & _ENDS_LINE)
    result[SCRIPTS] += lines[k, JAVASCRIPT]
    line = np.uint64(0)
    for w in range(first, last + 1):
      line = tokenise.combine(line, hashes[w])
    characters = spans[last, AFTER] - spans[first, FIRST]
    result[SHORT] += characters <= SHORT_LINE
    if ngrams.first_index(table, mask, epoch, line, k) != k:
      result[REPEATED] += 1
      result[REPEATED_CHARS] += characters
    if k == 0 or lines[k, PARAGRAPH] != lines[k - 1, PARAGRAPH]:
      key, begin = _PARAGRAPH, first
    key = tokenise.combine(key, line)
    if k + 1 < number and lines[k + 1, PARAGRAPH] == lines[k, PARAGRAPH]:
      continue
    # One table holds both kinds: they begin from different seeds.
    if ngrams.first_index(table, mask, epoch, key, number + k) != number + k:
      result[PARAGRAPHS_REPEATED] += 1
      result[PARAGRAPHS_CHARS] += spans[last, AFTER] - spans[begin, FIRST]
