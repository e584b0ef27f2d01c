"""The tasks of a run: pure functions of files to files, which any engine may execute anywhere.

A task writes whole files under names that tell their content, and returns records. What is
committed, the runner alone decides, so that a task that is repeated does no harm.
"""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jdc.prep import globals_, links, readers, tables
from jdc.prep.batches import ID_BYTES, BadRecord, Piece
from jdc.prep.links import Handler, Place, Record
from jdc.prep.readers import files
from jdc.prep.spec import InputSpec, OutputSpec, content_hash
from jdc.prep.stages import Link, Step
from jdc.prep.store import Written, hash_file, write_bytes
from jdc.prep.tables import View


@dataclasses.dataclass(frozen=True)
class IndexTask:
  """Passes over an input file."""

  file: files.InputFile
  spec: InputSpec

  def run(self) -> files.FileIndex:
    """Returns the file's hash and pieces."""
    return files.index(self.file, self.spec)


@dataclasses.dataclass(frozen=True)
class ChainTask:
  """Does some links in one pass over a shard.

  Attributes:
    root: the folder of the run.
    shard: its number.
    links: what is done, in order.
    view: what is read; `None` reads `pieces`.
    pieces: parts of input files.
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
    self._handlers = [self._handler(link) for link in task.links]
    self._seconds = [0.0] * len(self._handlers)

  def _handler(self, link: Link) -> Handler:
    if link.kind == "text":
      prepared = {name: self._root / f.path for name, f in self._task.prepared.items()}
      return links.TextLink(self._place, link, self._resources, prepared)
    if link.kind == "select":
      return links.SelectLink(self._place, link)
    if link.kind == "apply":
      number = link.steps[0].number
      return links.ApplyLink(self._place, link, self._task.decisions[number])
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
      if decision.kept is not None:
        arrays["kept"] = _ids_at(ids, starts, decision.kept[low:high])
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


@dataclasses.dataclass(frozen=True)
class OutputTask:
  """Writes one file of training data, or of token shards a file for each split.

  Attributes:
    root: the folder of the run.
    domain: whose documents.
    number: of the file, within the domain.
    spec: how it is written.
    parts: (view, first document, number of documents) counted over those of the domain.
    size: bytes of their texts.
    code: hash of what writes, and of the tokenizer.
    keep_dropped: whether texts of documents without tokens are kept.
  """

  root: str
  domain: str
  number: int
  spec: OutputSpec
  parts: tuple[tuple[View, int, int], ...]
  size: int
  code: str
  keep_dropped: bool = False

  @property
  def key(self) -> str:
    """Returns the key of the file."""
    held = [[view.hashes, first, count] for view, first, count in self.parts]
    spec = self.spec.model_dump(mode="json", exclude={"shard_mb"})
    spec["tokens"] = {k: v for k, v in spec["tokens"].items() if k != "tokenizer"}
    if spec["format"] == "tokens":
      spec["keep_dropped"] = self.keep_dropped
    return content_hash(["output", self.domain, self.number, spec, held, self.code])

  def run(self) -> Record:
    """Returns the record of the file."""
    begin = time.process_time()
    rows = sum(count for _, _, count in self.parts)
    info = {"domain": self.domain, "rows_in": rows, "rows_out": rows, "bytes_out": self.size}
    files = self._write_tokens(info) if self.spec.format == "tokens" else self._write()
    return {
      "key": self.key,
      "name": "output",
      "shard": self.number,
      "files": files,
      "info": info,
      "cpu_s": round(time.process_time() - begin, 4),
    }

  def _write(self) -> dict[str, Written]:
    from jdc.prep.sinks import documents

    pattern = f"data/{self.domain}/part-{self.number:05d}-{{sha}}"
    batches = (batch.drop_columns(["domain"]) for batch in self._batches())
    return {"data": documents.write(Path(self.root), pattern, batches, self.spec)}

  def _write_tokens(self, info: dict[str, Any]) -> dict[str, Written]:
    """Packs token shards; what their manifest says of them is in `info`."""
    from jdc.prep.sinks import tokens

    folder = Path(self.root) / "data"
    name = f"part-{self.number:05d}-{self.key[:8]}"
    options = tokens.TokenOptions(**self.spec.tokens)
    packed = tokens.pack_shard(self._batches(), name, folder, options)
    info["splits"] = {k: v._asdict() for k, v in packed.files.get(self.domain, {}).items()}
    files = {}
    for split, held in info["splits"].items():
      for what in ("file", "index_file"):
        path = folder / held[what]
        size = path.stat().st_size
        files[f"{split}.{what}"] = Written(f"data/{held[what]}", hash_file(path), size)
    return {**files, **self._drop(packed.without_tokens, info)}

  def _drop(self, without_tokens: Sequence[str], info: dict[str, Any]) -> dict[str, Written]:
    """Writes which documents became no token, and takes them off what was kept."""
    if not without_tokens:
      return {}
    gone = pa.array([bytes.fromhex(i) for i in without_tokens], pa.binary(ID_BYTES))
    dropped = links.DroppedFile(
      Place(Path(self.root), self.number), f"tokens-{self.domain}", self.keep_dropped
    )
    try:
      for batch in self._batches():
        batch = batch.filter(pc.is_in(batch.column("doc_id"), gone))
        if batch.num_rows:
          dropped.add(batch, pa.array(["no_tokens"] * batch.num_rows))
          info["bytes_out"] -= int(links.byte_lengths(batch).sum())
      files = dropped.finish()
    except BaseException:
      dropped.discard()
      raise
    info["dropped"] = dict(dropped.reasons)
    info["rows_out"] -= dropped.reasons.total()
    return files

  def _batches(self) -> Iterator[pa.RecordBatch]:
    columns = ["doc_id", "source", "offset", "domain", "text"]
    columns += ["fields"] if self.spec.fields and self.spec.format != "tokens" else []
    domain = pa.scalar(self.domain)
    for view, first, count in self.parts:
      seen = 0
      for batch, _ in tables.read_view(Path(self.root), view, columns):
        batch = batch.filter(pc.equal(batch.column("domain"), domain))
        low, high = max(first - seen, 0), min(first + count - seen, batch.num_rows)
        if low < high:
          yield batch.slice(low, high - low)
        seen += batch.num_rows
        if seen >= first + count:
          break


Task = IndexTask | PrepareTask | ChainTask | DecideTask | OutputTask


def execute(task: Task) -> Any:
  """Runs a task; engines call this."""
  return task.run()
