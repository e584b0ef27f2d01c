"""What is set aside of a shard: records that were refused, documents that were dropped."""

import base64
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from jdc.prep import batches, tables
from jdc.prep.batches import BadRecord
from jdc.prep.links.base import Place
from jdc.prep.store import AtomicFile, Written
from jdc.prep.tables import TableFile

_PLACE = re.compile(r":| at (?:byte|character|line) ")
_NUMBER = re.compile(r"(?<![\w-])\d+")
_DROPPED = (
  pa.field("doc_id", pa.binary(batches.ID_BYTES)),
  pa.field("source", pa.string()),
  pa.field("offset", pa.int64()),
  pa.field("domain", pa.string()),
  pa.field("reason", pa.string()),
  pa.field("duplicate_of", pa.binary(batches.ID_BYTES)),
  pa.field("similar_to", pa.binary(batches.ID_BYTES)),
  pa.field("similarity", pa.float64()),
)


class Quarantine:
  """The bad records of a shard, one JSON object each: place, cause and raw bytes.

  Raw bytes are `raw` where they are UTF-8, else `raw_base64`; of more than a mebibyte the
  first mebibyte, since the source holds them all at its offset.
  """

  def __init__(self, place: Place, strict: bool):
    self._place, self._strict = place, strict
    self._file: AtomicFile | None = None
    self.causes: Counter[str] = Counter()

  def add(self, bad: BadRecord) -> None:
    """Sets a record aside; ValueError if that is not allowed."""
    if self._strict:
      raise ValueError(f"{bad}; input.on_bad_line is 'error'")
    raw = bad.raw[: 1 << 20]
    held: dict[str, Any] = {"source": bad.source, "line": bad.line, "offset": bad.offset}
    held |= {"cause": bad.cause, "length": len(bad.raw)}
    try:
      held["raw"] = raw.decode("utf-8")
    except UnicodeDecodeError:
      held["raw_base64"] = base64.b64encode(raw).decode()
    if self._file is None:
      root = self._place.root
      self._file = AtomicFile(root, self._place.visible("quarantine", "jsonl"))
    self._file.file.write((json.dumps(held, ensure_ascii=False) + "\n").encode())
    self.causes[cause_kind(bad.cause)] += 1

  def finish(self) -> Written | None:
    """Makes the file appear, if there is one."""
    return self._file.commit() if self._file else None

  def discard(self) -> None:
    """Leaves nothing behind."""
    if self._file:
      self._file.discard()


def cause_kind(cause: str) -> str:
  """Returns a cause without what differs from record to record.

  >>> [
  ...   cause_kind(cause)
  ...   for cause in (
  ...     "invalid UTF-8 at byte 17",
  ...     "invalid JSON: Expecting value: line 1",
  ...     "a line of 70000012 bytes; at most 67108864",
  ...   )
  ... ]
  ['invalid UTF-8', 'invalid JSON', 'a line of N bytes; at most N']
  """
  return _NUMBER.sub("N", _PLACE.split(cause, maxsplit=1)[0])


class DroppedFile:
  """What a link dropped of a shard, with reasons and signals.

  Args:
    place: of the shard.
    name: of the link.
    keep_text: whether the texts go along.
  """

  def __init__(self, place: Place, name: str, keep_text: bool):
    self._place, self._name, self._keep_text = place, name, keep_text
    self._file: TableFile | None = None
    self.reasons: Counter[str] = Counter()

  def add(
    self,
    batch: pa.RecordBatch,
    reason: pa.Array,
    evidence: Mapping[str, pa.Array] | None = None,
  ) -> None:
    """Adds documents with the reason of each; all of them go.

    Args:
      batch: the documents.
      reason: of each.
      evidence: of duplicates, by column, which document they duplicate.
    """
    self.reasons.update(reason.to_pylist())
    columns = {field.name: batch.column(field.name) for field in _DROPPED[:4]}
    columns["reason"] = reason
    for field in _DROPPED[5:]:
      unknown = pa.nulls(batch.num_rows, field.type)
      columns[field.name] = (evidence or {}).get(field.name, unknown)
    fields = [*_DROPPED]
    for name, values in tables.signals_of(batch).items():
      short = name.removeprefix("signal:")
      columns[short] = values
      fields.append(pa.field(short, values.type))
    if self._keep_text:
      columns["text"] = batch.column("text")
      fields.append(pa.field("text", pa.string()))
    part = pa.RecordBatch.from_arrays(list(columns.values()), schema=pa.schema(fields))
    if self._file is None:
      pattern = self._place.visible(f"dropped/{self._name}", "parquet")
      self._file = TableFile(self._place.root, pattern, part.schema)
    self._file.write(part)

  def finish(self) -> dict[str, Written]:
    """Makes the file appear, if there is one."""
    return {"dropped": self._file.commit()} if self._file else {}

  def discard(self) -> None:
    """Leaves nothing behind."""
    if self._file:
      self._file.discard()
