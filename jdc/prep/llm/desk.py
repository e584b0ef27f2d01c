"""Where all that is asked of models comes together: the cache, budgets, models under way."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from jdc.prep.llm.answers import NOT_TOLD, Answers, Question, Reply, Spent
from jdc.prep.llm.budget import Purse
from jdc.prep.llm.params import ModelParams
from jdc.prep.llm.work import Work
from jdc.prep.spec import canonical_json

if TYPE_CHECKING:
  from jdc.prep.llm.server import Pools

_SYNC_S = 1.0  # between two times that answers are put on the disk


class Model(Protocol):
  """A model that can be asked."""

  name: str  # what its answers are counted under
  identity: str  # what sets its answers apart, beside what is asked
  concurrency: int  # questions that it can be busy with

  async def open(self) -> None:
    """Makes it ready."""

  async def ask(self, question: Question) -> tuple[Reply, int]:
    """Returns the answer, and how many tries failed before."""

  async def close(self) -> None:
    """Ends it."""


class Asker:
  """A model with its purse, and what is asked of it at present."""

  def __init__(self, model: Model, purse: Purse, answers: Answers):
    self.model, self.purse = model, purse
    self._answers = answers
    # Twice as many, so that a request that waits for its next try keeps no other one back.
    self._tickets = asyncio.Semaphore(2 * model.concurrency)
    self._under_way: dict[bytes, asyncio.Future[Reply]] = {}

  async def answer(self, work: Work, question: Question) -> tuple[Reply, int, bool]:
    """Returns the answer, how many tries failed, and whether it was there already.

    Equal questions at the same time are asked once.
    """
    held = self._answers.get(question.key)
    if held is not None:
      return held, 0, True
    waiting = self._under_way.get(question.key)
    if waiting is not None:
      return await asyncio.shield(waiting), 0, True
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    self._under_way[question.key] = future
    try:
      reply, retries = await self._ask(work.params, question)
      future.set_result(reply)
    except BaseException as error:
      future.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())
      future.exception()  # whether or not somebody else waits for it
      raise
    finally:
      del self._under_way[question.key]
    return reply, retries, False

  async def _ask(self, params: ModelParams, question: Question) -> tuple[Reply, int]:
    async with self._tickets:
      most = params.sampling.max_tokens
      reserved = await self.purse.reserve(params.budget, question.body, most)
      reply: Reply | None = None
      try:
        found, retries = await self.model.ask(question)
        found = _with_tokens(found, reserved)
        if not found.refused.startswith("no answer"):
          reply = found
          self._answers.add(question.key, self.model.name, found)
      finally:
        self.purse.settle(reserved, reply)
    return found, retries


def _with_tokens(reply: Reply, most: Spent) -> Reply:
  """Returns a reply with the most that it may have used, where the server does not tell."""
  if NOT_TOLD not in reply[2:4]:
    return reply
  prompt, completion = (
    held if told == NOT_TOLD else told for told, held in zip(reply[2:4], most[1:], strict=True)
  )
  return reply._replace(prompt_tokens=prompt, completion_tokens=completion)


class Desk:
  """All models of a run, opened when they are first asked.

  Args:
    answers: of the run; closed with it.
  """

  def __init__(self, answers: Answers):
    self.answers = answers
    self._purses: dict[str, Purse] = {}
    self._pools: Pools = {}
    self._askers: dict[str, asyncio.Task[Asker]] = {}
    self._syncing = asyncio.create_task(self._sync())
    self._tasks, self._since = 0, 0.0

  @contextlib.contextmanager
  def clock(self) -> Iterator[Callable[[], float]]:
    """Yields a function to call at a task's end, for its seconds.

    These are the seconds since another task ended, where several are at work at a time, so that
    their sum is the time in which any was.
    """
    if not self._tasks:
      self._since = time.monotonic()
    self._tasks += 1

    def lap() -> float:
      since, self._since = self._since, time.monotonic()
      return self._since - since

    try:
      yield lap
    finally:
      self._tasks -= 1

  async def asker(self, params: ModelParams) -> Asker:
    """Returns the model that parameters name."""
    how = params.local if params.is_local else params.server
    assert how is not None  # `asked.problems_of` has looked
    key = canonical_json([params.model, how.model_dump(mode="json")])
    if key not in self._askers:
      self._askers[key] = asyncio.create_task(self._open(params))
    return await asyncio.shield(self._askers[key])

  async def _open(self, params: ModelParams) -> Asker:
    model = _make(params, self._pools)
    await model.open()
    spent = self.answers.spent.get(model.name, Spent())
    purse = self._purses.setdefault(model.name, Purse(model.name, spent))
    return Asker(model, purse, self.answers)

  async def _sync(self) -> None:
    while True:
      await asyncio.sleep(_SYNC_S)
      await asyncio.to_thread(self.answers.sync)

  async def close(self) -> None:
    """Closes models and the cache."""
    self._syncing.cancel()
    await asyncio.gather(self._syncing, return_exceptions=True)
    for opened in await asyncio.gather(*self._askers.values(), return_exceptions=True):
      if isinstance(opened, Asker):
        await opened.model.close()
    self.answers.close()


def _make(params: ModelParams, pools: "Pools") -> Model:
  if params.is_local:
    from jdc.prep.llm.checkpoints import Checkpoint

    return Checkpoint(params.folder, params.local)
  from jdc.prep.llm.server import Client

  assert params.server is not None
  return Client(params.server, params.model, pools)
