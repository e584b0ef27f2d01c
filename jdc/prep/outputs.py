"""Which documents of which shards become which file of training data."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jdc.prep import check, tasks
from jdc.prep.spec import OutputSpec
from jdc.prep.tables import View

# Of each shard the (rows, bytes) of the pieces of each domain, in order.
Tallies = Mapping[int, Mapping[str, Sequence[tuple[int, int]]]]


def tallies(records: Sequence[Mapping[str, Any]]) -> Tallies:
  """Returns what `tally` links have counted."""
  held = [record for record in records if record["link_kind"] == "tally"]
  return {record["shard"]: record["info"]["pieces"] for record in held}


def tasks_of(
  folder: Path,
  spec: OutputSpec,
  root: Path,
  views: Sequence[View],
  counted: Tallies,
  *,
  keep_dropped: bool,
) -> Iterator[tasks.OutputTask]:
  """Joins consecutive pieces of a domain to files of at most `shard_mb` of text.

  Args:
    folder: of the run.
    spec: of the output.
    root: the folder that relative paths of the plan start at.
    views: the documents of each shard that are left.
    counted: of `tallies`.
    keep_dropped: whether documents that the output drops are kept with their texts.
  """
  most = spec.shard_mb * (1 << 20)
  code = check.output_code(spec, root)
  resolved = check.output_at(spec, root)
  for domain in sorted({domain for pieces in counted.values() for domain in pieces}):
    for number, (parts, size) in enumerate(_joined(domain, views, counted, most)):
      yield tasks.OutputTask(
        root=str(folder),
        domain=domain,
        number=number,
        spec=resolved,
        parts=tuple(parts),
        size=size,
        code=code,
        keep_dropped=keep_dropped,
      )


def _joined(
  domain: str, views: Sequence[View], counted: Tallies, most: float
) -> Iterator[tuple[list[tuple[View, int, int]], int]]:
  """Yields (documents, first, rows) of the parts of each file, and the bytes of their text."""
  parts: list[tuple[View, int, int]] = []
  size = 0
  for shard, view in enumerate(views):
    first = 0
    for rows, length in counted[shard].get(domain, ()):
      if parts and size + length > most:
        yield parts, size
        parts, size = [], 0
      if rows:
        parts.append((view, first, rows))
      first, size = first + rows, size + length
  if parts:
    yield parts, size
