"""From batches of documents to the tokens of each, with the bytes that these begin at."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jdc.data.tokenize import Marked
from jdc.prep.sinks.token_options import Opened
from jdc.prep.sinks.token_writer import Document

COLUMNS = ("doc_id", "source", "offset", "domain", "text")
_BATCH_BYTES, _BATCH_DOCUMENTS = 1 << 21, 512  # tokenized in one call
_PART_CHARS = 1 << 22  # of a text; the tokenizer needs some 30 times as much memory

Row = tuple[bytes, str, int, str, str]  # of `COLUMNS`


def documents(batch: pa.RecordBatch, opened: Opened) -> Iterator[tuple[Row, Document | None]]:
  """Yields each document of a batch of `parts` with its tokens; `None` without any."""
  rows: list[Row] = list(zip(*(batch.column(c).to_pylist() for c in COLUMNS), strict=True))
  if batch.num_rows > 1:
    yield from zip(rows, _short_documents(rows, opened), strict=True)
    return
  for row in rows:  # which may be long: its parts are tokenized one at a time
    parts = cut_text(row[4])
    yield row, _document(row, (opened.tokenizer.mark_batch([p])[0] for p in parts), opened)


def _short_documents(rows: Sequence[Row], opened: Opened) -> Iterator[Document | None]:
  """Yields what `_document` makes of texts of one part each, with fewer calls for each."""
  tokenizer, step = opened.tokenizer, opened.layout.sequence_length
  found = tokenizer.mark_batch([row[4] for row in rows])
  before, after = (
    np.array([] if token is None else [token], np.int32)
    for token in (tokenizer.bos_id, tokenizer.eos_id)
  )
  parts = [part for ids, _ in found for part in (before, ids, after)]
  tokens = np.concatenate(parts, dtype=opened.layout.dtype, casting="unsafe")
  begin = 0
  for (doc_id, source, offset, _, text), (ids, byte_starts) in zip(rows, found, strict=True):
    size = len(before) + len(ids) + len(after)
    marks = byte_starts(range(1 - len(before), len(ids), step))
    missing = max(-(-(size - 1) // step), 1) + 1 - len(marks)
    marks += [len(text.encode("utf-8"))] * missing
    document = Document(doc_id, source, offset, tokens[begin : begin + size], marks)
    yield document if len(ids) else None
    begin += size


def _document(row: Row, encoded: Iterable[Marked], opened: Opened) -> Document | None:
  """Puts the tokens of the parts of a text together; `None` without any.

  Piece k begins at token k T of [BOS] ids [EOS]; what it predicts begins at token k T + 1, and
  so do the bytes of these tokens.
  """
  doc_id, source, offset, _, text = row
  tokenizer, step = opened.tokenizer, opened.layout.sequence_length
  before = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
  after = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
  parts: list[Any] = []
  marks: list[int] = []
  num_ids = num_bytes = 0
  place = 1 - len(before)  # among the ids, of the next mark
  for part, (ids, byte_starts) in zip(cut_text(text), encoded, strict=True):
    places = range(place, num_ids + len(ids), step)
    marks += [num_bytes + start for start in byte_starts([p - num_ids for p in places])]
    place += step * len(places)
    parts.append(ids)
    num_ids += len(ids)
    num_bytes += len(part.encode("utf-8"))
  if not num_ids:
    return None
  tokens = np.concatenate([np.array(before, np.int32), *parts, np.array(after, np.int32)])
  num_pieces = max(-(-(len(tokens) - 1) // step), 1)
  marks += [num_bytes] * (num_pieces + 1 - len(marks))
  return Document(doc_id, source, offset, tokens.astype(opened.layout.dtype), marks)


def cut_text(text: str) -> list[str]:
  """Returns parts of at most 2^22 characters that end with a line, or else with a space."""
  parts = []
  while len(text) > _PART_CHARS:
    end = text.rfind("\n", 0, _PART_CHARS) + 1 or text.rfind(" ", 0, _PART_CHARS) + 1
    parts.append(text[: end or _PART_CHARS])
    text = text[end or _PART_CHARS :]
  return [*parts, text]


def parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
  """Yields slices of a bounded size of text."""
  ends = np.cumsum(pc.binary_length(batch.column("text")).to_numpy(zero_copy_only=False))
  start = 0
  while start < batch.num_rows:
    limit = _BATCH_BYTES + (ends[start - 1] if start else 0)
    stop = max(int(np.searchsorted(ends, limit)), start + 1)
    stop = min(stop, start + _BATCH_DOCUMENTS)
    yield batch.slice(start, stop - start)
    start = stop
