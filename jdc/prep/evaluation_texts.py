"""Reads the texts of evaluation sets: JSON lines, Parquet or plain text."""

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

COLUMNS = (
  "text",
  "question",
  "problem",
  "prompt",
  "instruction",
  "input",
  "context",
  "passage",
)


def read_texts(path: str | Path, columns: Sequence[str] = COLUMNS) -> Iterator[tuple[str, str]]:
  """Yields (id, text) for each column of `columns` that a record has, unless it is empty.

  Answers are no default columns: those of one word are in every document. The id is the file's
  name, a colon and the record's `id`, or else the number of its line or row, counted from 1. A
  paragraph of a text file is a record.

  Args:
    path: `.jsonl` or `.json` (lines), `.parquet`, or `.txt`; of text also with `.gz` or `.zst`.
    columns: names of those that hold text.

  Raises:
    ValueError: if the file is of another kind or damaged, or no record has such a column.
  """
  path = Path(path)
  if path.suffix == ".parquet":
    records = _parquet(path)
  elif ".txt" in path.suffixes[-2:]:
    yield from _paragraphs(path)
    return
  elif {".jsonl", ".json"} & set(path.suffixes[-2:]):
    records = _json_lines(path)
  else:
    accepted = ".jsonl, .json or .txt (each also .gz or .zst) or .parquet"
    raise ValueError(f"{path}: evaluation files must be {accepted}")
  found, seen = False, dict[str, None]()
  for number, record in records:
    seen.update(dict.fromkeys(record))
    for column in columns:
      text = record.get(column)
      if isinstance(text, str) and text:
        found = True
        yield f"{path.name}:{record.get('id', number)}", text
  if not found:
    raise ValueError(
      f"{path}: no text in columns {', '.join(columns)}; it has {', '.join(seen) or 'none'}"
    )


def _json_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
  for number, line in enumerate(_open(path), 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except ValueError as error:
      raise ValueError(f"{path}:{number}: {error}") from error
    if not isinstance(record, dict):
      raise ValueError(f"{path}:{number}: a record must be an object, got {line[:40]!r}")
    yield number, record


def _parquet(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
  number = 0
  try:
    with pq.ParquetFile(path) as file:
      for batch in file.iter_batches():
        for record in batch.to_pylist():
          number += 1
          yield number, record
  except (OSError, pa.ArrowInvalid) as error:
    raise ValueError(f"{path}: {error}") from error


def _paragraphs(path: Path) -> Iterator[tuple[str, str]]:
  lines: list[str] = []
  start = 0
  for number, line in enumerate(_open(path), 1):
    if line.strip():
      start = start if lines else number
      lines.append(line)
    elif lines:
      yield f"{path.name}:{start}", "".join(lines)
      lines = []
  if lines:
    yield f"{path.name}:{start}", "".join(lines)


def _open(path: Path) -> Iterator[str]:
  """Yields the lines of a text file, decompressed."""
  opener: dict[str, Any] = {".gz": gzip.open, ".zst": zstandard.open}
  try:
    with opener.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
      yield from file
  except (OSError, EOFError, UnicodeDecodeError, zlib.error, zstandard.ZstdError) as error:
    raise ValueError(f"{path}: {error}") from error
