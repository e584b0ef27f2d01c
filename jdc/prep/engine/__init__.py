"""Where tasks run. An engine takes groups of tasks and gives results as they come.

The port is one function, `run(groups, workers) -> iterator of (group, place, result)`. Tasks
of a group run one after the other in one place, since they read the same compressed file.
Results may come in any order, and nothing in a result depends on where it was computed. What
is finished is committed by the caller, so that an engine needs no memory of its own.
"""

import pickle
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from jdc.prep.tasks import Task

Groups = Sequence[Sequence[Task]]
Results = Iterator[tuple[int, int, Any]]
NAMES = ("inline", "daft", "ray")


class Engine(Protocol):
  """Runs tasks."""

  name: str

  def run(self, groups: Groups) -> Results:
    """Yields (number of the group, place in it, result) of each task, in any order."""

  def close(self) -> None:
    """Ends what the engine started."""


def open_engine(name: str, workers: int) -> Engine:
  """Returns an engine.

  Args:
    name: `inline` for this machine, `daft` for Daft's native engine, `ray` for Daft on Ray.
    workers: processes of `inline`, of which 1 is this one; tasks at a time of the others.
  """
  if name not in NAMES:
    raise ValueError(f"engine={name!r}; accepted: {', '.join(NAMES)}")
  if workers < 1:
    raise ValueError(f"workers must be 1 or more, got {workers}")
  if name == "inline":
    from jdc.prep.engine import inline

    return inline.Inline(workers)
  from jdc.prep.engine import data_frame

  return data_frame.Daft(name, workers)


def portable(error: Exception) -> Exception:
  """Returns an error that goes from one process to another, the same one if it can."""
  try:
    if type(pickle.loads(pickle.dumps(error))) is type(error):
      return error
  except Exception as reason:  # whatever the error's class does when it is made anew
    return RuntimeError(f"{type(error).__name__}: {error} ({reason!r} on its way here)")
  return RuntimeError(f"{type(error).__name__}: {error}")
