"""What all evaluations have in common."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jdc.eval.text_model import TextModel


class Outcome(NamedTuple):
  """What an evaluation found."""

  metrics: dict[str, float]
  records: list[dict[str, Any]]  # one for each item that was evaluated, in order


class Task(NamedTuple):
  """An evaluation in two steps, so that all of them are checked before the first is run.

  `prepare` tokenizes and checks, and raises a ValueError that lists what is wrong; the function
  that it returns runs the model.
  """

  name: str
  settings: dict[str, Any]  # JSON values
  prepare: Callable[[TextModel], Callable[[], Outcome]]
