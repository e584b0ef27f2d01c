"""Length buckets: rows of like lengths are computed together, in chunks of few shapes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

_MULTIPLE = 8  # lengths are rounded up to it
_MAX_CUTS = 512  # places among the sorted rows where a bucket may end
_COMPILATION = 1 << 16  # positions that take about as long as the compilation of a shape
_SWEEPS = 8  # of samples, for which a shape is compiled once
_MAX_PADDING = 0.08  # of sweeps that take longer than a compilation
_SMALLEST = 16  # the smallest such chunk is this part of a batch


class Shape(NamedTuple):
  """Of the inputs of a chunk."""

  rows: int
  length: int


class Chunk(NamedTuple):
  """Rows that are computed together."""

  place_B: np.ndarray  # i64[B], of each row in the sweep; -1, which comes last, is padding
  length: int  # positions of each row

  @property
  def place_n(self) -> np.ndarray:
    """Returns the places without padding."""
    return self.place_B[: np.count_nonzero(self.place_B >= 0)]

  @property
  def num_positions(self) -> int:
    """Returns the positions that are computed."""
    return len(self.place_B) * self.length

  def ids(self, ids_C: np.ndarray) -> np.ndarray:
    """Returns the ids of the rows, -1 for padding, of those of the sweep."""
    return np.where(self.place_B >= 0, ids_C[self.place_B], -1)


def buckets(
  lengths_C: np.ndarray,
  batch_size: int,
  num_shards: int,
  sequence_length: int,
  max_shapes: int = 16,
  compilation: float = _COMPILATION,
) -> list[Chunk]:
  """Splits the rows of a sweep into chunks of at most `max_shapes` shapes, longest rows first.

  The rows, longest first, are cut into buckets of n_b rows. Bucket b has the length L_b of its
  longest row, rounded up to a multiple of 8, and m_b = ceil(n_b / R_b) chunks, each of the
  fewest rows r_b <= R_b that suffice, where r_b is a multiple of the shards and

    R_b L_b <= batch_size * sequence_length.

  The cuts minimise the positions that are computed, sum_b m_b r_b L_b, by dynamic programming;
  a further bucket must save what its compilation takes, or bring padding down to 8 % of a
  sweep that takes longer than that. Of many rows, the cuts are among 512 places.

  Args:
    lengths_C: i64[C], input positions of each row.
    batch_size: full rows that fit a chunk, a multiple of `num_shards`.
    num_shards: among how many devices the rows of a chunk are split.
    sequence_length: the longest that a row may be.
    max_shapes: how many shapes there may be.
    compilation: positions that take about as long as the compilation of a shape.

  Returns:
    The chunks; each place occurs once.

  Raises:
    ValueError: if a number is out of range, listing all.

  Example:
    >>> chunks = buckets(np.array([9, 30, 8, 32, 7, 10, 6]), 2, 1, 32, compilation=0)
    >>> [(chunk.length, chunk.place_B.tolist()) for chunk in chunks]
    [(32, [3, 1]), (16, [5, 0]), (8, [2, 4, 6])]
  """
  limits = _Limits(batch_size, num_shards, sequence_length, max_shapes)
  _check(lengths_C, limits)
  if not len(lengths_C):
    return []
  order_C = np.argsort(-lengths_C, kind="stable")
  rounded_C = _rounded(lengths_C[order_C], sequence_length)
  found = _exact_buckets(rounded_C, limits, float(np.sum(lengths_C)), compilation)
  return [
    _chunk(order_C[start : min(start + shape.rows, bucket_end)], shape)
    for bucket_start, bucket_end, shape in found
    for start in range(bucket_start, bucket_end, shape.rows)
  ]


def sample_shapes(
  lengths_N: np.ndarray,
  num_rows: int,
  batch_size: int,
  num_shards: int,
  sequence_length: int,
  max_shapes: int = 16,
) -> tuple[Shape, ...]:
  """Returns the shapes by which samples of a pool are swept, longest first.

  They depend on the pool alone and on the size of the samples up to a power of two, so that
  later samples compile nothing. Where in a bucket a sample's chunks begin is chance: of the
  rows after the end of bucket b, half a chunk is computed at its length. The shapes minimise

    sum_b n_b L_b + (R_b / 2) (L_b - L_{b+1}),

  n_b being the rows of bucket b that are expected. Where this leaves more than 8 % padding,
  chunks have a half, a quarter, ..., a sixteenth of the positions. A sample of no more rows
  than a batch is one chunk of full length.

  Args:
    lengths_N: i64[N], input positions of each row of the pool.
    num_rows: of a sample.
    batch_size, num_shards, sequence_length, max_shapes: as of `buckets`.

  Raises:
    ValueError: if a number is out of range, listing all.
  """
  limits = _Limits(batch_size, num_shards, sequence_length, max_shapes)
  _check(lengths_N, limits)
  if num_rows <= batch_size:
    return (Shape(batch_size, sequence_length),)
  num_rows = 1 << (num_rows - 1).bit_length()
  count = min(num_rows, _MAX_CUTS)
  quantiles = np.sort(lengths_N)[::-1][np.arange(count) * len(lengths_N) // count]
  length_n = _rounded(quantiles, sequence_length)
  used = num_rows * float(np.mean(quantiles))
  for part in (2**k for k in range(_SMALLEST.bit_length())):
    rows_n = limits.rows(length_n, part)
    cost = _expected_positions(length_n, rows_n, num_rows)
    ends, positions = _cut(cost, limits, used, _COMPILATION / _SWEEPS)
    if positions * (1 - _MAX_PADDING) <= used:
      break
  return tuple(Shape(int(rows_n[i]), int(length_n[i])) for i in ends[:-1])


def fill(lengths_C: np.ndarray, shapes: Sequence[Shape]) -> list[Chunk]:
  """Returns chunks of given shapes that hold all rows, longest first.

  A chunk has the shortest shape that fits the longest row that is left, and holds the longest
  rows that are left; the last one has the shape of the fewest positions.

  Raises:
    ValueError: if a row fits none of the shapes.
  """
  order_C = np.argsort(-lengths_C, kind="stable")
  sorted_C = lengths_C[order_C]
  longest = max(shape.length for shape in shapes)
  if len(sorted_C) and sorted_C[0] > longest:
    raise ValueError(f"a row of {sorted_C[0]} positions fits no shape: {list(shapes)}")
  chunks, start = [], 0
  while start < len(sorted_C):
    left, longest = len(sorted_C) - start, sorted_C[start]
    fitting = [shape for shape in shapes if shape.length >= longest]
    if left <= max(shape.rows for shape in fitting):
      chosen = min(fitting, key=lambda s: (-(-left // s.rows) * s.rows * s.length, -s.rows))
    else:
      chosen = min(fitting, key=lambda s: (s.length, -s.rows))
    chunks.append(_chunk(order_C[start : start + chosen.rows], chosen))
    start += chosen.rows
  return chunks


class _Limits(NamedTuple):
  batch_size: int
  num_shards: int
  sequence_length: int
  max_shapes: int

  def rows(self, length: np.ndarray, part: int = 1) -> np.ndarray:
    """The most rows of that length in a chunk, or in such a part of one."""
    fitting = self.batch_size * self.sequence_length // (part * length)
    return np.maximum(fitting // self.num_shards, 1) * self.num_shards


class _Bucket(NamedTuple):
  start: int  # its rows are those from start to end, of the sorted ones
  end: int
  shape: Shape


def _chunk(place_n: np.ndarray, shape: Shape) -> Chunk:
  padding = shape.rows - len(place_n)
  return Chunk(np.pad(place_n, (0, padding), constant_values=-1), shape.length)


def _check(lengths: np.ndarray, limits: _Limits) -> None:
  problems = [
    f"{name} must be at least 1, got {x}" for name, x in limits._asdict().items() if x < 1
  ]
  if limits.num_shards >= 1 and limits.batch_size % limits.num_shards:
    problems.append(
      f"batch_size {limits.batch_size} must be a multiple of num_shards {limits.num_shards}"
    )
  if len(lengths) and not 0 <= lengths.min() <= lengths.max() <= limits.sequence_length:
    problems.append(
      f"lengths must be in [0, {limits.sequence_length}], "
      f"got {lengths.min()} to {lengths.max()}"
    )
  if problems:
    raise ValueError("; ".join(problems))


def _rounded(lengths: np.ndarray, sequence_length: int) -> np.ndarray:
  multiples = np.maximum(-(-lengths // _MULTIPLE), 1) * _MULTIPLE
  return np.minimum(multiples, sequence_length).astype(np.int64)


def _exact_buckets(
  length_C: np.ndarray, limits: _Limits, used: float, compilation: float
) -> list[_Bucket]:
  """The best buckets of rows that are sorted, longest first."""
  num_rows, shards = len(length_C), limits.num_shards
  step = shards * -(-num_rows // (shards * _MAX_CUTS))
  cuts = np.append(np.arange(0, num_rows, step), num_rows)
  length_n, most_n = length_C[cuts[:-1]], limits.rows(length_C[cuts[:-1]])

  def split(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The chunks of the bucket between two cuts, and their rows."""
    size = np.maximum(cuts[end] - cuts[start], 1)
    chunks = -(-size // most_n[start])
    return chunks, -(-size // (chunks * shards)) * shards

  def positions(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    return np.multiply(*split(start, end)) * length_n[start]

  ends, _ = _cut(_between(positions, len(length_n)), limits, used, compilation)
  rows_b = split(ends[:-1], ends[1:])[1]
  return [
    _Bucket(int(cuts[i]), int(cuts[j]), Shape(int(rows), int(length_n[i])))
    for i, j, rows in zip(ends[:-1], ends[1:], rows_b, strict=True)
  ]


def _expected_positions(length_n: np.ndarray, rows_n: np.ndarray, num_rows: int) -> np.ndarray:
  """The positions of a sample's rows between two quantiles, one bucket, and those after it."""
  count = len(length_n)
  next_n = np.append(length_n, 0)

  def positions(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    drop = np.where(end < count, length_n[start] - next_n[end], 0)
    return (end - start) * num_rows / count * length_n[start] + rows_n[start] / 2 * drop

  return _between(positions, count)


def _between(cost: Callable[[np.ndarray, np.ndarray], np.ndarray], count: int) -> np.ndarray:
  """The cost of the bucket from cut i to cut j in [i, j - 1]; infinite where j <= i."""
  start, end = np.indices((count, count))
  return np.where(end >= start, cost(start, end + 1), np.inf)


def _cut(
  cost_nxn: np.ndarray, limits: _Limits, used: float, compilation: float
) -> tuple[np.ndarray, float]:
  """The cuts, with both ends, and the positions they cost; `used` are those without padding."""
  best = [cost_nxn[0]]  # best[k][j - 1]: of k + 1 buckets up to cut j
  begins: list[np.ndarray] = []  # of the last of them
  for _ in range(1, min(limits.max_shapes, len(cost_nxn))):
    through = best[-1][:-1, None] + cost_nxn[1:]
    begin = np.argmin(through, axis=0)
    best.append(np.take_along_axis(through, begin[None], axis=0)[0])
    begins.append(begin + 1)
  totals = np.array([cost[-1] for cost in best])
  with_compilation = totals + compilation * np.arange(len(totals))
  if used > compilation:
    most = max(used / (1 - _MAX_PADDING), totals.min())
    with_compilation[totals > most] = np.inf
  chosen = int(np.argmin(with_compilation))
  ends = [len(cost_nxn)]
  for begin in begins[:chosen][::-1]:
    ends.append(int(begin[ends[-1] - 1]))
  return np.array([0, *ends[::-1]]), float(totals[chosen])
