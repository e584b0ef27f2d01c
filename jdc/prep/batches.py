"""Batches of documents: the columns that every operator sees, and how rows become batches."""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pyarrow as pa

from jdc.prep.spec import DOMAIN

ID_BYTES = 16
MAX_ROWS = 8192  # of a batch
BATCH_BYTES = 16 << 20  # of the text of a batch, unless one document has more
MAX_DOCUMENT = 64 << 20  # bytes; a longer one is set aside
SCHEMA = pa.schema(
  [
    pa.field("doc_id", pa.binary(ID_BYTES), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("offset", pa.int64(), nullable=False),
    pa.field("domain", pa.string(), nullable=False),
    pa.field("text", pa.string(), nullable=False),
    pa.field("fields", pa.string(), nullable=False),
  ]
)
_DOMAIN = re.compile(DOMAIN)


class Piece(NamedTuple):
  """A part of an input file that one task reads.

  `start` and `end` are bytes of the decompressed stream, or rows of Parquet; an `end` of -1 is
  the end of the file.
  """

  path: str
  source: str  # the path as documents name it
  domain: str
  format: str
  compression: str
  sha256: str  # of the whole file
  start: int
  end: int
  line: int  # number of the first line


class BadRecord(NamedTuple):
  """A record that became no document."""

  source: str
  line: int  # counted from 1; of Parquet the row, counted from 0
  offset: int
  cause: str
  raw: bytes

  def __str__(self) -> str:
    return f"{self.source}:{self.line}: {self.cause}"


Refuse = Callable[[BadRecord], None]


def document_id(source: str, offset: int) -> bytes:
  """Returns the id of the document that starts at an offset of a source.

  >>> document_id("raw/a.jsonl", 0).hex()
  'b7306b86f485c1ebe77c98497fce5373'
  """
  return hashlib.blake2b(b"%s\0%d" % (source.encode(), offset), digest_size=ID_BYTES).digest()


class Rows:
  """Collects the documents of one piece of input into batches.

  Args:
    piece: where they come from.
    refuse: takes documents that cannot be one: too long, an impossible domain.
  """

  def __init__(self, piece: Piece, refuse: Refuse):
    self._piece, self._refuse = piece, refuse
    self._hash = hashlib.blake2b(piece.source.encode() + b"\0", digest_size=ID_BYTES)
    self._clear()

  def _clear(self) -> None:
    self._ids: list[bytes] = []
    self._offsets: list[int] = []
    self._domains: list[str] = []
    self._texts: list[str] = []
    self._fields: list[str] = []
    self._size = 0

  def add(self, offset: int, text: str, fields: str, domain: str | None = None) -> bool:
    """Adds a document; returns whether a batch is due.

    Its domain is that of the piece unless the record names one.
    """
    identity = self._hash.copy()
    identity.update(b"%d" % offset)
    self._ids.append(identity.digest())
    self._offsets.append(offset)
    self._domains.append(self._piece.domain if domain is None else domain)
    self._texts.append(text)
    self._fields.append(fields)
    self._size += len(text) + len(fields)
    return len(self._ids) >= MAX_ROWS or self._size >= BATCH_BYTES

  def take(self) -> Iterator[pa.RecordBatch]:
    """Yields what was collected, as one batch or none."""
    if not self._ids:
      return
    columns = [
      pa.array(self._ids, SCHEMA.field("doc_id").type),
      pa.array([self._piece.source] * len(self._ids), pa.string()),
      pa.array(self._offsets, pa.int64()),
      pa.array(self._domains, pa.string()),
      pa.array(self._texts, pa.string()),
      pa.array(self._fields, pa.string()),
    ]
    self._clear()
    yield pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def domain_problem(value: object, column: str) -> str:
  """Returns why a value cannot name a domain, empty where it can.

  >>> domain_problem("web", "source"), domain_problem("a/b", "source").partition(" match")[0]
  ('', "no name of a domain in field 'source': 'a/b' does not")
  """
  if isinstance(value, str) and _DOMAIN.fullmatch(value):
    return ""
  return f"no name of a domain in field {column!r}: {value!r:.200} does not match {DOMAIN}"


def replace_text(batch: pa.RecordBatch, text: pa.Array) -> pa.RecordBatch:
  """Returns the batch with other text, in as many rows."""
  return set_column(batch, "text", text)


def set_column(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
  """Returns the batch with a column replaced, or added at the end."""
  index = batch.schema.get_field_index(name)
  if index < 0:
    return batch.append_column(pa.field(name, values.type), values)
  return batch.set_column(index, batch.schema.field(index), values)
