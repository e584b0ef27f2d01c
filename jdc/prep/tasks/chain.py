"""The task that takes a shard through links, in one pass."""

import dataclasses
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jdc.prep import links, readers, tables
from jdc.prep.batches import BadRecord, Piece
from jdc.prep.links import Handler, Place, Record
from jdc.prep.spec import InputSpec
from jdc.prep.stages import Link
from jdc.prep.store import Written
from jdc.prep.tables import View


@dataclasses.dataclass(frozen=True)
class ChainTask:
  """Does some links in one pass over a shard.

  Attributes:
    root: the folder of the run.
    shard: its number.
    links: what is done, in order.
    view: what is read; `None` reads `pieces`.
    pieces: parts of input files.
    stamps: of these files, the size and time of change that they had when their bytes were
      hashed.
    spec: how they are read.
    decisions: of `apply` links, by step number: the shard's files.
    resources: of rewriting steps, by step number: (array, file) pairs.
    prepared: of `Step.prepared_name`, the files that signals are measured by.
  """

  root: str
  shard: int
  links: tuple[Link, ...]
  view: View | None
  pieces: tuple[Piece, ...]
  spec: InputSpec
  decisions: Mapping[int, Mapping[str, Any]]
  resources: Mapping[int, Mapping[str, Any]]
  stamps: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
  prepared: Mapping[str, Written] = dataclasses.field(default_factory=dict)

  def run(self) -> list[Record]:
    """Returns the records of all links."""
    return _Chain(self).run()


class _Chain:
  def __init__(self, task: ChainTask):
    self._task = task
    self._root = Path(task.root)
    self._place = Place(self._root, task.shard)
    self._quarantine = links.Quarantine(self._place, task.spec.on_bad_line == "error")
    self._counts: dict[str, int] = {}
    self._sources: dict[str, list[int]] = {}  # documents and bad records of each
    self._resources = {
      number: {name: tables.load_array(self._root, file) for name, file in held.items()}
      for number, held in task.resources.items()
    }
    self._handlers = [
      self._handler(link, links.columns_read(task.links[number + 1 :]))
      for number, link in enumerate(task.links)
    ]
    self._seconds = [0.0] * len(self._handlers)

  def _handler(self, link: Link, later: Sequence[str]) -> Handler:
    """Returns what does a link; `later` are the columns that those after it need."""
    if link.kind == "text":
      prepared = {name: self._root / f.path for name, f in self._task.prepared.items()}
      return links.TextLink(self._place, link, self._resources, prepared)
    if link.kind == "select":
      return links.SelectLink(self._place, link, later)
    if link.kind == "apply":
      number = link.steps[0].number
      return links.ApplyLink(self._place, link, later, self._task.decisions[number])
    if link.kind == "keys":
      return links.KeysLink(self._place, link)
    return links.TallyLink(self._place, link)

  def run(self) -> list[Record]:
    begin = time.process_time()
    try:
      for batch, rows in self._source():
        self._pass(batch, rows)
      records = self._finish()
    except BaseException:
      self._quarantine.discard()
      for handler in self._handlers:
        handler.discard()
      raise
    # Reading is part of the first link's work.
    self._seconds[0] += time.process_time() - begin - sum(self._seconds)
    for record, seconds in zip(records, self._seconds, strict=True):
      record["cpu_s"] = round(seconds, 4)
    return records

  def _source(self) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    task = self._task
    if task.view is not None:
      yield from tables.read_view(self._root, task.view, links.columns_read(task.links))
      return
    for piece in task.pieces:
      held = self._sources.setdefault(piece.source, [0, 0])
      for batch in readers.read(piece, task.spec, self._refuse, self._counts):
        held[0] += batch.num_rows
        yield batch, np.zeros(0, np.int64)
      self._check_unchanged(piece)

  def _check_unchanged(self, piece: Piece) -> None:
    status = os.stat(piece.path)
    if (status.st_size, status.st_mtime_ns) != self._task.stamps[piece.path]:
      raise ValueError(
        f"{piece.source}: has changed while the run read it; nothing of that is committed: run "
        "the same command again"
      )

  def _refuse(self, bad: BadRecord) -> None:
    self._quarantine.add(bad)
    self._sources[bad.source][1] += 1

  def _pass(self, batch: pa.RecordBatch, rows: np.ndarray) -> None:
    for number, handler in enumerate(self._handlers):
      begin = time.process_time()
      batch, rows = handler.feed(batch, rows)
      self._seconds[number] += time.process_time() - begin

  def _finish(self) -> list[Record]:
    view, records = self._task.view, []
    for number, handler in enumerate(self._handlers):
      begin = time.process_time()
      link = self._task.links[number]
      inputs = view.hashes if view else piece_hashes(self._task.pieces)
      view, record = handler.finish(view)
      record["link"] = number
      task = self._task
      record["key"] = link_key(link, inputs, task.decisions, task.resources, task.prepared)
      record["name"], record["shard"] = link.name, self._task.shard
      if link.reads_input:
        self._add_input(record)
      records.append(record)
      self._seconds[number] += time.process_time() - begin
    return records

  def _add_input(self, record: Record) -> None:
    held = self._quarantine.finish()
    if held:
      record["files"]["quarantine"] = held
    causes = dict(sorted(self._quarantine.causes.items()))
    record["info"] |= {"quarantined": causes, "sources": self._sources}
    record["info"] |= dict(sorted(self._counts.items()))


def piece_hashes(pieces: Iterable[Piece]) -> list[Any]:
  """Returns what determines the documents of some pieces: all but where the files are."""
  return [list(piece[1:]) for piece in pieces]


def link_key(
  link: Link,
  inputs: Sequence[Any],
  decisions: Mapping[int, Mapping[str, Any]],
  resources: Mapping[int, Mapping[str, Any]],
  prepared: Mapping[str, Written],
) -> str:
  """Returns the key of a link of a chain, given what it reads and what was decided."""
  extra: list[Any] = []
  for step in link.steps:
    if link.kind == "apply":
      extra.append(_hashes(decisions[step.number]))
    elif step.number in resources:
      extra.append(_hashes(resources[step.number]))
  extra += [
    prepared[step.prepared_name].sha256
    for step in link.signals
    if step.prepared_name in prepared
  ]
  return link.key([*inputs, *extra])


def _hashes(held: Mapping[str, Any]) -> list[Any]:
  """Returns the hashes of files, and other values as they are, by name."""
  return [
    [name, value if name == "reasons" else value[1]] for name, value in sorted(held.items())
  ]
