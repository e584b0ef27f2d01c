"""The folder of a run: one run at a time, files that are whole or absent, a log of commits."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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


class Written(NamedTuple):
  """A file that is whole."""

  path: str  # relative to the folder of the run
  sha256: str
  size: int


class HashingFile:
  """A file for writing that hashes what passes; it cannot seek."""

  def __init__(self, path: Path):
    self._file = open(path, "wb", buffering=1 << 20)  # noqa: SIM115
    self._hash = hashlib.sha256()
    self.size = 0

  def write(self, data: Any) -> int:
    """Writes bytes."""
    view = memoryview(data).cast("B")
    self._hash.update(view)
    self._file.write(view)
    self.size += len(view)
    return len(view)

  def tell(self) -> int:
    """Returns how many bytes were written."""
    return self.size

  def flush(self) -> None:
    """Hands buffered bytes to the system."""
    self._file.flush()

  @property
  def closed(self) -> bool:
    """Whether the file is closed."""
    return self._file.closed

  def readable(self) -> bool:
    """Returns False."""
    return False

  def writable(self) -> bool:
    """Returns True."""
    return True

  def seekable(self) -> bool:
    """Returns False."""
    return False

  def finish(self) -> str:
    """Puts everything on the disk and closes the file; returns its SHA-256."""
    self._file.flush()
    os.fsync(self._file.fileno())
    self._file.close()
    return self._hash.hexdigest()

  def close(self) -> None:
    """Closes the file; what is in it may not be whole."""
    with contextlib.suppress(OSError):
      self._file.close()


class AtomicFile:
  """A file that appears under its name when it is whole, and whose name tells its content.

  Args:
    root: the folder of the run.
    pattern: its path in there, with `{sha}` for the first digits of its SHA-256.
    digits: how many of them.
  """

  def __init__(self, root: Path, pattern: str, digits: int = 8):
    self._root, self._pattern, self._digits = root, pattern, digits
    target = root / pattern
    target.parent.mkdir(parents=True, exist_ok=True)
    stem = target.name.replace("{sha}", "")
    # Processes of several machines may share the folder.
    self._partial = target.with_name(f".{stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with disk_errors(self._partial):
      self.file = HashingFile(self._partial)

  def commit(self) -> Written:
    """Makes the file appear."""
    with disk_errors(self._partial):
      digest = self.file.finish()
      return place(self._root, self._partial, self._pattern, digest, self._digits)

  def discard(self) -> None:
    """Leaves nothing behind."""
    self.file.close()
    self._partial.unlink(missing_ok=True)


def place(root: Path, partial: Path, pattern: str, digest: str, digits: int = 8) -> Written:
  """Gives a file that is whole its name, which tells its content."""
  path = pattern.replace("{sha}", digest[:digits])
  size = partial.stat().st_size
  os.replace(partial, root / path)
  sync_folder((root / path).parent)
  return Written(path, digest, size)


def hash_file(path: Path) -> str:
  """Returns the SHA-256 of a file, in hex."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
  """Says of a full disk what can be done about it."""
  try:
    yield
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
      raise OSError(
        error.errno,
        f"{path.parent}: {error.strerror}; nothing that was committed is lost: make room and "
        "run the same command again",
      ) from error
    raise


def write_bytes(root: Path, pattern: str, data: bytes, digits: int = 8) -> Written:
  """Writes a small file as `AtomicFile` does."""
  opened = AtomicFile(root, pattern, digits)
  try:
    with disk_errors(root / pattern):
      opened.file.write(data)
    return opened.commit()
  except BaseException:
    opened.discard()
    raise


def replace_text(path: Path, text: str) -> None:
  """Replaces a file by another content, all at once."""
  partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with disk_errors(path), open(partial, "w", encoding="utf-8") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, path)
  finally:
    partial.unlink(missing_ok=True)
  sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
  """Puts the names in a folder on the disk."""
  handle = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


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

  A last line that a kill cut off counts as not written.
  """

  def __init__(self, root: Path):
    self._root, self._path = root, root / COMMITS
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
    """Returns what was committed under a key, if its files are still there."""
    record = self._records.get(key)
    if record is None:
      return None
    for path, _, size in record["files"].values():
      try:
        if os.path.getsize(self._root / path) != size:
          return None
      except OSError:
        return None
    return record

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
