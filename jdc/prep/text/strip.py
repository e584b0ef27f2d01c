"""Parts of text that are taken out: addresses of pages, citations, lines of symbols."""

import functools
import re
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jdc.prep.jit import jit
from jdc.prep.text.buffers import map_rows
from jdc.prep.text.codepoints import decode, is_white
from jdc.prep.text.lines import join_lines, split_lines

# Non-ASCII letters are part of an address in scripts with spaces only.
_PLAIN = "A-Za-z0-9\u00c0-\u024f\u0370-\u052f%_~/?#@!$&*+=:;,.'-"
_URL = re.compile(
  r"(?<![A-Za-z0-9])(?:(?:https?|ftp)://(?=[A-Za-z0-9\u00c0-\u024f\u0370-\u052f\[])"
  rf"|www\.(?=[A-Za-z0-9-]+\.))(?:\[[0-9A-Fa-f:.]+\])?"
  rf"(?:[{_PLAIN}]|\([{_PLAIN}]*\))*(?:(?<=[A-Za-z0-9\u00c0-\u024f\u0370-\u052f%_~/#@$&*+=\])-]))",
  re.IGNORECASE,
)
_CITATION = r"\[\d*\]|\[edit\]|\[citation needed\]"


def strip_urls(text: pa.StringArray, replacement: str = "") -> pa.StringArray:
  """Replaces addresses that start with http://, https://, ftp:// or "www." and a domain.

  An address goes on to the first character that is not of RFC 3986, where brackets count in
  pairs only; full stops, commas and the like at its end stay in the text. Letters beyond ASCII
  belong to it in Latin, Greek and Cyrillic; Chinese text that follows without a space does not.

  Args:
    text: n documents.
    replacement: is put in the place of each.

  Returns:
    n documents.

  References:
    Berners-Lee et al., RFC 3986: Uniform Resource Identifier, 2005.

  Example:
    >>> strip_urls(pa.array(["See https://a.org/x_(y), ok."]), "<URL>")[0].as_py()
    'See <URL>, ok.'
  """
  rows = pc.match_substring_regex(text, r"(?i)https?://|ftp://|www\.").to_numpy(
    zero_copy_only=False
  )
  return map_rows(text, rows, lambda value: _URL.sub(lambda _: replacement, value))


def strip_citations(text: pa.StringArray) -> pa.StringArray:
  """Removes the marks that C4 takes for citations: "[12]", "[]", "[edit]", "[citation needed]".

  In program text these are indices, so the operator is for prose.

  Args:
    text: n documents.

  Returns:
    n documents.

  References:
    Raffel et al., 2020, arXiv:1910.10683; c4_utils.py of TensorFlow Datasets.

  Example:
    >>> strip_citations(pa.array(["Paris[3][citation needed] is old."]))[0].as_py()
    'Paris is old.'
  """
  rows = pc.match_substring(text, "[").to_numpy(zero_copy_only=False)
  if not rows.any():
    return text
  values = pc.replace_substring_regex(text.filter(pa.array(rows)), _CITATION, "")
  return pc.replace_with_mask(text, pa.array(rows), values)


def strip_symbol_lines(text: pa.StringArray, max_symbol_ratio: float = 0.5) -> pa.StringArray:
  """Removes lines that are mostly symbols.

  Of a line's code points other than white space, those of the categories letter, mark and
  number are no symbols. A line goes if symbols / all > `max_symbol_ratio`; one without any
  code point stays. Beyond the first plane, U+1F000 to U+1FAFF are symbols.

  Args:
    text: n documents.
    max_symbol_ratio: in [0, 1].

  Returns:
    n documents.

  Raises:
    ValueError: if the ratio is not in [0, 1].

  Example:
    >>> strip_symbol_lines(pa.array(["Title\\n=====\\n\\n* * a"]))[0].as_py()
    'Title\\n'
  """
  if not 0 <= max_symbol_ratio <= 1:
    raise ValueError(f"max_symbol_ratio must be in [0, 1], got {max_symbol_ratio}")
  lines = split_lines(text)
  symbols, others = _count_symbols(lines.data, lines.starts, lines.ends, _symbol_table())
  return join_lines(lines, symbols <= max_symbol_ratio * (symbols + others))


@functools.cache
def _symbol_table() -> np.ndarray:
  categories = (unicodedata.category(chr(code)) for code in range(1 << 16))
  return np.fromiter((category[0] not in "LMN" for category in categories), np.bool_, 1 << 16)


@jit
def _count_symbols(
  data: np.ndarray, starts: np.ndarray, ends: np.ndarray, table: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  symbols, others = np.zeros(len(starts), np.int64), np.zeros(len(starts), np.int64)
  for line in range(len(starts)):
    i = starts[line]
    while i < ends[line]:
      code, length = decode(data, i)
      i += length
      if is_white(code):
        continue
      if table[code] if code < 1 << 16 else 0x1F000 <= code < 0x1FB00:
        symbols[line] += 1
      else:
        others[line] += 1
  return symbols, others
