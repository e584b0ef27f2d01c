"""The rows of a cluster that are near an earlier one that stays, block by block."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SIZES = (128, 256, 512, 1024)  # to which blocks are filled, so that few shapes are compiled
_PRECISE = jax.lax.Precision.HIGHEST  # accelerators would round the factors

Take = Callable[[np.ndarray], np.ndarray]


class Near(NamedTuple):
  """What stays of m rows, and what the others are near to.

  Attributes:
    kept: i64[m], the place of the row that stays for it; its own where it stays.
    cosine: f32[m], with that row; 1 where it stays.
  """

  kept: np.ndarray
  cosine: np.ndarray


def greedy(rows: np.ndarray, take: Take, threshold: float) -> Near:
  r"""Goes over rows in order; a row goes if its cosine with one that stays is too high.

    S_0 = {},   i stays  <=>  max_{j in S_{i-1}} <u_i, u_j> <= threshold.

  So any two that stay are at most as similar as the threshold, and any that goes is more
  similar than that to one that stays: of these, to the one of the largest cosine, which is
  named; of equal ones the first. Memory: blocks of 1,024 rows, what stays, and 4 MB.

  Args:
    rows: i64[m].
    take: rows -> their unit vectors, f32[., D].
    threshold: of the cosine.
  """
  kept = np.arange(len(rows))
  cosine = np.ones(len(rows), np.float32)
  staying: list[tuple[jax.Array, np.ndarray]] = []  # vectors, and their places
  for begin in range(0, len(rows), SIZES[-1]):
    place = np.arange(begin, min(begin + SIZES[-1], len(rows)))
    x = take(rows[place])
    block = jnp.asarray(_filled(x))
    best, at = np.full(len(place), -np.inf, np.float32), np.full(len(place), -1)
    for vectors, places in staying:
      found, column = (np.asarray(a)[: len(place)] for a in _best(block, vectors, len(places)))
      better = found > best
      best[better], at[better] = found[better], places[column[better]]
    stays = _resolve(np.asarray(_cosines(block, block))[: len(place), : len(place)], place,
                     best, at, threshold)  # fmt: skip
    kept[place[~stays]], cosine[place[~stays]] = at[~stays], best[~stays]
    if begin + len(place) < len(rows) and stays.any():
      staying.append((jnp.asarray(_filled(x[stays])), place[stays]))
  return Near(kept, cosine)


def _resolve(
  cosine_BxB: np.ndarray, place: np.ndarray, best: np.ndarray, at: np.ndarray, threshold: float
) -> np.ndarray:
  """Returns which of a block stay; the cosine and place of the nearest come into `best`, `at`.

  Args:
    cosine_BxB: of the block with itself.
    place: i64[B], of its rows.
    best: f32[B], the largest cosine with rows before the block that stay.
    at: i64[B], their places.
    threshold: of the cosine.
  """
  stays = best <= threshold
  near = np.triu(cosine_BxB > threshold, 1)
  for i in np.flatnonzero(near.any(axis=0)).tolist():
    before = stays & near[:, i]
    if before.any():
      stays[i] = False
  gone = np.flatnonzero(~stays)
  earlier = stays[:, None] & (np.arange(len(stays))[:, None] < gone)
  inside = np.where(earlier, cosine_BxB[:, gone], -np.inf)
  if len(gone):
    row = inside.argmax(axis=0)
    found = inside[row, np.arange(len(gone))]
    better = found > best[gone]
    best[gone[better]], at[gone[better]] = found[better], place[row[better]]
  return stays


def _filled(x: np.ndarray) -> np.ndarray:
  size = next(size for size in SIZES if size >= len(x))
  return np.pad(x, ((0, size - len(x)), (0, 0)))


@jax.jit
def _cosines(x_BxD: jax.Array, y_CxD: jax.Array) -> jax.Array:
  return jnp.matmul(x_BxD, y_CxD.T, precision=_PRECISE)


@jax.jit
def _best(x_BxD: jax.Array, y_CxD: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the largest cosine with the first `count` rows, and the first row that has it."""
  is_row_C = jnp.arange(len(y_CxD)) < count
  cosine_BxC = jnp.where(is_row_C, _cosines(x_BxD, y_CxD), -jnp.inf)
  return jnp.max(cosine_BxC, axis=1), jnp.argmax(cosine_BxC, axis=1)
