"""UTF-8 that was read as a one-byte encoding: which documents may hold any, and its repair."""

import functools
from typing import Any

import numpy as np

from jdc.prep.jit import jit
from jdc.prep.text.codepoints import is_plain

# The encodings that ftfy tries; those in one group share a bit of the tables.
_GROUPS = (
  ("latin-1", "cp1252", "cp1254"),
  ("cp1251",),
  ("cp1250", "iso-8859-2"),
  ("cp1253",),
  ("cp1257",),
  ("mac_roman",),
  ("cp437",),
)
_SPACES = (0, 2, 4)  # groups in which a space may stand for U+00A0
_SIZE = 0x2600  # no encoding of these has a character beyond, save the two ligatures
_REPLACEMENT = 0xFFFD


def fix_mojibake(text: str) -> str:
  """Returns the text with each line that is suspect read again as ftfy finds it right.

  Example:
    >>> fix_mojibake("donâ€™t, cafÃ©")
    'don’t, café'
  """
  import ftfy

  lines = text.split("\n")
  encoded = [line.encode() for line in lines]
  offsets = np.cumsum([0, *map(len, encoded)])
  found = suspects(np.frombuffer(b"".join(encoded), np.uint8), offsets)
  for k in np.flatnonzero(found).tolist():
    lines[k] = ftfy.fix_encoding(lines[k])
  return "\n".join(lines)


def suspects(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
  """Returns bool[n], False where no document can hold UTF-8 read as a one-byte encoding.

  Such text holds, for some encoding, a character whose byte starts a sequence of UTF-8 and
  then the one or more of its continuation. A lost byte of it may stand as U+001A or U+FFFD,
  and in the encodings of Latin letters save those of Mac and DOS, as "?" or a space (for
  U+00A0); in others capitals before a space are too frequent. C1 controls are suspect alone.
  """
  return _scan(data, offsets, *_tables())


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Returns bits u8[_SIZE] of the groups in which a character starts 2 bytes, 3 or 4, goes on;
  and of those in which it starts 2 bytes whose second may have become a space."""
  pairs, longer, going_on, lossy = (np.zeros(_SIZE, np.uint8) for _ in range(4))
  for bit, group in enumerate(_GROUPS):
    for encoding in group:
      for byte in range(0x80, 0xF5):
        # Bytes that an encoding leaves open are read as Latin-1.
        char = bytes([byte]).decode(encoding, "ignore") or chr(byte)
        if ord(char) >= _SIZE:
          continue
        table = going_on if byte < 0xC0 else pairs if byte < 0xE0 else longer
        table[ord(char)] |= 1 << bit
        if bit in _SPACES and byte in (0xC2, 0xC3, 0xC5, 0xCE, 0xD0, 0xD9):
          lossy[ord(char)] |= 1 << bit
  return pairs, longer, going_on, lossy


@jit
def _scan(
  data: np.ndarray,
  offsets: np.ndarray,
  pairs: np.ndarray,
  longer: np.ndarray,
  going_on: np.ndarray,
  lossy: np.ndarray,
) -> np.ndarray:
  found = np.zeros(len(offsets) - 1, np.bool_)
  for row in range(len(offsets) - 1):
    i, end = offsets[row], offsets[row + 1]
    if is_plain(data[i:end]):
      continue
    # Of the encodings in which what stands before is the start of 2 bytes, of more, the first
    # two of more, and a start that may be followed by a space.
    two: Any = 0
    more: Any = 0
    more_two: Any = 0
    lost: Any = 0
    while i < end:
      byte = np.int64(data[i])
      if byte < 0x80:
        if two | more | more_two | lost:
          space = byte == 0x20 or byte == 0x3F
          if (space and (lost | more_two)) or (byte == 0x1A and (two | more_two)):
            found[row] = True
            break
          more_two = more if space or byte == 0x1A else 0
          two = more = lost = 0
        i += 1
        continue
      if byte < 0xE0:
        code = (byte & 0x1F) << 6 | np.int64(data[i + 1] & 0x3F)
        i += 2
      elif byte < 0xF0:
        code = (byte & 0x0F) << 12 | np.int64(data[i + 1] & 0x3F) << 6
        code |= np.int64(data[i + 2] & 0x3F)
        i += 3
      else:
        code = np.int64(1 << 16)
        i += 4
      on: Any = 0
      if code == _REPLACEMENT:
        on = 0xFF
      elif code < _SIZE:
        on = np.int64(going_on[code])
      if (code < 0xA0) or (two & on) or (more_two & on):
        found[row] = True
        break
      more_two = more & on
      if code < _SIZE:
        two, more, lost = np.int64(pairs[code]), np.int64(longer[code]), np.int64(lossy[code])
      else:
        two = more = lost = 0
  return found
