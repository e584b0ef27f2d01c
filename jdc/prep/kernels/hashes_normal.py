"""Case-folded text with single spaces, which exact duplicates are told by."""

from typing import Any

import numpy as np

from jdc.prep.jit import jit
from jdc.prep.kernels.hashes import CODE, KIND, SPACE, decode, entry


@jit
def normal_text(
  offsets: np.ndarray, data: np.ndarray, fold: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (offsets i64[n+1], bytes u8[m]) of the texts, case-folded, with single spaces.

  White space at the ends goes. A folded letter may take a byte more than it did.
  """
  count = len(offsets) - 1
  new_offsets = np.zeros(count + 1, np.int64)
  out = np.empty((offsets[-1] - offsets[0]) * 3 // 2 + 4, np.uint8)
  plain = np.empty(128, np.uint8)
  for k in range(128):
    plain[k] = 32 if fold[k] >> KIND == SPACE else fold[k] & CODE
  code: Any
  space: Any
  end: Any = np.int64(0)
  for n in range(count):
    i, stop, begin, space = offsets[n], offsets[n + 1], end, False
    if _is_ascii(data[i:stop]):
      end = _fold_ascii(data[i:stop], plain, out, end)
      i = stop
    while i < stop:
      code, size = np.int64(data[i]), 1
      if code >= 128:
        code, size = decode(data, i, stop)
      i += size
      value = entry(fold, code)
      if value >> KIND == SPACE:
        space = end > begin
        continue
      if space:
        out[end] = 32
        end += 1
        space = False
      if code < len(fold):
        code = np.int64(value & CODE)
      end = encode(out, end, code)
    new_offsets[n + 1] = end
  return new_offsets, out[:end]


@jit
def _is_ascii(text: np.ndarray) -> bool:
  found = np.uint8(0)
  for byte in text:
    found |= byte
  return bool(found < 128)


@jit
def _fold_ascii(text: np.ndarray, plain: np.ndarray, out: np.ndarray, end: int) -> int:
  """Writes the folded text to out[end:], without a branch; returns where it ends."""
  begin, last = end, np.uint8(32)
  for byte in text:
    folded = plain[byte]
    out[end] = folded
    end += (folded != 32) | (last != 32)
    last = folded
  return end - (last == 32 and end > begin)


@jit
def encode(out: np.ndarray, end: int, code: int) -> int:
  """Writes a code point as UTF-8 to out[end:]; returns the end of what it wrote."""
  if code < 0x80:
    out[end] = code
    return end + 1
  if code < 0x800:
    out[end] = 0xC0 | code >> 6
  elif code < 0x10000:
    out[end] = 0xE0 | code >> 12
  else:
    out[end] = 0xF0 | code >> 18
    end += 1
    out[end] = 0x80 | code >> 12 & 63
  if code >= 0x800:
    end += 1
    out[end] = 0x80 | code >> 6 & 63
  out[end + 1] = 0x80 | code & 63
  return end + 2
