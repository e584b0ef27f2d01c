"""Plain text: a file, a paragraph or a line is a document."""

from collections.abc import Iterator

import pyarrow as pa

from jdc.prep.batches import MAX_DOCUMENT, BadRecord, Piece, Refuse, Rows
from jdc.prep.readers import streams
from jdc.prep.spec import InputSpec


def read_text(
  piece: Piece, spec: InputSpec, refuse: Refuse, counts: dict[str, int]
) -> Iterator[pa.RecordBatch]:
  """Yields the documents of a piece of a text file; offsets are bytes of the decompressed file.

  Paragraphs are runs of lines between blank ones. Blank lines outside of documents are counted
  under `blank_lines`.
  """
  rows = Rows(piece, refuse)
  for number, offset, raw, wrong in _documents(piece, spec.document):
    if not wrong and not raw.strip():
      counts["blank_lines"] = counts.get("blank_lines", 0) + 1
      continue
    try:
      if wrong:
        raise ValueError(wrong)
      if len(raw) > MAX_DOCUMENT:
        raise ValueError(f"a document of more than {MAX_DOCUMENT} bytes")
      text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
      wrong = f"invalid UTF-8 at byte {error.start}"
    except ValueError as error:
      wrong = str(error)
    if wrong:
      refuse(BadRecord(piece.source, number, offset, wrong, raw))
      continue
    if rows.add(offset, text, "{}"):
      yield from rows.take()
  yield from rows.take()


def _documents(piece: Piece, unit: str) -> Iterator[tuple[int, int, bytes, str]]:
  """Yields (number of its first line, offset, bytes, what is wrong)."""
  if unit == "file":
    yield _whole_file(piece)
    return
  with streams.open_at(piece.path, piece.compression, piece.start) as stream:
    numbered = enumerate(streams.lines(stream, piece.end), piece.line)
    if unit == "line":
      for number, (offset, line, wrong) in numbered:
        yield number, offset, line.removesuffix(b"\r"), wrong
      return
    yield from _paragraphs(numbered)


def _whole_file(piece: Piece) -> tuple[int, int, bytes, str]:
  parts, size, wrong = [], 0, ""
  with streams.open_at(piece.path, piece.compression, 0) as stream:
    try:
      while size <= MAX_DOCUMENT and (chunk := stream.read()):
        parts.append(chunk)
        size += len(chunk)
    except ValueError as error:
      wrong = str(error)
  return 1, 0, b"".join(parts), wrong


def _paragraphs(
  numbered: Iterator[tuple[int, tuple[int, bytes, str]]],
) -> Iterator[tuple[int, int, bytes, str]]:
  held: list[bytes] = []
  size = first = begin = 0
  for number, (offset, line, wrong) in numbered:
    if not wrong and line.strip():
      if not held:
        first, begin, size = number, offset, 0
      size += len(line) + 1
      if size <= MAX_DOCUMENT + len(line) + 1:
        held.append(line)
      continue
    if held:
      yield first, begin, b"\n".join(held), ""
      held = []
    yield number, offset, line, wrong
  if held:
    yield first, begin, b"\n".join(held), ""
