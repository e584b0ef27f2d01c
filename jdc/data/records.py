"""Ragged records on disk: flat little-endian arrays, read by memory map."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from jdc.data.chat import Example

FORMAT_VERSION = 1


class RecordTable:
  """Records of tokens with random access; opening reads no array, a pickle holds the path.

  A record of n <= `sequence_length` + 1 tokens is an example. Its inputs are tokens 0..n-2, its
  targets tokens 1..n-1; predicted are those that count, never the first token.

  Args:
    folder: as `RecordWriter` wrote it.

  Raises:
    ValueError: if the folder holds no records of this format, or files of the wrong size.
  """

  def __init__(self, folder: str | Path):
    self.folder = Path(folder)
    meta = _read_meta(self.folder)
    _check_sizes(self.folder, meta["arrays"])
    self.sequence_length: int = meta["sequence_length"]
    self.vocab_size: int = meta["vocab_size"]
    self.num_documents: int = meta["num_documents"]  # records
    self.num_tokens: int = meta["num_tokens"]
    self.num_target_tokens: int = meta["num_target_tokens"]
    self.num_target_bytes: int = meta["num_target_bytes"]
    self.num_truncated_tokens: int = meta["num_truncated_tokens"]  # cut off, not kept
    self.num_truncated_records: int = meta["num_truncated_records"]  # that lost some
    self.fingerprint: str = meta["fingerprint"]
    arrays = {name: _map(self.folder, name, *spec) for name, spec in meta["arrays"].items()}
    self.lengths: np.ndarray = arrays["lengths"]  # i32[N], tokens of each record
    self.num_targets: np.ndarray = arrays["num_targets"]  # i32[N], tokens that count
    self.num_bytes: np.ndarray = arrays["num_bytes"]  # i32[N], UTF-8 bytes of these tokens
    self._arrays = arrays

  def __len__(self) -> int:
    return self.num_documents

  def __getitem__(self, record: int) -> dict[str, np.ndarray]:
    tokens, segments = self.rows([record])
    return {"tokens": tokens[0], "segments": segments[0]}

  def __reduce__(self) -> tuple[Any, ...]:
    return RecordTable, (self.folder,)

  def __repr__(self) -> str:
    return f"RecordTable({str(self.folder)!r})"

  def read(self, ids: Sequence[int] | np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the tokens i32[n] and counts bool[n] of each record, in the order of `ids`."""
    spans = self._spans("offsets", ids)
    tokens, counts = self._arrays["tokens"], self._arrays["counts"]
    return (
      [tokens[start:end].astype(np.int32) for start, end in spans],
      [counts[start:end].astype(bool) for start, end in spans],
    )

  def rows(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns b records as rows of their own, in the order of `ids`.

    Returns:
      Tokens i32[b,T+1] and segments i32[b,T+1], as `batch.inputs_and_targets` reads them: 1
      where a token is to be predicted, -1 where it is only read, 0 in padding.
    """
    spans = self._spans("offsets", ids)
    shape = (len(spans), self.sequence_length + 1)
    tokens, segments = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, (start, end) in enumerate(spans):
      tokens[row, : end - start] = self._arrays["tokens"][start:end]
      segments[row, : end - start] = self._arrays["counts"][start:end] * np.int32(2) - 1
    return tokens, segments

  def where(self, record: int) -> str:
    """Returns where a record was read: "file:line" or "file[index]"."""
    ((start, end),) = self._spans("where_offsets", [record])
    return self._arrays["where"][start:end].tobytes().decode("utf-8")

  def _spans(self, name: str, ids: Sequence[int] | np.ndarray) -> list[tuple[int, int]]:
    ids = np.asarray(ids, np.int64)
    if ids.size and (ids.min() < 0 or ids.max() >= len(self)):
      raise IndexError(f"records must be in [0, {len(self)}), got {ids.min()} to {ids.max()}")
    offsets = self._arrays[name]
    return list(zip(offsets[ids].tolist(), offsets[ids + 1].tolist(), strict=True))


class RecordWriter:
  """Appends records to the arrays of a new folder.

  Args:
    folder: is made here.
    sequence_length: T; records have at most T + 1 tokens.
    vocab_size: decides the type of tokens: uint16 up to 65,536, then uint32.
  """

  def __init__(self, folder: str | Path, sequence_length: int, vocab_size: int):
    self.folder = Path(folder)
    self.folder.mkdir(parents=True)
    self._sequence_length, self._vocab_size = sequence_length, vocab_size
    self._dtypes = {
      "tokens": "<u2" if vocab_size <= 1 << 16 else "<u4",
      "counts": "|u1",
      "offsets": "<i8",
      "lengths": "<i4",
      "num_targets": "<i4",
      "num_bytes": "<i4",
      "where_offsets": "<i8",
      "where": "|u1",
    }
    self._sizes = dict.fromkeys(self._dtypes, 0)
    self._files: dict[str, IO[bytes]] = {
      name: open(self.folder / f"{name}.bin", "wb")  # noqa: SIM115
      for name in self._dtypes
    }
    hashed = ("tokens", "counts", "lengths")
    self._hashes = {name: hashlib.blake2b(digest_size=16) for name in hashed}
    self._num_targets = self._num_bytes = 0
    self._truncated_tokens = self._truncated_records = 0
    self._append("offsets", [0])
    self._append("where_offsets", [0])

  def __enter__(self) -> "RecordWriter":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def add(self, where: str, example: Example, num_truncated: int = 0) -> None:
    """Appends a record from which `num_truncated` tokens were cut before.

    Raises:
      ValueError: if it has more than T + 1 tokens, a token outside of the vocabulary, none to
        predict, or its first one to predict.
    """
    ids, counts, num_bytes = example
    problems = []
    if len(ids) > self._sequence_length + 1:
      problems.append(f"{len(ids)} tokens, more than {self._sequence_length + 1}")
    if not counts.any() or counts[0]:
      problems.append("no token to predict, or the first one")
    if len(ids) and not 0 <= ids.min() <= ids.max() < self._vocab_size:
      problems.append(f"tokens must be in [0, {self._vocab_size})")
    if problems:
      raise ValueError(f"{where}: {'; '.join(problems)}")
    self._append("tokens", ids)
    self._append("counts", counts)
    self._append("offsets", [self._sizes["tokens"]])
    self._append("lengths", [len(ids)])
    self._append("num_targets", [counts.sum()])
    self._append("num_bytes", [num_bytes[counts].sum()])
    self._append("where", np.frombuffer(where.encode("utf-8"), np.uint8))
    self._append("where_offsets", [self._sizes["where"]])
    self._num_targets += int(counts.sum())
    self._num_bytes += int(num_bytes[counts].sum())
    self._truncated_tokens += num_truncated
    self._truncated_records += num_truncated > 0

  def close(self) -> None:
    """Closes the files; without `finish` they are no table."""
    for file in self._files.values():
      file.close()

  def finish(self) -> RecordTable:
    """Writes the files through to disk, meta.json last; ValueError where there is no record."""
    if not self._sizes["lengths"]:
      raise ValueError("no records")
    for file in self._files.values():
      file.flush()
      os.fsync(file.fileno())
    self.close()
    digests = "".join(digest.hexdigest() for digest in self._hashes.values())
    meta = {
      "format_version": FORMAT_VERSION,
      "sequence_length": self._sequence_length,
      "vocab_size": self._vocab_size,
      "num_documents": self._sizes["lengths"],
      "num_tokens": self._sizes["tokens"],
      "num_target_tokens": self._num_targets,
      "num_target_bytes": self._num_bytes,
      "num_truncated_tokens": self._truncated_tokens,
      "num_truncated_records": self._truncated_records,
      "fingerprint": hashlib.blake2b(
        f"{self._sequence_length}:{digests}".encode(), digest_size=16
      ).hexdigest(),
      "arrays": {name: (dtype, [self._sizes[name]]) for name, dtype in self._dtypes.items()},
    }
    (self.folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    return RecordTable(self.folder)

  def _append(self, name: str, values: Any) -> None:
    values = np.ascontiguousarray(values, self._dtypes[name])
    self._files[name].write(values.data)
    self._sizes[name] += values.size
    if name in self._hashes:
      self._hashes[name].update(values.data)


def _read_meta(folder: Path) -> dict[str, Any]:
  try:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise ValueError(f"{folder}: not a folder of records: {error}") from error
  version = meta.get("format_version")
  if version != FORMAT_VERSION or "offsets" not in meta.get("arrays", {}):
    raise ValueError(
      f"{folder}: not records of this format: version {version}; accepted: {FORMAT_VERSION}"
    )
  return meta


def _check_sizes(folder: Path, arrays: dict[str, tuple[str, list[int]]]) -> None:
  problems = []
  for name, (dtype, shape) in arrays.items():
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    path = folder / f"{name}.bin"
    size = path.stat().st_size if path.exists() else 0
    if size != expected:
      problems.append(f"{path}: {size} bytes instead of {expected}; delete the folder")
  if problems:
    raise ValueError("\n".join(problems))


def _map(folder: Path, name: str, dtype: str, shape: list[int]) -> np.ndarray:
  # A plain view of the map: indexing a np.memmap costs several times as much.
  path = folder / f"{name}.bin"
  return np.memmap(path, dtype, mode="r", shape=tuple(shape)).view(np.ndarray)
