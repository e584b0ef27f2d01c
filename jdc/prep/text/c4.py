"""The rules of C4: lines that are dropped, and what speaks against a whole document."""

import numpy as np
import pyarrow as pa

from jdc.prep.jit import jit
from jdc.prep.text.codepoints import decode, is_unspaced, is_white
from jdc.prep.text.lines import join_lines, split_lines
from jdc.prep.text.scripts import SENTENCE_END

POLICY = (
  "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
  "use cookies",
)  # fmt: skip
_LOREM, _JAVASCRIPT, _POLICY, _CURLY = 1, 2, 4, 8
_PHRASES = {"lorem ipsum": _LOREM, "javascript": _JAVASCRIPT, "{": _CURLY} | dict.fromkeys(
  POLICY, _POLICY
)
_QUOTES = "\"”»」』"  # fmt: skip

SIGNALS = ("c4_lines_dropped", "c4_sentences", "c4_curly_lines", "c4_lorem_lines")


def drop_lines(
  text: pa.StringArray,
  no_terminal_punct: bool = False,
  min_words: int = 3,
  javascript: bool = True,
  policy: bool = True,
  max_word_len: int = 1000,
) -> tuple[pa.StringArray, dict[str, np.ndarray]]:
  """Drops lines by the rules of C4, and counts what C4 drops whole documents for.

  In this order, a line is dropped if

  1. a word of it has more than `max_word_len` characters;
  2. (`no_terminal_punct`) it does not end with one of `.?!"`, or ends with "...";
  3. it has fewer than `min_words` words;
  4. (`javascript`) it holds "javascript", in any case of letters;
  5. (`policy`) it holds one of `POLICY`, in any case of letters.

  Lines that pass 1 to 3 count for `c4_lorem_lines` if they hold "lorem ipsum", those that also
  pass 4 for `c4_curly_lines` if they hold "{"; C4 drops a document with any of these, and one
  with fewer sentences in the lines that are left than 3 (the paper) or 5 (its first version).

  Departures: a line is kept as it is, where C4 strips it. Sentences end with a run of marks and
  quotes before white space, where C4 asks NLTK. Of other scripts, their full stops and closing
  quotes end lines and sentences too, without white space in Chinese and Japanese; lines that
  end in Thai or Lao, which have no full stop, pass rule 2. In scripts without spaces each
  character is a word (`scripts.UNSPACED`).

  Args:
    text: n documents.
    no_terminal_punct: whether rule 2 holds.
    min_words: at least 0; 5 in the paper, 3 in its first version and in FineWeb. Lines without
      words go too, unless it is 0.
    javascript: whether rule 4 holds.
    policy: whether rule 5 holds.
    max_word_len: at least 1, in code points.

  Returns:
    The n documents without these lines, and `SIGNALS`, i32[n].

  Raises:
    ValueError: if a number is out of its range.

  References:
    Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text
    Transformer, 2020, arXiv:1910.10683, section 2.2; c4_utils.py of TensorFlow Datasets.

  Example:
    >>> text, signals = drop_lines(
    ...   pa.array(["Menu\\nThis line stays here.\\nWe use cookies now"])
    ... )
    >>> text[0].as_py(), signals["c4_lines_dropped"].tolist()
    ('This line stays here.', [2])
  """
  problems = []
  if min_words < 0:
    problems.append(f"min_words must be at least 0, got {min_words}")
  if max_word_len < 1:
    problems.append(f"max_word_len must be at least 1, got {max_word_len}")
  if problems:
    raise ValueError("; ".join(problems))
  lines = split_lines(text)
  words, longest, phrases, ends, sentences = _read(
    lines.data, lines.starts, lines.ends, *_AUTOMATON, _ENDS
  )
  keep = (longest <= max_word_len) & (words >= min_words)
  if no_terminal_punct:
    keep &= ends
  lorem = keep & ((phrases & _LOREM) != 0)
  if javascript:
    keep &= (phrases & _JAVASCRIPT) == 0
  curly = keep & ((phrases & _CURLY) != 0)
  if policy:
    keep &= (phrases & _POLICY) == 0
  counts = (~keep, np.where(keep, sentences, 0), curly, lorem)
  signals = {
    name: _per_document(count, lines.first) for name, count in zip(SIGNALS, counts, strict=True)
  }
  return join_lines(lines, keep), signals


