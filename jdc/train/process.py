"""What concerns the process around a run: its end, signals and profiles."""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import jax

_LOG = logging.getLogger("jdc")
_PROFILED = (10, 15)  # steps after the start of the process that are traced


class Closable(Protocol):
  """What a run holds open."""

  def close(self) -> None: ...


@contextlib.contextmanager
def closing(resource: Closable) -> Iterator[None]:
  """Closes the resource at the end; an error in closing does not hide the one before it."""
  try:
    yield
  except BaseException:
    try:
      resource.close()
    except Exception as error:
      _LOG.error("while closing: %s", error)
    raise
  resource.close()


@contextlib.contextmanager
def sigterm() -> Iterator[Callable[[int], bool]]:
  """Yields a function that tells after a step whether the run was asked to stop."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    # All processes must stop at the same step; JAX's coordinator arranges that.
    yield multihost_utils.reached_preemption_sync_point
    return
  asked = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield lambda step: asked.is_set()  # only the main thread may handle signals
    return
  previous = signal.signal(signal.SIGTERM, lambda *_: asked.set())
  try:
    yield lambda step: asked.is_set()
  finally:
    signal.signal(signal.SIGTERM, previous)


class Trace:
  """Profiles a few steps once everything is warm."""

  def __init__(self, workdir: str, wanted: bool, step: int):
    self._folder = f"{workdir}/profile"
    self._steps = range(step + _PROFILED[0], step + _PROFILED[1]) if wanted else range(0)
    self._running = False

  def before(self, step: int) -> None:
    """Starts or stops the trace, as the step asks for."""
    if step in self._steps and not self._running:
      jax.profiler.start_trace(self._folder)
      self._running = True
    elif self._running and step not in self._steps:
      self.close()

  def close(self) -> None:
    """Writes the trace if one is running."""
    if self._running:
      jax.profiler.stop_trace()
      self._running = False
