"""Runs a plan: what is not committed yet is done, shard by shard, and committed."""

import dataclasses
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jdc.prep import (
  accounts,
  check,
  commits,
  engine,
  expect,
  indexing,
  manifest,
  outputs,
  plan_step,
  problems,
  stages,
  tasks,
)
from jdc.prep.asking import Models
from jdc.prep.batches import Piece
from jdc.prep.readers import files
from jdc.prep.spec import PlanSpec, content_hash
from jdc.prep.stages import Link, Phase
from jdc.prep.store import Written
from jdc.prep.tables import View

_LOG = logging.getLogger(__name__)
Record = dict[str, Any]


@dataclasses.dataclass
class Shard:
  """How far a shard has come."""

  pieces: tuple[Piece, ...]
  view: View | None = None
  at: int = 0  # the next link of the present phase


def _view(shard: Shard) -> View:
  assert shard.view is not None
  return shard.view


class Run:
  """One run of a plan in a folder.

  Args:
    plan: what to do.
    output: the folder of the run: empty, or that of an earlier run.
    root: the folder that relative paths of the plan start at.
    workers: processes, or tasks at a time.
    engine_name: `inline`, `daft` or `ray`.
    keep_dropped: whether `dropped/` has the texts, too.
    report: whether samples are measured and `report.html` is drawn; samples are measured, too,
      where the plan expects something of them.
  """

  def __init__(
    self,
    plan: PlanSpec,
    output: str | Path,
    *,
    root: str | Path = ".",
    workers: int = 1,
    engine_name: str = "inline",
    keep_dropped: bool = False,
    report: bool = True,
  ):
    self.plan, self.folder = plan, Path(output).absolute()
    self.root = Path(root).absolute()
    self.steps = check.resolve(plan, self.root)
    self.phases = stages.compile_plan(
      self.steps, plan.input, plan.output, keep_dropped=keep_dropped
    )
    self.files = files.find(plan.input, self.root)
    files.check_readable(self.files, plan.input)
    expect.check_names(plan)
    self.engine_name, self.workers, self.report = engine_name, workers, report
    self._keep_dropped = keep_dropped
    self.records: list[Record] = []  # of all that the result consists of
    self.reused = self.done = 0
    self._decisions: dict[int, dict[int, dict[str, Any]]] = {}  # step -> shard -> files
    self._resources: dict[int, dict[str, Any]] = {}
    self._prepared: dict[str, Written] = {}
    self._models = Models(self.folder, self.steps)

  def execute(self) -> dict[str, Any]:
    """Does what is not done yet; returns the manifest.

    Raises:
      ValueError: if another run holds the folder, or the input cannot be read.
      OSError: if the disk is full; the same command goes on where it stopped.
      RuntimeError: if documents are not accounted for.
    """
    begin = time.monotonic()
    with commits.lock(self.folder):
      commits.remove_partial(self.folder)
      self._commits = commits.Commits(self.folder)
      commits.commit_left(self.folder, self._commits)
      self._engine = engine.open_engine(self.engine_name, self.workers)
      try:
        self._models.open()
        indexes = indexing.index(self.files, self.plan.input, self._commits, self._engine)
        self.shards = [Shard(pieces) for pieces in files.shards(indexes, self.plan.input)]
        self._stamps = {held.file.path: (held.size, held.mtime_ns) for held in indexes}
        self._prepare()
        for phase in self.phases:
          self._run_phase(phase, self.shards)
        written = self._write_output(self.shards)
        self.reused = len(self.records) + len(written) - self.done
        self._engine.close()  # its processes hold memory, which the report needs
        return manifest.finish(self, indexes, written, time.monotonic() - begin)
      finally:
        self._models.close()
        self._engine.close()
        self._commits.close()

  def _prepare(self) -> None:
    """Makes the files that signals are measured by, unless they are there."""
    links = [link for phase in self.phases for link in phase.links]
    for step in [step for link in links for step in link.signals]:
      if step.operator.prepare is None:
        continue
      key = content_hash(["prepare", step.identity, plan_step.step_code(step)])
      if self._commits.find(key) is None:
        for _, _, made in self._engine.run([[tasks.PrepareTask(str(self.folder), step)]]):
          self._commit({"key": key, **made})
      record = self._commits.find(key)
      assert record is not None
      name = step.prepared_name  # two steps may share a file
      self.records.append({**record, "name": name, "link_kind": "prepare", "shard": -1})
      self._prepared[name] = Written(*record["files"]["prepared"])

  def _run_phase(self, phase: Phase, shards: Sequence[Shard]) -> None:
    for shard in shards:
      shard.at = 0
    while True:
      for number, shard in enumerate(shards):
        self._walk(phase, number, shard)
      waiting = [n for n, shard in enumerate(shards) if shard.at < len(phase.links)]
      if not waiting:
        break
      self._ask(phase, waiting, shards)
      computed = [n for n in waiting if phase.links[shards[n].at].kind != "model"]
      for _, _, records in self._engine.run(self._groups(phase, computed, shards)):
        for record in records:
          self._commit(record)
        # What is ready for a model goes there while the rest is computed.
        ready = {record["shard"] for record in records}
        for number in ready:
          self._walk(phase, number, shards[number])
        self._ask(phase, ready, shards)
        self._take(wait=False)
      if not computed:
        self._take(wait=True)
    problems.raise_all(accounts.not_found(self.records), "plan")
    if phase.step is not None:
      self._decide(phase, shards)

  def _ask(self, phase: Phase, numbers: Iterable[int], shards: Sequence[Shard]) -> None:
    """Gives shards to models that are at a link of theirs."""
    for number in numbers:
      shard = shards[number]
      link = phase.links[shard.at] if shard.at < len(phase.links) else None
      if link is not None and link.kind == "model":
        self._models.ask(number, link, self._key(link, number, shard), _view(shard))

  def _take(self, *, wait: bool) -> None:
    """Commits what models have done; waits for something if told to."""
    for record in self._models.take(wait=wait):
      self._commit(record)

  def _walk(self, phase: Phase, number: int, shard: Shard) -> None:
    """Goes over links that are committed."""
    while shard.at < len(phase.links):
      link = phase.links[shard.at]
      key = self._key(link, number, shard)
      record = self._commits.find(key)
      if record is None:
        return
      self.records.append({**record, "link_kind": link.kind, "shard": number})
      written = {name: Written(*file) for name, file in record["files"].items()}
      if "text" in written:
        shard.view = View(written["text"])
      elif "mask" in written:
        shard.view = View(_view(shard).text, written["mask"])
      shard.at += 1

  def _key(self, link: Link, number: int, shard: Shard) -> str:
    inputs = shard.view.hashes if shard.view else tasks.piece_hashes(shard.pieces)
    return tasks.link_key(link, inputs, self._decided(number), self._resources, self._prepared)

  def _decided(self, shard: int) -> dict[int, dict[str, Any]]:
    return {step: held[shard] for step, held in self._decisions.items() if shard in held}

  def _groups(
    self, phase: Phase, waiting: Sequence[int], shards: Sequence[Shard]
  ) -> list[list[tasks.Task]]:
    """Returns the next tasks; those that go through one compressed file are a group."""
    groups: list[list[tasks.Task]] = []
    last: tuple[str, int] | None = None
    for number in waiting:
      shard = shards[number]
      task = self._chain(phase, number, shard)
      opened = shard.pieces[0]
      follows = (opened.path, opened.start)
      goes_on = shard.view is None and opened.compression and last == follows
      if goes_on:
        groups[-1].append(task)
      else:
        groups.append([task])
      last = (shard.pieces[-1].path, shard.pieces[-1].end)
    return groups

  def _chain(self, phase: Phase, number: int, shard: Shard) -> tasks.ChainTask:
    links = phase.links[shard.at :]
    asking = [place for place, link in enumerate(links) if link.kind == "model"]
    links = links[: asking[0]] if asking else links
    masking = 0
    while masking < len(links) and links[masking].kind in ("select", "apply"):
      masking += 1
    # Masks by themselves first: where they come out as before, what follows is there already.
    if masking:
      links = links[:masking]
    pieces = shard.pieces if shard.view is None else ()
    return tasks.ChainTask(
      root=str(self.folder),
      shard=number,
      links=tuple(links),
      view=shard.view,
      pieces=pieces,
      stamps={piece.path: self._stamps[piece.path] for piece in pieces},
      spec=self.plan.input,
      decisions=self._decided(number),
      resources=self._resources,
      prepared=self._prepared,
    )

  def _commit(self, record: Record) -> None:
    self._commits.add(record)
    self.done += 1

  def _decide(self, phase: Phase, shards: Sequence[Shard]) -> None:
    """Decides a global step, unless its tables are as before."""
    step = phase.step
    assert step is not None
    name = phase.links[-1].name
    keys, views = [], []
    for number, shard in enumerate(shards):
      keys.append(self._written(number, "keys"))
      views.append(_view(shard))
    inputs: list[Any] = [sorted((n, f.sha256) for n, f in held.items()) for held in keys]
    inputs += [view.hashes for view in views]
    key = content_hash(["decide", step.identity, phase.links[-1].code, inputs])
    if self._commits.find(key) is None:
      task = tasks.DecideTask(str(self.folder), step, name, tuple(keys), tuple(views))
      for _, _, made in self._engine.run([[task]]):
        self._commit({"key": key, **made})
    record = self._commits.find(key)
    assert record is not None
    self.records.append({**record, "link_kind": "decide", "shard": -1})
    written = {n: Written(*file) for n, file in record["files"].items()}
    if step.rewrites:
      self._resources[step.number] = written
      return
    held: dict[int, dict[str, Any]] = {n: {} for n in range(len(shards))}
    for place, file in written.items():
      number, _, array = place.partition(".")
      held[int(number)][array] = file
    for found in held.values():
      found["reasons"] = record["reasons"]
    self._decisions[step.number] = held

  def _written(self, shard: int, kind: str) -> dict[str, Written]:
    """Returns the files of the last link of a kind, of a shard."""
    for record in reversed(self.records):
      if record["shard"] == shard and record["link_kind"] == kind:
        return {name: Written(*file) for name, file in record["files"].items()}
    raise LookupError(f"shard {shard} has no {kind}")

  def _write_output(self, shards: Sequence[Shard]) -> list[Record]:
    """Writes the files of training data that are not there yet."""
    made = list(
      outputs.tasks_of(
        self.folder,
        self.plan.output,
        self.root,
        [_view(shard) for shard in shards],
        outputs.tallies(self.records),
        keep_dropped=self._keep_dropped,
      )
    )
    missing = [task for task in made if self._commits.find(task.key) is None]
    if missing or not manifest.is_complete(self.folder):
      manifest.mark_running(self.folder)
    for _, _, record in self._engine.run([[task] for task in missing]):
      self._commit(record)
    found = []
    for task in made:
      record = self._commits.find(task.key)
      assert record is not None
      found.append({**record, "link_kind": "output"})
    return found


def run(plan: PlanSpec, output: str | Path, **options: Any) -> dict[str, Any]:
  """Runs a plan and returns the manifest; see `Run` for the options."""
  return Run(plan, output, **options).execute()
