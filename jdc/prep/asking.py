"""Language models beside the engine of a run, where steps of its plan ask them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jdc.prep.plan_step import Step
from jdc.prep.stages import Link
from jdc.prep.tables import View

if TYPE_CHECKING:
  from jdc.prep.llm.lane import Lane


class Models:
  """What asks the models of a plan, shard by shard; without such steps it does nothing.

  Args:
    folder: of the run.
    steps: of the plan.
  """

  def __init__(self, folder: Path, steps: Sequence[Step]):
    self._folder = folder
    self._steps = [step for step in steps if step.operator.kind == "model"]
    self._lane: Lane | None = None
    self._asked: set[tuple[int, str]] = set()  # by shard and link

  def open(self) -> None:
    """Starts what the steps need."""
    if self._steps:
      from jdc.prep.llm.lane import Lane

      self._lane = Lane(self._folder, [step.values for step in self._steps])

  def ask(self, shard: int, link: Link, key: str, view: View) -> None:
    """Asks about the documents of a shard, unless that was done before.

    Args:
      shard: its number.
      link: whose step asks.
      key: of the link for this shard.
      view: the documents.
    """
    if (shard, link.name) in self._asked:
      return
    from jdc.prep.llm.task import ModelTask

    assert self._lane is not None
    self._asked.add((shard, link.name))
    self._lane.submit(ModelTask(str(self._folder), shard, link, key, view))

  def take(self, *, wait: bool) -> Sequence[dict[str, Any]]:
    """Returns the records of what was answered since; waits for one if told to."""
    return [] if self._lane is None else list(self._lane.take(wait=wait))

  def close(self) -> None:
    """Ends what `open` started."""
    if self._lane is not None:
      self._lane.close()
