"""Links that drop documents: by their signals, or as a global step decided."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from jdc.prep import batches, plan_step, problems, tables
from jdc.prep.links.aside import DroppedFile
from jdc.prep.links.base import Place, Record
from jdc.prep.plan_step import Step
from jdc.prep.stages import Link
from jdc.prep.tables import View


class _Masking:
  """What links that drop documents have in common.

  Args:
    place: of the shard.
    link: which it is.
    later: columns of documents that stay which later links need, as of `columns_read`.
  """

  def __init__(self, place: Place, link: Link, later: Sequence[str]):
    self._place, self._link, self._later = place, link, later
    self._dropped = DroppedFile(place, link.name, json.loads(link.options)["text"])
    self._kept: list[np.ndarray] = []
    self._seen = 0

  def _drop(
    self,
    batch: pa.RecordBatch,
    rows: np.ndarray,
    reason: pa.Array,
    evidence: Mapping[str, pa.Array] | None = None,
  ) -> tuple[pa.RecordBatch, np.ndarray]:
    """Drops the documents that have a reason; the others have null."""
    self._seen += batch.num_rows
    gone = pc.is_valid(reason)
    bad = gone.to_numpy(zero_copy_only=False)
    self._kept.append(rows[~bad])
    if not bad.any():
      return batch, rows
    extra = {name: values.filter(gone) for name, values in (evidence or {}).items()}
    self._dropped.add(batch.filter(gone), reason.filter(gone), extra)
    needed = tables.expand(batch.schema.names, [*self._later, "doc_id"])
    return batch.select(needed).filter(pc.invert(gone)), rows[~bad]

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

  def __init__(self, place: Place, link: Link, later: Sequence[str]):
    super().__init__(place, link, later)
    self._steps = [part for step in link.steps for part in plan_step.parts(step)]

  def feed(self, batch: pa.RecordBatch, rows: np.ndarray) -> tuple[pa.RecordBatch, np.ndarray]:
    reason = np.zeros(batch.num_rows, np.int64)
    names: list[str] = []
    for step in self._steps:
      with problems.in_step(step.number, step.op):
        found = step.operator.function(self._signals(step, batch), step.values)
      for name, bad in found.items():
        names.append(name)
        reason[bad & (reason == 0)] = len(names)
    indices = pa.array(reason - 1, pa.int64(), mask=reason == 0)
    return self._drop(batch, rows, pa.array(names, pa.string()).take(indices))

  @staticmethod
  def _signals(step: Step, batch: pa.RecordBatch) -> dict[str, Any]:
    """Returns the signals that a predicate reads, by their names."""
    found = {}
    for measure in plan_step.measures(step):
      for name in measure.operator.provides:
        column = batch.column(plan_step.signal_column(measure, name))
        numbers = pa.types.is_floating(column.type) or pa.types.is_integer(column.type)
        found[name] = column.to_numpy(zero_copy_only=False) if numbers else column
    return found


class ApplyLink(_Masking):
  """Drops what a global step decided."""

  def __init__(
    self, place: Place, link: Link, later: Sequence[str], decision: Mapping[str, Any]
  ):
    super().__init__(place, link, later)
    self._row = tables.load_array(place.root, decision["row"])
    self._reasons_of: tuple[str, ...] = tuple(decision["reasons"])
    arrays = ("reason", "kept", "neighbour", "similarity")
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
    evidence = {}
    for column, name in (("duplicate_of", "kept"), ("similar_to", "neighbour")):
      # Of decisions without neighbours, similarities are to the documents kept.
      held = self._arrays.get(name, self._arrays.get("kept"))
      if held is not None:
        ids = [None, pa.py_buffer(np.ascontiguousarray(held[place]))]
        kind = pa.binary(batches.ID_BYTES)
        evidence[column] = pa.FixedSizeBinaryArray.from_buffers(kind, len(place), ids)
    if "similarity" in self._arrays:
      values = self._arrays["similarity"][place]
      evidence["similarity"] = pa.array(values, pa.float64(), from_pandas=True)
    return self._drop(batch, rows, reason, evidence)
