"""Readers: pieces of input files as batches of documents and bad records."""

from collections.abc import Callable, Iterator

import pyarrow as pa

from jdc.prep.batches import Piece, Refuse
from jdc.prep.readers.jsonl import read_jsonl
from jdc.prep.readers.parquet import read_parquet
from jdc.prep.readers.plain import read_text
from jdc.prep.readers.warc import read_warc
from jdc.prep.spec import InputSpec

Reader = Callable[[Piece, InputSpec, Refuse, dict[str, int]], Iterator[pa.RecordBatch]]

READERS: dict[str, Reader] = {
  "jsonl": read_jsonl,
  "parquet": read_parquet,
  "text": read_text,
  "warc": read_warc,
}


def read(
  piece: Piece, spec: InputSpec, refuse: Refuse, counts: dict[str, int]
) -> Iterator[pa.RecordBatch]:
  """Yields the documents of a piece.

  Args:
    piece: which part of which file.
    spec: how it is read.
    refuse: takes each record that is no document.
    counts: to which the number of blank lines and the like are added.
  """
  return READERS[piece.format](piece, spec, refuse, counts)
