"""A model's part of a shard: a window of documents under way, written in order."""

import asyncio
import collections
import dataclasses
import json
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from jdc.prep import batches, links, tables
from jdc.prep.llm.answers import Question, Reply, Spent, key_of
from jdc.prep.llm.budget import UsedUp, money
from jdc.prep.llm.desk import Asker, Desk
from jdc.prep.llm.params import ModelParams
from jdc.prep.llm.server import Stopped
from jdc.prep.llm.templates import MissingField
from jdc.prep.llm.work import Document, Malformed, Work
from jdc.prep.readers.jsonl import dump
from jdc.prep.stages import Link
from jdc.prep.store import AtomicFile
from jdc.prep.tables import TableFile, View

_LOG = logging.getLogger(__name__)
_CHUNK = 64  # documents whose answers are looked up at once
_BATCHES = 4  # that may be open: the memory of a task
_PER_SLOT = 16  # documents of the window for each request under way
_LOG_S = 60.0
_SCHEMA = batches.SCHEMA.append(pa.field("num_bytes", pa.int64()))
_COLUMNS = [field.name for field in batches.SCHEMA]
Record = dict[str, Any]


class Rejected(Exception):
  """A document that gets no answer of use."""

  def __init__(self, cause: str, answer: str = ""):
    super().__init__(cause)
    self.cause, self.answer = cause, answer


class _Row(NamedTuple):
  """A document of a batch, and what is asked of it."""

  place: int
  document: Document
  messages: list[dict[str, str]]
  questions: list[Question]  # the first attempt of each sample


class _Batch:
  """Documents that were read together, and what became of each."""

  def __init__(self, batch: pa.RecordBatch):
    self.columns = {name: batch.column(name).to_pylist() for name in _COLUMNS}
    self.results: list[list[Document] | Rejected] = [[]] * batch.num_rows
    self.left = batch.num_rows
    self.size = sum(map(len, self.columns["text"]))
    self.done = asyncio.Event()

  def document(self, row: int) -> Document:
    """Returns a document."""
    columns = self.columns
    fields = json.loads(columns["fields"][row])
    return Document(columns["doc_id"][row], columns["text"][row], fields)

  def finish(self, row: int, result: list[Document] | Rejected) -> None:
    """Says what became of a document."""
    self.results[row] = result
    self.left -= 1
    if not self.left:
      self.done.set()


@dataclasses.dataclass(frozen=True)
class ModelTask:
  """A model link of a shard.

  Attributes:
    root: the folder of the run.
    shard: its number.
    link: with one step.
    key: what its record is committed under.
    view: what is read.
  """

  root: str
  shard: int
  link: Link
  key: str
  view: View

  async def run(self, desk: Desk) -> Record:
    """Returns the record of the link."""
    work = Work(self.link.steps[0].values)
    asker = await desk.asker(work.params)
    at_work = _AtWork(self, work, asker, desk)
    try:
      record = await at_work.run()
    except BaseException:
      at_work.writer.discard()
      raise
    await asyncio.to_thread(desk.answers.sync)
    return {**record, "link": 0, "key": self.key, "name": self.link.name, "shard": self.shard}


