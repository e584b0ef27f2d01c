"""Hashes of lines or paragraphs, and text without some of its lines."""

import numpy as np

from jdc.prep.jit import jit
from jdc.prep.kernels.hashes import BASE, PRIME, SEED, mix


@jit
def line_hashes(
  offsets: np.ndarray, data: np.ndarray, paragraphs: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns what each line is counted as, one text after another.

  Returns:
    u64[L], a hash of the line, or of its paragraph, without white space at the ends of lines;
    0 for a blank line. bool[L], whether the paragraph starts there; true for single lines.
    i64[n + 1], where the lines of each text start.
  """
  count = len(offsets) - 1
  starts = np.zeros(count + 1, np.int64)
  for n in range(count):
    lines = 1
    for i in range(offsets[n], offsets[n + 1]):
      lines += data[i] == 10
    starts[n + 1] = starts[n] + lines
  hashes = np.zeros(starts[count], np.uint64)
  first = np.ones(starts[count], np.bool_)
  for n in range(count):
    i, end, line = offsets[n], offsets[n + 1], starts[n]
    while line < starts[n + 1]:
      stop = i
      while stop < end and data[stop] != 10:
        stop += 1
      hashes[line] = _line_hash(data, i, stop)
      i, line = stop + 1, line + 1
    if paragraphs:
      _join_lines(hashes[starts[n] : starts[n + 1]], first[starts[n] : starts[n + 1]])
  return hashes, first, starts


@jit
def _line_hash(data: np.ndarray, start: int, end: int) -> np.uint64:
  while start < end and _blank(data[start]):
    start += 1
  while end > start and _blank(data[end - 1]):
    end -= 1
  if start == end:
    return np.uint64(0)
  h = SEED
  for i in range(start, end):
    h = (h ^ np.uint64(data[i])) * PRIME
  return max(mix(h), np.uint64(1))


@jit
def _blank(byte: int) -> bool:
  return byte == 32 or 9 <= byte <= 13


@jit
def _join_lines(hashes: np.ndarray, first: np.ndarray) -> None:
  start = 0
  while start < len(hashes):
    end, h = start, SEED
    while end < len(hashes) and hashes[end] != 0:
      h = h * BASE + hashes[end]
      first[end] = end == start
      end += 1
    for line in range(start, end):
      hashes[line] = max(mix(h), np.uint64(1))
    start = end + 1


@jit
def keep_lines(
  offsets: np.ndarray, data: np.ndarray, starts: np.ndarray, keep: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (offsets i64[n+1], bytes u8[m]) of the texts' lines where keep bool[L] is true."""
  count = len(offsets) - 1
  out = np.empty(offsets[-1] - offsets[0], np.uint8)
  new_offsets, end = np.zeros(count + 1, np.int64), np.int64(0)
  for n in range(count):
    start, some = offsets[n], False
    for line in range(starts[n], starts[n + 1]):
      stop = start
      while stop < offsets[n + 1] and data[stop] != 10:
        stop += 1
      if keep[line]:
        if some:
          out[end] = 10
          end += 1
        out[end : end + stop - start] = data[start:stop]
        end, some = end + stop - start, True
      start = stop + 1
    new_offsets[n + 1] = end
  return new_offsets, out[:end]
