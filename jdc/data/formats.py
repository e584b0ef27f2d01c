"""File formats of raw text: every record with its place, or with what is wrong with it."""

import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ACCEPTED = (
  ".jsonl or .json (one JSON object a line; .json also one array of objects) and .txt (one "
  "document a file), each also .gz or .zst; .parquet; .array_record or .arrayrecord"
)
TFDS = "tfds:"
_CHUNK = 1 << 20
_RECORDS = 1024
_SPACE = re.compile(r"[ \t\n\r]*")
_NAME = re.compile(
  r"(?P<stem>.+?)\.(?:(?P<text>jsonl|json|txt)(?P<compression>\.gz|\.zst)?"
  r"|(?P<binary>parquet|array_record|arrayrecord))(?:-\d+-of-\d+)?"
)


class FileName(NamedTuple):
  """A file name taken apart."""

  stem: str
  format: str  # jsonl, json, txt, parquet or array_record
  compression: str  # "", ".gz" or ".zst"


class Record(NamedTuple):
  """One record of a source, before its text is looked up."""

  where: str  # "file:line" or "file[index]"
  fields: Mapping[str, Any]
  raw: Any  # what the source holds, for a quarantine file
  error: str = ""  # why there are no fields


def parse_name(name: str) -> FileName | None:
  """Returns the parts of a file name, `None` where its suffix is not an accepted one."""
  match = _NAME.fullmatch(name)
  if match is None:
    return None
  kind = match["text"] or match["binary"]
  kind = "array_record" if kind == "arrayrecord" else kind
  return FileName(match["stem"], kind, match["compression"] or "")


def import_extra(module: str, extra: str) -> ModuleType:
  """Imports an optional package, or says which extra installs it."""
  try:
    return __import__(module, fromlist=["_"])
  except ImportError as error:
    raise ImportError(f"{module} is needed here: pip install jdc[{extra}]") from error


def parse_json(where: str, raw: bytes) -> Record:
  """Returns the record of one line or entry that should be a JSON object in UTF-8."""
  try:
    value = json.loads(raw.decode("utf-8"))
  except UnicodeDecodeError as error:
    return Record(where, {}, raw, f"invalid UTF-8 at byte {error.start}")
  except (ValueError, RecursionError) as error:
    return Record(where, {}, raw, f"invalid JSON: {error}")
  return _object_record(where, value, raw)


def _object_record(where: str, value: Any, raw: Any) -> Record:
  if not isinstance(value, dict):
    return Record(where, {}, raw, f"a JSON {type(value).__name__}, not an object")
  return Record(where, value, raw)


def chunks(path: Path, compression: str) -> Iterator[bytes]:
  """Yields the bytes of a file, decompressed; ValueError where the stream breaks off."""
  with open(path, "rb") as file:
    if not compression:
      yield from iter(lambda: file.read(_CHUNK), b"")
      return
    new_stream, failure = _decompressor(compression)
    stream = None
    while data := file.read(_CHUNK):
      while data:
        stream = stream or new_stream()
        try:
          chunk = stream.decompress(data)
        except failure as error:
          raise ValueError(f"damaged {compression} data: {error}") from error
        # A file may hold several streams, one after the other, and gzip may be padded.
        done = stream.eof
        data = stream.unused_data.lstrip(b"\0") if done else b""
        stream = None if done else stream
        yield chunk
  if stream is not None:
    raise ValueError(f"truncated {compression} data")


def lines(path: Path, compression: str) -> Iterator[tuple[bytes, str]]:
  """Yields (line, ""), and at last (rest, error) where the file is damaged."""
  parts: list[bytes] = []
  try:
    for chunk in chunks(path, compression):
      first, *rest = chunk.split(b"\n")
      parts.append(first)
      if rest:
        yield b"".join(parts), ""
        yield from ((line, "") for line in rest[:-1])
        parts = rest[-1:]
  except ValueError as error:
    yield b"".join(parts), str(error)
    return
  if last := b"".join(parts):
    yield last, ""


def is_json_array(path: Path, name: FileName) -> bool:
  """Whether a file is one JSON array: named .json, and its first character opens an array."""
  if name.format != "json":
    return False
  try:
    starts = (chunk.lstrip() for chunk in chunks(path, name.compression))
    return next((start[:1] for start in starts if start), b"") == b"["
  except ValueError:  # damaged before its first character
    return False


