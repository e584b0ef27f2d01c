"""Rows of token shards with random access, straight from ArrayRecord or Parquet files."""

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from jdc.data import token_index
from jdc.data.formats import import_extra
from jdc.data.token_manifest import ShardFile


class DocumentPiece(NamedTuple):
  """A run of tokens in a row: `length` tokens of a document from its token `offset` on."""

  doc_id: str  # hexadecimal
  source: str  # the file that the document was read from
  source_offset: int  # byte of its line in the decompressed file, or its row
  offset: int
  length: int

  @property
  def where(self) -> str:
    """The document: `DOC_ID SOURCE@OFFSET`."""
    return f"{self.doc_id} {self.source}@{self.source_offset}"


class TokenTable:
  """The rows of one split of one domain; opening reads the indexes, no tokens.

  A row has at most `sequence_length` + 1 tokens and is padded with 0. Its segments count the
  pieces of documents 1, 2, ...; 0 is padding. A position is a target where its segment is that
  of the token before it and not 0.

  Args:
    folder: of the token shards.
    shards: in order.
    sequence_length: T.
    vocab_size: of the tokenizer.
    dtype: of the tokens, "uint16" or "uint32".
    packing: of the rows; without any, a row is one record and has `lengths`.

  Raises:
    ValueError: if files are missing or have other sizes than when they were written.
  """

  def __init__(
    self,
    folder: str | Path,
    shards: Sequence[ShardFile],
    sequence_length: int,
    vocab_size: int,
    dtype: str,
    packing: str,
  ):
    self._arguments = (folder, tuple(shards), sequence_length, vocab_size, dtype, packing)
    self.folder, self._shards = Path(folder), tuple(shards)
    _check_sizes(self.folder, shards)
    self.sequence_length, self.vocab_size = sequence_length, vocab_size
    self.num_documents = sum(shard.num_documents for shard in shards)
    self.num_target_tokens = sum(shard.num_target_tokens for shard in shards)
    self.num_target_bytes = sum(shard.num_target_bytes for shard in shards)
    digests = "".join(shard.fingerprint for shard in shards)
    self.fingerprint = hashlib.blake2b(
      f"{sequence_length}:{digests}".encode(), digest_size=16
    ).hexdigest()
    self._indexes = [token_index.read(self.folder / shard.index_file) for shard in shards]
    self._starts = np.cumsum([0, *(shard.num_rows for shard in shards)])
    self.num_targets = np.concatenate([index.row_targets for index in self._indexes])  # i32[N]
    self.num_bytes = np.concatenate([index.row_bytes for index in self._indexes])  # i32[N]
    if packing == "none":
      self.lengths = np.concatenate([index.row_lengths for index in self._indexes])
    self._readers: dict[int, _Reader] = {}
    self._dtype = np.dtype(dtype).newbyteorder("<")

  def __len__(self) -> int:
    return int(self._starts[-1])

  def __getitem__(self, row: int) -> dict[str, np.ndarray]:
    tokens, segments = self.rows([row])
    return {"tokens": tokens[0], "segments": segments[0]}

  def __reduce__(self) -> tuple[Any, ...]:
    return TokenTable, self._arguments

  def __repr__(self) -> str:
    return f"TokenTable({str(self.folder)!r}, {len(self)} rows)"

  def rows(self, ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (tokens i32[b,T+1], segments i32[b,T+1]) of b rows, in the order of `ids`."""
    ids = self._checked(ids)
    tokens = np.zeros((len(ids), self.sequence_length + 1), np.int32)
    segments = np.zeros_like(tokens)
    shard_b = np.searchsorted(self._starts, ids, side="right") - 1
    for shard in np.unique(shard_b).tolist():
      at = np.flatnonzero(shard_b == shard)
      local, place = np.unique(ids[at] - self._starts[shard], return_inverse=True)
      read = self._reader(shard).read(local.tolist())
      for row, k in zip(at.tolist(), place.tolist(), strict=True):
        lengths = self._lengths(shard, int(local[k]))
        if lengths.sum() != len(read[k]):
          raise ValueError(
            f"{self.folder / self._shards[shard].file}: row {local[k]} has {len(read[k])} "
            f"tokens, {lengths.sum()} by its index; prepare the folder again"
          )
        tokens[row, : len(read[k])] = read[k]
        segments[row, : len(read[k])] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return tokens, segments

  def documents(self, row: int) -> list[DocumentPiece]:
    """Returns the pieces of documents that a row is made of, in order."""
    (row,) = self._checked([row]).tolist()
    shard = int(np.searchsorted(self._starts, row, side="right")) - 1
    index, local = self._indexes[shard], row - int(self._starts[shard])
    pieces = range(*index.row_pieces[local : local + 2].tolist())
    return [_piece(index, piece) for piece in pieces]

  def pieces(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first piece of each row, i64[N + 1], and the tokens of each piece, i32[P]."""
    counts = [np.diff(index.row_pieces) for index in self._indexes]
    start = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    return start, np.concatenate([index.piece_length for index in self._indexes])

  def where(self, row: int) -> str:
    """Returns the documents of a row, each as `DOC_ID SOURCE@OFFSET`, joined by `; `."""
    return "; ".join(piece.where for piece in self.documents(row))

  def _lengths(self, shard: int, row: int) -> np.ndarray:
    index = self._indexes[shard]
    start, end = index.row_pieces[row : row + 2]
    return index.piece_length[start:end]

  def _checked(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    ids = np.asarray(ids, np.int64)
    if ids.size and (ids.min() < 0 or ids.max() >= len(self)):
      raise IndexError(f"rows must be in [0, {len(self)}), got {ids.min()} to {ids.max()}")
    return ids

  def _reader(self, shard: int) -> "_Reader":
    if shard not in self._readers:
      path = self.folder / self._shards[shard].file
      opened = _ParquetRows(path) if path.suffix == ".parquet" else _Records(path, self._dtype)
      self._readers[shard] = opened
    return self._readers[shard]


class _Reader(Protocol):
  def read(self, rows: list[int]) -> list[np.ndarray]:
    """Reads the tokens of rows in rising order."""
    ...


class _Records:
  """Rows that are records of little-endian tokens."""

  def __init__(self, path: Path, dtype: np.dtype[Any]):
    module = import_extra("array_record.python.array_record_module", "prep")
    self._path, self._dtype = path, dtype
    # As Grain opens it: rows are read in no order, so that reading ahead is wasted.
    self._reader = module.ArrayRecordReader(
      str(path), options="readahead_buffer_size:0", file_reader_buffer_size=32768
    )

  def read(self, rows: list[int]) -> list[np.ndarray]:
    try:
      return [np.frombuffer(record, self._dtype) for record in self._reader.read(rows)]
    except (RuntimeError, IndexError, ValueError) as error:
      raise ValueError(f"{self._path}: damaged as ArrayRecord: {error}") from error


class _ParquetRows:
  """Rows of the column `tokens`; the row group that was read last is kept."""

  def __init__(self, path: Path):
    module = import_extra("pyarrow.parquet", "parquet")
    self._path, self._file = path, module.ParquetFile(path)
    meta = self._file.metadata
    sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    self._starts = np.cumsum([0, *sizes])
    self._last: tuple[int, list[np.ndarray]] = (-1, [])

  def read(self, rows: list[int]) -> list[np.ndarray]:
    groups = (np.searchsorted(self._starts, rows, side="right") - 1).tolist()
    return [
      self._group(group)[row - int(self._starts[group])]
      for group, row in zip(groups, rows, strict=True)
    ]

  def _group(self, group: int) -> list[np.ndarray]:
    last, rows = self._last  # read as one object: other threads may replace it
    if last != group:
      try:
        column = self._file.read_row_group(group, columns=["tokens"]).column(0)
      except OSError as error:
        raise ValueError(f"{self._path}: damaged as Parquet: {error}") from error
      lists = column.combine_chunks()
      offsets, tokens = lists.offsets.to_numpy(), lists.values.to_numpy()
      rows = [tokens[a:b] for a, b in itertools.pairwise(offsets.tolist())]
      self._last = (group, rows)
    return rows


def _piece(index: token_index.TokenIndex, piece: int) -> DocumentPiece:
  document = int(index.piece_document[piece])
  return DocumentPiece(
    index.document_id[document].tobytes().hex(),
    index.sources[int(index.document_source[document])],
    int(index.document_offset[document]),
    int(index.piece_offset[piece]),
    int(index.piece_length[piece]),
  )


def _check_sizes(folder: Path, shards: Sequence[ShardFile]) -> None:
  problems = []
  for shard in shards:
    for name, expected in ((shard.file, shard.file_size), (shard.index_file, shard.index_size)):
      path = folder / name
      size = path.stat().st_size if path.exists() else 0
      if size != expected:
        problems.append(f"{path}: {size} bytes instead of {expected}; prepare it again")
  if problems:
    raise ValueError("\n".join(problems))
