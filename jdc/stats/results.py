"""The results of a sweep: in memory, in a store, and in tables of features."""

import hashlib
from typing import Any

import jax
import numpy as np

from jdc.stats.buckets import Chunk
from jdc.stats.features_table import FeaturesWriter
from jdc.stats.sweep_store import SweepStore

_CHECK = "crc32 of "  # before the name of features, in the record of a chunk


class Results:
  """Collects what is found of chunks, and leaves it in the store and in tables."""

  def __init__(
    self, ids_C: np.ndarray, store: SweepStore | None, features: FeaturesWriter | None
  ):
    self.scores: dict[str, np.ndarray] = {}
    self._ids_C, self._store, self._features = ids_C, store, features

  def holds(self, chunk: Chunk) -> bool:
    """Whether the store, and the tables, have what was found of the chunk."""
    name = self._name(chunk)
    if self._store is None or name not in self._store:
      return False
    if self._features is None:
      return True
    record = self._store.read(name)
    checks = {n.removeprefix(_CHECK): int(x) for n, x in record.items() if _CHECK in n}
    return self._features.holds(chunk.place_n, checks)

  def restore(self, chunk: Chunk) -> None:
    """Takes the scores of a chunk from the store."""
    assert self._store is not None
    record = self._store.read(self._name(chunk))
    self._put(chunk, {n: x for n, x in record.items() if _CHECK not in n})

  def add(self, chunk: Chunk, found: dict[str, jax.Array]) -> None:
    """Waits for what was found of a chunk, and writes it down.

    Raises:
      ValueError: if it is not one entry a row, or lacks a name.
    """
    self._check(chunk, found)
    kept = frozenset[str]() if self._features is None else frozenset(self._features.names)
    num_rows = len(chunk.place_n)
    slots = jax.device_get({n: x for n, x in found.items() if n not in kept})
    record = {n: x[:num_rows] for n, x in slots.items()}
    self._put(chunk, record)
    if self._features is not None and self._features.writes:
      arrays = jax.device_get({n: found[n] for n in kept})
      checks = self._features.write(chunk.place_n, {n: x[:num_rows] for n, x in arrays.items()})
      record |= {_CHECK + n: np.uint32(check) for n, check in checks.items()}
    if self._store is not None:
      self._store.write(self._name(chunk), record)

  def make_room(self, found: dict[str, Any]) -> None:
    """Makes room for scores of which none is computed."""
    for slot, struct in found.items():
      if self._features is None or slot not in self._features.names:
        shape = (len(self._ids_C), *struct.shape[1:])
        self.scores[slot] = np.zeros(shape, struct.dtype)

  def finish(self) -> None:
    """Finishes tables and store."""
    if self._features is not None:
      self._features.finish()
    if self._store is not None:
      self._store.finish()

  def _put(self, chunk: Chunk, record: dict[str, np.ndarray]) -> None:
    if not self.scores:
      self.make_room(record)
    for slot, values in record.items():
      self.scores[slot][chunk.place_n] = values

  def _check(self, chunk: Chunk, found: dict[str, jax.Array]) -> None:
    count = len(chunk.place_B)
    problems = [
      f"{slot} has shape {x.shape}, expected [{count}, ...]"
      for slot, x in found.items()
      if x.shape[:1] != (count,)
    ]
    if self._features is not None and (absent := set(self._features.names) - set(found)):
      problems.append(f"no entries {sorted(absent)}, which are to be kept")
    if problems:
      raise ValueError(f"scores of a chunk: {'; '.join(problems)}")

  def _name(self, chunk: Chunk) -> str:
    """Tells the chunk's shape, and its rows and their places, from others."""
    parts = (np.int64(chunk.length), chunk.place_B, chunk.ids(self._ids_C))
    content = b"".join(np.asarray(part, "<i8").tobytes() for part in parts)
    return hashlib.blake2b(content, digest_size=16).hexdigest()
