"""A plan tried on a sample, by the runner that also does whole inputs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from jdc.prep import check, tables
from jdc.prep.links import SelectLink
from jdc.prep.plan_step import Step
from jdc.prep.readers.jsonl import dump
from jdc.prep.runner import Run
from jdc.prep.spec import InputSpec, OutputSpec, PlanSpec, StepSpec

Place = tuple[str, int]
# Shards and budgets are of whole inputs; a sample of a sample would say nothing.
SKIPPED = ("sample", "mix")
_OUTPUT = pa.schema([("text", pa.string()), ("fields", pa.string())])


class Measured(NamedTuple):
  """What a rule step saw.

  Attributes:
    step: the step.
    documents: i64[m], which documents it had signals of.
    signals: by name, [m] each.
    reasons: by reason, bool[m], true where a document goes.
  """

  step: Step
  documents: np.ndarray
  signals: Mapping[str, Any]
  reasons: Mapping[str, np.ndarray]


class Outcome(NamedTuple):
  """What became of n documents.

  Attributes:
    fate: n reasons, "" for those that are kept.
    documents: i64[k], which document each text of the output comes from.
    output: k rows of `text` and `fields`.
    measured: of each step that drops by signals.
    texts_made: files of texts that were made for it; 0 where only masks and decisions were.
  """

  fate: np.ndarray
  documents: np.ndarray
  output: pa.Table
  measured: tuple[Measured, ...]
  texts_made: int


class Trial:
  """Documents written as files that plans can be run on.

  Args:
    folder: is written to; results that are there are used again.
    table: documents, with the columns `source`, `text` and `fields`.
    spec: how they were read.
    root: the folder that paths in steps start at.
  """

  def __init__(self, folder: Path, table: pa.Table, spec: InputSpec, root: Path):
    # Files of steps start at the plan's folder, trials run in another.
    self._folder, self._root, self._column = folder, root.absolute(), spec.text_column
    self.size = table.num_rows
    self._places: dict[Place, int] = {}
    self._paths: list[str] = []
    (folder / "input").mkdir(parents=True, exist_ok=True)
    sources = np.array(table.column("source").to_pylist(), object)
    for number, source in enumerate(sorted(set(sources.tolist()))):
      self._write(f"input/{number:05d}.jsonl", np.flatnonzero(sources == source), table)

  def _write(self, name: str, rows: np.ndarray, table: pa.Table) -> None:
    part = table.take(pa.array(rows))
    offset = 0
    with open(self._folder / name, "wb") as file:
      texts, fields = (part.column(n).to_pylist() for n in ("text", "fields"))
      for row, text, held in zip(rows.tolist(), texts, fields, strict=True):
        record = json.loads(held)
        if self._column:
          record = {self._column: text, **record}
        line = dump(record).encode() + b"\n"
        self._places[(name, offset)] = row
        offset += len(line)
        file.write(line)
    self._paths.append(name)

  def run(self, plan: PlanSpec) -> Outcome:
    """Runs the steps of a plan but `SKIPPED`; ValueError says what is wrong with it."""
    numbers = [n for n, step in enumerate(plan.step, start=1) if step.op not in SKIPPED]
    steps = [plan.step[n - 1] for n in numbers]
    resolved = check.resolve(plan.model_copy(update={"step": tuple(steps)}), self._root)
    tried = PlanSpec(
      input=InputSpec(
        paths=tuple(self._paths),
        format="jsonl",
        text_column=self._column,
        on_bad_line="error",
      ),
      step=tuple(_absolute(step) for step in resolved),
      output=OutputSpec(format="jsonl"),
    )
    run = Run(tried, self._folder / "run", root=self._folder, report=False)
    before = _number_of_texts(self._folder / "run")
    run.execute()
    made = len(_number_of_texts(self._folder / "run") - before)
    outcome = self._outcome(run, made)
    # Steps have the numbers that they have in the plan.
    named = [
      held._replace(step=held.step._replace(number=numbers[held.step.number - 1]))
      for held in outcome.measured
    ]
    return outcome._replace(measured=tuple(named))

  def _outcome(self, run: Run, made: int) -> Outcome:
    fate = np.full(self.size, "", object)
    for record in run.records:
      if "dropped" not in record["files"]:
        continue
      held = parquet.read_table(
        run.folder / record["files"]["dropped"][0], columns=["source", "offset", "reason"]
      )
      for source, offset, reason in zip(*held.to_pydict().values(), strict=True):
        fate[self._places[(source, offset)]] = reason
    documents, parts = [np.zeros(0, np.int64)], []
    for shard in run.shards:
      assert shard.view is not None
      for batch, _ in tables.read_view(
        run.folder, shard.view, ["source", "offset", "text", "fields"]
      ):
        documents.append(self._rows(batch))
        parts.append(pa.Table.from_batches([batch.select(["text", "fields"])]).cast(_OUTPUT))
    kept = np.concatenate(documents)
    fate[kept] = ""  # of a document that was cut up, a part is enough
    output = pa.concat_tables([_OUTPUT.empty_table(), *parts]).combine_chunks()
    return Outcome(fate, kept, output, tuple(self._measured(run)), made)

  def _rows(self, batch: pa.RecordBatch | pa.Table) -> np.ndarray:
    pairs = zip(
      batch.column("source").to_pylist(), batch.column("offset").to_pylist(), strict=True
    )
    return np.array([self._places[pair] for pair in pairs], np.int64)

  def _measured(self, run: Run) -> list[Measured]:
    found = []
    files: dict[str, list[str]] = {}
    for record in run.records:
      if record["link_kind"] == "text":
        files.setdefault(record["name"], []).append(record["files"]["text"][0])
    name = ""
    for link in [link for phase in run.phases for link in phase.links]:
      if link.kind == "text":
        name = link.name
      elif link.kind == "select":
        batch = _signals(run.folder, files[name])
        for step in link.steps:
          signals = SelectLink._signals(step, batch)
          reasons = step.operator.function(signals, step.values)
          found.append(Measured(step, self._rows(batch), signals, reasons))
    return found


def _absolute(step: Step) -> StepSpec:
  values = step.values.model_dump(mode="json", exclude_none=True)  # TOML has no null
  return StepSpec(op=f"{step.file}:{step.op}" if step.file else step.op, params=values)


def _number_of_texts(folder: Path) -> set[str]:
  return {path.name for path in folder.glob("work/*/text-*.parquet")}


def _signals(folder: Path, names: Sequence[str]) -> pa.RecordBatch:
  """Returns the signals of a text link, of all shards."""
  parts = []
  for name in names:
    path = folder / name
    columns = tables.expand(parquet.read_schema(path).names, ["source", "offset", "signal:"])
    parts.append(parquet.read_table(path, columns=columns, use_threads=False))
  return tables.single_batch(pa.concat_tables(parts))
