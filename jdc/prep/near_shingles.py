"""Sets of shingles of candidates, in memory or in a file that is memory-mapped."""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa

from jdc.prep.kernels import minhash
from jdc.prep.kernels.hashes import composed, fold_table

_HELD = (192 << 20) // 8  # hashes in memory

Fetch = Callable[[np.ndarray], Iterable[pa.StringArray]]


class Shingles(NamedTuple):
  """The sets of m documents.

  Attributes:
    begin: i64[m, 2], where the set of each begins and ends in `sets`.
    signature: u64[m], a hash of each set.
    sets: u64[.], hashes of shingles.
  """

  begin: np.ndarray
  signature: np.ndarray
  sets: np.ndarray


@contextlib.contextmanager
def read_shingles(
  rows: np.ndarray, fetch: Fetch, ngram: int, folder: str | Path | None
) -> Iterator[Shingles]:
  """Gives the sets of some rows; a file that they take is removed afterwards.

  Raises:
    ValueError: if `fetch` returns another number of texts.
  """
  sizes, signatures = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
  with tempfile.TemporaryFile(dir=folder) as file:
    held = _Held(file)
    for text in fetch(rows) if len(rows) else ():
      offsets, data = composed(text)
      room = held.room(minhash.most_shingles(offsets))
      size, signature = minhash.shingle_sets(offsets, data, fold_table(), ngram, room)
      sizes.append(size)
      signatures.append(signature)
      held.keep(int(size.sum()))
    ends = np.cumsum(np.concatenate(sizes))
    if len(ends) != len(rows):
      raise ValueError(f"fetch was asked for {len(rows)} texts, and returned {len(ends)}")
    begin = np.stack([ends - np.concatenate(sizes), ends], axis=1)
    yield Shingles(begin, np.concatenate(signatures), held.all())


class _Held:
  """Hashes in one piece of memory, of which only what is used is taken, or in a file."""

  def __init__(self, file: IO[bytes]):
    self._file, self._count = file, 0
    self._memory = np.empty(_HELD, np.uint64)

  def room(self, size: int) -> np.ndarray:
    """Returns u64[size] for the next hashes; what is held goes to the file to make room."""
    if self._count + size > len(self._memory):
      self._write(self._memory[: self._count])
      self._count = 0
    fits = size <= len(self._memory)
    self._room = self._memory[self._count :][:size] if fits else np.empty(size, np.uint64)
    return self._room

  def keep(self, count: int) -> None:
    """Keeps so many hashes from the beginning of the last `room`."""
    if len(self._room) <= len(self._memory):
      self._count += count
    else:
      self._write(self._room[:count])

  def all(self) -> np.ndarray:
    """Returns all hashes, in order."""
    if not self._file.tell():
      return self._memory[: self._count]
    self._write(self._memory[: self._count])
    self._file.flush()
    return np.memmap(self._file, np.uint64, mode="r").view(np.ndarray)

  def _write(self, values: np.ndarray) -> None:
    self._file.write(values.data)
