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


def all_texts(folder: Path) -> list[str]:
  """The texts of a run's output."""
  paths = sorted((folder / "data").glob("*/*.parquet"))
  return [text for path in paths for text in parquet.read_table(path)["text"].to_pylist()]


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
) -> dict[str, dict[str, int]]:
  """Of each kind of personal data the spans, those that are not in the output, and of these
  the ones in records that are kept."""
  found: dict[str, Counter[str]] = {}
  for record in key:
    text = kept.get(place(record))
    for secret, kind in secrets(record, raw):
      held = found.setdefault(kind, Counter())
      held["spans"] += 1
      held["gone"] += text is None or secret not in text
      if text is not None:
        held["in_kept"] += 1
        held["masked_in_kept"] += secret not in text
  return {kind: dict(held) for kind, held in sorted(found.items())}


def secrets(record: dict[str, Any], raw: dict[str, bytes]) -> list[tuple[str, str]]:
  """The personal data of a record, with their kinds."""
  if not record["pii"]:
    return []
  data, start = raw[record["file"]], record["offset"]
  line = data[start : data.index(b"\n", start)].decode("utf-8-sig")
  text = json.loads(line)["text"]
  return [(text[first:last], kind) for first, last, kind in record["pii"]]
