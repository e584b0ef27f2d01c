"""Files of documents: Parquet, JSON lines, ArrayRecord."""

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import zstandard

from jdc.prep.readers.jsonl import dump, parse
from jdc.prep.spec import OutputSpec
from jdc.prep.store import AtomicFile, Written, hash_file, place
from jdc.prep.tables import TableFile
from jdc.prep.text.sft import are_messages, joined

_GROUP_BYTES = 64 << 20  # of text
_PLACE = "jdc"  # the field of a record that says where it came from


def write(
  root: Path, pattern: str, batches: Iterable[pa.RecordBatch], spec: OutputSpec
) -> Written:
  """Writes documents to one file.

  A row of Parquet has the columns of the batches. A JSON record has the fields of the record
  that was read, the text unless its messages say the same, and under `jdc` its `doc_id`,
  `source` and `offset`.

  Args:
    root: the folder of the run.
    pattern: the file's path, with `{sha}`, without a suffix.
    batches: of documents.
    spec: how.
  """
  if spec.format == "parquet":
    return _write_parquet(root, pattern, batches, spec)
  if spec.format == "jsonl":
    return _write_jsonl(root, pattern, batches)
  return _write_arrayrecord(root, pattern, batches)


def _write_parquet(
  root: Path, pattern: str, batches: Iterable[pa.RecordBatch], spec: OutputSpec
) -> Written:
  file: TableFile | None = None
  try:
    for group in _groups(batches, spec.row_group):
      if file is None:
        file = TableFile(
          root, pattern + ".parquet", group.schema, codec=spec.compression, level=1
        )
      file.write(group)
    assert file is not None, "a file of the output has documents"
    return file.commit()
  except BaseException:
    if file:
      file.discard()
    raise


def _groups(batches: Iterable[pa.RecordBatch], most: int) -> Iterator[pa.Table]:
  """Yields tables of `most` rows, or fewer where their text comes to 64 MiB."""
  held: list[pa.RecordBatch] = []
  rows = size = 0
  for batch in batches:
    while batch.num_rows:
      part = batch.slice(0, most - rows)
      held.append(part)
      rows += part.num_rows
      size += pc.sum(pc.binary_length(part.column("text"))).as_py()
      batch = batch.slice(part.num_rows)
      if rows >= most or size >= _GROUP_BYTES:
        yield pa.Table.from_batches(held)
        held, rows, size = [], 0, 0
  if held:
    yield pa.Table.from_batches(held)


def _write_jsonl(root: Path, pattern: str, batches: Iterable[pa.RecordBatch]) -> Written:
  atomic = AtomicFile(root, pattern + ".jsonl.zst")
  try:
    out: Any = atomic.file
    with zstandard.ZstdCompressor(level=3).stream_writer(out, closefd=False) as stream:
      for batch in batches:
        lines = io.BytesIO()
        for record in records(batch):
          lines.write(record + b"\n")
        stream.write(lines.getvalue())
    return atomic.commit()
  except BaseException:
    atomic.discard()
    raise


def _write_arrayrecord(root: Path, pattern: str, batches: Iterable[pa.RecordBatch]) -> Written:
  from jdc.prep.sinks.arrayrecord import RecordFile

  target = root / (pattern + ".array_record")
  target.parent.mkdir(parents=True, exist_ok=True)
  partial = target.with_name(f".{target.name.replace('{sha}', '')}.{os.getpid()}.tmp")
  file = RecordFile(partial)
  try:
    for batch in batches:
      for record in records(batch):
        file.write(record)
    file.close()
    return place(root, partial, pattern + ".array_record", hash_file(partial))
  finally:
    file.abort()


def records(batch: pa.RecordBatch) -> Iterator[bytes]:
  """Yields documents as JSON records, with the place that they come from.

  Fields of the source that the text and the place take the names of stay, as `fields` of the
  place.
  """
  for row in batch.to_pylist():
    record: dict[str, Any] = parse(row["fields"].encode()) if "fields" in row else {}
    origin = {"doc_id": row["doc_id"].hex(), "source": row["source"], "offset": row["offset"]}
    told: dict[str, Any] = {_PLACE: origin}
    said = _said(record.get("messages"))
    if said is None or row["text"] not in ("", said):
      told["text"] = row["text"]
    if taken := {name: record[name] for name in told if name in record}:
      origin["fields"] = taken
    yield dump({**record, **told}).encode()


def _said(messages: Any) -> str | None:
  """Returns the text that `sft_normalize` makes of messages; `None` where there are none."""
  return joined(messages) if are_messages(messages) else None