class _AtWork:
  """A task at work."""

  def __init__(self, task: ModelTask, work: Work, asker: Asker, desk: Desk):
    self._task, self._work, self._asker, self._desk = task, work, asker, desk
    self.writer = _Writer(task, work.params)
    self._open: collections.deque[_Batch] = collections.deque()
    self._room = asyncio.Semaphore(_BATCHES)
    self._read_batches: asyncio.Queue[_Batch | None] = asyncio.Queue()
    self._window = asyncio.Semaphore(max(_CHUNK, _PER_SLOT * asker.model.concurrency))
    self._counts: Counter[str] = Counter()
    self._used = Spent()
    self._begin = self._logged = time.monotonic()

  async def run(self) -> Record:
    """Reads, asks and writes; returns files and counts."""
    try:
      async with asyncio.TaskGroup() as group:
        group.create_task(self._write())
        await self._read(group)
    except BaseExceptionGroup as errors:
      raise _first(errors) from None
    record = await asyncio.to_thread(self.writer.finish)
    counts: dict[str, float] = {
      name: self._counts[name] for name in ("asked", "cached", "retries")
    }
    counts |= {k: v for k, v in self._used._asdict().items() if k != "requests"}
    if (cost := money(self._work.params.budget, self._used)) > 0:
      counts["money"] = round(cost, 6)
    counts["seconds"] = round(time.monotonic() - self._begin, 3)
    record["info"]["model"] = counts
    return record

  async def _read(self, group: asyncio.TaskGroup) -> None:
    """Admits documents as the window has room."""
    views = tables.read_view(Path(self._task.root), self._task.view, _COLUMNS)
    while (found := await asyncio.to_thread(next, views, None)) is not None:
      await self._room.acquire()
      batch = _Batch(found[0])
      self._open.append(batch)
      self._read_batches.put_nowait(batch)
      for start in range(0, batch.left, _CHUNK) if batch.left else ():
        end = min(start + _CHUNK, len(batch.results))
        for row in self._replay(batch, range(start, end)):
          await self._window.acquire()
          group.create_task(self._ask(batch, row))
        await asyncio.sleep(0)  # lets answers in
        self._log()
    self._read_batches.put_nowait(None)

  async def _write(self) -> None:
    """Writes batches that are done, in the order in which they were read."""
    while (batch := await self._read_batches.get()) is not None:
      if batch.left:
        await batch.done.wait()
      await asyncio.to_thread(self.writer.write, batch)
      self._open.popleft()
      self._room.release()

  def _replay(self, batch: _Batch, places: range) -> list[_Row]:
    """Finishes documents whose answers are there; returns the others."""
    rows, questions = [], []
    for place in places:
      document = batch.document(place)
      try:
        messages = self._work.messages(document)
      except MissingField as error:
        self._reject(batch, _Row(place, document, [], []), Rejected(f"missing field: {error}"))
        continue
      asked = [self._question(messages, sample, 0) for sample in range(self._work.samples)]
      rows.append(_Row(place, document, messages, asked))
      questions += asked
    replies = self._desk.answers.find([question.key for question in questions])
    left = []
    for number, row in enumerate(rows):
      held = replies[number * self._work.samples : (number + 1) * self._work.samples]
      answers = self._read_all(held)
      if answers is None:
        left.append(row)
        continue
      self._counts["cached"] += len(held)
      batch.finish(row.place, self._work.apply(row.document, answers))
    return left

  def _read_all(self, replies: list[Reply | None]) -> list[Any] | None:
    """Returns the values of answers if all are there and of use."""
    good = [reply for reply in replies if reply is not None and not reply.refused]
    if len(good) < len(replies):
      return None
    try:
      return [self._work.read(reply) for reply in good]
    except Malformed:
      return None

  def _question(self, messages: list[dict[str, str]], sample: int, attempt: int) -> Question:
    body = self._work.body(messages, sample, attempt)
    key = key_of(body, self._asker.model.identity, *self._work.apart(sample, attempt))
    return Question(body, key, tuple(self._work.options))

  async def _ask(self, batch: _Batch, row: _Row) -> None:
    """Finishes a document by asking."""
    try:
      if self._work.samples == 1:
        answers = [await self._sample(row, 0)]
      else:
        samples = range(self._work.samples)
        found = await asyncio.gather(
          *(self._sample(row, sample) for sample in samples), return_exceptions=True
        )
        answers = list(map(_value, found))
      batch.finish(row.place, self._work.apply(row.document, answers))
    except Rejected as rejected:
      self._reject(batch, row, rejected)
    finally:
      self._window.release()

  async def _sample(self, row: _Row, sample: int) -> Any:
    """Returns the value of a sample, after as many attempts as it takes."""
    cause = answer = ""
    for attempt in range(self._work.params.attempts):
      question = self._question(row.messages, sample, attempt) if attempt else None
      reply = await self._reply(question or row.questions[sample])
      if reply.refused:
        raise Rejected(reply.refused)
      try:
        return self._work.read(reply)
      except Malformed as error:
        cause, answer = str(error), reply.content
    raise Rejected(cause, answer)

  async def _reply(self, question: Question) -> Reply:
    try:
      reply, retries, cached = await self._asker.answer(self._work, question)
    except UsedUp as error:
      if self._work.params.budget.when_used_up == "quarantine":
        raise Rejected(f"budget: {error}") from None
      raise Stopped(f"{error}; {self._progress()}; give a larger one to go on") from None
    self._counts["retries"] += retries
    self._counts["cached" if cached else "asked"] += 1
    if not cached:
      self._used = self._used.plus(reply)
    return reply

  def _reject(self, batch: _Batch, row: _Row, rejected: Rejected) -> None:
    if self._work.params.on_error == "error":
      columns = batch.columns
      where = f"{columns['source'][row.place]} at {columns['offset'][row.place]}"
      raise Stopped(f"{where}: {rejected.cause}; on_error is 'error'")
    batch.finish(row.place, rejected)

  def _progress(self) -> str:
    done = self.writer.rows_in + sum(len(b.results) - b.left for b in self._open)
    return f"{self._task.link.name}, shard {self._task.shard}: {done} documents done"

  def _log(self) -> None:
    now = time.monotonic()
    if now > self._logged + _LOG_S:
      self._logged = now
      _LOG.info("%s, %s", self._progress(), dict(self._counts))


