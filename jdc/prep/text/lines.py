"""Documents as lines, and the documents of those that are kept."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jdc.prep.jit import jit
from jdc.prep.text.buffers import from_buffers, to_buffers


class Lines(NamedTuple):
  """All m lines of n documents, without their line breaks; only U+000A breaks a line."""

  data: np.ndarray  # u8, of all documents
  starts: np.ndarray  # i64[m], of each line in `data`
  ends: np.ndarray  # i64[m]
  first: np.ndarray  # i64[n+1], document i has the lines first[i] to first[i+1]


def split_lines(text: pa.StringArray) -> Lines:
  """Returns the lines of documents; an empty document has one empty line.

  Example:
    >>> lines = split_lines(pa.array(["ab\\nc", ""]))
    >>> lines.starts.tolist(), lines.ends.tolist(), lines.first.tolist()
    ([0, 3, 4], [2, 4, 4], [0, 2, 3])
  """
  offsets, data = to_buffers(text)
  window = data[offsets[0] : offsets[-1]]
  breaks = np.flatnonzero(window == 10) + offsets[0]
  counts = np.searchsorted(breaks, offsets)
  first = counts - counts[0] + np.arange(len(offsets))
  starts, ends = np.empty(first[-1], np.int64), np.empty(first[-1], np.int64)
  _fill(offsets, breaks, first, starts, ends)
  return Lines(data, starts, ends, first)


def join_lines(lines: Lines, keep: np.ndarray) -> pa.StringArray:
  """Returns the documents of the lines for which `keep` (bool[m]) is true, joined by U+000A.

  Example:
    >>> lines = split_lines(pa.array(["a\\nb\\nc"]))
    >>> join_lines(lines, np.array([True, False, True]))[0].as_py()
    'a\\nc'
  """
  total = int(np.sum((lines.ends - lines.starts + 1)[keep]))
  out = np.empty(total, np.uint8)
  return from_buffers(_join(*lines, keep, out), out)


@jit
def _fill(
  offsets: np.ndarray,
  breaks: np.ndarray,
  first: np.ndarray,
  starts: np.ndarray,
  ends: np.ndarray,
) -> None:
  for row in range(len(offsets) - 1):
    at = offsets[row]
    for line in range(first[row], first[row + 1] - 1):
      starts[line] = at
      # Before line `line` of document `row` stand `line - row` breaks.
      ends[line] = breaks[line - row]
      at = ends[line] + 1
    starts[first[row + 1] - 1], ends[first[row + 1] - 1] = at, offsets[row + 1]


@jit
def _join(
  data: np.ndarray,
  starts: np.ndarray,
  ends: np.ndarray,
  first: np.ndarray,
  keep: np.ndarray,
  out: np.ndarray,
) -> np.ndarray:
  offsets = np.zeros(len(first), np.int64)
  at = 0
  for row in range(len(first) - 1):
    follows = False
    for line in range(first[row], first[row + 1]):
      if keep[line]:
        if follows:
          out[at] = 10
          at += 1
        follows = True
        size = ends[line] - starts[line]
        out[at : at + size] = data[starts[line] : ends[line]]
        at += size
    offsets[row + 1] = at
  return offsets
