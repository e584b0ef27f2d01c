"""Passes over input files once, and remembers what was found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jdc.prep import code_hash, tasks
from jdc.prep.batches import Piece
from jdc.prep.commits import Commits
from jdc.prep.engine import Engine
from jdc.prep.readers import files
from jdc.prep.spec import InputSpec, content_hash


def index(
  found: Sequence[files.InputFile], spec: InputSpec, commits: Commits, engine: Engine
) -> list[files.FileIndex]:
  """Returns the pieces and the hash of each file; reads those that are new or changed.

  Args:
    found: the input files.
    spec: how they are read and divided.
    commits: of the run; what is found is committed.
    engine: does the reading.
  """
  keys = [_key(file, spec) for file in found]
  records = [commits.find(key) for key in keys]
  waiting = [number for number, record in enumerate(records) if record is None]
  groups = [[tasks.IndexTask(found[number], spec)] for number in waiting]
  for group, _, made in engine.run(groups):
    number = waiting[group]
    record = {"key": keys[number], "name": "index", "files": {}, "index": _saved(made)}
    commits.add(record)
    records[number] = record
  return [
    _loaded(record["index"], file)
    for record, file in zip(records, found, strict=True)
    if record is not None
  ]


def _key(file: files.InputFile, spec: InputSpec) -> str:
  status = Path(file.path).stat()
  return content_hash(
    [
      "index",
      list(file),
      [status.st_size, status.st_mtime_ns, status.st_ctime_ns],
      [spec.task_mb, spec.text_column, spec.document],
      code_hash.of_modules(["jdc.prep.readers.files"]).hash,
    ]
  )


def _saved(found: files.FileIndex) -> dict[str, Any]:
  return {
    **found._asdict(),
    "file": list(found.file),
    "pieces": [[list(piece), size] for piece, size in found.pieces],
  }


def _loaded(value: Mapping[str, Any], file: files.InputFile) -> files.FileIndex:
  pieces = tuple((Piece(*piece), size) for piece, size in value["pieces"])
  return files.FileIndex(**{**value, "file": file, "pieces": pieces})
