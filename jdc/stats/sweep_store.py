"""What an interrupted sweep leaves behind: the scores of the chunks that it finished."""

import contextlib
import hashlib
import json
import os
import shutil
import struct
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_HEADER = struct.Struct("<4sIQI")  # magic, bytes of the description, of the arrays, CRC-32
_MAGIC = b"jdc1"


class SweepStore:
  """Scores by chunk, in journals that only grow, for one key.

  Each opening writes a journal of its own and reads all there are. A record carries the CRC of
  its bytes: what a kill or a full disk has cut off, or a disk has changed, is not there.

  Args:
    folder: holds the stores of all keys; made where missing.
    key: JSON that tells the sweep from any other with other scores: of the parameters, the
      rows, the seed, ...

  Raises:
    ValueError: if the key is no JSON.
  """

  def __init__(self, folder: str | Path, key: Any):
    try:
      content = json.dumps(key, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
      raise ValueError(f"the key of a sweep must be JSON: {error}") from error
    self.path = Path(folder) / hashlib.sha256(content.encode()).hexdigest()
    self._open_folder(content)
    self._mine = f"{jax.process_index()}-"
    self._journal = self.path / f"{self._mine}{uuid.uuid4().hex}.journal"
    self._records: dict[str, _Place] = {}
    # Its own journals last, as what other processes have may go.
    journals = sorted(self.path.glob("*.journal"))
    for path in sorted(journals, key=lambda path: path.name.startswith(self._mine)):
      self._records |= dict(_scan(path))

  def _open_folder(self, content: str) -> None:
    self.path.mkdir(parents=True, exist_ok=True)
    key_path = self.path / "key.json"
    with contextlib.suppress(OSError, UnicodeDecodeError):
      if key_path.read_text(encoding="utf-8") == content:
        return
    # Nothing tells what these were computed for.
    for path in self.path.glob("*.journal"):
      path.unlink(missing_ok=True)
    temporary = self.path / f"key.{uuid.uuid4().hex}"
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, key_path)

  def __contains__(self, name: str) -> bool:
    return name in self._records

  def __len__(self) -> int:
    return len(self._records)

  def read(self, name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a chunk.

    Raises:
      KeyError: if it is not held.
      ValueError: if the file has changed since it was opened.
    """
    return _read(name, self._records[name])

  def write(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Appends the arrays of a chunk; on return they survive the end of the process."""
    record = memoryview(_encode(name, arrays))
    # Unbuffered: what is written is in the hands of the system.
    with self._journal.open("ab", buffering=0) as file:
      self._records[name] = _Place(self._journal, file.tell())
      while record:  # a call may write a part
        record = record[file.write(record) :]

  def finish(self) -> None:
    """Leaves one journal of each process; all processes call it."""
    in_all_processes([True])  # nobody reads them any more
    mine = set(self.path.glob(f"{self._mine}*.journal"))
    if len(mine) <= 1:
      return
    temporary = self.path / f"{self._mine}{uuid.uuid4().hex}"
    whole = self.path / f"{self._mine}whole.journal"
    with temporary.open("wb") as file:
      for name, place in self._records.items():
        if place.path in mine:
          self._records[name] = _Place(whole, file.tell())
          file.write(_encode(name, _read(name, place)))
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, whole)
    for path in mine - {whole}:
      path.unlink(missing_ok=True)

  def remove(self) -> None:
    """Removes the store from the disk."""
    shutil.rmtree(self.path, ignore_errors=True)
    self._records = {}


def clean(folder: str | Path, keep: Callable[[Any], bool]) -> None:
  """Removes the stores of a folder whose key is not to be kept, or cannot be read."""
  for path in Path(folder).glob("*"):
    if len(path.name) != 64 or not path.is_dir():
      continue  # not a store
    try:
      kept = keep(json.loads((path / "key.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
      kept = False
    if not kept:
      shutil.rmtree(path, ignore_errors=True)  # another process may be at it


def in_all_processes(held: Sequence[bool] | np.ndarray) -> np.ndarray:
  """Returns what holds in each of the processes, bool[n]; they must all ask at once."""
  held = np.asarray(held, bool)
  if jax.process_count() == 1 or not held.size:
    return held
  from jax.experimental import multihost_utils

  return np.all(multihost_utils.process_allgather(held), axis=0)


class _Place(NamedTuple):
  path: Path
  start: int


def _encode(name: str, arrays: Mapping[str, np.ndarray]) -> bytes:
  fields = {n: [x.dtype.name, list(x.shape)] for n, x in arrays.items()}
  description = json.dumps({"name": name, "arrays": fields}).encode()
  content = b"".join(np.ascontiguousarray(x).tobytes() for x in arrays.values())
  check = _check(description, content)
  return b"".join(
    (_HEADER.pack(_MAGIC, len(description), len(content), check), description, content)
  )


def _check(description: bytes, content: bytes) -> int:
  return zlib.crc32(content, zlib.crc32(description, len(description)))


def _read(name: str, place: _Place) -> dict[str, np.ndarray]:
  with place.path.open("rb") as file:
    file.seek(place.start)
    record = _read_record(file)
  if record is None or record[0] != name:
    raise ValueError(f"{place.path}: the record of chunk {name} has changed")
  return record[1]


def _scan(path: Path) -> Iterator[tuple[str, _Place]]:
  """The records of a journal that are whole."""
  with path.open("rb") as file:
    while True:
      start = file.tell()
      record = _read_record(file)
      if record is None:
        return
      yield record[0], _Place(path, start)


def _read_record(file: IO[bytes]) -> tuple[str, dict[str, np.ndarray]] | None:
  """The record at the position of the file; `None` where there is none that is whole."""
  header = file.read(_HEADER.size)
  if len(header) < _HEADER.size:
    return None
  magic, *sizes, check = _HEADER.unpack(header)
  left = os.fstat(file.fileno()).st_size - file.tell()
  if magic != _MAGIC or sum(sizes) > left:
    return None
  description, content = (file.read(size) for size in sizes)
  if _check(description, content) != check:
    return None
  facts = json.loads(description)
  arrays, start = {}, 0
  for name, (dtype_name, shape) in facts["arrays"].items():
    dtype = jnp.dtype(dtype_name)
    count = int(np.prod(shape))
    arrays[name] = np.frombuffer(content, dtype, count, start).reshape(shape)
    start += count * dtype.itemsize
  return facts["name"], arrays
