"""What a run did to the lines of the answer key, counted."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

HERE = Path(__file__).parent
KEY = [json.loads(line) for line in (HERE / "answer_key.jsonl").read_text().splitlines()]
Place = tuple[str, int]


def kept_texts(folder: Path) -> dict[Place, str]:
  """The texts of a run's output, by file name and offset."""
  parts = [parquet.read_table(path) for path in sorted((folder / "data").glob("*/*.parquet"))]
  table = pa.concat_tables([part.select(["source", "offset", "text"]) for part in parts])
  return {
    (Path(source).name, offset): text
    for source, offset, text in zip(*table.to_pydict().values(), strict=True)
  }


def place(record: dict[str, Any]) -> Place:
  return record["file"], record["offset"]


def dropping(kept: dict[Place, str], key: list[dict[str, Any]]) -> dict[str, Any]:
  """Precision and recall of dropping.

  A record with duplicates counts as dropped where its cluster lost all members, as kept where
  two are left, and otherwise says nothing about dropping.
  """
  right = wrong = missed = 0
  reasons: Counter[str] = Counter()
  for record in key:
    members = [place(record), *map(place, record["duplicates"])]
    left = sum(member in kept for member in members)
    if len(members) > 1 and left == 1:
      continue
    gone = left == 0
    if gone and record["keep"]:
      wrong += 1
    elif gone:
      right += 1
    elif not record["keep"]:
      missed += 1
      reasons[record["why"]] += 1
  return {
    "precision": right / max(right + wrong, 1),
    "recall": right / max(right + missed, 1),
    "right": right,
    "wrong": wrong,
    "missed": missed,
    "missed_reasons": dict(reasons),
  }


def clusters(kept: dict[Place, str], key: list[dict[str, Any]]) -> dict[str, Any]:
  """Share of the clusters of which at most one member is left, and of those with a good text
  exactly one."""
  held = [record for record in key if record["duplicates"]]
  left = [
    sum(member in kept for member in [place(r), *map(place, r["duplicates"])]) for r in held
  ]
  good = [count for record, count in zip(held, left, strict=True) if record["keep"]]
  return {
    "clusters": len(held),
    "collapsed": sum(count <= 1 for count in left) / len(held),
    "good_clusters": len(good),
    "exactly_one": sum(count == 1 for count in good) / len(good),
  }


def masked(
  kept: dict[Place, str], key: list[dict[str, Any]], raw: dict[str, bytes]
) -> dict[str, tuple[int, int]]:
  """Of each kind of personal data, how many spans are not in the output, of how many."""
  found: dict[str, list[int]] = {}
  for record in key:
    text = kept.get(place(record), "")
    data, start = raw[record["file"]], record["offset"]
    line = data[start : data.index(b"\n", start)].decode("utf-8-sig", "replace")
    for first, last, kind in record["pii"]:
      secret = json.loads(line)["text"][first:last]
      held = found.setdefault(kind, [0, 0])
      held[0] += secret not in text
      held[1] += 1
  return {kind: (gone, count) for kind, (gone, count) in sorted(found.items())}
