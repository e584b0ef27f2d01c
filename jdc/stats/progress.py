"""How far a long sweep is: a bar on a terminal, lines in a log elsewhere."""

import logging
import sys
import time
from collections.abc import Callable

import jax
import tqdm

_LOG = logging.getLogger("jdc")
_SILENT = 2.0  # seconds; what ends sooner says nothing
_EVERY = 30.0  # seconds between lines of the log


class Progress:
  """Tells of rows done, rows per second and the time that is left, in process 0.

  Args:
    name: of the sweep; `None` says nothing.
    total: rows of the sweep.
    positions: computed in the sweep, to which the time that is left is proportional.
    held: rows that were there before.
    clock: seconds.
  """

  def __init__(
    self,
    name: str | None,
    total: int,
    positions: int,
    held: int = 0,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._name, self._total, self._positions, self._held = name, total, positions, held
    self._clock, self._rows, self._done = clock, held, 0
    self._begin = self._last = clock()
    self._says = name is not None and jax.process_index() == 0
    hidden = not (self._says and sys.stderr.isatty())
    # Rows are longest first, so that positions tell the time better.
    self._bar = tqdm.tqdm(
      total=positions,
      desc=name,
      unit="tok",
      unit_scale=True,
      delay=_SILENT,
      disable=hidden,
      leave=False,
      dynamic_ncols=True,
    )
    self._logs = self._says and hidden

  def add(self, rows: int, positions: int) -> None:
    """Counts a chunk that is done."""
    self._rows, self._done = self._rows + rows, self._done + positions
    self._bar.set_postfix_str(f"{self._rows}/{self._total} rows", refresh=False)
    self._bar.update(positions)
    now = self._clock()
    if self._logs and now - self._last >= _EVERY:
      self._last = now
      seconds = now - self._begin
      left = seconds * (self._positions - self._done) / max(self._done, 1)
      _LOG.info(
        "%s: %d of %d rows, %.1f rows/s, %.0f s left",
        self._name, self._rows, self._total, (self._rows - self._held) / seconds, left,
      )  # fmt: skip

  def close(self) -> None:
    """Takes the bar away."""
    self._bar.close()
