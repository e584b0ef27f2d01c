"""Embeddings that users have made: a field of each record, or a Parquet file beside."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_LISTED = 10


def of_field(batch: pa.RecordBatch, name: str) -> np.ndarray:
  """Returns the field `name` of each record, a list of numbers, f32[n, D].

  Raises:
    ValueError: with the ids of documents whose field is missing, no list of numbers, or of
      another length than that of the first.
  """
  values = [json.loads(fields).get(name) for fields in batch.column("fields").to_pylist()]
  width = next((len(v) for v in values if isinstance(v, list)), 0)
  good = [_is_vector(value, width) for value in values]
  _refuse(batch, good, f"field {name!r} is no list of {width or 'some'} numbers")
  with np.errstate(over="ignore"):  # who compares them refuses what is infinite
    return np.array(values, np.float32).reshape(len(values), width)


def _is_vector(value: Any, width: int) -> bool:
  return isinstance(value, list) and len(value) == width > 0 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
  if isinstance(value, int):  # beyond this range there is no such float
    return not isinstance(value, bool) and abs(value) < 1 << 1023
  return isinstance(value, float)


def of_file(batch: pa.RecordBatch, path: str, key: str) -> np.ndarray:
  """Returns the embedding of each document in a Parquet file, f32[n, D].

  Args:
    batch: the documents.
    path: a Parquet file with a column `embedding`, lists of one length, and one of keys.
    key: the field of records and the column of the file by which they belong together; empty:
      the column `doc_id` of the file, hexadecimal or of 16 bytes.

  Raises:
    ValueError: if the file has no such columns, or keys twice; with the ids of documents that
      it does not have.
  """
  place, vectors = _load(path, key or "doc_id", Path(path).stat().st_mtime_ns)
  if key:
    held = [json.loads(fields).get(key) for fields in batch.column("fields").to_pylist()]
    wanted = [_as_key(value) for value in held]
  else:
    wanted = [doc_id.hex() for doc_id in batch.column("doc_id").to_pylist()]
  rows = [place.get(value, -1) for value in wanted]
  _refuse(batch, [row >= 0 for row in rows], f"{path} has no embedding")
  return vectors[np.array(rows, np.int64)]


def _as_key(value: Any) -> str:
  return value.hex() if isinstance(value, bytes) else str(value)


@functools.lru_cache(maxsize=1)
def _load(path: str, key: str, stamp: int) -> tuple[dict[str, int], np.ndarray]:
  del stamp
  table = pq.read_table(path, use_threads=False)
  if missing := [name for name in (key, "embedding") if name not in table.column_names]:
    raise ValueError(f"{path}: no column {', '.join(missing)}; has {table.column_names}")
  column = table.column("embedding").combine_chunks()
  if pa.types.is_fixed_size_list(column.type):
    width, flat = column.type.list_size, column.flatten()
  elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
    lengths = np.unique(np.diff(column.offsets.to_numpy()))
    if column.null_count or len(lengths) > 1:
      raise ValueError(f"{path}: embeddings must be of one length, got {lengths.tolist()}")
    width, flat = int(lengths[0]) if len(lengths) else 0, column.flatten()
  else:
    raise ValueError(f"{path}: column embedding is {column.type}; accepted: lists of numbers")
  keys = [_as_key(value) for value in table.column(key).to_pylist()]
  place = {value: row for row, value in enumerate(keys)}
  if len(place) < len(keys):
    raise ValueError(f"{path}: {len(keys) - len(place)} values of {key!r} stand there twice")
  vectors = flat.to_numpy(zero_copy_only=False).astype(np.float32)
  return place, vectors.reshape(len(keys), width)


def _refuse(batch: pa.RecordBatch, good: list[bool], problem: str) -> None:
  bad = np.flatnonzero(~np.array(good, bool))
  if len(bad):
    ids = batch.column("doc_id").to_pylist()
    listed = ", ".join(ids[row].hex() for row in bad[:_LISTED])
    more = f" and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
    raise ValueError(f"{problem}, in {len(bad)} documents: {listed}{more}")