def records(source: str, text_field: str | None) -> Iterator[Record]:
  """Yields every record of one source. Blank lines hold none.

  Args:
    source: a file, or a TFDS source.
    text_field: the field that a text file stands for and the only one read of a Parquet file;
      `None` reads every field, and no text files.

  Raises:
    ValueError: where nothing of the source can be read, whatever becomes of bad records.
  """
  if source.startswith(TFDS):
    yield from _tfds_records(source)
    return
  path = Path(source)
  name = parse_name(path.name)
  if name is None:
    raise ValueError(f"{path}: unknown suffix; accepted: {ACCEPTED}")
  if is_json_array(path, name):
    yield from _json_array_records(path, name.compression)
  elif name.format in ("json", "jsonl"):
    yield from _jsonl_records(path, name.compression)
  elif name.format == "txt":
    if text_field is None:
      raise ValueError(f"{path}: a text file holds no records with fields")
    yield _text_record(path, name.compression, text_field)
  elif name.format == "parquet":
    yield from _parquet_records(path, text_field)
  else:
    yield from _array_records(path)


def open_tfds(source: str) -> Any:
  """Opens `tfds:NAME[:SPLIT]` or `tfds:FOLDER[:SPLIT]`, already prepared, without TensorFlow.

  Returns:
    The random-access data source; its elements are dicts.
  """
  tfds = import_extra("tensorflow_datasets", "tfds")
  builder, split = tfds_builder(source)
  if split not in builder.info.splits:
    raise ValueError(f"{source}: no split {split!r}; prepared: {sorted(builder.info.splits)}")
  if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise ValueError(
      f"{source}: prepared as {builder.info.file_format}; accepted: array_record "
      "(prepare it with file_format='array_record')"
    )
  return builder.as_data_source(split)


def tfds_builder(source: str) -> tuple[Any, str]:
  """Returns the builder that a TFDS source names, and the split (train where none is given)."""
  tfds = import_extra("tensorflow_datasets", "tfds")
  name, _, split = source.removeprefix(TFDS).rpartition(":")
  if not name or re.match(r"[\d*]+\.", split):  # a version such as 1.0.0 also follows a colon
    name, split = source.removeprefix(TFDS), "train"
  if Path(name, "dataset_info.json").exists():
    return tfds.builder_from_directory(name), split
  try:
    return tfds.builder(name), split
  except tfds.core.registered.DatasetNotFoundError as error:
    raise ValueError(f"{source}: neither a prepared folder nor a known dataset") from error


def files_of(source: str) -> list[Path]:
  """Returns the files that a source is read from."""
  if not source.startswith(TFDS):
    return [Path(source)]
  folder = Path(tfds_builder(source)[0].data_path)
  return sorted(path for path in folder.iterdir() if path.is_file())


def _decompressor(compression: str) -> tuple[Callable[[], Any], type[Exception]]:
  if compression == ".gz":
    return lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16), zlib.error
  zstandard = import_extra("zstandard", "zstd")
  return lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError


def _jsonl_records(path: Path, compression: str) -> Iterator[Record]:
  for number, (line, error) in enumerate(lines(path, compression), start=1):
    where = f"{path}:{number}"
    if error:
      yield Record(where, {}, line, error)
    elif line and not line.isspace():
      yield parse_json(where, line)


def _json_array_records(path: Path, compression: str) -> Iterator[Record]:
  """Yields the elements of one array; what follows a break in it is one bad record."""
  text, damage = _read_text(path, compression)
  decoder, index, at = json.JSONDecoder(), 0, _skip(text, text.index("[") + 1)
  while at < len(text) and text[at] != "]":
    try:
      value, end = decoder.raw_decode(text, at)
      after = _skip(text, end)
      if text[after : after + 1] not in (",", "]"):
        raise json.JSONDecodeError("Expecting ',' or ']'", text, after)
    except (ValueError, RecursionError) as error:
      wrong = damage or f"invalid JSON: {error}"
      yield Record(f"{path}[{index}]", {}, text[at:], wrong)
      return
    yield _object_record(f"{path}[{index}]", value, text[at:end])
    index += 1
    at = _skip(text, after + 1) if text[after] == "," else after
  if damage or text[at : at + 1] != "]" or text[at + 1 :].strip():
    wrong = damage or "invalid JSON: one array must be all that the file holds"
    yield Record(f"{path}[{index}]", {}, text[at:], wrong)