class _Writer:
  """The files of a task, written batch by batch."""

  def __init__(self, task: ModelTask, params: ModelParams):
    self._link, self._params = task.link, params
    self._place = links.Place(Path(task.root), task.shard)
    pattern = self._place.work(task.link.name, "text", "parquet")
    self._text = TableFile(self._place.root, pattern, _SCHEMA, digits=16)
    self._dropped = links.DroppedFile(self._place, task.link.name, keep_text=False)
    self._quarantine: AtomicFile | None = None
    self._causes: Counter[str] = Counter()
    self.rows_in = self._bytes_in = self._bytes_out = 0

  def write(self, batch: _Batch) -> None:
    """Writes what became of a batch."""
    self.rows_in += len(batch.results)
    self._bytes_in += batch.size
    places, made, empty = [], [], []
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
      self._keep(batch, places[start:end], made[start:end])
    if empty:
      reason = pa.array([f"{self._link.steps[0].op}.none"] * len(empty), pa.string())
      self._dropped.add(_columns_of(batch, empty), reason)

  def _keep(self, batch: _Batch, places: list[int], made: list[Document]) -> None:
    held = _columns_of(batch, places)
    texts = pa.array([document.text for document in made], pa.string())
    for name, values in (
      ("doc_id", pa.array([d.doc_id for d in made], pa.binary(batches.ID_BYTES))),
      ("text", texts),
      ("fields", pa.array([dump(document.fields) for document in made], pa.string())),
    ):
      held = batches.set_column(held, name, values)
    lengths = links.byte_lengths(held)
    self._bytes_out += int(lengths.sum())
    held = batches.set_column(held, "num_bytes", pa.array(lengths))
    self._text.write(held)

  def _set_aside(self, batch: _Batch, place: int, rejected: Rejected) -> None:
    """Adds a line with the whole document, why it is there, and the last answer."""
    held = {name: values[place] for name, values in batch.columns.items()}
    held |= {"doc_id": held["doc_id"].hex(), "fields": json.loads(held["fields"])}
    held |= {"cause": rejected.cause, "answer": rejected.answer[: 1 << 16]}
    if self._quarantine is None:
      pattern = self._place.visible(f"quarantine/{self._link.name}", "jsonl")
      self._quarantine = AtomicFile(self._place.root, pattern)
    self._quarantine.file.write((dump(held) + "\n").encode())
    kind = links.cause_kind(rejected.cause)
    self._causes[f"{self._link.steps[0].op}: {kind}"] += 1

  def finish(self) -> Record:
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


def _columns_of(batch: _Batch, places: list[int]) -> pa.RecordBatch:
  arrays = [
    pa.array([batch.columns[field.name][place] for place in places], field.type)
    for field in batches.SCHEMA
  ]
  return pa.RecordBatch.from_arrays(arrays, schema=batches.SCHEMA)


def _value(found: Any) -> Any:
  if isinstance(found, BaseException):
    raise found
  return found


def _first(errors: BaseExceptionGroup) -> BaseException:
  """Returns one of the errors, what stops a run before others."""
  leaves = list(_leaves(errors))
  return next((error for error in leaves if isinstance(error, Stopped)), leaves[0])


def _leaves(error: BaseException) -> list[BaseException]:
  if isinstance(error, BaseExceptionGroup):
    return [leaf for each in error.exceptions for leaf in _leaves(each)]
  return [error]
