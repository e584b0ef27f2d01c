"""Raw records by index, for the formats that allow it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jdc.data import formats
from jdc.data.formats import Record


class RandomAccess(Protocol):
  """Records by index."""

  def __len__(self) -> int: ...
  def __getitem__(self, index: int) -> Record: ...


def open_records(source: str, text_field: str) -> RandomAccess:
  """Returns the records of a source; ValueError where its format has no random access."""
  if source.startswith(formats.TFDS):
    return _Entries(source, formats.open_tfds(source))
  path = Path(source)
  name = formats.parse_name(path.name)
  if name and _is_lines(path, name):
    return _Lines(path)
  if name and name.format == "parquet":
    return _Parquet(path, text_field)
  if name and name.format == "array_record":
    from grain.sources import ArrayRecordDataSource

    try:
      return _Entries(source, ArrayRecordDataSource([source]))
    except RuntimeError as error:
      raise ValueError(f"{source}: damaged as ArrayRecord: {error}") from error
  raise ValueError(
    f"{source}: no random access; accepted: uncompressed .jsonl (or .json with one object "
    "a line), .parquet, .array_record, TFDS"
  )


def _is_lines(path: Path, name: formats.FileName) -> bool:
  """Whether a file is uncompressed lines of JSON."""
  lines = name.format in ("json", "jsonl") and not name.compression
  return lines and not formats.is_json_array(path, name)


class _Entries:
  """Entries of a sequence: dicts, or JSON objects as bytes."""

  def __init__(self, source: str, entries: Sequence[Any]):
    self._source, self._entries = source, entries

  def __len__(self) -> int:
    return len(self._entries)

  def __getitem__(self, index: int) -> Record:
    entry, where = self._entries[index], f"{self._source}[{index}]"
    return (
      formats.parse_json(where, entry)
      if isinstance(entry, bytes)
      else Record(where, entry, entry)
    )


class _Lines:
  """Lines of a JSONL file, by the offsets at which they start."""

  def __init__(self, path: Path):
    self._path = path
    kept, offset = [], 0
    for number, (line, _) in enumerate(formats.lines(path, ""), start=1):
      if line and not line.isspace():
        kept.append((number, offset, len(line)))
      offset += len(line) + 1
    self._lines = np.array(kept, np.int64).reshape(-1, 3)

  def __len__(self) -> int:
    return len(self._lines)

  def __getitem__(self, index: int) -> Record:
    number, offset, length = self._lines[index].tolist()
    with open(self._path, "rb") as file:
      file.seek(offset)
      return formats.parse_json(f"{self._path}:{number}", file.read(length))


class _Parquet:
  """Rows of a Parquet file; the row group that was read last is kept."""

  def __init__(self, path: Path, text_field: str):
    self._path, self._text_field = path, text_field
    with formats.open_parquet(path, text_field) as file:
      meta = file.metadata
      sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    self._starts = np.cumsum([0, *sizes])
    self._last: tuple[int, list[Any]] = (-1, [])

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, index: int) -> Record:
    group = int(np.searchsorted(self._starts, index, side="right")) - 1
    last, values = self._last  # read as one object: other threads may replace it
    if last != group:
      with formats.open_parquet(self._path, self._text_field) as file:
        column = file.read_row_group(group, columns=[self._text_field]).column(0)
      values = formats.parquet_values(column)
      self._last = (group, values)
    value = values[index - int(self._starts[group])]
    return Record(f"{self._path}[{index}]", {self._text_field: value}, value)
