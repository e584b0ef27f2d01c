"""Sweeps: the scores of pool rows under the current model."""

import collections
import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jdc.data import loader
from jdc.stats.buckets import Chunk, Shape, buckets, fill, sample_shapes
from jdc.stats.features_table import FeaturesTable, FeaturesWriter
from jdc.stats.progress import Progress
from jdc.stats.results import Results
from jdc.stats.sweep_store import SweepStore, in_all_processes

# (params, context, batch[, known features]) -> {slot: [b, ...]}, replicated
ScoreChunk = Callable[..., dict[str, jax.Array]]


def candidates(
  domain_sizes: tuple[int, ...], sweep_rows: int, seed: int, round_: int
) -> np.ndarray:
  """Returns the rows that a round's sweep visits, i32[C], sorted.

  Without `sweep_rows` it is the whole pool. Otherwise a new sample every round, one row of each
  domain and the rest by size, so that no domain is left without a candidate.

  Raises:
    ValueError: if `sweep_rows` is smaller than the number of domains.
  """
  num_rows, num_domains = sum(domain_sizes), len(domain_sizes)
  if sweep_rows == 0 or sweep_rows >= num_rows:
    return np.arange(num_rows, dtype=np.int32)
  if sweep_rows < num_domains:
    raise ValueError(f"sweep_rows={sweep_rows} must be at least {num_domains}, one a domain")
  rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, round_, 2))))
  starts_K = np.concatenate([[0], np.cumsum(domain_sizes)])
  firsts_K = starts_K[:-1] + np.floor(rng.random(num_domains) * domain_sizes).astype(int)
  others = np.delete(np.arange(num_rows), firsts_K)
  rest = rng.choice(others, sweep_rows - num_domains, replace=False)
  return np.sort(np.concatenate([firsts_K, rest])).astype(np.int32)


class Swept(NamedTuple):
  """What a sweep found, and what of it was computed now."""

  scores: dict[str, np.ndarray]  # by slot, [C, ...]; zeros where the id is -1
  num_rows: int  # scored, without padding
  num_chunks: int  # of the sweep
  num_computed: int  # chunks that no store held
  positions: int  # of the chunks computed, padding included
  padding: int  # of these, that hold no input
  seconds: float

  @property
  def share_padding(self) -> float:
    """Returns the share of padding among the positions computed; 0 where there are none."""
    return self.padding / max(self.positions, 1)


def sweep(
  score_chunk: ScoreChunk,
  params: Any,
  context: Any,
  pool: loader.Pool,
  ids_C: np.ndarray,
  batch_size: int,
  sharding: jax.NamedSharding,
  *,
  store: SweepStore | None = None,
  features: FeaturesWriter | FeaturesTable | None = None,
  name: str | None = "sweep",
) -> Swept:
  """Scores rows in length buckets, longest first, in chunks of at most 16 shapes.

  The host reads the rows of a chunk while the devices compute the one before. With a store, the
  scores of a chunk are written before the next one is begun: a process that is killed at any
  instant loses one chunk at most. A sweep of the whole pool has the shapes that suit it best,
  one of a sample those of `buckets.sample_shapes`, which later samples share.

  Args:
    score_chunk: jitted; compiled once for each shape.
    params: of the model.
    context: what else `score_chunk` reads.
    pool: the rows.
    ids_C: i32[C], rows to score; -1 pads, and is not computed.
    batch_size: rows of full length in a chunk, a multiple of the devices that share it.
    sharding: of batches.
    store: holds the chunks that an interrupted sweep has scored, and is given the others. Its
      key must tell the parameters, the context and the pool from any others.
    features: a writer is given the entries of its names, which then are not kept in memory; of
      a table `score_chunk` is given the features of the rows by name, f32[b, R] each.
    name: what the progress is called; `None` shows none.

  Returns:
    The scores, and counts.

  Raises:
    ValueError: if `score_chunk` returns other than one entry a row, or lacks a name.
  """
  begin = time.monotonic()
  chunks = _chunks(pool, ids_C, batch_size, _num_shards(sharding, batch_size))
  writer, table = _told_apart(features)
  results = Results(ids_C, store, writer)
  held = in_all_processes([results.holds(chunk) for chunk in chunks])
  missing = []
  for chunk, is_held in zip(chunks, held, strict=True):
    if is_held:
      results.restore(chunk)
    else:
      missing.append(chunk)
  rows, missing_rows = (sum(len(c.place_n) for c in some) for some in (chunks, missing))
  positions = sum(chunk.num_positions for chunk in missing)
  ahead = 1 if store is None else 0  # chunks that may be unwritten when the next one is begun
  waiting: collections.deque[tuple[Chunk, dict[str, jax.Array]]] = collections.deque()
  with contextlib.closing(Progress(name, rows, positions, rows - missing_rows)) as progress:
    for chunk in missing:
      batch = rows_batch(pool, chunk.ids(ids_C), sharding, chunk.length)
      known = _known(table, chunk.ids(ids_C), sharding)
      while len(waiting) > ahead:
        _settle(waiting, results, progress)
      waiting.append((chunk, score_chunk(params, context, batch, *known)))
    while waiting:
      _settle(waiting, results, progress)
  if not chunks:
    nothing = np.full(batch_size, -1)
    empty = (rows_batch(pool, nothing, sharding), *_known(table, nothing, sharding))
    results.make_room(jax.eval_shape(score_chunk, params, context, *empty))
  results.finish()
  used = sum(int(pool.input_lengths(ids_C[chunk.place_n]).sum()) for chunk in missing)
  seconds = time.monotonic() - begin
  counts = (rows, len(chunks), len(missing), positions, positions - used, seconds)
  return Swept(results.scores, *counts)


