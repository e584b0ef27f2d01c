"""What is known of input files before they are read: hashes, pieces, first records."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pyarrow import parquet

from jdc.prep import problems
from jdc.prep.batches import Piece
from jdc.prep.readers import jsonl, streams, warc
from jdc.prep.readers import parquet as parquet_reader
from jdc.prep.readers.find import ACCEPTED as ACCEPTED
from jdc.prep.readers.find import InputFile as InputFile
from jdc.prep.readers.find import find as find
from jdc.prep.spec import InputSpec

_PEEK = 100  # records of which at least one must have the text


class FileIndex(NamedTuple):
  """What is known of a file once it has been passed over."""

  file: InputFile
  size: int
  mtime_ns: int
  sha256: str
  pieces: tuple[tuple[Piece, int], ...]  # with their bytes
  damage: str = ""


def index(file: InputFile, spec: InputSpec) -> FileIndex:
  """Passes over a file: its hash, and pieces of at most `task_mb` MiB.

  Raises:
    ValueError: if it can be no file of its format.
    OSError: if it cannot be read.
  """
  most = int(spec.task_mb * (1 << 20))
  status = os.stat(file.path)
  with open(file.path, "rb") as opened:
    digest = hashlib.file_digest(opened, "sha256").hexdigest()
  ranges, total, damage = _ranges(file, spec, most)
  pieces = []
  for number, (start, end, line) in enumerate(ranges):
    if file.format == "parquet":  # ranges of rows
      size = status.st_size // len(ranges)
    else:
      size = (ranges[number + 1][0] if number + 1 < len(ranges) else total) - start
    pieces.append((Piece(*file, digest, start, end, line), size))
  return FileIndex(file, status.st_size, status.st_mtime_ns, digest, tuple(pieces), damage)


def _ranges(
  file: InputFile, spec: InputSpec, most: int
) -> tuple[list[tuple[int, int, int]], int, str]:
  """Returns the pieces' (start, end, first line), the total and what breaks the file off."""
  if file.format == "parquet":
    try:
      with parquet.ParquetFile(file.path) as opened:
        parquet_reader.check_columns(opened.schema_arrow, spec, file.source)
        return parquet_reader.row_cuts(opened, spec.text_column, most), 0, ""
    except (ValueError, OSError) as error:
      raise ValueError(f"{file.source}: not readable as Parquet: {error}") from error
  if file.format == "warc":
    return warc.cuts(file.path, file.compression, most)
  if file.format == "text" and spec.document == "file":
    return [(0, -1, 1)], os.path.getsize(file.path), ""
  stream = streams.ByteStream(file.path, file.compression)
  try:
    by_paragraph = file.format == "text" and spec.document == "paragraph"
    divide = streams.paragraph_cuts if by_paragraph else streams.cuts
    ranges, damage = divide(stream, most)
    return ranges, stream.position, damage
  finally:
    stream.close()


def shards(indexes: Sequence[FileIndex], spec: InputSpec) -> list[tuple[Piece, ...]]:
  """Joins consecutive small pieces to tasks of at most an eighth of `task_mb`.

  Where a task ends goes by hashes of the pieces' places, too, so that a file that grows, comes
  or goes changes few tasks, and those behind it are joined as before.
  """
  most = spec.task_mb * (1 << 20) / 8
  result: list[tuple[Piece, ...]] = []
  size: float = most
  for held in indexes:
    for piece, length in held.pieces:
      if size + length > most or not result:
        result.append((piece,))
        size = length
      else:
        result[-1] = (*result[-1], piece)
        size += length
      if _ends_task(piece, length / most):
        size = most
  return result


def _ends_task(piece: Piece, share: float) -> bool:
  """Whether a task ends with a piece, which has a share of the bytes of a task.

  The probability is the piece's share, at most a half, so that a task has as many bytes on
  average as it may have at most, were it not for that bound.
  """
  place = f"{piece.source}\0{piece.start}".encode()
  number = int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "big")
  return number < min(share, 0.5) * 2**64


def columns(file: InputFile, spec: InputSpec) -> list[str]:
  """Returns the fields that a file's first records have, to check a plan against them."""
  if file.format == "parquet":
    with parquet.ParquetFile(file.path) as opened:
      return list(opened.schema_arrow.names)
  if file.format != "jsonl":
    return [spec.text_column]
  names: dict[str, Any] = {}
  stream = streams.ByteStream(file.path, file.compression)
  try:
    for number, (_, line, wrong) in enumerate(streams.lines(stream, -1)):
      if number >= _PEEK or wrong:
        break
      try:
        names |= dict.fromkeys(jsonl.parse(line))
      except ValueError:
        continue
  finally:
    stream.close()
  return list(names)


def check_readable(files: Iterable[InputFile], spec: InputSpec) -> None:
  """Raises a ValueError that lists files that cannot be opened or lack the text."""
  wrong = []
  for file in files:
    try:
      if file.format == "jsonl" and _is_array(file):
        wrong.append(f"{file.source}: one JSON array; accepted: one JSON object a line")
        continue
      names = columns(file, spec)
      wanted = filter(None, [spec.text_column, spec.domain_column])
      wrong += [
        f"{file.source}: no field {name!r} in its first records"
        + problems.suggestion(name, names)
        for name in wanted
        if names and name not in names
      ]
    except OSError as error:
      wrong.append(f"{file.source}: cannot be read: {error.strerror or error}")
    except ValueError as error:
      wrong.append(f"{file.source}: {error}")
  problems.raise_all(wrong, "input")


def _is_array(file: InputFile) -> bool:
  stream = streams.ByteStream(file.path, file.compression)
  try:
    start = stream.read().lstrip()
  except ValueError:  # damaged from the start; its reader says so
    return False
  finally:
    stream.close()
  return start.startswith(b"[") and start[1:].lstrip()[:1] in (b"{", b"")
