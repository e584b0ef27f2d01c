"""Losses of a frozen reference model, computed once for all rows of the pool."""

import hashlib
import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdc.data import loader
from jdc.data.batch import inputs_and_targets
from jdc.data.loader import Pool
from jdc.stats import pool as pool_lib

# (params, inputs) -> f32[B, T]
Forward = Callable[[Any, Any], jax.Array]


class ReferenceLosses:
  """The token losses of every row, f32[N, T], in a file that is mapped into memory."""

  def __init__(self, path: Path, num_rows: int, sequence_length: int):
    self._losses_NxT = np.memmap(path, np.float32, "r", shape=(num_rows, sequence_length))

  def rows(self, ids_B: np.ndarray, wanted_B: np.ndarray) -> np.ndarray:
    """Reads losses f32[B, T]; rows that are not wanted, and padding (-1), stay zero."""
    losses_BxT = np.zeros((len(ids_B), self._losses_NxT.shape[1]), np.float32)
    wanted_B = wanted_B & (ids_B >= 0)
    losses_BxT[wanted_B] = self._losses_NxT[ids_B[wanted_B]]
    return losses_BxT


def cached_losses(
  forward: Forward,
  load: Callable[[], Any],
  pool: Pool,
  fingerprints: Any,
  folder: str | Path,
  batch_size: int,
  sharding: jax.NamedSharding,
) -> ReferenceLosses:
  """Opens the losses of a reference model for all rows, and computes them where they are not.

  Args:
    forward: the token losses of rows.
    load: returns the parameters of the reference model; called only to compute.
    pool: the rows.
    fingerprints: of the reference model and of the rows, as JSON: a file is made for each.
    folder: holds the file; made where missing.
    batch_size: rows per forward pass.
    sharding: of batches.

  Returns:
    The table. An interrupted computation leaves none.

  Raises:
    FloatingPointError: if a loss that counts is not finite, naming the first such rows.
  """
  size = (len(pool), pool.sequence_length)
  name = hashlib.sha256(json.dumps([fingerprints, size]).encode()).hexdigest()[:32]
  folder = Path(folder)
  path = folder / f"{name}.f32"
  if not _in_all_processes(path.exists()):
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{name}.{uuid.uuid4().hex}"
    try:
      _compute(partial, forward, load(), pool, batch_size, sharding)
      os.replace(partial, path)  # whole or not at all; of two processes either's is right
    finally:
      partial.unlink(missing_ok=True)
  return ReferenceLosses(path, *size)


def _in_all_processes(found: bool) -> bool:
  """Whether it is so in each of them, whose folders may differ: they compute together."""
  if jax.process_count() == 1:
    return found
  from jax.experimental import multihost_utils

  return bool(np.all(multihost_utils.process_allgather(np.int32(found))))


def _compute(
  path: Path,
  forward: Forward,
  params: Any,
  pool: Pool,
  batch_size: int,
  sharding: jax.NamedSharding,
) -> None:
  losses_NxT = np.memmap(path, np.float32, "w+", shape=(len(pool), pool.sequence_length))
  everywhere = jax.NamedSharding(sharding.mesh, jax.P())

  def masked(params: Any, batch: loader.Batch) -> tuple[jax.Array, jax.Array]:
    inputs = inputs_and_targets(batch.tokens, batch.segments)
    return forward(params, inputs), inputs.mask

  compute = jax.jit(masked, out_shardings=everywhere)
  ids_N, bad = np.arange(len(pool), dtype=np.int32), []
  for start in range(0, len(pool), batch_size):
    ids_b = ids_N[start : start + batch_size]
    padded = np.pad(ids_b, (0, batch_size - len(ids_b)), constant_values=-1)
    found = jax.device_get(compute(params, pool_lib.rows_batch(pool, padded, sharding)))
    losses_bxT, mask_bxT = (x[: len(ids_b)] for x in found)
    losses_NxT[ids_b] = np.where(mask_bxT, losses_bxT, 0.0)
    bad += ids_b[~np.all(np.isfinite(losses_NxT[ids_b]), axis=1)].tolist()
  if bad:
    raise FloatingPointError(
      f"the reference model has no finite loss on {len(bad)} of {len(pool)} rows: {bad[:10]}"
    )
  losses_NxT.flush()