def _per_document(values: np.ndarray, first: np.ndarray) -> np.ndarray:
  total = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
  return np.diff(total[first]).astype(np.int32)


def _phrase_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Returns which bytes start a phrase, and the phrases in lower case: bytes, ends, flags."""
  starts = np.zeros(256, np.bool_)
  for phrase in _PHRASES:
    starts[[ord(phrase[0].lower()), ord(phrase[0].upper())]] = True
  joined = np.frombuffer("".join(_PHRASES).encode(), np.uint8)
  ends = np.cumsum([len(phrase) for phrase in _PHRASES])
  return starts, joined, ends, np.array(list(_PHRASES.values()), np.int64)


_AUTOMATON = _phrase_tables()
# Code points of marks: those that end a sentence before white space, or anywhere; quotes.
_MARK, _WIDE_MARK, _QUOTE, _DOT, _NO_MARK = 1, 2, 3, 4, 5
_ENDS = np.zeros(1 << 16, np.uint8)
_ENDS[[ord(char) for char in SENTENCE_END]] = _MARK
_ENDS[[ord(char) for char in "。！？｡．"]] = _WIDE_MARK
_ENDS[[ord(char) for char in _QUOTES]] = _QUOTE
_ENDS[ord(".")] = _DOT
_ENDS[0x0E00:0x0F00] = _NO_MARK  # Thai and Lao: may end a line, end no sentence


@jit
def _read(
  data: np.ndarray,
  starts: np.ndarray,
  ends: np.ndarray,
  phrase_starts: np.ndarray,
  phrases: np.ndarray,
  phrase_ends: np.ndarray,
  phrase_flags: np.ndarray,
  kinds: np.ndarray,
) -> tuple[np.ndarray, ...]:
  """Returns of each line [m]: words, its longest word, phrases it holds, whether a mark or
  quote ends it, sentences."""
  count = len(starts)
  words, longest = np.zeros(count, np.int32), np.zeros(count, np.int32)
  found, ended = np.zeros(count, np.int64), np.zeros(count, np.bool_)
  sentences = np.zeros(count, np.int32)
  for line in range(count):
    i, end = starts[line], ends[line]
    size = dots = last = 0  # of the word; marks "." up to here; the last character's kind
    is_open = marked = wide = False  # a sentence; after marks; one of them needs no space
    while i < end:
      if phrase_starts[data[i]]:
        found[line] |= _phrases_at(data, i, end, phrases, phrase_ends, phrase_flags)
      code, length = decode(data, i)
      i += length
      if is_white(code):
        size = 0
        if marked and is_open:
          sentences[line] += 1
          is_open = False
        marked = wide = False
        continue
      kind = kinds[code] if code < 1 << 16 else 0
      dots = dots + 1 if kind == _DOT else 0
      last = kind
      unspaced = is_unspaced(code)
      if unspaced or size == 0:
        words[line] += 1
        size = 0
      size = 0 if unspaced else size + 1
      longest[line] = max(longest[line], size, 1)
      if kind == 0 or kind == _NO_MARK:
        if wide and is_open:
          sentences[line] += 1
        is_open, marked, wide = True, False, False
      elif kind != _QUOTE:
        marked, wide = True, wide or kind == _WIDE_MARK
    sentences[line] += is_open
    ended[line] = last != 0 and dots < 3
  return words, longest, found, ended, sentences


@jit
def _phrases_at(
  data: np.ndarray,
  i: int,
  end: int,
  phrases: np.ndarray,
  phrase_ends: np.ndarray,
  phrase_flags: np.ndarray,
) -> int:
  """Returns the flags of the phrases that start at byte i, in any case of ASCII letters."""
  found, start = 0, 0
  for k in range(len(phrase_ends)):
    size = phrase_ends[k] - start
    j = 0
    while j < size and i + j < end:
      byte = data[i + j]
      if byte != phrases[start + j] and not (
        65 <= byte <= 90 and byte + 32 == phrases[start + j]
      ):
        break
      j += 1
    if j == size:
      found |= phrase_flags[k]
    start = phrase_ends[k]
  return found
