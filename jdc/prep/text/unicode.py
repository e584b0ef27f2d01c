"""Repair of Unicode: wrong decodings, normal form, characters that carry no text."""

import functools
import re
import unicodedata
from typing import Literal

import numpy as np
import pyarrow as pa

from jdc.prep.jit import jit
from jdc.prep.text.buffers import map_rows, to_buffers
from jdc.prep.text.codepoints import is_plain
from jdc.prep.text.mojibake import fix_mojibake, suspects

Form = Literal["NFC", "NFKC", "NFD", "NFKD"]
FORMS = ("NFC", "NFKC", "NFD", "NFKD")

_DROP, _UNSAFE = 1, 2
_ESCAPE = "\x1b\\[[0-?]*[ -/]*[@-~]"
_CONTROLS = "\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u2060\ufeff\ufdd0-\ufdef" + "".join(
  chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF)
)
# U+200B marks words in Thai, Lao, Burmese and Khmer.
_MARKED = "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
_DROPPED = re.compile(f"{_ESCAPE}|[{_CONTROLS}]|(?<!{_MARKED})\u200b(?!{_MARKED})")


def fix_unicode(
  text: pa.StringArray,
  form: Form = "NFC",
  mojibake: bool = True,
  drop_controls: bool = True,
) -> pa.StringArray:
  r"""Repairs text that was decoded wrongly, normalises it and drops what carries no text.

  - `mojibake`: UTF-8 that was read as a one-byte encoding ("â€™" for "’"), once or more often,
    is read again, line by line, where ftfy's test finds the line unlikely; C1 controls are read
    as Windows-1252, as browsers do.
  - `drop_controls` removes: code points of category Cc that are no white space, with ANSI
    escape sequences whole; noncharacters; the soft hyphen, the word joiner and U+FEFF; and
    U+200B save next to Thai, Lao, Burmese and Khmer, where it separates words. Joiners and
    marks of direction stay: other scripts need them.
  - `form` is Unicode's normal form.

  The steps are repeated until nothing changes, so that the result is a fixed point. Documents
  in which a scan of the bytes finds nothing to do are not touched.

  Args:
    text: n documents.
    form: "NFC", "NFKC", "NFD" or "NFKD"; those with K also change ligatures, widths and signs.
    mojibake: whether to read again.
    drop_controls: whether to remove.

  Returns:
    n documents.

  Raises:
    ValueError: if the form is unknown.

  References:
    Speer, ftfy, 2019, doi:10.5281/zenodo.2591652; WHATWG, Encoding Standard, windows-1252;
    The Unicode Consortium, Unicode Standard Annex 15: Unicode Normalization Forms.

  Example:
    >>> fix_unicode(pa.array(["donâ€™t \x00stop", "cafe\u0301"])).to_pylist()
    ['don’t stop', 'café']
  """
  if form not in FORMS:
    raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
  offsets, data = to_buffers(text)
  wanted = _UNSAFE | (_DROP if drop_controls else 0)
  rows = (_flags(data, offsets, _table(form)) & wanted) != 0
  if mojibake:
    rows |= suspects(data, offsets)
  return map_rows(text, rows, lambda value: _fix(value, form, mojibake, drop_controls))


def _fix(text: str, form: Form, mojibake: bool, drop_controls: bool) -> str:
  while True:
    before = text
    if mojibake:
      text = fix_mojibake(text)
    if drop_controls:
      text = _DROPPED.sub("", text)
    text = unicodedata.normalize(form, text)
    if text == before:
      return text


@functools.cache
def _table(form: Form) -> np.ndarray:
  """Returns u8[65536], what may have to be done about each code point of the first plane.

  A text is in the form if none of its code points decomposes in it, is reordered (combining
  class not 0) or composes with the one before.
  """
  table = np.zeros(1 << 16, np.uint8)
  for code in range(1 << 16):
    if 0xD800 <= code < 0xE000:
      continue
    char = chr(code)
    if _DROPPED.fullmatch(char):
      table[code] |= _DROP
    if unicodedata.combining(char) or not unicodedata.is_normalized(form, char):
      table[code] |= _UNSAFE
    parts = unicodedata.decomposition(char).split()
    if len(parts) == 2 and not parts[0].startswith("<"):
      table[int(parts[1], 16)] |= _UNSAFE
  table[0x1161:0x1176] |= _UNSAFE  # vowels and final consonants of Hangul compose by rule
  table[0x11A8:0x11C3] |= _UNSAFE
  return table


@jit
def _flags(data: np.ndarray, offsets: np.ndarray, table: np.ndarray) -> np.ndarray:
  """Returns u8[n]: the bits of `table` over the code points of each document."""
  flags = np.zeros(len(offsets) - 1, np.uint8)
  for row in range(len(offsets) - 1):
    i, end, found = offsets[row], offsets[row + 1], 0
    if is_plain(data[i:end]):
      continue
    while i < end:
      byte = np.int64(data[i])
      if byte < 0x80:
        found |= table[byte]
        i += 1
      elif byte < 0xE0:
        found |= table[(byte & 0x1F) << 6 | data[i + 1] & 0x3F]
        i += 2
      elif byte < 0xF0:
        found |= table[
          (byte & 0x0F) << 12 | np.int64(data[i + 1] & 0x3F) << 6 | data[i + 2] & 0x3F
        ]
        i += 3
      else:
        code = (byte & 0x07) << 18 | np.int64(data[i + 1] & 0x3F) << 12
        code |= np.int64(data[i + 2] & 0x3F) << 6 | data[i + 3] & 0x3F
        if code & 0xFFFE == 0xFFFE:
          found |= _DROP
        # Musical signs, scripts of the second plane that combine, compatibility ideographs.
        if 0x10000 <= code < 0x1F000 or 0x1F100 <= code < 0x1F300 or 0x1FBF0 <= code < 0x20000:
          found |= _UNSAFE
        if 0x2F800 <= code < 0x2FA20:
          found |= _UNSAFE
        i += 4
    flags[row] = found
  return flags
