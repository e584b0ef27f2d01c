"""Sequences of unequal length as few shapes, on one device or a mesh."""

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdc.models.base import BATCH_AXES

SHORTEST_BUCKET = 32  # positions; the others are powers of two above it


def batches_by_length(
  lengths: Sequence[int], batch_size: int, buckets: Sequence[int] | None = None
) -> Iterator[tuple[list[int], int]]:
  """Yields the indices of items that share a bucket, at most a batch of them, and the bucket.

  Args:
    lengths: of the items.
    batch_size: the most items of a batch.
    buckets: the lengths to which items are padded, the largest at least that of every item;
      `None` for the powers of two from 32 up.

  Example:
    >>> list(batches_by_length([3, 40, 5, 6], batch_size=2))
    [([0, 2], 32), ([3], 32), ([1], 64)]
  """
  ordered = None if buckets is None else sorted(buckets)
  groups: dict[int, list[int]] = {}
  for i, length in enumerate(lengths):
    if ordered is None:
      bucket = max(SHORTEST_BUCKET, 1 << (length - 1).bit_length())
    else:
      bucket = ordered[bisect.bisect_left(ordered, length)]
    groups.setdefault(bucket, []).append(i)
  for bucket, indices in sorted(groups.items()):
    for start in range(0, len(indices), batch_size):
      yield indices[start : start + batch_size], bucket


def padded(
  sequences: Sequence[Sequence[int]], length: int, num_rows: int, *, left: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Returns tokens i32[B, S] and bool[B, S], False at padding; rows at the end are empty.

  Args:
    sequences: at most B, none longer than S.
    length: S.
    num_rows: B.
    left: whether the padding comes before a sequence.

  Example:
    >>> tokens, valid = padded([[5, 6], [7]], length=3, num_rows=2, left=True)
    >>> tokens.tolist()
    [[0, 5, 6], [0, 0, 7]]
  """
  tokens = np.zeros((num_rows, length), np.int32)
  valid = np.zeros((num_rows, length), bool)
  for row, sequence in enumerate(sequences):
    at = slice(length - len(sequence), length) if left else slice(len(sequence))
    tokens[row, at] = sequence
    valid[row, at] = True
  return tokens, valid


def place_rows(array: np.ndarray, mesh: jax.sharding.Mesh | None) -> jax.Array:
  """Puts an array that every process holds whole on the devices, split by rows."""
  if mesh is None:
    return jnp.asarray(array)
  sharding = jax.NamedSharding(mesh, jax.P(BATCH_AXES))
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def on_mesh(mesh: jax.sharding.Mesh | None, compiled: Callable[..., Any]) -> Callable[..., Any]:
  """Returns the function that calls a jitted one where `mesh` is set."""
  if mesh is None:
    return compiled

  def call(*args: Any) -> Any:
    with jax.set_mesh(mesh):
      return compiled(*args)

  return call


def batch_problems(
  batch_size: int, mesh: jax.sharding.Mesh | None, buckets: Sequence[int] | None, longest: int
) -> Iterator[str]:
  """Yields what is wrong with a batch size and buckets; `longest` is the longest item's."""
  shards = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
  if batch_size < 1 or batch_size % shards:
    axes = " x ".join(BATCH_AXES)
    yield f"batch_size must be a positive multiple of {axes} = {shards}, got {batch_size}"
  if buckets is None:
    return
  if not buckets or min(buckets) < 1:
    yield f"buckets must be lengths of at least 1, got {list(buckets)}"
  elif max(buckets) < longest:
    yield f"the largest of the buckets, {max(buckets)}, is below the longest length, {longest}"


def listed(items: Sequence[object], most: int = 10) -> str:
  """Returns items for an error message, the first of them where they are many."""
  more = f" and {len(items) - most} more" if len(items) > most else ""
  return ", ".join(map(str, items[:most])) + more
