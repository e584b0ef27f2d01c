"""The lane of models: tasks that wait for models, beside those that compute."""

import asyncio
import contextlib
import gc
import queue
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jdc.prep.llm.answers import Answers
from jdc.prep.llm.desk import Desk
from jdc.prep.llm.params import ModelParams
from jdc.prep.llm.server import read_key
from jdc.prep.llm.task import ModelTask

_TASKS = 2  # at a time, so that the end of one shard leaves no model idle
Record = dict[str, Any]


class Lane:
  """A thread with an event loop, in which tasks wait for models.

  Args:
    root: the folder of the run.
    params: of all steps that ask a model.

  Raises:
    ValueError: if the environment lacks a key, or the answers of the folder are damaged.
  """

  def __init__(self, root: Path, params: Iterable[ModelParams]):
    for held in params:
      if held.server is not None:
        read_key(held.server)
    self._answers = Answers(root)
    self._done: queue.SimpleQueue[Record | BaseException] = queue.SimpleQueue()
    self._waiting = 0
    self._cpu = 0.0
    self._ready = threading.Event()
    # Else a full collection looks through all that was imported, and for a third of a second
    # no model is asked.
    gc.freeze()
    self._thread = threading.Thread(target=self._serve, name="models", daemon=True)
    self._thread.start()
    self._ready.wait()

  @property
  def waiting(self) -> int:
    """Tasks whose records were not taken."""
    return self._waiting

  def submit(self, task: ModelTask) -> None:
    """Adds a task."""
    self._waiting += 1
    self._loop.call_soon_threadsafe(self._tasks.put_nowait, task)

  def take(self, *, wait: bool) -> list[Record]:
    """Returns the records of tasks that are done; waits for one if told to.

    Raises:
      Exception: what a task failed with.
    """
    found: list[Record] = []
    while self._waiting:
      try:
        # With a limit, so that a signal gets through.
        held = self._done.get(timeout=0.5) if wait and not found else self._done.get_nowait()
      except queue.Empty:
        if found or not wait:
          break
        continue
      self._waiting -= 1
      if isinstance(held, BaseException):
        raise held
      found.append(held)
    return found

  def close(self) -> None:
    """Ends what is under way; what was answered is kept."""
    with contextlib.suppress(RuntimeError):  # the loop has ended by itself
      self._loop.call_soon_threadsafe(self._tasks.put_nowait, None)
    self._thread.join()
    gc.unfreeze()

  def _serve(self) -> None:
    try:
      asyncio.run(self._main())
    except BaseException as error:
      self._done.put(error)
    finally:
      self._ready.set()

  async def _main(self) -> None:
    self._loop = asyncio.get_running_loop()
    self._tasks: asyncio.Queue[ModelTask | None] = asyncio.Queue()
    self._ready.set()
    desk = Desk(self._answers)
    slots = asyncio.Semaphore(_TASKS)
    running: set[asyncio.Task[None]] = set()
    try:
      while (task := await self._tasks.get()) is not None:
        started = asyncio.create_task(self._do(task, desk, slots))
        running.add(started)
        started.add_done_callback(running.discard)
    finally:
      for started in running:
        started.cancel()
      await asyncio.gather(*running, return_exceptions=True)
      await desk.close()

  async def _do(self, task: ModelTask, desk: Desk, slots: asyncio.Semaphore) -> None:
    async with slots:
      try:
        record = await task.run(desk)
        # All that was computed since the last record; the sum over tasks is right.
        now = time.thread_time()
        record["cpu_s"], self._cpu = round(now - self._cpu, 4), now
        self._done.put(record)
      except Exception as error:
        self._done.put(error)
