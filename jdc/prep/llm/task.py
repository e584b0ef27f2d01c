"""A model's part of a shard: a window of documents under way, written in order."""

import asyncio
import collections
import dataclasses
import logging
import time
from collections import Counter
from pathlib import Path
from typing import Any

from jdc.prep import batches, tables
from jdc.prep.llm.answers import Question, Reply, Spent, key_of
from jdc.prep.llm.budget import UsedUp, money
from jdc.prep.llm.desk import Asker, Desk
from jdc.prep.llm.rows import Batch, Rejected, Row
from jdc.prep.llm.server import Stopped
from jdc.prep.llm.shard_writer import ShardWriter
from jdc.prep.llm.templates import MissingField
from jdc.prep.llm.work import Malformed, Work
from jdc.prep.stages import Link
from jdc.prep.tables import View

_LOG = logging.getLogger(__name__)
_CHUNK = 64  # documents whose answers are looked up at once
_BATCHES = 4  # that may be open: the memory of a task
_PER_SLOT = 16  # documents of the window for each request under way
_LOG_S = 60.0
_COLUMNS = batches.SCHEMA.names
Record = dict[str, Any]


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
      with desk.clock() as lap:
        record = await at_work.run()
        record["info"]["model"]["seconds"] = round(lap(), 3)
    except BaseException:
      at_work.writer.discard()
      raise
    await asyncio.to_thread(desk.answers.sync)
    return {**record, "link": 0, "key": self.key, "name": self.link.name, "shard": self.shard}


class _AtWork:
  """A task at work."""

  def __init__(self, task: ModelTask, work: Work, asker: Asker, desk: Desk):
    self._task, self._work, self._asker, self._desk = task, work, asker, desk
    self.writer = ShardWriter(Path(task.root), task.shard, task.link)
    self._open: collections.deque[Batch] = collections.deque()
    self._room = asyncio.Semaphore(_BATCHES)
    self._read_batches: asyncio.Queue[Batch | None] = asyncio.Queue()
    self._window = asyncio.Semaphore(max(_CHUNK, _PER_SLOT * asker.model.concurrency))
    self._counts: Counter[str] = Counter()
    self._used = Spent()
    self._logged = time.monotonic()

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
    record["info"]["model"] = counts
    return record

  async def _read(self, group: asyncio.TaskGroup) -> None:
    """Admits documents as the window has room."""
    views = tables.read_view(Path(self._task.root), self._task.view, _COLUMNS)
    while (found := await asyncio.to_thread(next, views, None)) is not None:
      await self._room.acquire()
      batch = Batch(found[0])
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

  def _replay(self, batch: Batch, places: range) -> list[Row]:
    """Finishes documents whose answers are there; returns the others."""
    rows, questions = [], []
    for place in places:
      document = batch.document(place)
      try:
        messages = self._work.messages(document)
      except MissingField as error:
        self._reject(batch, Row(place, document, [], []), Rejected(f"missing field: {error}"))
        continue
      asked = [self._question(messages, sample, 0) for sample in range(self._work.samples)]
      rows.append(Row(place, document, messages, asked))
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

  async def _ask(self, batch: Batch, row: Row) -> None:
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

  async def _sample(self, row: Row, sample: int) -> Any:
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

  def _reject(self, batch: Batch, row: Row, rejected: Rejected) -> None:
    if self._work.params.on_error == "error":
      origin = batch.origin(row.place)
      where = f"{origin['source']} at {origin['offset']}"
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
