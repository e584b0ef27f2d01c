"""Removes lines or paragraphs that recur all over a corpus: menus, notices, licence headers."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from jdc.prep.kernels.lines import keep_lines, line_hashes
from jdc.prep.text.buffers import from_buffers, to_buffers

Unit = Literal["line", "paragraph"]
_UNITS = ("line", "paragraph")


class LineCounts(NamedTuple):
  """How often each line occurs: 16 bytes for each that is distinct.

  Attributes:
    line: u64[L], hashes, ascending.
    times: i64[L].
  """

  line: np.ndarray
  times: np.ndarray


def count_lines(text: pa.StringArray, *, unit: Unit = "line") -> LineCounts:
  """Returns how often each line that is not blank occurs, within documents and among them.

  Lines end at a newline. They are told apart by a 64-bit hash of their bytes, without ASCII
  white space at the ends: of N distinct lines some two are taken for one with a probability
  below N^2 / 2^65. A paragraph is a run of lines that are not blank.

  Args:
    text: n documents.
    unit: what is counted, `line` or `paragraph`.

  Raises:
    ValueError: for another unit; if `text` is no array of strings, or has nulls.

  Example:
    >>> count_lines(pa.array(["Home\\nA fig.\\n\\nHome", "Home "])).times.tolist()
    [3, 1]
  """
  hashes, first, _ = _hash(text, unit)
  return LineCounts(*np.unique(hashes[first & (hashes != 0)], return_counts=True))


def merge(parts: Sequence[LineCounts]) -> LineCounts:
  """Returns the sum of some counts; their order does not matter.

  Example:
    >>> one = count_lines(pa.array(["Home", "A fig."]))
    >>> merge([one, one]).times.tolist()
    [2, 2]
  """
  lines = np.concatenate([np.zeros(0, np.uint64), *(part.line for part in parts)])
  counts = np.concatenate([np.zeros(0, np.int64), *(part.times for part in parts)])
  line, place = np.unique(lines, return_inverse=True)
  total = np.zeros(len(line), np.int64)
  np.add.at(total, place, counts)
  return LineCounts(line, total)


def frequent(
  parts: Sequence[LineCounts], *, min_count: int = 6, max_bytes: int = 1 << 28
) -> np.ndarray:
  """Returns the lines that occur often in all parts together, u64[F], ascending.

  Memory: about `max_bytes`, besides the parts, which may be memory maps, and 8 bytes for each
  line that is returned. Hashes are summed in ranges, so many that each fits.

  Args:
    parts: of `count_lines` or `merge`, in any order.
    min_count: occurrences from which on a line is returned, 2 or more.
    max_bytes: of one range.

  Raises:
    ValueError: if `min_count` or `max_bytes` is out of range.

  Example:
    >>> counts = count_lines(pa.array(["Home\\nfig"] * 6))
    >>> len(frequent([counts])), len(frequent([counts], min_count=7))
    (2, 0)
  """
  problems = [] if min_count >= 2 else [f"min_count must be 2 or more, got {min_count}"]
  if max_bytes < 1 << 20:
    problems.append(f"max_bytes must be 2^20 or more, got {max_bytes}")
  if problems:
    raise ValueError("; ".join(problems))
  found = (part.line[part.times >= min_count] for part in _ranges(parts, max_bytes))
  return np.concatenate([np.zeros(0, np.uint64), *found])


def drop_lines(
  text: pa.StringArray, lines: np.ndarray, *, unit: Unit = "line"
) -> tuple[pa.StringArray, np.ndarray]:
  r"""Returns documents without some lines, and how many of each went.

  What is left is joined by newlines: "\n".join(line for line in text.split("\n") if it stays).
  All occurrences go, the first one too, so that nothing depends on the order of documents.
  Blank lines stay. In source code lines such as `else:` recur as well: leave it out.

  Args:
    text: n documents.
    lines: u64[F], ascending, of `frequent` with the same unit.
    unit: as in `count_lines`; of a paragraph all lines go.

  Returns:
    The documents, and i32[n], lines dropped.

  Raises:
    ValueError: as `count_lines`.

  References:
    After the line-wise rules of Penedo et al., "The RefinedWeb Dataset for Falcon LLM", 2023,
      arXiv:2306.01116, and Wenzek et al., "CCNet", 2019, arXiv:1911.00359. The latter keeps
      the first occurrence.

  Example:
    >>> menus = pa.array([f"Home\n{i} figs." for i in range(6)])
    >>> drop_lines(menus, frequent([count_lines(menus)]))[0][2].as_py()
    '2 figs.'
  """
  hashes, _, starts = _hash(text, unit)
  place = np.searchsorted(lines, hashes)
  keep = np.ones(len(hashes), bool)
  inside = place < len(lines)
  keep[inside] = lines[place[inside]] != hashes[inside]
  dropped = np.diff(np.concatenate([[0], np.cumsum(~keep)])[starts]).astype(np.int32)
  if not dropped.any():
    return text, dropped
  return from_buffers(*keep_lines(*to_buffers(text), starts, keep)), dropped


def _hash(text: pa.StringArray, unit: Unit) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  if unit not in _UNITS:
    raise ValueError(f"unit must be {' or '.join(map(repr, _UNITS))}, got {unit!r}")
  return line_hashes(*to_buffers(text), unit == "paragraph")


def _ranges(parts: Sequence[LineCounts], max_bytes: int) -> Iterator[LineCounts]:
  """Yields the sums of the parts in ascending ranges of hashes."""
  # Sums take about five times the 16 bytes of a line; hashes are spread evenly.
  ranges = sum(len(part.line) for part in parts) * 80 // max_bytes + 1
  # The first has no lower bound and the last no upper one.
  bounds = [np.uint64((i << 64) // ranges) for i in range(1, ranges)]
  places = [[0, *np.searchsorted(part.line, bounds), len(part.line)] for part in parts]
  for i in range(ranges):
    yield merge(
      [
        LineCounts(part.line[place[i] : place[i + 1]], part.times[place[i] : place[i + 1]])
        for part, place in zip(parts, places, strict=True)
      ]
    )
