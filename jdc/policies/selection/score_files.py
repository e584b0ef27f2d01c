"""Files of scores by example: Parquet, .npz and .npy."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jdc.policies.selection.given import read_npz

IDS = "example_id"


class ScoreTable(NamedTuple):
  columns: Mapping[str, np.ndarray]  # one-dimensional, of numbers and of one length
  data_fingerprint: str = ""  # of the pool that was scored; empty: the file does not say
  is_whole: bool = False  # whether it should have a row for each example of the pool


def read(path: str, names: Sequence[str]) -> ScoreTable:
  """Reads some columns of a file; nulls are NaN.

  Parquet: its columns of numbers; the entry `jdc` of its metadata, if there is one, is a JSON
  object that may hold `data_fingerprint`. A .npz: its arrays. A .npy: the fields of a
  structured array; a plain one is the column `score` of the examples 0, 1, ...

  Raises:
    ValueError: if the file is missing, of another kind or not readable, or lacks a column;
      those that it has are listed.
    ImportError: if pyarrow is needed and not installed.
  """
  readers = {".parquet": _parquet, ".npz": _npz, ".npy": _npy}
  reader = readers.get(Path(path).suffix.lower())
  if reader is None:
    raise ValueError(f"{path}: the file must be one of {', '.join(readers)}")
  if not Path(path).expanduser().is_file():
    raise ValueError(f"{path}: no such file")
  table = reader(path, names)
  wrong = [
    f"{name} is {column.dtype} {list(column.shape)}"
    for name, column in table.columns.items()
    if column.ndim != 1 or column.dtype.kind not in "fiu"
  ]
  if wrong:
    raise ValueError(f"{path}: columns must be of numbers, [rows]; {', '.join(wrong)}")
  lengths = {name: len(column) for name, column in table.columns.items()}
  if len(set(lengths.values())) > 1:
    raise ValueError(f"{path}: columns must be of one length, got {lengths}")
  return table


def _npz(path: str, names: Sequence[str]) -> ScoreTable:
  return ScoreTable(read_npz(path, names))


def _npy(path: str, names: Sequence[str]) -> ScoreTable:
  try:
    with open(Path(path).expanduser(), "rb") as file:
      array = np.lib.format.read_array(file, allow_pickle=False)
  except (OSError, EOFError, ValueError) as error:
    raise ValueError(f"{path} is no readable .npy: {error}") from error
  fields = array.dtype.names
  if fields is not None:
    _check_there(path, names, fields)
    return ScoreTable({name: array[name] for name in names})
  _check_there(path, names, (IDS, "score"))
  ids = np.arange(len(array)) if array.ndim else array
  return ScoreTable({IDS: ids, "score": array}, is_whole=True)


def _parquet(path: str, names: Sequence[str]) -> ScoreTable:
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise ImportError(
      f"pyarrow is needed to read {path}: pip install jdc[parquet], or write a .npz"
    ) from error
  is_number = lambda kind: pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)
  try:
    with pyarrow.parquet.ParquetFile(Path(path).expanduser()) as held:
      schema = held.schema_arrow
      _check_there(path, names, [field.name for field in schema if is_number(field.type)])
      table = held.read(columns=list(names))
  except (OSError, pyarrow.ArrowException) as error:
    raise ValueError(f"{path} is no readable Parquet file: {error}") from error
  columns = {name: table.column(name).to_numpy() for name in names}
  return ScoreTable(columns, _fingerprint(schema.metadata, path))


def _check_there(path: str, names: Sequence[str], there: Sequence[str]) -> None:
  missing = [name for name in names if name not in there]
  if missing:
    raise ValueError(f"{path} has no columns {missing}; those there are: {sorted(there)}")


def write_parquet(path: Path, table: Any, described: Mapping[str, Any]) -> None:
  """Writes a `pyarrow.Table`, whole or not at all, with the metadata entry `jdc`."""
  import pyarrow.parquet as pq

  table = table.replace_schema_metadata({"jdc": json.dumps(described)})
  partial = path.with_name(f".{path.name}.{os.getpid()}")
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    pq.write_table(table, partial)
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)


def _fingerprint(metadata: Mapping[bytes, bytes] | None, path: str) -> str:
  raw = (metadata or {}).get(b"jdc", b"{}")
  try:
    facts: Any = json.loads(raw)
  except ValueError as error:
    raise ValueError(f"{path}: the metadata entry jdc is no JSON: {error}") from error
  found = facts.get("data_fingerprint", "") if isinstance(facts, dict) else None
  if not isinstance(found, str):
    raise ValueError(
      f"{path}: the metadata entry jdc must be an object whose data_fingerprint is text, got "
      f"{facts!r}"
    )
  return found
