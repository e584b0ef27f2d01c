"""WARC and WET archives: a page is a document."""

import os
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from jdc.prep.batches import MAX_DOCUMENT, BadRecord, Piece, Refuse, Rows
from jdc.prep.readers.jsonl import dump
from jdc.prep.spec import InputSpec

_CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]+)", re.IGNORECASE)
_PAGES = ("text/", "application/xhtml+xml", "application/xml")
_PARSER = (AttributeError, LookupError, TypeError, ValueError)  # warcio's, of cut headers
_META = 2048  # bytes of a page in which its charset is looked for


def read_warc(
  piece: Piece, spec: InputSpec, refuse: Refuse, counts: dict[str, int]
) -> Iterator[pa.RecordBatch]:
  """Yields the pages of a piece of an archive; offsets are bytes of the file, as in a CDX.

  Documents are the bodies of `response` records of a text type, HTML as it came, and of
  `conversion` records (WET). Others are counted under `other_records`. The charset is that of
  the header, else of the page itself, else UTF-8, else Windows-1252; `charset` in the fields
  says which. `url`, `date` and `content_type` are fields, too.
  """
  del spec
  rows = Rows(piece, refuse)
  number = piece.line - 1
  for offset, record, wrong in _records(piece):
    number += 1
    try:
      if wrong:
        raise ValueError(wrong)
      page = _page(record)
      _read_to_end(record)
      if page is None:
        counts["other_records"] = counts.get("other_records", 0) + 1
        continue
      text, fields = page
    except (ValueError, UnicodeError) as error:
      url = _url(record) if record is not None else ""
      refuse(BadRecord(piece.source, number, offset, str(error), url.encode()))
      continue
    if rows.add(offset, text, dump(fields)):
      yield from rows.take()
  yield from rows.take()


def cuts(path: str, compression: str, most: int) -> tuple[list[tuple[int, int, int]], int, str]:
  """Divides an archive between records into pieces of at most about `most` bytes.

  Returns:
    (start, end, number of the first record), the last `end` being -1; the size of the file;
    and what breaks it off.
  """
  if compression == ".zst":
    raise ValueError(f"{path}: a WARC file is read plain or as .gz")
  whole = Piece(path, path, "", "warc", compression, "", 0, -1, 1)
  found: list[tuple[int, int, int]] = []
  start, first, size, end = 0, 1, 0, 0
  for number, (offset, record, wrong) in enumerate(_records(whole), start=1):
    if wrong:
      return [*found, (start, -1, first)], offset, wrong
    length = 0
    while chunk := record.content_stream().read(1 << 16):
      length += len(chunk)
    if size and size + length > most:
      found.append((start, offset, first))
      start, first, size = offset, number, 0
    size += length
    end = offset
  return [*found, (start, -1, first)], end, ""


def _records(piece: Piece) -> Iterator[tuple[int, Any, str]]:
  """Yields (offset, record, what is wrong), the records of a piece."""
  from warcio.archiveiterator import ArchiveIterator
  from warcio.exceptions import ArchiveLoadFailed

  with open(piece.path, "rb") as file:
    file.seek(piece.start)
    archive = ArchiveIterator(file)
    offset = known = piece.start  # of the present record, and after the one before
    record = None
    while True:
      try:
        if record is not None:
          known = offset + archive.get_record_length()
        record = next(archive, None)
      except (ArchiveLoadFailed, EOFError, OSError, *_PARSER) as error:
        yield known, None, f"damaged archive: {error}"
        return
      if record is None:
        file.seek(known)
        if file.read(1 << 16).strip():  # else blank lines
          size = os.fstat(file.fileno()).st_size - known
          yield known, None, f"damaged archive: {size} bytes after the last record"
        return
      offset = archive.offset  # of the record; asking for it would read to its end
      if 0 <= piece.end <= offset:
        return
      yield offset, record, ""


def _read_to_end(record: Any) -> None:
  """Reads a record to its end; ValueError if that comes before its Content-Length."""
  length = record.rec_headers.get_header("Content-Length") or ""
  if not length.isdigit():
    raise ValueError(f"cut off: the record has the Content-Length {length!r}")
  while record.raw_stream.read(1 << 16):
    pass
  if missing := record.raw_stream.limit:
    raise ValueError(f"cut off: the last {missing} bytes of the record are missing")


def _page(record: Any) -> tuple[str, dict[str, Any]] | None:
  """Returns the text and fields of a page, `None` of a record that is none."""
  if record.rec_type == "conversion":
    kind = record.rec_headers.get_header("Content-Type") or "text/plain"
  elif record.rec_type == "response" and record.http_headers is not None:
    kind = record.http_headers.get_header("Content-Type") or ""
  else:
    return None
  if not kind.lower().startswith(_PAGES):
    return None
  body = record.content_stream().read(MAX_DOCUMENT + 1)
  if len(body) > MAX_DOCUMENT:
    raise ValueError(f"a page of more than {MAX_DOCUMENT} bytes")
  text, charset = _decoded(body, kind)
  fields = {
    "url": _url(record),
    "date": record.rec_headers.get_header("WARC-Date") or "",
    "content_type": kind,
    "charset": charset,
  }
  return text, fields


def _url(record: Any) -> str:
  return record.rec_headers.get_header("WARC-Target-URI") or ""


def _decoded(body: bytes, kind: str) -> tuple[str, str]:
  named = [_CHARSET.search(kind.encode("latin-1", "replace")), _CHARSET.search(body[:_META])]
  for charset in [*(m[1].decode("ascii") for m in named if m), "utf-8", "windows-1252"]:
    try:
      return body.decode(charset), charset.lower()
    except (UnicodeDecodeError, LookupError):
      continue
  raise ValueError("neither in its own charset nor in UTF-8 or Windows-1252")
