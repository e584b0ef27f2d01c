"""Sweeps: the scores of pool rows under the current model."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jdc.data import loader

# (params, context, batch) -> {slot: f32[b] or f32[b, S]}, replicated
ScoreChunk = Callable[[Any, Any, loader.Batch], dict[str, jax.Array]]


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


def sweep(
  score_chunk: ScoreChunk,
  params: Any,
  context: Any,
  pool: loader.Pool,
  ids_C: np.ndarray,
  batch_size: int,
  sharding: jax.NamedSharding,
) -> dict[str, np.ndarray]:
  """Scores rows chunk by chunk; one chunk is computed while the one before it is fetched.

  Args:
    score_chunk: jitted; one compilation serves every chunk.
    params: of the model.
    context: what else `score_chunk` reads.
    pool: the rows.
    ids_C: i32[C], rows to score; -1 pads.
    batch_size: rows of a chunk, a multiple of the devices that share a batch.
    sharding: of batches.

  Returns:
    For each slot the scores f32[C] or f32[C, S]; those of padding are arbitrary.
  """
  parts: list[dict[str, np.ndarray]] = []
  pending: dict[str, jax.Array] | None = None
  for start in range(0, len(ids_C), batch_size):
    chunk = ids_C[start : start + batch_size]
    padded = np.pad(chunk, (0, batch_size - len(chunk)), constant_values=-1)
    scores = score_chunk(params, context, rows_batch(pool, padded, sharding))
    if pending is not None:
      parts.append(jax.device_get(pending))
    pending = scores
  assert pending is not None
  parts.append(jax.device_get(pending))
  return {
    slot: np.concatenate([part[slot] for part in parts])[: len(ids_C)] for slot in parts[0]
  }


def rows_batch(
  pool: loader.Pool, ids_B: np.ndarray, sharding: jax.NamedSharding
) -> loader.Batch:
  """Returns rows of the pool, -1 pads, as a batch on the devices."""
  ones_B = np.ones(len(ids_B), np.float32)
  tokens, segments = pool.rows(ids_B, loader.local_rows(ids_B, sharding))
  domain_B = pool.domain(ids_B).astype(np.int32)
  batch = loader.Batch(
    tokens, segments, ids_B.astype(np.int32), domain_B, ones_B, ones_B, ones_B,
    pool.reference_rows(ids_B, sharding),
  )  # fmt: skip
  return loader.place(batch, sharding)
