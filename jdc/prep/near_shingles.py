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

_HELD_BYTES = 64 << 20

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
  held = [np.zeros(0, np.uint64)]
  with tempfile.TemporaryFile(dir=folder) as file:
    for text in fetch(rows) if len(rows) else ():
      sets, size, signature = minhash.shingle_sets(*composed(text), fold_table(), ngram)
      sizes.append(size)
      signatures.append(signature)
      held.append(sets)
      if sum(part.nbytes for part in held) > _HELD_BYTES:
        _write(held, file)
    ends = np.cumsum(np.concatenate(sizes))
    if len(ends) != len(rows):
      raise ValueError(f"fetch was asked for {len(rows)} texts, and returned {len(ends)}")
    begin = np.stack([ends - np.concatenate(sizes), ends], axis=1)
    yield Shingles(begin, np.concatenate(signatures), _sets(held, file))


def _sets(held: list[np.ndarray], file: IO[bytes]) -> np.ndarray:
  if not file.tell():
    return np.concatenate(held)
  _write(held, file)
  file.flush()
  return np.memmap(file, np.uint64, mode="r").view(np.ndarray)


def _write(held: list[np.ndarray], file: IO[bytes]) -> None:
  for part in held:
    file.write(part.data)
  held.clear()
