"""The link that changes and measures documents, and keeps them."""

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jdc.prep import batches, plan_step, problems, sampling, tables
from jdc.prep.globals_ import GlobalOp, Table
from jdc.prep.links.aside import DroppedFile
from jdc.prep.links.base import BINS, Place, Record, byte_lengths, histogram
from jdc.prep.plan_step import Step
from jdc.prep.stages import Link
from jdc.prep.store import Written
from jdc.prep.tables import TableFile, View

SAMPLE = 500  # documents of a shard that the report may measure as they came


class TextLink:
  """Maps and measures documents, and keeps them.

  A step that cannot do with a document gives it a reason in the column `drop`. In columns
  `found:WHAT` it tells which documents have what some document must have.
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
    self._before = np.zeros(BINS, np.int64)
    self._in = self._bytes_in = self._bytes_out = 0
    self._sample = sampling.Sample(SAMPLE) if link.reads_input else None
    self._sums: Counter[str] = Counter()
    self._found: dict[str, Counter[str]] = {}
    self._seconds: defaultdict[str, float] = defaultdict(float)

  def feed(self, batch: pa.RecordBatch, rows: np.ndarray) -> tuple[pa.RecordBatch, np.ndarray]:
    batch = batch.select([n for n in batch.schema.names if n in batches.SCHEMA.names])
    lengths = byte_lengths(batch)
    if self._sample:
      self._sample.add(batch)
    self._before += histogram(lengths)
    self._in += batch.num_rows
    self._bytes_in += int(lengths.sum())
    batch = self._map_all(self._link.steps, batch)
    columns = self._measured(batch)
    batch = self._map_all(self._link.late, batch)
    lengths = byte_lengths(batch)
    self._bytes_out += int(lengths.sum())
    for name, values in tables.signals_of(batch).items():  # that maps counted
      if pa.types.is_integer(values.type):
        self._sums[name.removeprefix("signal:")] += pc.sum(values).as_py() or 0
    for name, values in [("num_bytes", pa.array(lengths)), *columns]:
      batch = batches.set_column(batch, name, values)
    if self._file is None:
      pattern = self._place.work(self._link.name, "text", "parquet")
      # Written once and read three times, so that what is quickly unpacked is worth its size.
      self._file = TableFile(self._place.root, pattern, batch.schema, codec="lz4", digits=16)
    first = self._file.rows
    if batch.num_rows:
      self._file.write(batch)
    return batch, np.arange(first, first + batch.num_rows)

  def _map_all(self, steps: Sequence[Step], batch: pa.RecordBatch) -> pa.RecordBatch:
    for step in steps:
      begin = time.process_time()
      with problems.in_step(step.number, step.op):
        batch = self._map(step, batch)
      self._seconds[f"{step.number} {step.op}"] += time.process_time() - begin
    return batch

  def _measured(self, batch: pa.RecordBatch) -> list[tuple[str, pa.Array]]:
    """Returns the columns of all signals."""
    columns = []
    for step in self._link.signals:
      begin = time.process_time()
      file = [self._prepared[step.prepared_name]] if step.operator.prepare else []
      with problems.in_step(step.number, step.op):
        found = step.operator.function(batch, step.values, *file)
      columns += [(plan_step.signal_column(step, k), pa.array(v)) for k, v in found.items()]
      if step.operator.lacks:
        missing, what = step.operator.lacks
        have = batch.num_rows - int(np.sum(found[missing]))
        self._count(step, f"{what} {step.values.field!r}", have)
      self._seconds[step.op] += time.process_time() - begin
    return columns

  def _map(self, step: Step, batch: pa.RecordBatch) -> pa.RecordBatch:
    if step.operator.kind in ("dedup", "sample"):
      op: GlobalOp = step.operator.function(step.values)
      batch = op.apply(batch, self._resources[step.number])
    else:
      batch = step.operator.function(batch, step.values)
    for name in [name for name in batch.schema.names if name.startswith("found:")]:
      have = pc.sum(batch.column(name)).as_py() or 0
      self._count(step, name.removeprefix("found:"), have)
      batch = batch.drop_columns([name])
    if "drop" not in batch.schema.names:
      return batch
    reason = batch.column("drop")
    batch = batch.drop_columns(["drop"])
    gone = pc.is_valid(reason)
    if pc.any(gone).as_py():
      self._dropped.add(batch.filter(gone), reason.filter(gone))
    return batch.filter(pc.invert(gone))

  def _count(self, step: Step, what: str, have: int) -> None:
    """Adds up how many documents have something that a step names."""
    self._found.setdefault(f"step {step.number} ({step.op})", Counter())[what] += have

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
    if self._found:
      info["found"] = {name: dict(counts) for name, counts in self._found.items()}
    if self._dropped.reasons:
      info["dropped"] = dict(sorted(self._dropped.reasons.items()))
    files = {"text": written, **self._dropped.finish()}
    if self._sample:
      files["sample"] = self._write_sample(self._sample.table())
    return View(written), {"files": files, "info": info}

  def _write_sample(self, held: pa.Table) -> Written:
    pattern = self._place.work(self._link.name, "sample", "parquet")
    file = TableFile(self._place.root, pattern, held.schema)
    try:
      file.write(held)
      return file.commit()
    except BaseException:
      file.discard()
      raise

  def discard(self) -> None:
    self._dropped.discard()
    if self._file:
      self._file.discard()


def _no_documents() -> pa.RecordBatch:
  arrays = [pa.array([], field.type) for field in batches.SCHEMA]
  return pa.RecordBatch.from_arrays(arrays, schema=batches.SCHEMA)