def _read_text(path: Path, compression: str) -> tuple[str, str]:
  """Returns the text of a file, up to what is damaged, and the damage."""
  parts: list[bytes] = []
  damage = ""
  try:
    parts.extend(chunks(path, compression))
  except ValueError as error:
    damage = str(error)
  raw = b"".join(parts)
  try:
    return raw.decode("utf-8"), damage
  except UnicodeDecodeError as error:
    return raw[: error.start].decode("utf-8"), f"invalid UTF-8 at byte {error.start}"


def _skip(text: str, at: int) -> int:
  match = _SPACE.match(text, at)
  assert match is not None
  return match.end()


def _text_record(path: Path, compression: str, text_field: str) -> Record:
  parts: list[bytes] = []
  try:
    parts.extend(chunks(path, compression))
    raw = b"".join(parts)
    return Record(f"{path}:1", {text_field: raw.decode("utf-8")}, raw)
  except UnicodeDecodeError as error:
    number = raw.count(b"\n", 0, error.start) + 1
    return Record(f"{path}:{number}", {}, raw, f"invalid UTF-8 at byte {error.start}")
  except ValueError as error:
    raw = b"".join(parts)
    number = raw.count(b"\n") + 1
    return Record(f"{path}:{number}", {}, raw, str(error))


def _parquet_records(path: Path, text_field: str | None) -> Iterator[Record]:
  index = 0
  with open_parquet(path, text_field) as file:
    columns = file.schema_arrow.names if text_field is None else [text_field]
    for batch in file.iter_batches(batch_size=_RECORDS, columns=columns):
      values = [parquet_values(column) for column in batch.columns]
      for row in zip(*values, strict=True):
        fields = dict(zip(columns, row, strict=True))
        yield Record(f"{path}[{index}]", fields, fields if text_field is None else row[0])
        index += 1


def open_parquet(path: Path, text_field: str | None) -> Any:
  """Opens a Parquet file that has the column `text_field`, else ValueError."""
  parquet = import_extra("pyarrow.parquet", "parquet")
  try:
    file = parquet.ParquetFile(path)
  except ValueError as error:
    raise ValueError(f"{path}: not readable as Parquet: {error}") from error
  if text_field is not None and text_field not in file.schema_arrow.names:
    raise ValueError(
      f"{path}: no column {text_field!r}; columns present: {file.schema_arrow.names}"
    )
  return file


def parquet_values(column: Any) -> list[Any]:
  """Returns a column as Python values, strings as bytes: some writers store invalid UTF-8."""
  kind = _as_binary(column.type)
  return (column if kind == column.type else column.cast(kind)).to_pylist()


def _as_binary(kind: Any) -> Any:
  """Returns an Arrow type in which strings, also those in lists and structs, are binary."""
  arrow = import_extra("pyarrow", "parquet")
  if arrow.types.is_string(kind) or arrow.types.is_large_string(kind):
    return arrow.large_binary()
  if arrow.types.is_list(kind) or arrow.types.is_large_list(kind):
    inner = kind.value_field.with_type(_as_binary(kind.value_type))
    return arrow.list_(inner) if arrow.types.is_list(kind) else arrow.large_list(inner)
  if arrow.types.is_struct(kind):
    return arrow.struct([field.with_type(_as_binary(field.type)) for field in kind])
  return kind


def _array_records(path: Path) -> Iterator[Record]:
  module = import_extra("array_record.python.array_record_module", "tfds")
  try:
    reader = module.ArrayRecordReader(str(path))
    count = reader.num_records()
    for start in range(0, count, _RECORDS):
      block = reader.read(start, min(start + _RECORDS, count))
      for index, raw in enumerate(block, start):
        yield parse_json(f"{path}[{index}]", raw)
    reader.close()  # raises where the file is truncated: it reports no records until then
  except RuntimeError as error:
    raise ValueError(f"{path}: damaged as ArrayRecord: {error}") from error


def _tfds_records(source: str) -> Iterator[Record]:
  data = open_tfds(source)
  for index in range(len(data)):
    fields = data[index]
    yield Record(f"{source}[{index}]", fields, fields)
