"""The rows on disk: flat little-endian arrays, read by memory map."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

FORMAT_VERSION = 1


class Piece(NamedTuple):
  """A run of tokens in a row: `length` tokens of one document from its token `offset` on."""

  where: str
  offset: int
  length: int


class RowTable:
  """Packed rows with random access; opening reads no array, a pickle holds the path.

  A row has `sequence_length` + 1 tokens: inputs are [:-1], targets [1:]. Segments count 1, 2,
  ... along a row; 0 is padding. A position is a target where its segment is that of the token
  before it and not 0.

  Args:
    folder: as `pack.pack_documents` wrote it.

  Raises:
    ValueError: if the folder holds no rows of this format, or files of the wrong size.
  """

  def __init__(self, folder: str | Path):
    self.folder = Path(folder)
    try:
      meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
      raise ValueError(f"{folder}: not a folder of rows: {error}") from error
    if meta["format_version"] != FORMAT_VERSION:
      raise ValueError(
        f"{folder}: rows of format {meta['format_version']}; accepted: {FORMAT_VERSION}"
      )
    self._check_sizes(meta["arrays"])
    self.sequence_length: int = meta["sequence_length"]
    self.vocab_size: int = meta["vocab_size"]
    self.num_documents: int = meta["num_documents"]
    self.num_target_tokens: int = meta["num_target_tokens"]
    self.num_target_bytes: int = meta["num_target_bytes"]
    self.fingerprint: str = meta["fingerprint"]
    arrays = {name: self._map(name, *spec) for name, spec in meta["arrays"].items()}
    self._tokens, self._segments = arrays["tokens"], arrays["segments"]
    self.num_targets: np.ndarray = arrays["num_targets"]  # i32[N], target tokens of each row
    self.num_bytes: np.ndarray = arrays["num_bytes"]  # i32[N], UTF-8 bytes of these tokens
    self._arrays = arrays

  def __len__(self) -> int:
    return len(self._tokens)

  def __getitem__(self, row: int) -> dict[str, np.ndarray]:
    tokens, segments = self.rows([row])
    return {"tokens": tokens[0], "segments": segments[0]}

  def __reduce__(self) -> tuple[Any, ...]:
    return RowTable, (self.folder,)

  def __repr__(self) -> str:
    return f"RowTable({str(self.folder)!r})"

  def rows(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens i32[b,T+1], segments i32[b,T+1]) of b rows, in the order of `ids`."""
    ids = np.asarray(ids, np.int64)
    if ids.size and (ids.min() < 0 or ids.max() >= len(self)):
      raise IndexError(f"rows must be in [0, {len(self)}), got {ids.min()} to {ids.max()}")
    return self._tokens[ids].astype(np.int32), self._segments[ids].astype(np.int32)

  def documents(self, row: int) -> list[Piece]:
    """Returns the pieces of documents that a row is made of, in order."""
    if not 0 <= row < len(self):
      raise IndexError(f"row must be in [0, {len(self)}), got {row}")
    arrays = self._arrays
    start, end = arrays["row_offsets"][row : row + 2]
    return [
      Piece(self._where(document), offset, length)
      for document, offset, length in zip(
        arrays["piece_document"][start:end].tolist(),
        arrays["piece_offset"][start:end].tolist(),
        arrays["piece_length"][start:end].tolist(),
        strict=True,
      )
    ]

  def pieces(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first piece of each row, i64[N + 1], and the tokens of each piece, i32[P]."""
    return self._arrays["row_offsets"], self._arrays["piece_length"]

  def _where(self, document: int) -> str:
    start, end = self._arrays["where_offsets"][document : document + 2]
    return self._arrays["where"][start:end].tobytes().decode("utf-8")

  def _map(self, name: str, dtype: str, shape: list[int]) -> np.ndarray:
    # A plain view of the map: indexing a np.memmap costs several times as much.
    return np.memmap(self._file(name), dtype, mode="r", shape=tuple(shape)).view(np.ndarray)

  def _check_sizes(self, arrays: dict[str, tuple[str, list[int]]]) -> None:
    problems = []
    for name, (dtype, shape) in arrays.items():
      expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
      path = self._file(name)
      size = path.stat().st_size if path.exists() else 0
      if size != expected:
        problems.append(f"{path}: {size} bytes instead of {expected}; delete the folder")
    if problems:
      raise ValueError("\n".join(problems))

  def _file(self, name: str) -> Path:
    return self.folder / f"{name}.bin"


class RowWriter:
  """Appends blocks of rows to the arrays of a new folder.

  Args:
    folder: is made here.
    sequence_length: T.
    vocab_size: decides the type of tokens: uint16 up to 65,536, then uint32.
  """

  def __init__(self, folder: str | Path, sequence_length: int, vocab_size: int):
    self.folder = Path(folder)
    self.folder.mkdir(parents=True)
    self._width, self._vocab_size = sequence_length + 1, vocab_size
    self._dtypes = {
      "tokens": "<u2" if vocab_size <= 1 << 16 else "<u4",
      "segments": "<u2" if self._width < 1 << 16 else "<u4",
      "num_targets": "<i4",
      "num_bytes": "<i4",
      "row_offsets": "<i8",
      "piece_document": "<i8",
      "piece_offset": "<i4",
      "piece_length": "<i4",
      "where_offsets": "<i8",
      "where": "|u1",
    }
    self._counts = dict.fromkeys(self._dtypes, 0)
    self._files: dict[str, IO[bytes]] = {}
    self._hashes = {name: hashlib.blake2b(digest_size=16) for name in ("tokens", "segments")}
    self._num_targets = self._num_bytes = 0
    self._append("row_offsets", np.zeros(1))
    self._append("where_offsets", np.zeros(1))

  def add_documents(self, wheres: Sequence[str]) -> None:
    """Appends the places of documents; the first added is document 0."""
    encoded = [where.encode("utf-8") for where in wheres]
    sizes = np.fromiter((len(where) for where in encoded), np.int64, len(encoded))
    self._append("where_offsets", self._counts["where"] + np.cumsum(sizes))
    self._append("where", np.frombuffer(b"".join(encoded), np.uint8))

  def add_rows(
    self,
    tokens: np.ndarray,
    segments: np.ndarray,
    num_targets: np.ndarray,
    num_bytes: np.ndarray,
    num_pieces: np.ndarray,
    pieces: tuple[np.ndarray, np.ndarray, np.ndarray],
  ) -> None:
    """Appends rows [n,T+1], their counts [n], and their pieces (document, offset, length)."""
    self._append("row_offsets", self._counts["piece_document"] + np.cumsum(num_pieces))
    self._append("tokens", tokens)
    self._append("segments", segments)
    self._append("num_targets", num_targets)
    self._append("num_bytes", num_bytes)
    for name, values in zip(("document", "offset", "length"), pieces, strict=True):
      self._append(f"piece_{name}", values)
    self._num_targets += int(num_targets.sum())
    self._num_bytes += int(num_bytes.sum())

  def close(self) -> None:
    """Closes the files; without `finish` they are no table."""
    for file in self._files.values():
      file.close()

  def finish(self) -> None:
    """Writes the files through to disk, meta.json last."""
    for file in self._files.values():
      file.flush()
      os.fsync(file.fileno())
    self.close()
    num_rows = self._counts["num_targets"]
    shapes = {name: [count] for name, count in self._counts.items()}
    shapes["tokens"] = shapes["segments"] = [num_rows, self._width]
    digests = "".join(digest.hexdigest() for digest in self._hashes.values())
    meta = {
      "format_version": FORMAT_VERSION,
      "sequence_length": self._width - 1,
      "vocab_size": self._vocab_size,
      "num_documents": self._counts["where_offsets"] - 1,
      "num_target_tokens": self._num_targets,
      "num_target_bytes": self._num_bytes,
      "fingerprint": hashlib.blake2b(
        f"{self._width}:{digests}".encode(), digest_size=16
      ).hexdigest(),
      "arrays": {name: (dtype, shapes[name]) for name, dtype in self._dtypes.items()},
    }
    (self.folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")

  def _append(self, name: str, values: np.ndarray) -> None:
    values = np.ascontiguousarray(values, self._dtypes[name])
    if name not in self._files:
      self._files[name] = open(self.folder / f"{name}.bin", "wb")  # noqa: SIM115
    self._files[name].write(values.data)
    self._counts[name] += values.size
    if name in self._hashes:
      self._hashes[name].update(values.data)
