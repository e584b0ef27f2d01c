"""Embeddings that a file holds, of the pool and of the target set; arrays of a .npz."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Given(NamedTuple):
  pool_NxD: np.ndarray  # f32, row i is that of example i
  target_MxD: np.ndarray  # f32


def read(path: str) -> Given:
  """Reads a .npz with the arrays `pool` [N, D] and `target` [M, D].

  Rows need not be finite.

  Raises:
    ValueError: if the file is missing or no .npz, or does not hold these two arrays of numbers
      with rows of one width.
  """
  arrays = read_npz(path, ("pool", "target"))
  _check_shapes(path, arrays)
  with np.errstate(over="ignore"):  # to inf, a row that is not finite
    pool_NxD, target_MxD = (arrays[name].astype(np.float32) for name in ("pool", "target"))
  widths = pool_NxD.shape[1], target_MxD.shape[1]
  if widths[0] != widths[1]:
    raise ValueError(f"{path}: pool and target must have one width, got {widths}")
  return Given(pool_NxD, target_MxD)


def read_pool(path: str) -> np.ndarray:
  """Reads the array `pool` [N, D] of a .npz, f32; rows need not be finite.

  Raises:
    ValueError: as `read`.
  """
  pool = read_npz(path, ("pool",))["pool"]
  _check_shapes(path, {"pool": pool})
  with np.errstate(over="ignore"):
    return pool.astype(np.float32)


def read_npz(path: str, names: Sequence[str]) -> dict[str, np.ndarray]:
  """Reads some arrays of a .npz.

  Raises:
    ValueError: if the file is missing, is no .npz of plain arrays or lacks an array; those that
      it has are listed.
  """
  try:
    with open(Path(path).expanduser(), "rb") as file:
      held = np.load(file)
      if isinstance(held, np.ndarray):
        raise ValueError("one array, not an archive of them")
      there = held.files
      arrays = {name: held[name] for name in names if name in there}
  except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(f"{path} is no readable .npz: {error}") from error
  missing = [name for name in names if name not in there]
  if missing:
    raise ValueError(f"{path} has no {missing}; those there are: {sorted(there)}")
  return arrays


def _check_shapes(path: str, arrays: Mapping[str, np.ndarray]) -> None:
  wrong = [
    f"{name} is {array.dtype} {list(array.shape)}"
    for name, array in arrays.items()
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "fiu"
  ]
  if wrong:
    raise ValueError(
      f"{path}: arrays must be of numbers, [rows, width], neither 0; {', '.join(wrong)}"
    )
