"""The tasks of a run: pure functions of files to files, which any engine may execute anywhere.

A task writes whole files under names that tell their content, and returns records. What is
committed, the runner alone decides, so that a task that is repeated does no harm.
"""

import dataclasses
from typing import Any

from jdc.prep.readers import files
from jdc.prep.spec import InputSpec
from jdc.prep.tasks.chain import ChainTask, link_key, piece_hashes
from jdc.prep.tasks.decide import DecideTask, PrepareTask
from jdc.prep.tasks.output import OutputTask

__all__ = [
  "ChainTask",
  "DecideTask",
  "IndexTask",
  "OutputTask",
  "PrepareTask",
  "Task",
  "execute",
  "link_key",
  "piece_hashes",
]


@dataclasses.dataclass(frozen=True)
class IndexTask:
  """Passes over an input file."""

  file: files.InputFile
  spec: InputSpec

  def run(self) -> files.FileIndex:
    """Returns the file's hash and pieces."""
    return files.index(self.file, self.spec)


Task = IndexTask | PrepareTask | ChainTask | DecideTask | OutputTask


def execute(task: Task) -> Any:
  """Runs a task; engines call this."""
  return task.run()
