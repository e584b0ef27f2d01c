"""What a model step leaves of a shard: the documents, those without any, those set aside."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jdc.prep import batches, links
from jdc.prep.llm.rows import Batch, Rejected
from jdc.prep.llm.work import Document
from jdc.prep.readers.jsonl import dump
from jdc.prep.stages import Link
from jdc.prep.store import AtomicFile
from jdc.prep.tables import TableFile

_SCHEMA = batches.SCHEMA.append(pa.field("num_bytes", pa.int64()))
_ANSWER = 1 << 16  # characters of an answer that are kept of a document set aside


class ShardWriter:
  """Writes batches in order.

  Args:
    root: the folder of the run.
    shard: its number.
    link: with one step.
  """

  def __init__(self, root: Path, shard: int, link: Link):
    self._link, self._place = link, links.Place(root, shard)
    self._op = link.steps[0].op
    pattern = self._place.work(link.name, "text", "parquet")
    self._text = TableFile(root, pattern, _SCHEMA, digits=16)
    self._dropped = links.DroppedFile(self._place, link.name, keep_text=False)
    self._quarantine: AtomicFile | None = None
    self._causes: Counter[str] = Counter()
    self.rows_in = self._bytes_in = self._bytes_out = 0

  def write(self, batch: Batch) -> None:
    """Writes what became of a batch."""
    self.rows_in += len(batch.results)
    self._bytes_in += batch.size
    places: list[int] = []
    made: list[Document] = []
    empty: list[int] = []
    for place, result in enumerate(batch.results):
      if isinstance(result, Rejected):
        self._set_aside(batch, place, result)
      elif result:
        places += [place] * len(result)
        made += result
      else:
        empty.append(place)
    for start in range(0, len(made), batches.MAX_ROWS):
      end = start + batches.MAX_ROWS
      self._keep(_columns(batch, places[start:end], made[start:end]))
    if empty:
      reason = pa.array([f"{self._op}.none"] * len(empty), pa.string())
      documents = [batch.document(place) for place in empty]
      self._dropped.add(_columns(batch, empty, documents), reason)

  def _keep(self, held: pa.RecordBatch) -> None:
    self._bytes_out += pc.sum(held.column("num_bytes")).as_py()
    self._text.write(held)

  def _set_aside(self, batch: Batch, place: int, rejected: Rejected) -> None:
    """Adds a line with the whole document, why it is there, and the last answer."""
    document, origin = batch.document(place), batch.origin(place)
    held = {"doc_id": document.doc_id.hex(), **origin, "text": document.text}
    held |= {"fields": document.fields, "cause": rejected.cause}
    held["answer"] = rejected.answer[:_ANSWER]
    if self._quarantine is None:
      pattern = self._place.visible(f"quarantine/{self._link.name}", "jsonl")
      self._quarantine = AtomicFile(self._place.root, pattern)
    self._quarantine.file.write((dump(held) + "\n").encode())
    kind = links.cause_kind(rejected.cause)
    self._causes[f"{self._op}: {kind}"] += 1

  def finish(self) -> dict[str, Any]:
    """Makes the files appear; returns them and what they hold."""
    if not self._text.rows:  # a shard without documents still has all columns
      none = pa.RecordBatch.from_arrays([pa.array([], f.type) for f in _SCHEMA], schema=_SCHEMA)
      self._text.write(none)
    info = {
      "rows_in": self.rows_in,
      "rows_out": self._text.rows,
      "bytes_in": self._bytes_in,
      "bytes_out": self._bytes_out,
      "quarantined": dict(sorted(self._causes.items())),
      "dropped": dict(sorted(self._dropped.reasons.items())),
    }
    files = {"text": self._text.commit(), **self._dropped.finish()}
    if self._quarantine is not None:
      files["quarantine"] = self._quarantine.commit()
    return {"files": files, "info": info}

  def discard(self) -> None:
    """Leaves nothing behind."""
    self._text.discard()
    self._dropped.discard()
    if self._quarantine is not None:
      self._quarantine.discard()


def _columns(
  batch: Batch, places: Sequence[int], documents: Sequence[Document]
) -> pa.RecordBatch:
  """Returns documents as a batch, each with the origin of the one at its place."""
  rest = batch.rest if len(places) == len(batch.results) else None
  if rest is None or list(places) != list(range(len(places))):
    rest = batch.rest.take(pa.array(places, pa.int64()))
  texts = pa.array([document.text for document in documents], pa.string())
  columns = {
    **dict(zip(rest.schema.names, rest.columns, strict=True)),
    "doc_id": pa.array([d.doc_id for d in documents], pa.binary(batches.ID_BYTES)),
    "text": texts,
    "fields": pa.array([dump(document.fields) for document in documents], pa.string()),
    "num_bytes": pc.binary_length(texts).cast(pa.int64()),
  }
  return pa.RecordBatch.from_arrays([columns[f.name] for f in _SCHEMA], schema=_SCHEMA)
