"""Features of swept rows in a file that is mapped into memory, so that they need not fit it."""

import contextlib
import json
import os
import uuid
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

FORMAT_VERSION = 1
DTYPES = ("float32", "float16")


class FeaturesTable:
  """Features by example id; opening reads the ids alone.

  Args:
    folder: as a sweep with `FeaturesWriter` left it.

  Raises:
    ValueError: if the folder holds no features of this format, or a sweep did not end.
  """

  def __init__(self, folder: str | Path):
    self.folder = Path(folder)
    meta = _read_meta(self.folder)
    if meta is None or not meta["complete"]:
      state = "not a folder of features" if meta is None else "its sweep did not end"
      raise ValueError(f"{folder}: {state}")
    self.key: Any = meta["key"]
    self.ids: np.ndarray = np.load(self.folder / "ids.npy")  # i32[C], example ids; -1: padding
    self.names: tuple[str, ...] = tuple(meta["names"])
    self._order_C = np.argsort(self.ids, kind="stable")
    self._sorted_C = self.ids[self._order_C]
    self._tables = {name: _open(self.folder, name, len(self.ids)) for name in self.names}

  def __len__(self) -> int:
    return len(self.ids)

  def size(self, name: str) -> int:
    """Returns R, the features of a row."""
    return self._tables[name].shape[1]

  def rows(self, ids_B: np.ndarray, name: str | None = None) -> np.ndarray:
    """Reads the features f32[B, R] of examples; `name` may be left out where there is one.

    Raises:
      ValueError: if there are several tables and no name.
      KeyError: if an example was not swept, naming the first such ids.
    """
    if name is None:
      if len(self.names) != 1:
        raise ValueError(f"name must be one of {list(self.names)}, got None")
      (name,) = self.names
    ids_B = np.asarray(ids_B)
    place_B = np.minimum(np.searchsorted(self._sorted_C, ids_B), len(self) - 1)
    absent = ids_B[(self._sorted_C[place_B] != ids_B) | (ids_B < 0)]
    if len(absent):
      raise KeyError(f"{len(absent)} examples were not swept: {absent[:10].tolist()}")
    return self._tables[name][self._order_C[place_B]].astype(np.float32)


class FeaturesWriter:
  """Takes in features chunk by chunk; of several processes, the first one writes.

  Args:
    folder: made where missing; may hold what an interrupted sweep of the same key left.
    names: the entries of a chunk's scores that are kept here.
    ids_C: i32[C], example ids of the rows of the sweep.
    key: JSON that tells the sweep from others, as of a `SweepStore`.
    dtype: "float32" or "float16".

  Raises:
    ValueError: if the folder holds features of another key, or a value is not accepted.
  """

  def __init__(
    self,
    folder: str | Path,
    names: Collection[str],
    ids_C: np.ndarray,
    key: Any,
    dtype: str = "float32",
  ):
    problems = []
    if not names:
      problems.append("names must hold at least one name, got none")
    if dtype not in DTYPES:
      problems.append(f"dtype must be one of {list(DTYPES)}, got {dtype!r}")
    if problems:
      raise ValueError("; ".join(problems))
    self.folder, self.names, self._dtype = Path(folder), tuple(sorted(names)), np.dtype(dtype)
    self._num_rows = len(ids_C)
    self.writes = jax.process_index() == 0
    self._meta = {
      "format_version": FORMAT_VERSION,
      "key": json.loads(json.dumps(key)),
      "names": list(self.names),
      "dtype": dtype,
    }
    self._tables: dict[str, np.memmap] = {}
    if self.writes:
      self._begin(np.asarray(ids_C, np.int32))

  def _begin(self, ids_C: np.ndarray) -> None:
    self.folder.mkdir(parents=True, exist_ok=True)
    found = _read_meta(self.folder)
    if found is None:
      np.save(self.folder / "ids.npy", ids_C)
    else:
      same = {name: x for name, x in found.items() if name != "complete"} == self._meta
      if not same or not np.array_equal(np.load(self.folder / "ids.npy"), ids_C):
        raise ValueError(f"{self.folder} holds features of another sweep; delete it")
    self._write_meta(complete=False)
    for name in self.names:
      with contextlib.suppress(ValueError):
        self._tables[name] = _open(self.folder, name, self._num_rows, "r+")

  def write(self, place_n: np.ndarray, features: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Writes the features [n, R] of rows by their places in the sweep; returns their CRCs."""
    checks = {}
    for name, features_nxR in features.items():
      if features_nxR.shape[:1] != place_n.shape or features_nxR.ndim != 2:
        raise ValueError(f"{name} must be [{len(place_n)}, R], got {features_nxR.shape}")
      if name not in self._tables:
        self._tables[name] = self._create(name, features_nxR.shape[1])
      self._tables[name][place_n] = features_nxR
      checks[name] = self._check(name, place_n)
    return checks

  def holds(self, place_n: np.ndarray, checks: Mapping[str, int]) -> bool:
    """Whether the rows at these places are those whose CRCs `write` returned."""
    if not self.writes:
      return True
    return set(checks) == set(self.names) and all(
      name in self._tables and self._check(name, place_n) == check
      for name, check in checks.items()
    )

  def finish(self) -> None:
    """Writes the tables through to the disk; from then on `FeaturesTable` opens them."""
    if self.writes:
      for table in self._tables.values():
        table.flush()
      self._write_meta(complete=True)

  def _write_meta(self, complete: bool) -> None:
    temporary = self.folder / f"meta.{uuid.uuid4().hex}"
    content = json.dumps(self._meta | {"complete": complete}, indent=1)
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, self.folder / "meta.json")

  def _create(self, name: str, size: int) -> np.memmap:
    path, shape = _path(self.folder, name), (self._num_rows, size)
    path.unlink(missing_ok=True)
    table = np.lib.format.open_memmap(path, "w+", self._dtype, shape)
    if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and no signal later
      with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return table

  def _check(self, name: str, place_n: np.ndarray) -> int:
    return zlib.crc32(self._tables[name][place_n].tobytes())


def _path(folder: Path, name: str) -> Path:
  return folder / f"{name}.npy"


def _open(folder: Path, name: str, num_rows: int, mode: Any = "r") -> np.memmap:
  path = _path(folder, name)
  try:
    table = np.lib.format.open_memmap(path, mode)
  except (OSError, ValueError) as error:
    raise ValueError(f"{path}: no table of features: {error}") from error
  if table.ndim != 2 or len(table) != num_rows:
    raise ValueError(f"{path}: the table has shape {table.shape}; {num_rows} rows are expected")
  return table


def _read_meta(folder: Path) -> dict[str, Any] | None:
  try:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None
  return meta if meta.get("format_version") == FORMAT_VERSION else None
