"""White space: one form for line breaks, spaces and blank lines."""

import numpy as np
import pyarrow as pa

from jdc.prep.jit import jit, jit_inline
from jdc.prep.text.buffers import from_buffers, to_buffers

_OTHER, _SPACE, _TAB, _LF, _CR, _BREAK, _MULTI = 0, 1, 2, 3, 4, 5, 6
_KIND = np.zeros(256, np.uint8)
_KIND[ord(" ")], _KIND[ord("\t")], _KIND[ord("\n")], _KIND[ord("\r")] = _SPACE, _TAB, _LF, _CR
_KIND[[0x0B, 0x0C]] = _BREAK
_KIND[[0xC2, 0xE1, 0xE2, 0xE3]] = _MULTI


def normalize_whitespace(
  text: pa.StringArray,
  max_blank_lines: int = 1,
  strip: bool = True,
  keep_indent: bool = True,
) -> pa.StringArray:
  r"""Brings white space, the characters with Unicode's property White_Space, into one form.

  A line ends with "\n": so become "\r\n", "\r", U+000B, U+000C, U+0085, U+2028 and U+2029. In a
  line a run of other white space becomes one space; before its first word each of them becomes
  a space and tabs stay, so that program text keeps its meaning. None stays at the end of a
  line. Of b blank lines in a row min(b, max_blank_lines) stay. The result is a fixed point.

  Args:
    text: n documents.
    max_blank_lines: at least 0.
    strip: no white space at the start and end of a document.
    keep_indent: False removes white space at the start of lines.

  Returns:
    n documents.

  Raises:
    ValueError: if `max_blank_lines` is negative.

  References:
    The Unicode Consortium, Unicode Character Database, PropList.txt (White_Space).

  Example:
    >>> normalize_whitespace(pa.array(["a \u00a0b\r\n\r\n\r\n\tc  "]))[0].as_py()
    'a b\n\n\tc'
  """
  if max_blank_lines < 0:
    raise ValueError(f"max_blank_lines must be at least 0, got {max_blank_lines}")
  offsets, data = to_buffers(text)
  out = np.empty(offsets[-1] - offsets[0], np.uint8)
  out_offsets = _normalize(data, offsets, out, max_blank_lines, strip, keep_indent, _KIND)
  return from_buffers(out_offsets, out)


@jit_inline
def _multi_byte(data: np.ndarray, i: int, end: int) -> tuple[int, int]:
  """Returns (kind, length) of what starts with a byte that white space may start with."""
  first, second = data[i], data[i + 1]
  if first == 0xC2:
    if second == 0x85:
      return _BREAK, 2
    return (_SPACE, 2) if second == 0xA0 else (_OTHER, 2)
  third = data[i + 2]
  if first == 0xE2 and second == 0x80:
    if third == 0xA8 or third == 0xA9:
      return _BREAK, 3
    return (_SPACE, 3) if third <= 0x8A or third == 0xAF else (_OTHER, 3)
  found = (
    (first == 0xE2 and second == 0x81 and third == 0x9F)
    or (first == 0xE3 and second == 0x80 and third == 0x80)
    or (first == 0xE1 and second == 0x9A and third == 0x80)
  )
  return (_SPACE, 3) if found else (_OTHER, 3)


@jit
def _normalize(
  data: np.ndarray,
  offsets: np.ndarray,
  out: np.ndarray,
  max_blank: int,
  strip: bool,
  keep_indent: bool,
  kinds: np.ndarray,
) -> np.ndarray:
  out_offsets = np.zeros(len(offsets), np.int64)
  at = 0
  for row in range(len(offsets) - 1):
    start, end = offsets[row], offsets[row + 1]
    if _is_normal(data[start:end], max_blank):
      out[at : at + end - start] = data[start:end]
      at += end - start
    else:
      at = _normalize_row(data, start, end, out, at, max_blank, strip, keep_indent, kinds)
    out_offsets[row + 1] = at
  return out_offsets


@jit
def _is_normal(text: np.ndarray, max_blank: int) -> bool:
  """Whether a text is surely in the form already, in steps that the compiler does 32 at a time.

  It has no white space but U+0020 and LF, nor bytes that others start with; a space stands
  between words; there are at most two LF in a row, or one if there may be no blank line.
  """
  last = len(text) - 1
  if last < 3 or text[0] <= 32 or text[last] <= 32:
    return False
  found = np.uint8(0)
  for i in range(1, last):
    byte, after = text[i], text[i + 1]
    line, white = byte == 10, (byte == 10) | (byte == 32)
    other = (byte >= 9) & (byte <= 13) & (byte != 10)
    other |= (byte == 0xC2) | ((byte >= 0xE1) & (byte <= 0xE3))
    third = line & (after == 10) & ((text[i - 1] == 10) | (max_blank == 0))
    pair = (white & (after == 32)) | ((byte == 32) & (after == 10))
    found |= np.uint8(other | third | pair)
  return text[0] < 0x80 and found == 0


@jit
def _normalize_row(
  data: np.ndarray,
  i: int,
  end: int,
  out: np.ndarray,
  start: int,
  max_blank: int,
  strip: bool,
  keep_indent: bool,
  kinds: np.ndarray,
) -> int:
  at = line = start  # the next byte, and the first of its line
  blank = 0
  has_words = pending = False
  while i < end:
    byte = data[i]
    kind, length = kinds[byte], 1
    if kind == _OTHER:
      if pending:
        out[at] = 32
        at += 1
        pending = False
      out[at] = byte
      at += 1
      i += 1
      has_words = True
      continue
    if kind == _MULTI:
      kind, length = _multi_byte(data, i, end)
    elif kind == _CR and i + 1 < end and data[i + 1] == 10:
      length = 2
    if kind == _OTHER:
      if pending:
        out[at] = 32
        at += 1
        pending = False
      for k in range(length):
        out[at + k] = data[i + k]
      at += length
      has_words = True
    elif kind <= _TAB:
      if has_words:
        pending = True
      elif keep_indent and not (strip and line == start):
        out[at] = 9 if kind == _TAB else 32
        at += 1
    else:
      if has_words:
        blank = 0
      else:
        at = line
        blank += 1
      if has_words or (blank <= max_blank and not (strip and at == start)):
        out[at] = 10
        at += 1
      line = at
      has_words = pending = False
    i += length
  if not has_words:
    at = line
  while strip and at > start and out[at - 1] == 10:
    at -= 1
  return at
