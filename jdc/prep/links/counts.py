"""Links that change nothing: one makes the table of a global step, one counts what is left."""

import json

import numpy as np
import pyarrow as pa

from jdc.prep import batches, plan_step, problems, sampling, tables
from jdc.prep.globals_ import GlobalOp, Table
from jdc.prep.links.base import BINS, Place, Record, histogram
from jdc.prep.stages import Link
from jdc.prep.tables import View


class KeysLink:
  """Makes the table of a global step."""

  def __init__(self, place: Place, link: Link):
    self._place, self._link = place, link
    step = link.steps[0]
    self._op: GlobalOp = step.operator.function(step.values)
    # The signals that it reads have their plain names for it.
    self._columns = {
      f"signal:{name}": plan_step.signal_column(measure, name)
      for measure in plan_step.measures(step)
      for name in measure.operator.provides
    }
    self._parts: list[Table] = []
    self._ids: list[np.ndarray] = []

  def feed(self, batch: pa.RecordBatch, rows: np.ndarray) -> tuple[pa.RecordBatch, np.ndarray]:
    if batch.num_rows:
      named = batch
      for name, column in self._columns.items():
        named = batches.set_column(named, name, batch.column(column))
      step = self._link.steps[0]
      with problems.in_step(step.number, step.op):
        self._parts.append(self._op.keys(named))
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
    """Has nothing to leave behind: files are written at the end, whole."""


class TallyLink:
  """Counts the documents that are left, by domain, in pieces of at most `shard_mb` of text."""

  def __init__(self, place: Place, link: Link):
    del place
    self._most = json.loads(link.options)["shard_mb"] * (1 << 20)
    self._pieces: dict[str, list[list[int]]] = {}
    self._after = np.zeros(BINS, np.int64)
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
    """Has nothing to leave behind: files are written at the end, whole."""
