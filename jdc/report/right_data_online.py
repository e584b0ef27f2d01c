"""How much of what a method chose while it trained is right, beside what it was offered."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jdc.report.comparison import Interval
from jdc.report.right_data import (
  Shares,
  by_source,
  interval,
  shares,
  shown,
  table_row,
  write_both,
)

_CHOICES = {  # what is said of the rows in the table
  "kept": "kept of candidates",
  "pruned": "pruned",
  "logit": "tenth of highest value",
  "weight": "tenth of largest weight",
}


class Chosen(NamedTuple):
  """What one method chose in its run with one seed."""

  method: str
  choice: str  # "kept", "pruned", "logit" or "weight"
  target: str  # tasks joined by "+"
  seed: int
  rows: tuple[int, ...]  # of the pool
  offered: tuple[int, ...]  # that it chose from
  forward_rows: float  # passed forward besides those that were trained
  backward_rows: float


class Line(NamedTuple):
  """One method of a table, over its seeds."""

  method: str
  choice: str
  num_seeds: int
  num_rows: float  # mean over seeds, as all but the intervals
  num_offered: float
  relevant: Interval
  relevant_offered: float
  noise: Interval
  noise_offered: float
  forward_rows: float
  backward_rows: float


def tables(
  found: Sequence[Chosen], sources: Sequence[str], relevance: Mapping[str, Sequence[str]]
) -> dict[str, list[Line]]:
  """Returns a table for each target, the methods in the order of their first choices.

  Args:
    found: what was chosen; a method may have several seeds.
    sources: of all rows of the pool.
    relevance: sources by task, and `never_relevant`.

  Raises:
    ValueError: if a method chose a row that it was not offered.
  """
  lines: dict[str, list[Line]] = {}
  for target in dict.fromkeys(one.target for one in found):
    of_target = [one for one in found if one.target == target]
    lines[target] = [
      _line([one for one in of_target if one.method == method], sources, relevance)
      for method in dict.fromkeys(one.method for one in of_target)
    ]
  return lines


def _line(
  seeds: Sequence[Chosen], sources: Sequence[str], relevance: Mapping[str, Sequence[str]]
) -> Line:
  for one in seeds:
    if not set(one.rows) <= set(one.offered):
      raise ValueError(f"{one.method}, seed {one.seed}: rows were chosen that were not offered")
  of = lambda rows, one: shares(rows, sources, relevance, one.target)
  made: list[Shares] = [of(one.rows, one) for one in seeds]
  chance: list[Shares] = [of(one.offered, one) for one in seeds]
  mean = lambda values: float(np.mean(list(values)))
  return Line(
    seeds[0].method,
    seeds[0].choice,
    len(seeds),
    mean(len(one.rows) for one in seeds),
    mean(len(one.offered) for one in seeds),
    interval([one.relevant for one in made]),
    mean(one.relevant for one in chance),
    interval([one.noise for one in made]),
    mean(one.noise for one in chance),
    *(mean(x) for x in zip(*(one[-2:] for one in seeds), strict=True)),
  )


def write(
  found: Sequence[Chosen],
  sources: Sequence[str],
  relevance: Mapping[str, Sequence[str]],
  folder: str | Path,
) -> str:
  """Writes `right_data_online.md` and `right_data_online.json`, and returns the former."""
  text = markdown(found, sources, relevance)
  return write_both(
    Path(folder) / "right_data_online", text, as_json(found, sources, relevance)
  )


def markdown(
  found: Sequence[Chosen], sources: Sequence[str], relevance: Mapping[str, Sequence[str]]
) -> str:
  """Returns a table for people, one a target."""
  header = [
    "method", "which rows", "rows", "of", "relevant", "offered", "noise", "offered", "seeds",
    "extra forward", "extra backward",
  ]  # fmt: skip
  parts = []
  for target, lines in tables(found, sources, relevance).items():
    cells = [header, ["---"] * len(header), *map(_cells, lines)]
    rows = map(table_row, cells)
    parts.append("\n".join([f"Target {target.replace('+', ' and ')}:", "", *rows]))
  return "\n\n".join(parts)


def _cells(line: Line) -> list[str]:
  return [
    line.method,
    _CHOICES[line.choice],
    f"{line.num_rows:.0f}",
    f"{line.num_offered:.0f}",
    shown(line.relevant),
    f"{line.relevant_offered:.3f}",
    shown(line.noise),
    f"{line.noise_offered:.3f}",
    str(line.num_seeds),
    f"{line.forward_rows:.0f}",
    f"{line.backward_rows:.0f}",
  ]


def as_json(
  found: Sequence[Chosen], sources: Sequence[str], relevance: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
  """Returns for each choice its shares and those of what was offered, and rows by source."""
  content: dict[str, Any] = {}
  for one in found:
    kinds = {"chosen": one.rows, "offered": one.offered}
    content.setdefault(one.target, []).append(
      one._asdict()
      | {f"{kind}_shares": shares(rows, sources, relevance, one.target)._asdict()
         for kind, rows in kinds.items()}
      | {f"{kind}_by_source": by_source(rows, sources) for kind, rows in kinds.items()}
    )  # fmt: skip
  return content