def _told_apart(
  features: FeaturesWriter | FeaturesTable | None,
) -> tuple[FeaturesWriter | None, FeaturesTable | None]:
  if isinstance(features, FeaturesTable):
    return None, features
  return features, None


def _known(
  table: FeaturesTable | None, ids_B: np.ndarray, sharding: jax.NamedSharding
) -> tuple[dict[str, jax.Array], ...]:
  """The features of rows on the devices, zeros where the id is -1."""
  if table is None:
    return ()
  here_B = (ids_B >= 0) & loader.local_rows(ids_B, sharding)
  found = {}
  for name in table.names:
    found[name] = np.zeros((len(ids_B), table.size(name)), np.float32)
    found[name][here_B] = table.rows(ids_B[here_B], name)
  return (loader.place(found, sharding),)


def _settle(
  waiting: collections.deque[tuple[Chunk, dict[str, jax.Array]]],
  results: Results,
  progress: Progress,
) -> None:
  """Waits for the chunk that was begun first, and takes in what was found."""
  chunk, found = waiting.popleft()
  results.add(chunk, found)
  progress.add(len(chunk.place_n), chunk.num_positions)


def rows_batch(
  pool: loader.Pool, ids_B: np.ndarray, sharding: jax.NamedSharding, length: int | None = None
) -> loader.Batch:
  """Returns rows of the pool, -1 pads, as a batch on the devices.

  With `length` they are cut to so many inputs.

  Raises:
    ValueError: if that would cut off an input that is read.
  """
  ones_B = np.ones(len(ids_B), np.float32)
  tokens, segments = pool.rows(ids_B, loader.local_rows(ids_B, sharding))
  reference = pool.reference_rows(ids_B, sharding)
  if length is not None and length < pool.sequence_length:
    longer = ids_B[np.any(segments[:, length:], axis=1)]
    if len(longer):
      raise ValueError(f"rows {longer.tolist()} have more than {length} inputs")
    tokens, segments = tokens[:, : length + 1], segments[:, : length + 1]
    reference = None if reference is None else reference[:, :length]
  domain_B = pool.domain(ids_B).astype(np.int32)
  batch = loader.Batch(
    tokens, segments, ids_B.astype(np.int32), domain_B, ones_B, ones_B, ones_B, reference
  )
  return loader.place(batch, sharding)


def _chunks(
  pool: loader.Pool, ids_C: np.ndarray, batch_size: int, num_shards: int
) -> list[Chunk]:
  places_n = np.flatnonzero(ids_C >= 0)
  if not len(places_n):
    return []
  ids_n = ids_C[places_n]
  lengths_n, longest = pool.input_lengths(ids_n), pool.sequence_length
  whole = np.array_equal(ids_n, np.arange(len(pool))) and lengths_n.min() < longest
  if whole:
    found = buckets(lengths_n, batch_size, num_shards, longest)
  else:
    num_rows = 1 << (len(ids_n) - 1).bit_length()
    found = fill(lengths_n, _sample_shapes(pool, num_rows, batch_size, num_shards))
  return [
    Chunk(np.where(chunk.place_B >= 0, places_n[chunk.place_B], -1), chunk.length)
    for chunk in found
  ]


@functools.lru_cache(maxsize=4)
def _sample_shapes(
  pool: loader.Pool, num_rows: int, batch_size: int, num_shards: int
) -> tuple[Shape, ...]:
  lengths_N = pool.input_lengths(np.arange(len(pool)))
  return sample_shapes(lengths_N, num_rows, batch_size, num_shards, pool.sequence_length)


def _num_shards(sharding: jax.sharding.Sharding, batch_size: int) -> int:
  return batch_size // sharding.shard_shape((batch_size,))[0]
