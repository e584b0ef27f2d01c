"""Bytes of a file, decompressed, from any offset on; and its lines with their offsets."""

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from jdc.prep.batches import MAX_DOCUMENT

_CHUNK = 1 << 20
_COMPRESSED = 1 << 12  # of which Zstandard makes 128 MiB at most
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)


class _Frames:
  """Frames of Zstandard, one after another; EOFError where the last one is cut off.

  A `stream_reader` of the library ends there as if the frame did.
  """

  def __init__(self, file: IO[bytes]):
    self._file = file
    self._frame: Any = None
    self._rest = b""

  def read1(self, _: int) -> bytes:
    """Returns what some compressed bytes give, none at the end."""
    while data := self._rest or self._file.read(_COMPRESSED):
      self._rest = b""
      if self._frame is None:
        self._frame = zstandard.ZstdDecompressor().decompressobj()
      found: bytes = self._frame.decompress(data)
      if self._frame.eof:
        self._rest, self._frame = self._frame.unused_data, None
      if found:
        return found
    if self._frame is not None:
      raise EOFError("the file ends within a frame")
    return b""


class ByteStream:
  """The decompressed bytes of a file, in chunks of bounded size.

  Args:
    path: the file.
    compression: "", ".gz" or ".zst"; several members or frames in a row are one stream.
  """

  def __init__(self, path: str | Path, compression: str):
    self.position = 0  # of the next byte that `read` returns
    self._name, self._compression = str(path), compression
    self.ended = self.damaged = False
    self._back = b""
    self._open = contextlib.ExitStack()
    file = self._open.enter_context(open(path, "rb"))  # noqa: SIM115
    self._file: Any = file
    if compression == ".gz":
      self._file = self._open.enter_context(gzip.GzipFile(fileobj=file))
    elif compression == ".zst":
      self._file = _Frames(file)

  def read(self) -> bytes:
    """Returns the next bytes, none at the end; ValueError where the file is damaged."""
    chunk, self._back = self._back, b""
    if not chunk:
      try:
        # One read of what is below: bytes before damage come out before the error does.
        chunk = self._file.read1(_CHUNK) if self._compression else self._file.read(_CHUNK)
      except _DAMAGE as error:
        message = str(error) or type(error).__name__
        self.ended = self.damaged = True
        raise ValueError(f"damaged {self._compression} data: {message}") from error
      self.ended = not chunk
    self.position += len(chunk)
    return chunk

  def put_back(self, data: bytes) -> None:
    """Takes back the last bytes that were read."""
    self._back = data + self._back
    self.position -= len(data)

  def seek(self, offset: int) -> None:
    """Goes to an offset at or after the present one."""
    if not self._compression and not self._back:
      self._file.seek(offset)
      self.position = offset
    while self.position < offset:
      chunk = self.read()
      if not chunk:
        raise ValueError(f"{self._name}: ends at byte {self.position}, before {offset}")
      if self.position > offset:
        self.put_back(chunk[len(chunk) - (self.position - offset) :])

  def close(self) -> None:
    """Closes the file."""
    self._open.close()


# The stream that ended a piece begins the next one, so that a large compressed file which is
# read piece by piece is decompressed once.
_resting: list[tuple[str, ByteStream]] = []


@contextlib.contextmanager
def open_at(path: str, compression: str, start: int) -> Iterator[ByteStream]:
  """Gives the stream of a file at an offset."""
  held = _resting.pop() if _resting else None
  if held and held[0] == path and 0 < held[1].position <= start:
    stream = held[1]
  else:
    if held:
      held[1].close()
    stream = ByteStream(path, compression)
  try:
    stream.seek(start)
    yield stream
  except BaseException:
    stream.close()
    raise
  if compression and not stream.ended:
    _resting.append((path, stream))
  else:
    stream.close()


def close_resting() -> None:
  """Closes what waits for a next piece."""
  while _resting:
    _resting.pop()[1].close()


def lines(stream: ByteStream, end: int) -> Iterator[tuple[int, bytes, str]]:
  """Yields (offset, line without its end, what is wrong with it or "") up to an offset.

  Of a line that is longer than a document may be, only the beginning comes out, with an error.
  What precedes damage in a compressed file comes out as a line with an error, too.
  """
  begin, size = stream.position, 0
  parts: list[bytes] = []
  while end < 0 or stream.position < end:
    try:
      chunk = stream.read()
    except ValueError as error:
      yield begin, b"".join(parts), str(error)
      return
    if not chunk:
      break
    if 0 <= end < stream.position:
      cut = len(chunk) - (stream.position - end)
      stream.put_back(chunk[cut:])
      chunk = chunk[:cut]
    first, *rest = chunk.split(b"\n")
    size += len(first)
    if size <= MAX_DOCUMENT or not parts:
      parts.append(first)
    if rest:
      yield begin, b"".join(parts), _too_long(size)
      begin += size + 1
      for line in rest[:-1]:
        yield begin, line, ""
        begin += len(line) + 1
      parts, size = [rest[-1]], len(rest[-1])
  if size:
    yield begin, b"".join(parts), _too_long(size)


def _too_long(size: int) -> str:
  return f"a line of {size} bytes; at most {MAX_DOCUMENT}" if size > MAX_DOCUMENT else ""


def cuts(stream: ByteStream, most: int) -> tuple[list[tuple[int, int, int]], str]:
  """Divides a stream at ends of lines into pieces of at most `most` bytes.

  A line that is longer than that is a piece of its own.

  Returns:
    (start, end, number of the first line) of each piece, the last `end` being -1; and what is
    wrong with the stream, if it breaks off.
  """
  found: list[tuple[int, int, int]] = []
  start, first_line, line = 0, 1, 1  # `line`: of the byte after `newline`
  newline = 0  # the byte after the last end of a line
  damage = ""
  while True:
    try:
      chunk = stream.read()
    except ValueError as error:
      chunk, damage = b"", str(error)
    if not chunk:
      break
    base, at = stream.position - len(chunk), 0
    while at < len(chunk):
      limit = start + most - base  # in the chunk
      stop = chunk.rfind(b"\n", at, max(at, min(limit, len(chunk)))) + 1
      if stop:
        line += chunk.count(b"\n", at, stop)
        newline, at = base + stop, stop
      if limit >= len(chunk):
        break
      if newline == start:  # nothing fits: the piece is this one line
        stop = chunk.find(b"\n", at) + 1
        if not stop:
          break
        line, newline, at = line + 1, base + stop, stop
      found.append((start, newline, first_line))
      start, first_line = newline, line
  if found and start == stream.position and not damage:
    start, _, first_line = found.pop()
  return [*found, (start, -1, first_line)], damage


def paragraph_cuts(stream: ByteStream, most: int) -> tuple[list[tuple[int, int, int]], str]:
  """Divides a stream behind blank lines into pieces of at most `most` bytes, as `cuts` does.

  A paragraph that is longer than that is a piece of its own.
  """
  found: list[tuple[int, int, int]] = []
  start, first_line = 0, 1
  cut, cut_line = 0, 1  # behind the last blank line
  damage = ""
  for number, (offset, line, wrong) in enumerate(lines(stream, -1), 1):
    if wrong and stream.damaged:
      damage = wrong
    elif not wrong and not line.strip():
      behind = offset + len(line) + 1
      if behind - start > most and cut > start:
        found.append((start, cut, first_line))
        start, first_line = cut, cut_line
      cut, cut_line = behind, number + 1
  if stream.position - start > most and start < cut < stream.position:
    found.append((start, cut, first_line))
    start, first_line = cut, cut_line
  return [*found, (start, -1, first_line)], damage
