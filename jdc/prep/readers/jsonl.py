"""JSON lines: every line becomes a document, a blank line, or a bad record with its cause."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import orjson
import pyarrow as pa

from jdc.prep.batches import BadRecord, Piece, Refuse, Rows, domain_problem
from jdc.prep.readers import streams
from jdc.prep.spec import InputSpec

_LARGE = 2.0**63


def read_jsonl(
  piece: Piece, spec: InputSpec, refuse: Refuse, counts: dict[str, int]
) -> Iterator[pa.RecordBatch]:
  """Yields the documents of a piece of a file with one JSON object a line.

  The offset of a document is that of its line in the decompressed file. Blank lines are
  counted under `blank_lines`. Numbers and strings mean what Python's `json` says they mean, but
  NaN and Infinity are refused; of a key that occurs twice the last value counts.
  """
  rows = Rows(piece, refuse)
  with streams.open_at(piece.path, piece.compression, piece.start) as stream:
    number = piece.line - 1
    for offset, line, wrong in streams.lines(stream, piece.end):
      number += 1
      if not wrong and (not line or line.isspace()):
        counts["blank_lines"] = counts.get("blank_lines", 0) + 1
        continue
      if offset == 0:
        line = line.removeprefix(b"\xef\xbb\xbf")
      try:
        if wrong:
          raise ValueError(wrong)
        record = parse(line)
        text = take_text(record, spec.text_column)
        domain = record_domain(record, spec.domain_column)
      except ValueError as error:
        refuse(BadRecord(piece.source, number, offset, str(error), line))
        continue
      if rows.add(offset, text, dump(record), domain):
        yield from rows.take()
  yield from rows.take()


def parse(line: bytes) -> dict[str, Any]:
  """Returns the object of one line, as `json.loads` gives it.

  Raises:
    ValueError: says what the line is instead.
  """
  try:
    value = orjson.loads(line)
    if type(value) is dict and _any_large(
      value.values()
    ):  # integers beyond 64 bits, which orjson rounds
      value = json.loads(line)
  except orjson.JSONDecodeError:
    value = _slow_parse(line)
  if not isinstance(value, dict):
    raise ValueError(f"a JSON {type(value).__name__}, not an object")
  return value


def _slow_parse(line: bytes) -> Any:
  try:
    return json.loads(line.decode("utf-8"), parse_constant=_refuse, parse_float=_finite)
  except UnicodeDecodeError as error:
    raise ValueError(f"invalid UTF-8 at byte {error.start}") from None
  except RecursionError:
    raise ValueError("invalid JSON: nested too deeply") from None
  except ValueError as error:
    raise ValueError(f"invalid JSON: {error}") from None


def _refuse(constant: str) -> float:
  raise ValueError(f"{constant} is not a number of JSON")


def _finite(digits: str) -> float:
  value = float(digits)
  if math.isinf(value):
    raise ValueError(f"{digits} is beyond the range of a double")
  return value


def _any_large(values: Iterable[Any]) -> bool:
  """Whether a number may be one that orjson rounded, in nested values."""
  for value in values:
    kind = type(value)
    if kind is float:
      if value >= _LARGE or value <= -_LARGE:
        return True
    elif kind is dict:
      if _any_large(value.values()):
        return True
    elif kind is list and _any_large(value):
      return True
  return False


def take_text(record: dict[str, Any], column: str) -> str:
  """Removes the text from a record and returns it; ValueError where it is none.

  Without a column the text is empty, as of instruction data before `sft_normalize`.
  """
  if not column:
    return ""
  if column not in record:
    raise ValueError(f"no field {column!r}; fields: {', '.join(sorted(record)) or 'none'}")
  text = record.pop(column)
  if not isinstance(text, str):
    kind = "null" if text is None else type(text).__name__
    raise ValueError(f"field {column!r} is {kind}, not a string")
  if not text.isascii():
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise ValueError(
        f"field {column!r} has a lone surrogate at character {error.start}"
      ) from None
  return text


def record_domain(record: Mapping[str, Any], column: str) -> str | None:
  """Returns the domain that a record names, `None` where records name none."""
  if not column:
    return None
  problem = domain_problem(record.get(column), column)
  if problem:
    raise ValueError(problem)
  return record[column]


def dump(record: Mapping[str, Any]) -> str:
  """Returns the fields of a record as JSON that `json.loads` turns into the same values.

  >>> dump({"n": 2**70, "s": "é"})
  '{"n":1180591620717411303424,"s":"é"}'
  """
  try:
    return orjson.dumps(record).decode()
  except TypeError:  # an integer beyond 64 bits, a lone surrogate, deep nesting
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
  try:
    text.encode()
    return text
  except UnicodeEncodeError:
    return json.dumps(record, separators=(",", ":"))
