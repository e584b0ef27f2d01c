"""Tasks about all documents at once: what signals go by, and what a global step decides."""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from jdc.prep import globals_, problems, tables
from jdc.prep.links import Record
from jdc.prep.plan_step import Step
from jdc.prep.store import Written, write_bytes
from jdc.prep.tables import View


@dataclasses.dataclass(frozen=True)
class PrepareTask:
  """Makes the file that signals are measured by.

  Attributes:
    root: the folder of the run.
    step: the signals.
  """

  root: str
  step: Step

  def run(self) -> Record:
    """Returns the record of the file."""
    begin = time.process_time()
    prepare = self.step.operator.prepare
    assert prepare is not None
    made = prepare(self.step.values)
    pattern = f"models/{self.step.op}-{{sha}}{made.suffix}"
    return {
      "name": self.step.prepared_name,
      "files": {"prepared": write_bytes(Path(self.root), pattern, made.data)},
      "info": {"counts": dict(made.counts)},
      "cpu_s": round(time.process_time() - begin, 4),
    }


@dataclasses.dataclass(frozen=True)
class DecideTask:
  """Decides a global step.

  Attributes:
    root: the folder of the run.
    step: what decides.
    name: of its folder in `work/`.
    keys: the files of each shard's table.
    views: the documents that the rows of the tables are.
  """

  root: str
  step: Step
  name: str
  keys: tuple[Mapping[str, Written], ...]
  views: tuple[View, ...]

  def run(self) -> Record:
    """Returns the record of the decision: files of each shard, or of the resource."""
    begin = time.process_time()
    root = Path(self.root)
    loaded = [
      {name: tables.load_array(root, file) for name, file in held.items()} for held in self.keys
    ]
    ids = [table.pop("doc_id") for table in loaded]
    starts = np.concatenate([[0], np.cumsum([len(part) for part in ids], dtype=np.int64)])
    folder = root / "work" / self.name
    folder.mkdir(parents=True, exist_ok=True)
    fetch = lambda rows: _fetch(root, self.views, starts, rows)
    op: globals_.GlobalOp = self.step.operator.function(self.step.values)
    with problems.in_step(self.step.number, self.step.op):
      decision = op.decide(loaded, globals_.Context(ids, fetch, folder))
    record: Record = {"name": self.name, "info": {"counts": dict(decision.counts)}}
    if decision.resource is not None:
      record["files"] = self._save(root, "resource", decision.resource)
    else:
      record["files"] = self._save_rows(root, decision, ids, starts)
      record["reasons"] = list(decision.reasons)
    record["cpu_s"] = round(time.process_time() - begin, 4)
    return record

  def _save(self, root: Path, what: str, arrays: globals_.Table) -> dict[str, Written]:
    pattern = f"work/{self.name}/{what}-%s-{{sha}}.npy"
    return {
      name: tables.save_array(root, pattern % name, values) for name, values in arrays.items()
    }

  def _save_rows(
    self,
    root: Path,
    decision: globals_.Decision,
    ids: Sequence[np.ndarray],
    starts: np.ndarray,
  ) -> dict[str, Written]:
    """Writes what goes of each shard, by rows of its text; names are `SHARD.ARRAY`."""
    files: dict[str, Written] = {}
    for shard, view in enumerate(self.views):
      low, high = np.searchsorted(decision.row, starts[shard : shard + 2])
      mask = tables.load_mask(root, view)
      row = decision.row[low:high] - starts[shard]
      arrays = {"row": row if mask is None else np.flatnonzero(mask)[row]}
      if decision.reason is not None:
        arrays["reason"] = decision.reason[low:high]
      if decision.similarity is not None:
        arrays["similarity"] = decision.similarity[low:high]
      for name, others in (("kept", decision.kept), ("neighbour", decision.neighbour)):
        if others is not None:
          arrays[name] = _ids_at(ids, starts, others[low:high])
      saved = self._save(root, f"rows-{shard:05d}", arrays)
      files |= {f"{shard}.{name}": file for name, file in saved.items()}
    return files


def _ids_at(ids: Sequence[np.ndarray], starts: np.ndarray, rows: np.ndarray) -> np.ndarray:
  shard = np.searchsorted(starts, rows, side="right") - 1
  found = np.zeros((len(rows), 16), np.uint8)
  for number in np.unique(shard):
    here = shard == number
    found[here] = ids[number][rows[here] - starts[number]]
  return found


def _fetch(
  root: Path, views: Sequence[View], starts: np.ndarray, rows: np.ndarray
) -> Iterator[pa.StringArray]:
  """Yields the texts of some documents, a row group at a time."""
  for number, view in enumerate(views):
    wanted = rows[slice(*np.searchsorted(rows, starts[number : number + 2]))] - starts[number]
    if not len(wanted):
      continue
    seen = 0
    for batch, _ in tables.read_view(root, view, ["text"]):
      low, high = np.searchsorted(wanted, [seen, seen + batch.num_rows])
      if low < high:
        yield batch.column("text").take(pa.array(wanted[low:high] - seen))
      seen += batch.num_rows
