"""Answers of models on the disk: a request that was answered is never sent again."""

import hashlib
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from jdc.prep.store import disk_errors

NAME = "answers.jsonl"
KEY_BYTES = 16
NOT_TOLD = -1  # in the place of a number of tokens, until it is counted
_HEAD = b'{"key":"'
_RECENT = 1 << 16  # keys that are not in the sorted arrays yet
_KEY = slice(len(_HEAD), len(_HEAD) + 2 * KEY_BYTES)


class Question(NamedTuple):
  """One request.

  Attributes:
    body: what is sent, as JSON.
    key: of the cache.
    options: the texts of which likelihoods are asked, instead of an answer.
  """

  body: bytes
  key: bytes
  options: tuple[str, ...]


class Reply(NamedTuple):
  """What a model answered.

  Attributes:
    content: the text.
    finish: `stop`, `length` or another reason of the server's; empty where it refused.
    prompt_tokens: as the model's side counts them.
    completion_tokens: as the model's side counts them.
    refused: why there is no answer and another request would not help; else empty.
  """

  content: str
  finish: str
  prompt_tokens: int
  completion_tokens: int
  refused: str = ""


class Spent(NamedTuple):
  """What was used of a model."""

  requests: int = 0
  prompt_tokens: int = 0
  completion_tokens: int = 0

  def plus(self, reply: Reply) -> "Spent":
    """Returns the sum with one more answer."""
    return Spent(
      self.requests + 1,
      self.prompt_tokens + reply.prompt_tokens,
      self.completion_tokens + reply.completion_tokens,
    )


def key_of(body: bytes, *more: int | str) -> bytes:
  """Returns the key of a request: a hash of all that is sent, and of what else sets it apart.

  >>> key_of(b"{}", 0).hex()
  '531aa56e66b28dcfef4bf62e8e7abc3a'
  """
  return hashlib.blake2b(
    b"%s\0%s" % (body, repr(more).encode()), digest_size=KEY_BYTES
  ).digest()


class Answers:
  """A log of answers, one JSON line each, found by key.

  A line is with the system when `add` returns, so that the death of the process loses nothing;
  `sync` makes it outlive the machine's. A last line that was cut off counts as not written. 24
  bytes an answer stay in memory.

  Args:
    root: the folder of the run.
  """

  def __init__(self, root: Path):
    self._path = root / NAME
    self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    self._keys = np.zeros(0, np.uint64)  # sorted, the first eight bytes
    self._places = np.zeros(0, np.int64)  # of their lines
    self._recent: dict[int, int] = {}
    self.spent: dict[str, Spent] = {}  # by model
    self._size = self._load()
    self._synced = self._size

  def _load(self) -> int:
    size = os.fstat(self._file).st_size
    if not size:
      return 0
    keys, places, whole = [], [], 0
    with mmap.mmap(self._file, size, access=mmap.ACCESS_READ) as data:
      for start, end in _lines(data):
        line = data[start:end]
        try:
          self._count(orjson.loads(line))
          keys.append(int.from_bytes(bytes.fromhex(line[_KEY].decode())[:8]))
        except (ValueError, KeyError, TypeError) as error:
          raise ValueError(
            f"{self._path}: damaged at byte {start}: {error}; cut it off there, or "
            "remove it and ask everything anew"
          ) from None
        places.append(start)
        whole = end
    if whole < size:
      os.ftruncate(self._file, whole)
    self._merge(np.array(keys, np.uint64), np.array(places, np.int64))
    return whole

  def _count(self, held: dict[str, Any]) -> None:
    model = held["model"]
    self.spent[model] = self.spent.get(model, Spent()).plus(_reply(held))

  def _merge(self, keys: np.ndarray, places: np.ndarray) -> None:
    keys = np.concatenate([self._keys, keys])
    order = np.argsort(keys, kind="stable")
    self._keys = keys[order]
    self._places = np.concatenate([self._places, places])[order]

  def find(self, keys: Sequence[bytes]) -> list[Reply | None]:
    """Returns the answer of each key, `None` where there is none."""
    if not self._size:
      return [None] * len(keys)
    short = np.frombuffer(b"".join(key[:8] for key in keys), ">u8").astype(np.uint64)
    at = np.searchsorted(self._keys, short)
    held = self._keys[np.minimum(at, len(self._keys) - 1)] == short if len(self._keys) else None
    found: list[Reply | None] = []
    for i, key in enumerate(keys):
      place = int(self._places[at[i]]) if held is not None and held[i] else None
      if place is None:
        place = self._recent.get(int(short[i]))
      found.append(None if place is None else self._read(place, key))
    return found

  def get(self, key: bytes) -> Reply | None:
    """Returns the answer of a key that was added lately, or that a look at all finds."""
    place = self._recent.get(int.from_bytes(key[:8]))
    return self._read(place, key) if place is not None else self.find([key])[0]

  def _read(self, place: int, key: bytes) -> Reply | None:
    line = os.pread(self._file, 4096, place)
    while b"\n" not in line:
      more = os.pread(self._file, max(65536, len(line)), place + len(line))
      if not more:
        raise ValueError(f"{self._path}: no whole line at byte {place}; was it changed?")
      line += more
    held = orjson.loads(line[: line.index(b"\n")])
    return _reply(held) if held["key"] == key.hex() else None

  def add(self, key: bytes, model: str, reply: Reply) -> None:
    """Writes an answer; on return the system has it."""
    held = {"key": key.hex(), "model": model, **reply._asdict()}
    line = orjson.dumps(held) + b"\n"
    with disk_errors(self._path):
      rest = memoryview(line)
      try:
        while rest:
          rest = rest[os.write(self._file, rest) :]
      except OSError:
        os.ftruncate(self._file, self._size)
        raise
    self._recent[int.from_bytes(key[:8])] = self._size
    self._size += len(line)
    self._count(held)
    if len(self._recent) >= _RECENT:
      keys = np.fromiter(self._recent.keys(), np.uint64, len(self._recent))
      self._merge(keys, np.fromiter(self._recent.values(), np.int64, len(self._recent)))
      self._recent.clear()

  def sync(self) -> None:
    """Puts what was added on the disk."""
    size = self._size
    if size > self._synced:
      with disk_errors(self._path):
        os.fsync(self._file)
      self._synced = size

  def close(self) -> None:
    """Puts everything on the disk and closes the log."""
    self.sync()
    os.close(self._file)


def _lines(data: mmap.mmap) -> Iterator[tuple[int, int]]:
  """Yields (start, end) of lines that are whole."""
  start = 0
  while (end := data.find(b"\n", start)) >= 0:
    yield start, end + 1
    start = end + 1


def _reply(held: dict[str, Any]) -> Reply:
  return Reply(
    held["content"],
    held["finish"],
    held["prompt_tokens"],
    held["completion_tokens"],
    held["refused"],
  )
