"""The rows by which the gradients of domains are probed: two half-batches of each."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jdc.data import loader


class Probes(NamedTuple):
  """Rows of each domain in two independent half-batches; padding is of segment 0."""

  tokens: Any  # i32[K, 2, m, T + 1]
  segments: Any  # i32[K, 2, m, T + 1], as `batch.inputs_and_targets` reads them


def check_probes(domain_names: Sequence[str], domain_sizes: Sequence[int], rows: int) -> None:
  """Raises a ValueError that lists the domains with too few rows for two half-batches."""
  if rows < 1:
    raise ValueError(f"rows of a half-batch must be at least 1, got {rows}")
  few = [
    f"{name} ({size})"
    for name, size in zip(domain_names, domain_sizes, strict=True)
    if size < 2 * rows
  ]
  if few:
    raise ValueError(
      f"two half-batches of {rows} rows need {2 * rows} rows of each domain; fewer have: "
      f"{', '.join(few)}"
    )


def probe_ids(domain_sizes: Sequence[int], rows: int, seed: int, round_: int) -> np.ndarray:
  """Returns the pool rows of each domain's two half-batches, i32[K, 2, m].

  They are drawn without replacement, so that no row is in both halves, and anew in each round.
  """
  ids = np.zeros((len(domain_sizes), 2, rows), np.int32)
  starts_K = np.concatenate([[0], np.cumsum(domain_sizes)])
  for k, size in enumerate(domain_sizes):
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, round_, k, 4))))
    ids[k] = starts_K[k] + rng.choice(size, (2, rows), replace=False)
  return ids


def read_probes(
  pool: loader.Pool, ids: np.ndarray, sharding: jax.NamedSharding | None
) -> Probes:
  """Reads probes onto the devices, each half-batch split as batches are.

  Args:
    pool: the rows.
    ids: of `probe_ids`.
    sharding: of batches; `None` leaves the arrays on the host. A half-batch is padded to a
      multiple of its shards.
  """
  shards = 1 if sharding is None else num_shards(sharding)
  padding = -ids.shape[2] % shards
  ids = np.pad(ids, ((0, 0), (0, 0), (0, padding)), constant_values=-1)
  flat = ids.reshape(-1)
  tokens, segments = pool.rows(flat, np.ones(len(flat), bool))
  probes = Probes(*(x.reshape(*ids.shape, -1) for x in (tokens, segments)))
  if sharding is None:
    return probes
  spec = jax.P(None, None, *sharding.spec)
  return loader.place(probes, jax.NamedSharding(sharding.mesh, spec))


def num_shards(sharding: jax.NamedSharding) -> int:
  """Returns into how many parts the rows of a batch are split."""
  axes = (sharding.spec[0] or ()) if sharding.spec else ()
  names = (axes,) if isinstance(axes, str) else axes
  return math.prod(sharding.mesh.shape[name] for name in names)
