"""What each link of a chain does with the batches that pass, and the record it leaves."""

import base64
import json
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from jdc.prep import batches, sampling, stages, tables
from jdc.prep.batches import BadRecord
from jdc.prep.globals_ import GlobalOp, Table
from jdc.prep.stages import Link, Step
from jdc.prep.store import AtomicFile, Written
from jdc.prep.tables import TableFile, View

Record = dict[str, Any]
_DROPPED = (
  pa.field("doc_id", pa.binary(batches.ID_BYTES)),
  pa.field("source", pa.string()),
  pa.field("offset", pa.int64()),
  pa.field("domain", pa.string()),
  pa.field("reason", pa.string()),
  pa.field("duplicate_of", pa.binary(batches.ID_BYTES)),
  pa.field("similarity", pa.float64()),
)
SAMPLE = 2000  # documents of a shard that the report may measure as they came
_BINS = 33  # of histograms of lengths: 0, [1, 2), [2, 4), ..., bytes


class Place(NamedTuple):
  """Where the files of a shard go."""

  root: Path
  shard: int

  def work(self, name: str, what: str, suffix: str) -> str:
    """Returns the pattern of a file in `work/`."""
    return f"work/{name}/{what}-{self.shard:05d}-{{sha}}.{suffix}"

  def visible(self, folder: str, suffix: str) -> str:
    """Returns the pattern of a file for users."""
    return f"{folder}/part-{self.shard:05d}-{{sha}}.{suffix}"


class Handler(Protocol):
  """A link at work on one shard."""

  def feed(self, batch: pa.RecordBatch, rows: np.ndarray) -> tuple[pa.RecordBatch, np.ndarray]:
    """Takes a batch and its rows in the present text; returns what is left of it."""

  def finish(self, view: View | None) -> tuple[View, Record]:
    """Returns the view after the link, and the record without its key."""

  def discard(self) -> None:
    """Leaves nothing behind."""


def histogram(lengths: np.ndarray) -> list[int]:
  """Returns how many of some numbers are 0, 1, 2 to 3, 4 to 7, ...

  >>> histogram(np.array([0, 1, 2, 3, 4]))[:5]
  [1, 1, 2, 1, 0]
  """
  bins = np.frexp(lengths.astype(np.float64))[1]
  return np.bincount(np.minimum(bins, _BINS - 1), minlength=_BINS).tolist()


