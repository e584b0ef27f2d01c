"""Writes the token shard of one domain and split: rows and their index."""

import hashlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jdc.data import token_index, token_manifest
from jdc.data.token_manifest import ShardFile
from jdc.prep.sinks import best_fit
from jdc.prep.sinks.arrayrecord import RecordFile, sync

_WINDOW_TOKENS = 1 << 22  # packed together, so that memory is bounded
_WINDOW_ROWS = 256  # at least
_GROUP_TOKENS = 1 << 17  # of a row group of Parquet: read as a whole for any row of it
SUFFIXES = {"array_record": ".array_record", "parquet": ".parquet"}


class Layout(NamedTuple):
  """How rows are made and written."""

  sequence_length: int  # T
  packing: str  # "best-fit" or "none"
  format: str  # of `SUFFIXES`
  dtype: np.dtype

  @property
  def capacity(self) -> int:
    """Tokens of a row at most, T + 1."""
    return self.sequence_length + 1


class Document(NamedTuple):
  """A document as tokens."""

  doc_id: bytes
  source: str
  offset: int
  tokens: np.ndarray  # with its boundary tokens
  byte_marks: list[int]  # bytes before token 1 of each of its pieces, and at its end


class Block(NamedTuple):
  """Rows one after the other, made of pieces one after the other."""

  tokens: np.ndarray
  row_ends: np.ndarray  # i64, tokens up to the end of each row
  row_pieces: np.ndarray  # i64, pieces of each row
  piece_document: np.ndarray  # i64, place among the documents of the shard
  piece_offset: np.ndarray
  piece_length: np.ndarray
  piece_bytes: np.ndarray  # UTF-8 bytes of its predicted tokens


class ShardWriter:
  """Takes documents in their order, packs them window by window, and writes the shard.

  A window ends with the document that brings it to max(2^22, 256 (T + 1)) tokens: the rows
  depend on the documents and their order alone.

  Args:
    folder: of all domains.
    domain: names the folder of the files.
    name: of the shard; the files are `NAME-DIGEST.SPLIT.SUFFIX` and their index.
    split: tag of the file names.
    layout: of the rows.
  """

  def __init__(self, folder: Path, domain: str, name: str, split: str, layout: Layout):
    self._folder, self._name, self._split, self._layout = folder / domain, name, split, layout
    self._folder.mkdir(parents=True, exist_ok=True)
    self._temporary = self._folder / f".{name}.{split}.tmp"
    self._file: _RowFile | None = None
    self._window = max(_WINDOW_TOKENS, _WINDOW_ROWS * layout.capacity)
    self._documents: list[Document] = []
    self._num_buffered = 0
    self._blocks: list[Block] = []  # without their tokens
    self._ids: list[bytes] = []
    self._offsets: list[int] = []
    self._tokens: list[int] = []
    self._source_of: list[int] = []
    self._sources: dict[str, int] = {}
    self._hash = hashlib.blake2b(digest_size=16)

  def add(self, document: Document) -> None:
    """Appends a document of at least one token."""
    self._documents.append(document)
    self._num_buffered += len(document.tokens)
    if self._num_buffered >= self._window:
      self._flush()

  def finish(self) -> ShardFile | None:
    """Writes what is left and gives the files their names; `None` without documents."""
    self._flush()
    if self._file is None:
      return None
    self._file.close()
    index, temporary = self._index(), self._temporary.with_suffix(".index.tmp")
    index_digest = token_index.write(temporary, index)
    sync(temporary)
    file_digest = token_manifest.file_digest(self._temporary)
    fingerprint = self._hash.hexdigest()
    # Other rows, or rows of other documents, have another name.
    stem = hashlib.blake2b(f"{fingerprint}{index_digest}".encode(), digest_size=4).hexdigest()
    base = self._folder / f"{self._name}-{stem}.{self._split}"
    file = base.with_name(base.name + SUFFIXES[self._layout.format])
    index_file = base.with_name(base.name + token_manifest.INDEX_SUFFIX)
    os.replace(self._temporary, file)
    os.replace(temporary, index_file)
    sync(self._folder)
    return ShardFile(
      f"{self._folder.name}/{file.name}",
      f"{self._folder.name}/{index_file.name}",
      file.stat().st_size,
      index_file.stat().st_size,
      file_digest,
      index_digest,
      fingerprint,
      num_rows=len(index.row_targets),
      num_documents=len(index.document_offset),
      num_tokens=int(index.document_tokens.sum(dtype=np.int64)),
      num_target_tokens=int(index.row_targets.sum(dtype=np.int64)),
      num_target_bytes=int(index.row_bytes.sum(dtype=np.int64)),
    )

  def abort(self) -> None:
    """Gives up what has no name yet."""
    if self._file is not None:
      self._file.abort()
    self._temporary.with_suffix(".index.tmp").unlink(missing_ok=True)

  def _flush(self) -> None:
    if not self._documents:
      return
    block = _pack(self._documents, self._layout, len(self._ids))
    for document in self._documents:
      self._ids.append(document.doc_id)
      self._offsets.append(document.offset)
      self._tokens.append(len(document.tokens))
      self._source_of.append(self._sources.setdefault(document.source, len(self._sources)))
    if self._file is None:
      kind = _RecordRows if self._layout.format == "array_record" else _ParquetRows
      self._file = kind(self._temporary, self._layout)
    self._file.write(block, self._ids)
    for values in (block.tokens, block.row_pieces, block.piece_length):
      self._hash.update(np.ascontiguousarray(values).data)
    self._blocks.append(block._replace(tokens=block.tokens[:0]))
    self._documents, self._num_buffered = [], 0

  def _index(self) -> token_index.TokenIndex:
    blocks = Block(*(np.concatenate(parts) for parts in zip(*self._blocks, strict=True)))
    ends = np.cumsum(blocks.row_pieces)
    starts = ends - blocks.row_pieces
    return token_index.TokenIndex(
      row_pieces=np.concatenate([[0], ends]),
      row_targets=np.add.reduceat(blocks.piece_length - 1, starts),
      row_bytes=np.add.reduceat(blocks.piece_bytes, starts),
      piece_document=blocks.piece_document,
      piece_offset=blocks.piece_offset,
      piece_length=blocks.piece_length,
      document_id=np.frombuffer(b"".join(self._ids), np.uint8).reshape(-1, 16),
      document_offset=np.array(self._offsets, np.int64),
      document_source=np.array(self._source_of, np.int32),
      document_tokens=np.array(self._tokens, np.int32),
      sources=list(self._sources),
    )


