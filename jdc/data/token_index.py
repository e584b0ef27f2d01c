"""The index of a token shard: which documents its rows are made of, read by memory map.

It is a safetensors file, the length of a header as u64, the header as JSON with the type, shape
and byte range of each array, and then their bytes, which any reader of that format opens.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORMAT = "jdc token index 1"
_DTYPES: dict[str, np.dtype[Any]] = {
  "I64": np.dtype("<i8"),
  "I32": np.dtype("<i4"),
  "U8": np.dtype("u1"),
}


class TokenIndex(NamedTuple):
  """Of N rows, made of P pieces of D documents.

  Pieces row_pieces[r], ..., row_pieces[r + 1] - 1 stand in row r one after the other. Each has
  the tokens `piece_offset`, ..., `piece_offset` + `piece_length` - 1 of its document.
  """

  row_pieces: np.ndarray  # i64[N + 1]
  document_offset: np.ndarray  # i64[D], where it stands in its source: a byte, or a row
  row_targets: np.ndarray  # i32[N], tokens of the row that are predicted
  row_bytes: np.ndarray  # i32[N], UTF-8 bytes of these tokens
  piece_document: np.ndarray  # i32[P]
  piece_offset: np.ndarray  # i32[P]
  piece_length: np.ndarray  # i32[P]
  document_source: np.ndarray  # i32[D], place in `sources`
  document_tokens: np.ndarray  # i32[D], with its boundary tokens
  document_id: np.ndarray  # u8[D, 16]
  sources: Sequence[str]

  @property
  def row_lengths(self) -> np.ndarray:
    """Tokens of each row, i64[N]."""
    ends = np.concatenate([[0], np.cumsum(self.piece_length, dtype=np.int64)])
    return np.diff(ends[self.row_pieces])


def write(path: Path, index: TokenIndex) -> str:
  """Writes an index and returns the digest of its bytes."""
  header: dict[str, Any] = {
    "__metadata__": {"format": FORMAT, "sources": json.dumps(list(index.sources))}
  }
  arrays, end = _arrays(index), 0
  for name, (kind, array) in arrays.items():
    start, end = end, end + array.nbytes
    header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [start, end]}
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  digest = hashlib.blake2b(digest_size=16)
  with open(path, "wb") as file:
    for part in (
      len(text).to_bytes(8, "little"),
      text,
      *(a.tobytes() for _, a in arrays.values()),
    ):
      file.write(part)
      digest.update(part)
  return digest.hexdigest()


def read(path: Path) -> TokenIndex:
  """Opens an index; its arrays are read when they are used.

  Raises:
    ValueError: if the file is no index of this format, or not whole.
  """
  try:
    with open(path, "rb") as file:
      length = int.from_bytes(file.read(8), "little")
      if length > path.stat().st_size:
        raise ValueError(f"a header of {length} bytes in a file of {path.stat().st_size}")
      header = json.loads(file.read(length))
    about = header.pop("__metadata__")
    if about["format"] != FORMAT:
      raise ValueError(f"format {about['format']!r}; accepted: {FORMAT!r}")
    mapped = np.memmap(path, "u1", mode="r").view(np.ndarray)[8 + length :]
    arrays = {name: _array(mapped, entry) for name, entry in header.items()}
    return TokenIndex(**arrays, sources=json.loads(about["sources"]))
  except (OSError, ValueError, LookupError, TypeError) as error:
    raise ValueError(f"{path}: not the index of a token shard: {error}") from error


def _arrays(index: TokenIndex) -> dict[str, tuple[str, np.ndarray]]:
  """Each array with its type, the widest first, so that all are aligned."""
  found = {}
  for name, values in index._asdict().items():
    if name != "sources":
      kind = "U8" if name == "document_id" else _KINDS.get(name, "I32")
      found[name] = (kind, np.ascontiguousarray(values, _DTYPES[kind]))
  return found


_KINDS = {"row_pieces": "I64", "document_offset": "I64"}


def _array(mapped: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
  dtype, shape = _DTYPES[entry["dtype"]], entry["shape"]
  start, end = entry["data_offsets"]
  if end > len(mapped) or end - start != math.prod(shape) * dtype.itemsize:
    raise ValueError(f"bytes {start} to {end} of {len(mapped)} are no {dtype} of shape {shape}")
  return mapped[start:end].view(dtype).reshape(shape)
