"""Reads examples that a classifier learns from, out of any files that plans can read."""

import glob
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jdc.prep import readers
from jdc.prep.batches import BadRecord
from jdc.prep.quality.classifier import Labelled
from jdc.prep.readers import files
from jdc.prep.sample_keys import hash64
from jdc.prep.spec import InputSpec

_LISTED = 10


def expand(patterns: Sequence[str], root: Path) -> tuple[str, ...]:
  """Returns the files that patterns mean, seen from a folder; one without a file stays."""
  found: list[str] = []
  for pattern in patterns:
    path = str(root / pattern)
    found += sorted(glob.glob(path, recursive=True)) or [path]
  return tuple(dict.fromkeys(found))


def of_sides(
  positive: Sequence[str],
  negative: Sequence[str],
  *,
  text_column: str = "text",
  most: int = 50_000,
  seed: int = 0,
) -> Labelled:
  """Returns the texts of files of good and of bad examples.

  Args:
    positive: files.
    negative: files.
    text_column: the field with the text.
    most: examples of a side; of more, those with the smallest hash of (seed, text).
    seed: of the hash.

  Raises:
    ValueError: if a file or record cannot be read, with its place.
  """
  sides = [
    _smallest(((t, None) for t, _ in _records(paths, text_column)), most, seed)
    for paths in (positive, negative)
  ]
  texts = [text for side in sides for text, _ in side]
  return Labelled(texts, np.repeat([True, False], [len(side) for side in sides]))


def of_labels(
  paths: Sequence[str],
  *,
  field: str,
  min_label: float,
  text_column: str = "text",
  most: int = 100_000,
  seed: int = 0,
) -> Labelled:
  """Returns the texts of files of records with a number, which is high for good ones.

  Args:
    paths: files, such as the output of a plan with `llm_score`.
    field: the field with the number.
    min_label: a text is good from it on.
    text_column: the field with the text.
    most: examples; of more, those with the smallest hash of (seed, text).
    seed: of the hash.

  Raises:
    ValueError: if a file or record cannot be read; lists records whose field is no number.
  """
  bad: list[str] = []

  def labelled() -> Iterator[tuple[str, Any]]:
    for text, fields in _records(paths, text_column):
      value = _number(json.loads(fields), field)
      if value is None:
        bad.append(text[:40])
      else:
        yield text, value

  chosen = _smallest(labelled(), most, seed)
  if bad:
    shown = ", ".join(map(repr, bad[:_LISTED]))
    raise ValueError(f"field {field!r} is no number in {len(bad)} records: {shown}")
  value = np.array([value for _, value in chosen], np.float64)
  return Labelled([text for text, _ in chosen], value >= min_label, value)


def texts_of(paths: Sequence[str], text_column: str = "text") -> Iterator[str]:
  """Yields the texts of all records of files; ValueError if one cannot be read."""
  return (text for text, _ in _records(paths, text_column))


def _number(record: dict[str, Any], field: str) -> float | None:
  if field not in record and isinstance(record.get("fields"), str):
    record = json.loads(record["fields"])  # the output of a plan has them in a column
  value = record.get(field)
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  try:
    return float(value) if math.isfinite(value) else None
  except OverflowError:  # a whole number beyond the range
    return None


def _records(paths: Sequence[str], text_column: str) -> Iterator[tuple[str, str]]:
  """Yields (text, fields as JSON) of all records."""
  spec = InputSpec(paths=tuple(paths), text_column=text_column)
  found = files.find(spec, Path())
  files.check_readable(found, spec)
  for file in found:
    index = files.index(file, spec)
    if index.damage:
      raise ValueError(f"{file.source}: {index.damage}")
    for piece, _ in index.pieces:
      for batch in readers.read(piece, spec, _refuse, {}):
        yield from zip(*_columns(batch), strict=True)


def _columns(batch: pa.RecordBatch) -> tuple[list[str], list[str]]:
  return batch.column("text").to_pylist(), batch.column("fields").to_pylist()


def _refuse(bad: BadRecord) -> None:
  raise ValueError(f"{bad}; examples must all be readable")


def _smallest(
  examples: Iterator[tuple[str, Any]], most: int, seed: int
) -> list[tuple[str, Any]]:
  """Returns the examples with the smallest hashes; at most twice as many are in memory."""
  held: list[tuple[int, str, Any]] = []
  for text, value in examples:
    # Not the hash that divides examples into parts, or the choice would favour one of them.
    held.append((hash64(b"choice\0" + text.encode(), seed), text, value))
    if len(held) >= 2 * most:
      held = sorted(held, key=lambda example: example[:2])[:most]
  held.sort(key=lambda example: example[:2])
  return [(text, value) for _, text, value in held[:most]]
