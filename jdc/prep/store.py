"""Files that are whole or absent, under names that tell their content."""

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


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