def _pack(documents: list[Document], layout: Layout, num_before: int) -> Block:
  lengths = np.array([len(document.tokens) for document in documents], np.int64)
  pieces = best_fit.cut(lengths, layout.capacity)
  row_P = np.arange(len(pieces.length))
  if layout.packing == "best-fit":
    row_P = best_fit.best_fit(pieces.length, layout.capacity)
  order = np.argsort(row_P, kind="stable")
  row_P, pieces = row_P[order], best_fit.Pieces(*(part[order] for part in pieces))
  parts = [
    documents[document].tokens[offset : offset + length]
    for document, offset, length in zip(*(part.tolist() for part in pieces), strict=True)
  ]
  return Block(
    np.concatenate(parts).astype(layout.dtype, copy=False),
    np.cumsum(np.bincount(row_P, pieces.length)).astype(np.int64),
    np.bincount(row_P).astype(np.int64),
    pieces.document + num_before,
    pieces.offset,
    pieces.length,
    _piece_bytes(documents)[order],
  )


def _piece_bytes(documents: Sequence[Document]) -> np.ndarray:
  """Returns the bytes between the marks of each document, one after the other."""
  marks = np.fromiter(itertools.chain.from_iterable(d.byte_marks for d in documents), np.int64)
  ends = np.cumsum([len(document.byte_marks) for document in documents])
  return np.delete(np.diff(marks), ends[:-1] - 1)


class _RowFile(Protocol):
  def write(self, block: Block, ids: list[bytes]) -> None: ...
  def close(self) -> None: ...
  def abort(self) -> None: ...


class _RecordRows:
  """A row is a record of little-endian tokens."""

  def __init__(self, path: Path, layout: Layout):
    del layout
    self._file = RecordFile(path)
    self.close, self.abort = self._file.close, self._file.abort

  def write(self, block: Block, ids: list[bytes]) -> None:
    del ids  # only the index has them
    content = block.tokens.tobytes()
    ends = (block.row_ends * block.tokens.itemsize).tolist()
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
      self._file.write(content[start:end])


class _ParquetRows:
  """A row is one of Parquet, with its documents, so that other tools need no index."""

  def __init__(self, path: Path, layout: Layout):
    self._path = path
    self._schema = pa.schema(
      [
        pa.field("tokens", pa.list_(pa.from_numpy_dtype(layout.dtype)), nullable=False),
        pa.field("doc_ids", pa.list_(pa.binary(16)), nullable=False),
        pa.field("doc_offsets", pa.list_(pa.int32()), nullable=False),
        pa.field("doc_lengths", pa.list_(pa.int32()), nullable=False),
      ]
    )
    self._group = max(1, _GROUP_TOKENS // layout.capacity)
    self._writer = pq.ParquetWriter(
      path, self._schema, compression="zstd", use_dictionary=False, write_statistics=False
    )

  def write(self, block: Block, ids: list[bytes]) -> None:
    ends = np.cumsum(block.row_pieces)
    columns = [
      _lists(block.row_ends, pa.array(block.tokens)),
      _lists(ends, pa.array([ids[i] for i in block.piece_document.tolist()], pa.binary(16))),
      _lists(ends, pa.array(block.piece_offset.astype(np.int32))),
      _lists(ends, pa.array(block.piece_length.astype(np.int32))),
    ]
    self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema), self._group)

  def close(self) -> None:
    self._writer.close()
    sync(self._path)

  def abort(self) -> None:
    if self._writer.is_open:
      self._writer.close()
    self._path.unlink(missing_ok=True)


def _lists(ends: np.ndarray, values: pa.Array) -> pa.ListArray:
  offsets = np.concatenate([[0], ends]).astype(np.int32)
  return pa.ListArray.from_arrays(pa.array(offsets), values)
