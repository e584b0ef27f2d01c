"""Tasks in this process, or in worker processes of this machine."""

import contextlib
import multiprocessing
import signal
import traceback
from collections import deque
from multiprocessing.connection import Connection, wait
from typing import Any

from jdc.prep.engine import Groups, Results, portable
from jdc.prep.readers import streams
from jdc.prep.tasks import Task, execute


class Failed(RuntimeError):
  """A worker that ended in the middle of a task."""


class Inline:
  """Runs tasks here, or in `workers` processes if that is more than 1.

  Args:
    workers: how many.
  """

  name = "inline"

  def __init__(self, workers: int):
    self._workers = workers
    self._pool: list[_Worker] = []
    _one_thread()

  def run(self, groups: Groups) -> Results:
    """Yields (number of the group, place in it, result) of each task as it is done."""
    if self._workers == 1:
      for number, group in enumerate(groups):
        for place, task in enumerate(group):
          yield number, place, execute(task)
      return
    while len(self._pool) < min(self._workers, len(groups)):
      self._pool.append(_Worker())
    yield from self._spread(groups)

  def _spread(self, groups: Groups) -> Results:
    waiting = deque(range(len(groups)))
    busy: dict[_Worker, tuple[int, int]] = {}
    idle = list(self._pool)
    try:
      while waiting or busy:
        while idle and waiting:
          worker, number = idle.pop(), waiting.popleft()
          worker.send(groups[number][0])
          busy[worker] = (number, 0)
        ready = wait([worker.results for worker in busy])
        for worker in [worker for worker in busy if worker.results in ready]:
          number, place = busy.pop(worker)
          result = worker.receive(groups[number][place])
          if place + 1 < len(groups[number]):
            worker.send(groups[number][place + 1])
            busy[worker] = (number, place + 1)
          else:
            idle.append(worker)
          yield number, place, result
    except BaseException:
      self.close()  # what is under way is of no use any more
      raise

  def close(self) -> None:
    """Ends the worker processes."""
    for worker in self._pool:
      worker.stop()
    self._pool = []
    streams.close_resting()


class _Worker:
  """A process that does one task after the other."""

  def __init__(self) -> None:
    context = multiprocessing.get_context("spawn")
    self.results, child = context.Pipe()
    self._process = context.Process(target=_work, args=(child,), daemon=True)
    self._process.start()
    child.close()

  def send(self, task: Task) -> None:
    self.results.send(task)

  def receive(self, task: Task) -> Any:
    try:
      done, value = self.results.recv()
    except (EOFError, ConnectionError) as error:
      self._process.join(5)
      raise Failed(
        f"a worker process ended with exit code {self._process.exitcode} in {task!r:.300}; "
        "was it killed for memory? nothing that was committed is lost"
      ) from error
    if not done:
      failure, trace = value
      failure.add_note(f"in a worker process:\n{trace}")
      raise failure
    return value

  def stop(self) -> None:
    self._process.terminate()
    self._process.join()
    self.results.close()


def _work(tasks: Connection) -> None:
  """Does tasks until the other end is closed."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
  _one_thread()
  with contextlib.suppress(EOFError, ConnectionError):
    while True:
      task = tasks.recv()
      try:
        tasks.send((True, execute(task)))
      except Exception as error:  # goes to the parent, as it would in this process
        tasks.send((False, (portable(error), traceback.format_exc())))


def _one_thread() -> None:
  import pyarrow as pa

  pa.set_cpu_count(1)
