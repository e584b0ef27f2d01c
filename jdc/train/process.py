"""What concerns the process around a run: its end, signals and profiles."""

import contextlib
import logging
import signal
import threading
import types
from collections.abc import Callable, Iterator
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging as absl_logging

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
def sigterm(mesh: jax.sharding.Mesh) -> Iterator[Callable[[], bool]]:
  """Yields a function that tells, once after every step, whether the run was asked to stop.

  The answer is the same in all processes that share the mesh, whichever was asked. What handled
  the signal before hears of it too, as does the caller of several runs.
  """
  asked = threading.Event()
  stop = asked.is_set if jax.process_count() == 1 else _agreement(asked, mesh)
  if threading.current_thread() is not threading.main_thread():
    yield stop  # only the main thread may handle signals
    return

  def handle(number: int, frame: types.FrameType | None) -> None:
    asked.set()
    if callable(previous):
      previous(number, frame)

  previous = signal.getsignal(signal.SIGTERM)
  signal.signal(signal.SIGTERM, handle)
  try:
    yield stop
  finally:
    # `None`: a handler from outside Python, which cannot be put back.
    signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)


def _agreement(asked: threading.Event, mesh: jax.sharding.Mesh) -> Callable[[], bool]:
  """A function that tells whether any process had been asked at its call before this one.

  The devices find out behind the step that they compute, so that nobody waits. JAX's own
  agreement on a step to stop at is not used: Orbax takes part in it with the step of a
  checkpoint that it completes, and a SIGTERM just then is never heard of again.
  """
  each = jax.NamedSharding(mesh, jax.P(*mesh.axis_names))
  shape = tuple(mesh.shape.values())
  any_asked = jax.jit(jnp.any, out_shardings=jax.NamedSharding(mesh, jax.P()))
  pending: list[jax.Array] = []

  def stop() -> bool:
    mine = np.full((1,) * len(shape), asked.is_set())
    pending.append(any_asked(jax.make_array_from_callback(shape, each, lambda index: mine)))
    return len(pending) > 1 and bool(pending.pop(0))

  return stop


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


def log_to_terminal() -> None:
  """Shows what jdc logs, and nothing of the libraries below it, which say little of use."""
  # Orbax writes a page for every checkpoint, and its errors are raised besides.
  absl_logging.set_verbosity(absl_logging.FATAL)
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter("%(message)s"))
  log = logging.getLogger("jdc")
  log.addHandler(handler)
  log.setLevel(logging.INFO)
  log.propagate = False
