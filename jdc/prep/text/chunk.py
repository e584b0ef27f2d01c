"""Long documents cut into chunks of a bounded number of tokens."""

import re
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from jdc.prep.text.scripts import CLASS, CLOSERS, SENTENCE_END, words

By = Literal["paragraph", "line", "sentence", "word"]
Count = Callable[[str], int]


class Chunks(NamedTuple):
  """m chunks of n documents, in order."""

  text: pa.StringArray
  row: np.ndarray  # i64[m], the document of each
  offset: np.ndarray  # i64[m], where it starts in the document, in bytes of UTF-8


_WIDE = "。！？｡．"
# What ends a unit; it belongs to the unit before.
_ENDS = {
  "paragraph": re.compile(r"\n[^\S\n]*\n\s*"),
  "line": re.compile(r"\n\s*"),
  "sentence": re.compile(
    rf"[{re.escape(SENTENCE_END)}]+[{re.escape(CLOSERS)}]*\s+|[{_WIDE}]+[{re.escape(CLOSERS)}]*\s*"
  ),
}
BY = (*_ENDS, "word")
_WORD = re.compile(rf"\s*(?:[{CLASS}]|[^\s{CLASS}]+)\s*")


def count_words(text: str) -> int:
  """Returns how many words a text has, as `scripts.words` cuts it."""
  return len(words(text))


def chunk_text(
  text: pa.StringArray,
  tokens: int = 1024,
  overlap: int = 0,
  by: By = "paragraph",
  count: Count = count_words,
) -> Chunks:
  r"""Cuts documents into chunks of at most `tokens` tokens, at the ends of units.

  A chunk takes units in order while the sum of their counts is at most `tokens`. A unit that is
  longer by itself is cut at the next finer ones: paragraphs (up to a blank line), lines,
  sentences, words, characters. With an overlap, a chunk starts with the last units of the one
  before that together count at most `overlap`, as far as a new unit fits beside them. Chunks
  are parts of the document as it stands, without the white space at their ends; without overlap
  no other character is lost. A document of white space is one empty chunk.

  Args:
    text: n documents.
    tokens: at least 1. A single character that counts more is a chunk.
    overlap: at least 0, below `tokens`.
    by: "paragraph", "line", "sentence" or "word".
    count: returns the number of tokens of a text, by default of words; that of a chunk is taken
      as the sum over its units, which for tokenizers with merges across them is an upper bound.

  Returns:
    m >= n chunks.

  Raises:
    ValueError: if an argument is out of its range.

  Example:
    >>> chunks = chunk_text(pa.array(["a b\n\nc d\n\ne f g"]), tokens=4)
    >>> chunks.text.to_pylist(), chunks.row.tolist(), chunks.offset.tolist()
    (['a b\n\nc d', 'e f g'], [0, 0], [0, 10])
  """
  problems = []
  if tokens < 1:
    problems.append(f"tokens must be at least 1, got {tokens}")
  if not 0 <= overlap < max(tokens, 1):
    problems.append(f"overlap must be in [0, tokens), got {overlap} with tokens={tokens}")
  if by not in BY:
    problems.append(f"by must be one of {', '.join(BY)}, got {by!r}")
  if problems:
    raise ValueError("; ".join(problems))
  texts, rows, offsets = [], [], []
  for row, document in enumerate(text.to_pylist()):
    for start, end in _chunks(document, tokens, overlap, by, count):
      texts.append(document[start:end])
      rows.append(row)
      offsets.append(len(document[:start].encode()))
  return Chunks(
    pa.array(texts, pa.string()), np.array(rows, np.int64), np.array(offsets, np.int64)
  )


def _chunks(
  text: str, tokens: int, overlap: int, by: str, count: Count
) -> Iterator[tuple[int, int]]:
  units = list(_units(text, 0, len(text), tokens, BY.index(by), count))
  first, last, found = 0, 0, False
  while last < len(units):
    total = sum(size for _, _, size in units[first:last])
    while first < last and total + units[last][2] > tokens:
      total -= units[first][2]
      first += 1
    while last < len(units) and (first == last or total + units[last][2] <= tokens):
      total += units[last][2]
      last += 1
    span = _stripped(text, units[first][0], units[last - 1][1])
    if span[0] < span[1]:
      found = True
      yield span
    first = last
    kept = 0
    while first > 0 and kept + units[first - 1][2] <= overlap:
      first -= 1
      kept += units[first][2]
  if not found:
    yield 0, 0


def _units(
  text: str, start: int, end: int, tokens: int, level: int, count: Count
) -> Iterator[tuple[int, int, int]]:
  """Yields (start, end, count) of the units of a level, those too long cut finer."""
  for a, b in _cuts(text, start, end, level, tokens, count):
    size = count(text[a:b])
    if size <= tokens or level > len(_ENDS):
      yield a, b, size
    else:
      yield from _units(text, a, b, tokens, level + 1, count)


def _cuts(
  text: str, start: int, end: int, level: int, tokens: int, count: Count
) -> Iterator[tuple[int, int]]:
  if level > len(_ENDS):
    yield from _prefixes(text, start, end, tokens, count)
    return
  at = start
  if BY[level] == "word":
    ends = (match.end() for match in _WORD.finditer(text, start, end))
  else:
    ends = (match.end() for match in _ENDS[BY[level]].finditer(text, start, end))
  for stop in ends:
    yield at, stop
    at = stop
  if at < end:
    yield at, end


def _prefixes(
  text: str, start: int, end: int, tokens: int, count: Count
) -> Iterator[tuple[int, int]]:
  """Cuts what has no spaces: by halving, the longest beginnings that fit."""
  while start < end:
    low, high = start + 1, end
    while low < high:
      middle = (low + high + 1) // 2
      low, high = (middle, high) if count(text[start:middle]) <= tokens else (low, middle - 1)
    yield start, low
    start = low


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
  part = text[start:end]
  start += len(part) - len(part.lstrip())
  return start, start + len(part.strip())