def byte_lengths(batch: pa.RecordBatch) -> np.ndarray:
  """Returns the bytes of the text of each document."""
  return pc.binary_length(batch.column("text")).to_numpy(zero_copy_only=False).astype(np.int64)


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

  >>> (
  ...   cause_kind("invalid UTF-8 at byte 17"),
  ...   cause_kind("invalid JSON: Expecting value: line 1"),
  ... )
  ('invalid UTF-8', 'invalid JSON')
  """
  return cause.partition(":")[0].partition(" at ")[0]


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
    duplicate_of: pa.Array | None = None,
    similarity: pa.Array | None = None,
  ) -> None:
    """Adds documents with the reason of each; all of them go."""
    self.reasons.update(reason.to_pylist())
    columns = {field.name: batch.column(field.name) for field in _DROPPED[:4]}
    columns["reason"] = reason
    none = pa.nulls(batch.num_rows, pa.binary(batches.ID_BYTES))
    columns["duplicate_of"] = none if duplicate_of is None else duplicate_of
    unknown = pa.nulls(batch.num_rows, pa.float64())
    columns["similarity"] = unknown if similarity is None else similarity
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


class TextLink:
  """Maps and measures documents, and keeps them.

  A step that cannot do with a document gives it a reason in the column `drop`.
  """

  def __init__(
    self,
    place: Place,
    link: Link,
    resources: Mapping[int, Table],
    prepared: Mapping[str, Path],
  ):
    self._place, self._link = place, link
    self._resources, self._prepared = resources, prepared
    self._dropped = DroppedFile(place, link.name, keep_text=False)
    self._file: TableFile | None = None
    self._before = np.zeros(_BINS, np.int64)
    self._in = self._bytes_in = self._bytes_out = 0
    self._sample = sampling.Sample(SAMPLE) if link.reads_input else None
    self._sums: Counter[str] = Counter()
    self._seconds: defaultdict[str, float] = defaultdict(float)

  def feed(self, batch: pa.RecordBatch, rows: np.ndarray) -> tuple[pa.RecordBatch, np.ndarray]:
    batch = batch.select([n for n in batch.schema.names if n in batches.SCHEMA.names])
    lengths = byte_lengths(batch)
    if self._sample:
      self._sample.add(batch)
    self._before += histogram(lengths)
    self._in += batch.num_rows
    self._bytes_in += int(lengths.sum())
    for step in self._link.steps:
      begin = time.process_time()
      batch = self._map(step, batch)
      self._seconds[f"{step.number} {step.op}"] += time.process_time() - begin
    lengths = byte_lengths(batch)
    self._bytes_out += int(lengths.sum())
    for name, values in tables.signals_of(batch).items():  # that maps counted
      if pa.types.is_integer(values.type):
        self._sums[name.removeprefix("signal:")] += pc.sum(values).as_py() or 0
    columns = [("num_bytes", pa.array(lengths))]
    for step in self._link.signals:
      begin = time.process_time()
      file = [self._prepared[step.prepared_name]] if step.operator.prepare else []
      found = step.operator.function(batch, step.values, *file)
      columns += [(stages.signal_column(step, k), pa.array(v)) for k, v in found.items()]
      self._seconds[step.op] += time.process_time() - begin
    for name, values in columns:
      batch = batches.set_column(batch, name, values)
    if self._file is None:
      pattern = self._place.work(self._link.name, "text", "parquet")
      self._file = TableFile(self._place.root, pattern, batch.schema, digits=16)
    first = self._file.rows
    if batch.num_rows:
      self._file.write(batch)
    return batch, np.arange(first, first + batch.num_rows)

  def _map(self, step: Step, batch: pa.RecordBatch) -> pa.RecordBatch:
    if step.operator.kind in ("dedup", "sample"):
      op: GlobalOp = step.operator.function(step.values)
      batch = op.apply(batch, self._resources[step.number])
    else:
      batch = step.operator.function(batch, step.values)
    if "drop" not in batch.schema.names:
      return batch
    reason = batch.column("drop")
    batch = batch.drop_columns(["drop"])
    gone = pc.is_valid(reason)
    if pc.any(gone).as_py():
      self._dropped.add(batch.filter(gone), reason.filter(gone))
    return batch.filter(pc.invert(gone))

  def finish(self, view: View | None) -> tuple[View, Record]:
    if self._file is None:  # a shard without documents still has all columns
      self.feed(_no_documents(), np.zeros(0, np.int64))
    assert self._file is not None
    written = self._file.commit()
    info = {
      "rows_in": self._in,
      "rows_out": self._file.rows,
      "bytes_in": self._bytes_in,
      "bytes_out": self._bytes_out,
      "length_histogram": self._before.tolist(),
      "seconds": {name: round(value, 4) for name, value in sorted(self._seconds.items())},
    }
    if self._sums:
      info["sums"] = dict(sorted(self._sums.items()))
    if self._dropped.reasons:
      info["dropped"] = dict(sorted(self._dropped.reasons.items()))
    files = {"text": written, **self._dropped.finish()}
    if self._sample:
      pattern = self._place.work(self._link.name, "sample", "parquet")
      held = self._sample.table()
      file = TableFile(self._place.root, pattern, held.schema)
      file.write(held)
      files["sample"] = file.commit()
    return View(written), {"files": files, "info": info}

  def discard(self) -> None:
    self._dropped.discard()
    if self._file:
      self._file.discard()


def _no_documents() -> pa.RecordBatch:
  arrays = [pa.array([], field.type) for field in batches.SCHEMA]
  return pa.RecordBatch.from_arrays(arrays, schema=batches.SCHEMA)


class _Masking:
  """What links that drop documents have in common."""

  def __init__(self, place: Place, link: Link):
    self._place, self._link = place, link
    self._dropped = DroppedFile(place, link.name, json.loads(link.options)["text"])
    self._kept: list[np.ndarray] = []
    self._seen = 0

  def _drop(
    self,
    batch: pa.RecordBatch,
    rows: np.ndarray,
    reason: pa.Array,
    duplicate_of: pa.Array | None = None,
    similarity: pa.Array | None = None,
  ) -> tuple[pa.RecordBatch, np.ndarray]:
    """Drops the documents that have a reason; the others have null."""
    self._seen += batch.num_rows
    gone = pc.is_valid(reason)
    bad = gone.to_numpy(zero_copy_only=False)
    self._kept.append(rows[~bad])
    if not bad.any():
      return batch, rows
    extra = [None if v is None else v.filter(gone) for v in (duplicate_of, similarity)]
    self._dropped.add(batch.filter(gone), reason.filter(gone), *extra)
    return batch.filter(pc.invert(gone)), rows[~bad]

  def finish(self, view: View | None) -> tuple[View, Record]:
    assert view is not None
    kept = np.concatenate([np.zeros(0, np.int64), *self._kept])
    path = self._place.root / view.text.path
    mask = np.zeros(parquet.read_metadata(path).num_rows, bool)
    mask[kept] = True
    pattern = self._place.work(self._link.name, "mask", "npy")
    written = tables.save_array(self._place.root, pattern, mask)
    files = {"mask": written}
    files |= self._dropped.finish()
    info = {
      "rows_in": self._seen,
      "rows_out": len(kept),
      "dropped": dict(sorted(self._dropped.reasons.items())),
    }
    return View(view.text, written), {"files": files, "info": info}

  def discard(self) -> None:
    self._dropped.discard()


class SelectLink(_Masking):
  """Drops documents by bounds of their signals; the first rule that fails is the reason."""

  def __init__(self, place: Place, link: Link):
    super().__init__(place, link)
    self._steps = [part for step in link.steps for part in stages.parts(step)]

  def feed(self, batch: pa.RecordBatch, rows: np.ndarray) -> tuple[pa.RecordBatch, np.ndarray]:
    reason = np.zeros(batch.num_rows, np.int64)
    names: list[str] = []
    for step in self._steps:
      for name, bad in step.operator.function(self._signals(step, batch), step.values).items():
        names.append(name)
        reason[bad & (reason == 0)] = len(names)
    indices = pa.array(reason - 1, pa.int64(), mask=reason == 0)
    return self._drop(batch, rows, pa.array(names, pa.string()).take(indices))

  @staticmethod
  def _signals(step: Step, batch: pa.RecordBatch) -> dict[str, Any]:
    """Returns the signals that a predicate reads, by their names."""
    found = {}
    for measure in stages.measures(step):
      for name in measure.operator.provides:
        column = batch.column(stages.signal_column(measure, name))
        numbers = pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
        found[name] = column.to_numpy(zero_copy_only=False) if numbers else column
    return found


class ApplyLink(_Masking):
  """Drops what a global step decided."""

  def __init__(self, place: Place, link: Link, decision: Mapping[str, Any]):
    super().__init__(place, link)
    self._row = tables.load_array(place.root, decision["row"])
    self._reasons_of: tuple[str, ...] = tuple(decision["reasons"])
    arrays = ("reason", "kept", "similarity")
    self._arrays = {
      n: tables.load_array(place.root, decision[n]) for n in arrays if n in decision
    }

  def feed(self, batch: pa.RecordBatch, rows: np.ndarray) -> tuple[pa.RecordBatch, np.ndarray]:
    if not len(self._row):
      return self._drop(batch, rows, pa.nulls(batch.num_rows, pa.string()))
    place = np.minimum(np.searchsorted(self._row, rows), len(self._row) - 1)
    gone = self._row[place] == rows
    which = self._arrays.get("reason", np.zeros(len(self._row), np.int64))[place]
    names = pa.array(self._reasons_of, pa.string())
    reason = names.take(pa.array(which, pa.int64(), mask=~gone))
    kept = similarity = None
    if "kept" in self._arrays:
      ids = [bytes(i) for i in self._arrays["kept"][place]]
      kept = pa.array(ids, pa.binary(batches.ID_BYTES))
    if "similarity" in self._arrays:
      similarity = pa.array(self._arrays["similarity"][place], pa.float64(), from_pandas=True)
    return self._drop(batch, rows, reason, kept, similarity)


class KeysLink:
  """Makes the table of a global step."""

  def __init__(self, place: Place, link: Link):
    self._place, self._link = place, link
    step = link.steps[0]
    self._op: GlobalOp = step.operator.function(step.values)
    self._parts: list[Table] = []
    self._ids: list[np.ndarray] = []

  def feed(self, batch: pa.RecordBatch, rows: np.ndarray) -> tuple[pa.RecordBatch, np.ndarray]:
    if batch.num_rows:
      self._parts.append(self._op.keys(batch))
      self._ids.append(sampling.id_bytes(batch.column("doc_id")))
    return batch, rows

  def finish(self, view: View | None) -> tuple[View, Record]:
    assert view is not None
    ids = np.concatenate([np.zeros((0, batches.ID_BYTES), np.uint8), *self._ids])
    arrays = {"doc_id": ids, **self._op.join(self._parts)}
    files = {
      name: tables.save_array(
        self._place.root, self._place.work(self._link.name, name, "npy"), values
      )
      for name, values in arrays.items()
    }
    return view, {"files": files, "info": {"rows_in": len(ids), "rows_out": len(ids)}}

  def discard(self) -> None:
    pass


class TallyLink:
  """Counts the documents that are left, by domain, in pieces of at most `shard_mb` of text."""

  def __init__(self, place: Place, link: Link):
    del place
    self._most = json.loads(link.options)["shard_mb"] * (1 << 20)
    self._pieces: dict[str, list[list[int]]] = {}
    self._after = np.zeros(_BINS, np.int64)
    self._rows = 0

  def feed(self, batch: pa.RecordBatch, rows: np.ndarray) -> tuple[pa.RecordBatch, np.ndarray]:
    lengths = batch.column("num_bytes").to_numpy()
    self._after += histogram(lengths)
    self._rows += batch.num_rows
    domains = batch.column("domain").dictionary_encode()
    codes = domains.indices.to_numpy()
    for code, domain in enumerate(domains.dictionary.to_pylist()):
      self._count(self._pieces.setdefault(domain, [[0, 0]]), lengths[codes == code])
    return batch, rows

  def _count(self, pieces: list[list[int]], lengths: np.ndarray) -> None:
    """Adds documents to the last piece, or to new ones once it is full."""
    while len(lengths):
      rows, size = pieces[-1]
      fits = int(np.searchsorted(np.cumsum(lengths), self._most - size, side="right"))
      if not fits and not rows:
        fits = 1  # one document has more than a file may hold
      pieces[-1] = [rows + fits, size + int(lengths[:fits].sum())]
      lengths = lengths[fits:]
      if len(lengths):
        pieces.append([0, 0])

  def finish(self, view: View | None) -> tuple[View, Record]:
    assert view is not None
    info = {
      "rows_in": self._rows,
      "rows_out": self._rows,
      "pieces": {name: self._pieces[name] for name in sorted(self._pieces)},
      "length_histogram": self._after.tolist(),
    }
    return view, {"files": {}, "info": info}

  def discard(self) -> None:
    pass


def columns_read(links: Sequence[Link]) -> list[str] | None:
  """Returns the columns that some links need, `None`: all."""
  kinds = [link.kind for link in links]
  if "text" in kinds or "keys" in kinds:
    return None
  keep_text = any(json.loads(link.options).get("text") for link in links)
  return [*tables.META, "signal:", *(["text"] if keep_text else [])]
