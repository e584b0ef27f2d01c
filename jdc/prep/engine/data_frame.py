"""Tasks as rows of a Daft data frame: on its native engine, or on a Ray cluster.

Only the rows of tasks and of their results pass through Daft; documents go from file to file.
On a cluster, all nodes must see the input and the folder of the run under the same paths.
"""

import logging
import os
import pickle
import traceback
from pathlib import Path
from typing import Any

from jdc.data.formats import import_extra
from jdc.prep import commits
from jdc.prep.engine import Groups, Results, portable
from jdc.prep.tasks import ChainTask, execute

# Before the packages are imported, since some report on import.
_QUIET = {
  "DAFT_ANALYTICS_ENABLED": "0",
  "DAFT_PROGRESS_BAR": "0",
  "DO_NOT_TRACK": "1",
  "SCARF_NO_ANALYTICS": "1",
  "RAY_USAGE_STATS_ENABLED": "0",
}


class Daft:
  """Runs groups of tasks as rows.

  The results of a group come when all of it is done. What a group has done by then is left in
  the folder of the run, so that a run that dies repeats no more than the tasks under way.

  Args:
    name: `daft`, or `ray` for the cluster that Ray's settings name, else this machine.
    workers: most groups at a time.
  """

  def __init__(self, name: str, workers: int):
    self.name, self._workers = name, workers
    os.environ.update(_QUIET)
    logging.getLogger("tracing").setLevel(logging.WARNING)  # a line for every batch
    if name == "ray":
      import_extra("ray", "ray")
    import daft

    self._daft = daft
    wanted = "ray" if name == "ray" else "native"
    if daft.runners.get_or_infer_runner_type() != wanted:
      # Daft can be told once in a process; this raises the second time.
      daft.set_runner_ray() if name == "ray" else daft.set_runner_native()

  def run(self, groups: Groups) -> Results:
    """Yields (number of the group, place in it, result) of each task."""
    if not groups:
      return
    daft = self._daft
    processes = True if self.name == "daft" and self._workers > 1 else None
    bound = daft.cls(_Worker, max_concurrency=self._workers, use_process=processes)()
    rows = {"tasks": [pickle.dumps(list(group)) for group in groups]}
    rows["group"] = [str(number).encode() for number in range(len(groups))]
    frame = daft.from_pydict(rows)
    ray = self.name == "ray"
    frame = frame.into_partitions(len(groups)) if ray else frame.into_batches(1)
    frame = frame.select("group", bound.work(frame["tasks"]).alias("results"))
    for row in frame.iter_rows(results_buffer_size=1):
      done, value = pickle.loads(row["results"])
      if not done:
        failure, trace = value
        failure.add_note(f"in a task of engine {self.name!r}:\n{trace}")
        raise failure
      for place, result in enumerate(value):
        yield int(row["group"]), place, result

  def close(self) -> None:
    """Does nothing: Daft ends with the process."""


class _Worker:
  """Does the tasks of a row."""

  def work(self, tasks: bytes) -> bytes:
    """Returns whether all went well, and the results or what went wrong."""
    results: list[Any] = []
    try:
      group = pickle.loads(tasks)
      for task in group:
        results.append(execute(task))
        if isinstance(task, ChainTask) and len(results) < len(group):
          commits.leave(Path(task.root), results[-1])
      return pickle.dumps((True, results))
    except Exception as error:  # goes to the caller, as it would in this process
      return pickle.dumps((False, (portable(error), traceback.format_exc())))
