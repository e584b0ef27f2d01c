"""What a long sweep says, and that a short one says nothing."""

import logging
import sys

import pytest

from jdc.stats.progress import Progress


class Clock:
  seconds = 0.0

  def __call__(self):
    return self.seconds


@pytest.mark.parametrize("name", ["round 3", None])
def test_a_line_every_half_minute(name, caplog, monkeypatch):
  clock = Clock()
  log = logging.getLogger("jdc")
  monkeypatch.setattr(log, "propagate", True)
  with caplog.at_level(logging.INFO, "jdc"):
    progress = Progress(name, total=120, positions=1000, held=20, clock=clock)
    for _ in range(10):  # a chunk every 10 seconds
      clock.seconds += 10
      progress.add(rows=10, positions=100)
    progress.close()
  expected = [
    "round 3: 50 of 120 rows, 1.0 rows/s, 70 s left",
    "round 3: 80 of 120 rows, 1.0 rows/s, 40 s left",
    "round 3: 110 of 120 rows, 1.0 rows/s, 10 s left",
  ]
  assert caplog.messages == (expected if name else [])


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_a_bar_on_a_terminal_once_two_seconds_are_over(seconds, capsys, monkeypatch):
  monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
  progress = Progress("round 3", total=120, positions=1000)
  progress._bar.start_t -= seconds
  progress._bar.last_print_t -= seconds
  progress.add(rows=10, positions=500)
  progress.close()
  shown = capsys.readouterr().err
  assert ("round 3" in shown) == ("round 3:  50%" in shown) == (seconds > 0)
