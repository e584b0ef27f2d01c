"""The folder of a run: one run at a time, a log of what is finished, nothing of others."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jdc.prep.store import Written, disk_errors, hash_file, write_bytes

COMMITS = "commits.jsonl"
LOCK = "run.lock"
_LEFT = "work/left"
_OWN = (
  "data",
  "dropped",
  "models",
  "quarantine",
  "work",
)  # folders that a run may remove files from


@contextlib.contextmanager
def lock(root: Path) -> Iterator[None]:
  """Holds the folder of a run.

  Raises:
    ValueError: if another run holds it, or it holds files of something else.
  """
  try:
    root.mkdir(parents=True, exist_ok=True)
  except (FileExistsError, NotADirectoryError):
    raise ValueError(f"{root}: is no folder; give an empty or a new one") from None
  held = [path.name for path in root.iterdir()]
  if held and not any(name in held for name in (COMMITS, LOCK)):
    raise ValueError(
      f"{root}: holds files of something else ({', '.join(sorted(held)[:5])}); "
      "give an empty folder, or that of an earlier run"
    )
  with open(root / LOCK, "a+", encoding="utf-8") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      file.seek(0)
      raise ValueError(
        f"{root}: process {file.read().strip() or '?'} runs in this folder"
      ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    yield


class Commits:
  """The log of what is finished: key -> record, one line each in `commits.jsonl`.

  A last line that a kill cut off counts as not written, and so does a record one of whose files
  is gone or is not what was written. A file is hashed once, when a record of it is found first:
  0.7 s a GB, where the processor has instructions for SHA-256.
  """

  def __init__(self, root: Path):
    self._root, self._path = root, root / COMMITS
    self._whole: dict[str, str] = {}  # hashes of files that are what was written
    self._records: dict[str, dict[str, Any]] = {}
    whole = 0
    if self._path.exists():
      for line in self._path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
          break
        try:
          record = json.loads(line)
        except ValueError as error:
          raise ValueError(
            f"{self._path}: damaged at byte {whole}: {error}; remove it to start anew"
          ) from error
        whole += len(line)
        self._records[record["key"]] = record
    self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
    if self._file.tell() > whole:
      self._file.truncate(whole)

  def find(self, key: str) -> dict[str, Any] | None:
    """Returns what was committed under a key, if its files are still there, unchanged."""
    record = self._records.get(key)
    if record is None:
      return None
    held = record["files"].values()
    return record if all(self._is_whole(Written(*file)) for file in held) else None

  def _is_whole(self, file: Written) -> bool:
    path = self._root / file.path
    try:
      if path.stat().st_size != file.size:
        return False
      if self._whole.get(file.path) != file.sha256:
        self._whole[file.path] = hash_file(path)
    except OSError:
      return False
    return self._whole[file.path] == file.sha256

  def add(self, record: Mapping[str, Any]) -> None:
    """Commits; on return the record is on the disk."""
    line = (json.dumps(record, sort_keys=True, separators=(",", ":")) + "\n").encode()
    with disk_errors(self._path):
      before = self._file.tell()
      try:
        rest = memoryview(line)
        while rest:
          rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())
      except OSError:
        with contextlib.suppress(OSError):
          self._file.truncate(before)
        raise
    self._records[record["key"]] = dict(record)
    self._whole |= {path: sha256 for path, sha256, _ in record["files"].values()}

  def close(self) -> None:
    """Closes the log."""
    self._file.close()


def leave(root: Path, records: Sequence[Mapping[str, Any]]) -> None:
  """Keeps records of what is done in `work/`, for a run that may die before it commits them."""
  lines = "".join(json.dumps(record) + "\n" for record in records)
  write_bytes(root, f"{_LEFT}/{{sha}}.jsonl", lines.encode(), digits=32)


def commit_left(root: Path, commits: Commits) -> int:
  """Commits what `leave` kept and nobody committed; returns how many records."""
  count = 0
  for path in sorted((root / _LEFT).glob("*.jsonl")):
    for line in path.read_text(encoding="utf-8").splitlines():
      record = json.loads(line)
      if commits.find(record["key"]) is None:
        commits.add(record)
        count += 1
    path.unlink()
  return count


def remove_partial(root: Path) -> None:
  """Removes files that a run which was killed left unfinished."""
  for name in _OWN:
    for folder, _, files in os.walk(root / name):
      for file in files:
        if file.startswith(".") and file.endswith(".tmp"):
          (Path(folder) / file).unlink(missing_ok=True)


def remove_others(root: Path, keep: set[str]) -> int:
  """Removes files in a run's own folders, but some, and folders left empty; returns how many.

  Args:
    root: the folder of the run.
    keep: paths relative to it.
  """
  count = 0
  for name in _OWN:
    for folder, _, files in os.walk(root / name, topdown=False):
      for file in files:
        path = (Path(folder) / file).relative_to(root).as_posix()
        if path not in keep:
          (root / path).unlink()
          count += 1
      if not os.listdir(folder):
        os.rmdir(folder)
  return count
