"""What each character is to the signals: one table of bits over all code points.

Categories are those of the Unicode version of the running Python (`unicodedata`): letters that
a later version added are symbols to an earlier one.
"""

import functools
import unicodedata

import numpy as np

from jdc.prep.text import scripts

# The property White_Space. Python's `str.isspace` also holds U+001C to U+001F for white space.
WHITE_SPACE = (
  "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
  "\u2028\u2029\u202f\u205f\u3000"
)
ELLIPSIS = "…"
# After its closing quotes and brackets, what ends a sentence.
SENTENCE_END = scripts.SENTENCE_END + ELLIPSIS
CLOSERS = scripts.CLOSERS
# C4's period, exclamation mark, question mark and closing quotation mark, in any script.
LINE_END = SENTENCE_END + "\"'”’»›」』"
# Signs that make a line an item wherever they begin it, and those that must stand alone.
BULLETS = "•‣⁃◦▪▫●○■□▶►·・"
LONE_BULLETS = "-*+–"

SPACE = np.uint16(1)
ALPHA = np.uint16(2)  # a letter, as `str.isalpha`
WORDY = np.uint16(4)  # a letter, mark or number: what makes a word more than a symbol
UNSPACED = np.uint16(8)  # of a script without spaces, and not a mark
MARK = np.uint16(16)  # category M: belongs to the character before it
SPECIAL = np.uint16(32)  # what the scan must look at twice
ENDS_LINE = np.uint16(64)
ENDS_SENTENCE = np.uint16(128)
CLOSES = np.uint16(256)
BULLET = np.uint16(512)
LONE_BULLET = np.uint16(1024)

_SPECIAL = "#.{jJ" + ELLIPSIS
# Planes 4 to 13 are unassigned, 15 and 16 private: nothing there has a class.
_ASSIGNED = (range(0x40000), range(0xE0000, 0xE1000))
_CATEGORIES = {"L": ALPHA | WORDY, "M": WORDY | MARK, "N": WORDY}
_FOLDED = 0x800


@functools.cache
def table() -> np.ndarray:
  """Returns the classes of all code points, u16[0x110000].

  Example:
    >>> bool(table()[ord("é")] & ALPHA), bool(table()[ord("7")] & ALPHA)
    (True, False)
  """
  bits = np.zeros(0x110000, np.uint16)
  for code_points in _ASSIGNED:
    categories = [unicodedata.category(chr(code))[0] for code in code_points]
    known = np.array([_CATEGORIES.get(category, 0) for category in categories], np.uint16)
    bits[code_points.start : code_points.stop] = known
  for first, last in scripts.UNSPACED:
    part = bits[first : last + 1]
    part[(part & MARK) == 0] |= UNSPACED
  for characters, bit in (
    (WHITE_SPACE, SPACE),
    (_SPECIAL, SPECIAL),
    (LINE_END, ENDS_LINE),
    (SENTENCE_END, ENDS_SENTENCE),
    (CLOSERS, CLOSES),
    (BULLETS, BULLET),
    (LONE_BULLETS, LONE_BULLET),
  ):
    bits[[ord(character) for character in characters]] |= bit
  bits.setflags(write=False)
  return bits


@functools.cache
def lower() -> np.ndarray:
  """Returns the lower case of each code point below U+0800, u16[2048].

  A letter whose lower case is more than one character, or takes more bytes, stays as it is.
  """
  folded = [fold(chr(code)) for code in range(_FOLDED)]
  result = np.array([ord(character) for character in folded], np.uint16)
  result.setflags(write=False)
  return result


@functools.cache
def fold(character: str) -> str:
  """Returns the lower case of a character below U+0800, others as they are.

  Example:
    >>> fold("É"), fold("İ")
    ('é', 'İ')
  """
  low = character.lower()
  same = len(low) == 1 and len(low.encode()) == len(character.encode())
  return low if same and ord(character) < _FOLDED else character
