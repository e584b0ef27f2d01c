"""ArrayRecord files that are there whole or not at all."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from jdc.data.formats import import_extra

# One record a chunk, for access at random.
_OPTIONS = "group_size:1,zstd:1"


class RecordFile:
  """Writes records to a file under a temporary name, `close` checks that all are there.

  Args:
    path: of the file that is written; who calls renames it.

  Raises:
    ImportError: if the package `array_record` is not installed.
  """

  def __init__(self, path: Path):
    self._module = import_extra("array_record.python.array_record_module", "prep")
    self._path, self._num_records = path, 0
    self._writer = self._module.ArrayRecordWriter(str(path), _OPTIONS)

  def write(self, record: bytes) -> None:
    """Appends a record."""
    self._writer.write(record)
    self._num_records += 1

  def close(self) -> None:
    """Writes the file through to disk; OSError where it does not hold all records."""
    try:
      self._writer.close()
      reader = self._module.ArrayRecordReader(str(self._path))
      found = reader.num_records()
      reader.close()
    except RuntimeError as error:
      raise OSError(f"{self._path}: not written: {error}") from error
    if found != self._num_records:
      raise OSError(f"{self._path}: {found} of {self._num_records} records were written")
    sync(self._path)

  def abort(self) -> None:
    """Gives the file up."""
    if self._writer.is_open():
      self._writer.close()
    self._path.unlink(missing_ok=True)


def write_arrayrecord(batches: Iterable[pa.RecordBatch], path: Path) -> int:
  """Writes documents as JSON objects in UTF-8, one a record, as `jdc.data` reads them.

  An object holds the columns of a row in their order: `doc_id` in hexadecimal, `source`,
  `offset`, `domain`, `text`, and what else the batch has.

  Args:
    batches: of documents.
    path: the file; its folder must exist. It is written under another name and then renamed.

  Returns:
    The number of documents.

  Raises:
    OSError: if the file cannot be written whole.
  """
  temporary = path.with_name(f".{path.name}.tmp")
  file, count = RecordFile(temporary), 0
  try:
    for record in _records(batches):
      file.write(record)
      count += 1
    file.close()
    os.replace(temporary, path)
    sync(path.parent)
  finally:
    file.abort()
  return count


def sync(path: Path) -> None:
  """Makes a file, or the names in a folder, durable."""
  opened = os.open(path, os.O_RDONLY)
  try:
    os.fsync(opened)
  finally:
    os.close(opened)


def _records(batches: Iterable[pa.RecordBatch]) -> Iterator[bytes]:
  for batch in batches:
    columns = [column.to_pylist() for column in batch.columns]
    for values in zip(*columns, strict=True):
      row = dict(zip(batch.schema.names, map(_plain, values), strict=True))
      yield json.dumps(row, ensure_ascii=False).encode("utf-8")


def _plain(value: Any) -> Any:
  return value.hex() if isinstance(value, bytes) else value
