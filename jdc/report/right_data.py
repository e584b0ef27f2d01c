"""How much of what a selection picked is of the sources that help its target."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jdc.report.comparison import Interval, paired_interval

NEVER = "never_relevant"  # beside the tasks in a table of relevance


class Picked(NamedTuple):
  """What one method picked for one target with one seed."""

  method: str
  target: str  # tasks joined by "+"
  seed: int
  rows: tuple[int, ...]  # of the pool
  seconds: float  # of the selection, compilation included
  forward_rows: float  # passed forward through the model for it
  backward_rows: float


class Shares(NamedTuple):
  """Of some rows, how many are of which kind of source; NaN of no row."""

  relevant: float  # to any task of the target
  by_task: dict[str, float]
  noise: float  # of sources that are relevant to no task there is


class Line(NamedTuple):
  """One method of a table, over its seeds."""

  method: str
  num_seeds: int
  num_rows: float  # picked, mean over seeds
  relevant: Interval
  by_task: dict[str, Interval]
  noise: Interval
  seconds: float  # mean over seeds, as the next two
  forward_rows: float
  backward_rows: float


def shares(
  rows: Sequence[int],
  sources: Sequence[str],
  relevance: Mapping[str, Sequence[str]],
  target: str,
) -> Shares:
  """Returns what the rows are made of; for all rows of the pool that is chance.

  Args:
    rows: of the pool, each once.
    sources: of all rows of the pool.
    relevance: sources by task, and `never_relevant`.
    target: tasks joined by "+".

  Raises:
    ValueError: naming tasks that `relevance` lacks, or if a row occurs twice.

  Example:
    >>> relevance = {"sums": ["algebra"], "never_relevant": ["spam"]}
    >>> shares([0, 1, 3], ["algebra", "spam", "news", "algebra"], relevance, "sums").relevant
    0.6666666666666666
  """
  tasks = target.split("+")
  if missing := [task for task in (*tasks, NEVER) if task not in relevance]:
    raise ValueError(f"no relevance of {', '.join(missing)}; known: {', '.join(relevance)}")
  if len(set(rows)) != len(rows):
    raise ValueError("a row was picked twice")
  picked = [sources[row] for row in rows]

  def share(wanted: set[str]) -> float:
    return sum(s in wanted for s in picked) / len(picked) if picked else math.nan

  by_task = {task: share(set(relevance[task])) for task in tasks}
  return Shares(
    share({source for task in tasks for source in relevance[task]}),
    by_task,
    share(set(relevance[NEVER])),
  )


def interval(values: Sequence[float]) -> Interval:
  """Returns the mean over seeds and its 95 % interval by Student's t.

  Example:
    >>> [round(x, 3) for x in interval([0.5, 0.6, 0.7])]
    [0.6, 0.352, 0.848]
  """
  return paired_interval(values, np.zeros(len(values)).tolist())


def write(
  found: Sequence[Picked],
  sources: Sequence[str],
  relevance: Mapping[str, Sequence[str]],
  folder: str | Path,
) -> str:
  """Writes `right_data.md` and `right_data.json`, and returns the former."""
  text = markdown(found, sources, relevance)
  return write_both(Path(folder) / "right_data", text, as_json(found, sources, relevance))


def write_both(path: Path, text: str, content: Any) -> str:
  """Writes a table for people and one for programs beside each other; returns the former."""
  for suffix, lines in ((".md", text), (".json", json.dumps(content, indent=1))):
    path.with_suffix(suffix).write_text(lines + "\n", encoding="utf-8")
  return text


def tables(
  found: Sequence[Picked], sources: Sequence[str], relevance: Mapping[str, Sequence[str]]
) -> dict[str, list[Line]]:
  """Returns the lines of each target, the most relevant first."""
  lines: dict[str, list[Line]] = {}
  for target in dict.fromkeys(one.target for one in found):
    of_target = [one for one in found if one.target == target]
    methods = dict.fromkeys(one.method for one in of_target)
    lines[target] = [
      _line([one for one in of_target if one.method == method], sources, relevance)
      for method in methods
    ]
    lines[target].sort(key=lambda line: -line.relevant.mean)
  return lines


def _line(
  seeds: Sequence[Picked], sources: Sequence[str], relevance: Mapping[str, Sequence[str]]
) -> Line:
  method, target = seeds[0].method, seeds[0].target
  made = [shares(one.rows, sources, relevance, target) for one in seeds]
  mean = lambda name: float(np.mean([getattr(one, name) for one in seeds]))
  return Line(
    method,
    len(seeds),
    float(np.mean([len(one.rows) for one in seeds])),
    interval([one.relevant for one in made]),
    {task: interval([one.by_task[task] for one in made]) for task in made[0].by_task},
    interval([one.noise for one in made]),
    *(mean(name) for name in ("seconds", "forward_rows", "backward_rows")),
  )


def markdown(
  found: Sequence[Picked], sources: Sequence[str], relevance: Mapping[str, Sequence[str]]
) -> str:
  """Returns a table for people, one a target, with what chance would give."""
  everything, parts = range(len(sources)), []
  for target, lines in tables(found, sources, relevance).items():
    chance = shares(everything, sources, relevance, target)
    tasks = list(chance.by_task) if "+" in target else []
    header = ["method", "relevant", *(f"to {task}" for task in tasks), "noise", "rows", "seeds"]
    header += ["time", "rows forward", "rows backward"]
    rows = [header, ["---"] * len(header)]
    rows += [_cells(line, tasks) for line in lines]
    empty = [""] * 5
    by_task = [f"{chance.by_task[task]:.3f}" for task in tasks]
    rows.append(["chance", f"{chance.relevant:.3f}", *by_task, f"{chance.noise:.3f}", *empty])
    parts.append(
      "\n".join(
        [f"Target {target.replace('+', ' and ')}:", ""] + [table_row(cells) for cells in rows]
      )
    )
  return "\n\n".join(parts)


def _cells(line: Line, tasks: Sequence[str]) -> list[str]:
  return [
    line.method,
    shown(line.relevant),
    *(shown(line.by_task[task]) for task in tasks),
    shown(line.noise),
    f"{line.num_rows:.0f}",
    str(line.num_seeds),
    f"{line.seconds:.0f} s",
    f"{line.forward_rows:.0f}",
    f"{line.backward_rows:.0f}",
  ]


def shown(value: Interval) -> str:
  """Returns a mean and, of several seeds, its interval."""
  if math.isnan(value.low):
    return f"{value.mean:.3f}"
  return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def table_row(cells: Sequence[str]) -> str:
  """Returns a line of a Markdown table."""
  return "| " + " | ".join(cells) + " |"


def as_json(
  found: Sequence[Picked], sources: Sequence[str], relevance: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
  """Returns the same as JSON, and how many rows of each source every selection holds."""
  content: dict[str, Any] = {}
  for target, lines in tables(found, sources, relevance).items():
    chance = shares(range(len(sources)), sources, relevance, target)
    content[target] = {
      "chance": chance._asdict(),
      "methods": [_plain(line) for line in lines],
      "sources": [
        {"method": one.method, "seed": one.seed, "rows": by_source(one.rows, sources)}
        for one in found
        if one.target == target
      ],
    }
  return content


def _plain(line: Line) -> dict[str, Any]:
  number = lambda x: None if math.isnan(x) else x  # NaN is no JSON
  pair = lambda value: {name: number(x) for name, x in value._asdict().items()}
  by_task = {task: pair(value) for task, value in line.by_task.items()}
  shown = {"relevant": pair(line.relevant), "by_task": by_task, "noise": pair(line.noise)}
  return line._asdict() | shown


def by_source(rows: Sequence[int], sources: Sequence[str]) -> dict[str, int]:
  """Returns how many of some rows are of each source."""
  names, counts = np.unique([sources[row] for row in rows], return_counts=True)
  return dict(zip(names.tolist(), counts.tolist(), strict=True))
