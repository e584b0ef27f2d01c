"""Samples of documents that depend on the documents alone: those with the smallest numbers."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jdc.prep import batches

COLUMNS = ("doc_id", "source", "offset", "domain", "text", "fields")
MOST_BYTES = 8 << 20  # of the text of a sample

_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9))


def numbers(ids: np.ndarray, seed: int = 0) -> np.ndarray:
  """Returns for each id u8[n, 16] a number u64[n] that looks random.

  >>> numbers(np.arange(32, dtype=np.uint8).reshape(2, 16)).tolist()
  [16948066040305719136, 3590336067688820166]
  """
  salt = np.uint64(seed * int(_MIX[0]) % 2**64)
  value = np.ascontiguousarray(ids[:, :8]).view("<u8")[:, 0] + salt
  for shift in (np.uint64(30), np.uint64(27)):
    value = (value ^ (value >> shift)) * _MIX[1]
  return value ^ (value >> np.uint64(31))


class Sample:
  """Keeps the documents with the smallest numbers: a uniform sample without replacement.

  Args:
    size: most documents.
    seed: of the numbers.
    most_bytes: most text; long documents make the sample smaller, not larger.
  """

  def __init__(self, size: int, seed: int = 0, most_bytes: int = MOST_BYTES):
    if size < 1:
      raise ValueError(f"a sample must be of 1 document or more, got {size}")
    self._size, self._seed, self._bytes = size, seed, most_bytes
    self._held: pa.Table | None = None
    self._numbers = np.zeros(0, np.uint64)
    self._bound: np.uint64 | None = None  # numbers from it on cannot be in the sample

  def add(self, batch: pa.RecordBatch) -> None:
    """Looks at a batch."""
    found = numbers(id_bytes(batch.column("doc_id")), self._seed)
    if self._bound is not None:
      chosen = np.flatnonzero(found < self._bound)
      if not len(chosen):
        return
      batch, found = batch.take(pa.array(chosen)), found[chosen]
    part = pa.Table.from_batches([batch]).select(
      [name for name in COLUMNS if name in batch.schema.names]
    )
    held = part if self._held is None else pa.concat_tables([self._held, part])
    order, known = self._least(held, np.concatenate([self._numbers, found]))
    self._held = held.take(pa.array(order)).combine_chunks()
    self._numbers = known

  def _least(self, held: pa.Table, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(found, kind="stable")
    sizes = pc.binary_length(held.column("text")).to_numpy()[order]
    fits = int(np.searchsorted(np.cumsum(sizes, dtype=np.int64), self._bytes, side="right"))
    count = min(self._size, max(fits, 1))
    if count < len(order):
      self._bound = found[order[count]]
    return order[:count], found[order[:count]]

  def table(self) -> pa.Table:
    """Returns the sample, ordered by number."""
    if self._held is None:
      return pa.table({name: pa.array([], _TYPES[name]) for name in COLUMNS})
    return self._held


_TYPES = {field.name: field.type for field in batches.SCHEMA}


def id_bytes(column: pa.Array) -> np.ndarray:
  """Returns ids as u8[n, 16]."""
  width = batches.ID_BYTES
  data = np.frombuffer(column.buffers()[1], np.uint8)
  begin = column.offset * width
  return data[begin : begin + len(column) * width].reshape(-1, width)


def sample_of(parts: Iterable[pa.RecordBatch], size: int, seed: int = 0) -> pa.Table:
  """Returns a sample of all documents of some batches."""
  sample = Sample(size, seed)
  for batch in parts:
    sample.add(batch)
  return sample.table()
