"""Code points in UTF-8 bytes, for compiled loops."""

import numpy as np

from jdc.prep.jit import jit
from jdc.prep.text.scripts import UNSPACED

_RANGES = np.array(UNSPACED, np.int64)


@jit
def decode(data: np.ndarray, i: int) -> tuple[np.int64, int]:
  """Returns (code point, bytes) of the character that starts at byte i of valid UTF-8."""
  byte = np.int64(data[i])
  if byte < 0x80:
    return byte, 1
  if byte < 0xE0:
    return (byte & 0x1F) << 6 | np.int64(data[i + 1] & 0x3F), 2
  if byte < 0xF0:
    code = (byte & 0x0F) << 12 | np.int64(data[i + 1] & 0x3F) << 6
    return code | np.int64(data[i + 2] & 0x3F), 3
  code = (byte & 0x07) << 18 | np.int64(data[i + 1] & 0x3F) << 12
  return code | np.int64(data[i + 2] & 0x3F) << 6 | np.int64(data[i + 3] & 0x3F), 4


@jit
def is_plain(text: np.ndarray) -> bool:
  """Whether all of u8[n] is ASCII without controls but TAB to CR; many bytes are one step."""
  odd = np.uint8(0)
  for byte in text:
    odd |= np.uint8((byte > 126) | ((byte < 32) & ((byte < 9) | (byte > 13))))
  return odd == 0


@jit
def is_white(code: np.int64) -> bool:
  """Whether a code point has Unicode's property White_Space."""
  if code <= 0x20:
    return bool(code == 0x20 or 9 <= code <= 13)
  if code < 0x1680:
    return bool(code == 0x85 or code == 0xA0)
  if code == 0x1680 or 0x2000 <= code <= 0x200A or code == 0x2028 or code == 0x2029:
    return True
  return bool(code == 0x202F or code == 0x205F or code == 0x3000)


@jit
def is_unspaced(code: np.int64) -> bool:
  """Whether a code point is of a script without spaces (`scripts.UNSPACED`)."""
  if code < 0x0E00:
    return False
  for k in range(len(_RANGES)):
    if code < _RANGES[k, 0]:
      return False
    if code <= _RANGES[k, 1]:
      return True
  return False
