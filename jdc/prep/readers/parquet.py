"""Parquet: a row is a document; other columns are kept as JSON."""

import base64
import datetime
import decimal
import json
import math
from collections.abc import Iterator
from typing import Any

import orjson
import pyarrow as pa
from pyarrow import parquet

from jdc.prep import problems
from jdc.prep.batches import (
  MAX_DOCUMENT,
  BadRecord,
  Piece,
  Refuse,
  Rows,
  domain_problem,
)
from jdc.prep.spec import InputSpec

_ROWS = 1024


def read_parquet(
  piece: Piece, spec: InputSpec, refuse: Refuse, counts: dict[str, int]
) -> Iterator[pa.RecordBatch]:
  """Yields the documents of a range of rows; the offset of a document is its row in the file.

  Values that JSON lacks are kept as text: times in ISO format, decimals by their digits, bytes
  in base64, NaN and infinities by name.
  """
  del counts
  rows = Rows(piece, refuse)
  with parquet.ParquetFile(piece.path) as file:
    check_columns(file.schema_arrow, spec, piece.path)
    for first, batch in _ranges(file, piece.start, piece.end):
      others, texts = batch, [""] * batch.num_rows
      if spec.text_column:
        others = batch.drop_columns([spec.text_column])
        texts = _strings(batch.column(spec.text_column))
      fields = _fields(others)
      for row, (text, record) in enumerate(zip(texts, fields, strict=True), first):
        problem = _problem(text, spec.text_column)
        domain = None
        if spec.domain_column and not problem:
          domain = record.get(spec.domain_column)
          problem = domain_problem(domain, spec.domain_column)
        if problem:
          refuse(BadRecord(piece.source, row, row, problem, _raw(record, text, spec)))
          continue
        if rows.add(row, text, dump(record), domain):
          yield from rows.take()
  yield from rows.take()


def check_columns(schema: pa.Schema, spec: InputSpec, path: str) -> None:
  """Raises a ValueError if a file lacks the column of text."""
  found = [
    f"{path}: no column {column!r}{problems.suggestion(column, schema.names)}"
    for column in filter(None, (spec.text_column, spec.domain_column))
    if column not in schema.names
  ]
  if not found and spec.text_column:
    kind = schema.field(spec.text_column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
      found.append(f"{path}: column {spec.text_column!r} is {kind}; accepted: string")
  problems.raise_all(found, "input")


def row_cuts(file: parquet.ParquetFile, column: str, most: int) -> list[tuple[int, int, int]]:
  """Divides the rows of a file into ranges of about `most` bytes of a column."""
  meta, found, start, row, size = file.metadata, [], 0, 0, 0
  for number in range(meta.num_row_groups):
    group = meta.row_group(number)
    total = column_bytes(group, column)
    parts = max(1, -(-total // most))
    for part in range(parts):
      end = row + group.num_rows * (part + 1) // parts
      begin = row + group.num_rows * part // parts
      share = total // parts
      if size and size + share > most:
        found.append((start, begin, start))
        start, size = begin, 0
      size += share
      if part + 1 == parts:
        row = end
  return [*found, (start, meta.num_rows, start)]


def column_bytes(group: Any, column: str) -> int:
  """Returns the bytes of a column in a row group, decompressed."""
  for position in range(group.num_columns):
    held = group.column(position)
    if held.path_in_schema == column:
      return held.total_uncompressed_size
  return group.total_byte_size


def _ranges(
  file: parquet.ParquetFile, start: int, end: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
  """Yields (first row, batch) of the rows from start to end."""
  groups: list[int] = []
  row = first = 0
  for number in range(file.metadata.num_row_groups):
    size = file.metadata.row_group(number).num_rows
    if row + size > start and row < end:
      if not groups:
        first = row
      groups.append(number)
    row += size
  row = first
  for batch in file.iter_batches(batch_size=_ROWS, row_groups=groups, use_threads=False):
    lower, upper = max(start - row, 0), min(end - row, batch.num_rows)
    if lower < upper:
      yield row + lower, batch.slice(lower, upper - lower)
    row += batch.num_rows
    if row >= end:
      return


def _strings(column: pa.Array) -> list[Any]:
  """Returns strings, `None`, or bytes that are not UTF-8."""
  try:
    column.validate(full=True)
    return column.to_pylist()
  except pa.ArrowInvalid:
    held = column.cast(pa.large_binary()).to_pylist()
    return [_decoded(value) for value in held]


def _decoded(value: bytes | None) -> Any:
  try:
    return None if value is None else value.decode("utf-8")
  except UnicodeDecodeError:
    return value


def _fields(batch: pa.RecordBatch) -> list[dict[str, Any]]:
  if not batch.num_columns:
    return [{}] * batch.num_rows
  columns = []
  for column in batch.columns:
    kind = column.type
    plain = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    columns.append(_strings(column) if plain else column.to_pylist())
  names = batch.schema.names
  return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _problem(text: Any, column: str) -> str:
  if text is None:
    return f"column {column!r} is null, not a string"
  if isinstance(text, bytes):
    return f"column {column!r} is not UTF-8"
  if len(text) * 4 > MAX_DOCUMENT and (size := len(text.encode())) > MAX_DOCUMENT:
    return f"a document of {size} bytes; at most {MAX_DOCUMENT}"
  return ""


def _raw(record: dict[str, Any], text: Any, spec: InputSpec) -> bytes:
  held = {**record, spec.text_column: text} if spec.text_column else record
  return dump(held).encode()


def dump(record: dict[str, Any]) -> str:
  """Returns the fields of a row as JSON; what JSON lacks becomes text.

  >>> dump({"score": float("nan"), "tags": [1.5, b"a"]})
  '{"score":"NaN","tags":[1.5,"YQ=="]}'
  """
  if not any(isinstance(v, float | list | dict | datetime.datetime) for v in record.values()):
    try:
      return orjson.dumps(record, default=_as_text).decode()
    except TypeError:  # an integer beyond 64 bits
      return _dump(record)
  try:
    return _dump(record)
  except ValueError:  # NaN or an infinity
    return _dump(_finite(record))


def _dump(value: Any) -> str:
  return json.dumps(
    value, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_as_text
  )


def _finite(value: Any) -> Any:
  """Returns nested values with the names of numbers that JSON lacks."""
  if isinstance(value, float) and not math.isfinite(value):
    return json.dumps(value)
  if isinstance(value, dict):
    return {key: _finite(held) for key, held in value.items()}
  return [_finite(held) for held in value] if isinstance(value, list) else value


def _as_text(value: Any) -> str:
  if isinstance(value, bytes):
    return base64.b64encode(value).decode()
  if isinstance(value, datetime.datetime | datetime.date | datetime.time):
    return value.isoformat()
  if isinstance(value, decimal.Decimal | datetime.timedelta):
    return str(value)
  raise TypeError(f"a {type(value).__name__} has no form in JSON")
