"""A connection over HTTP/1.1 that carries one request after another."""

import asyncio
import ssl
import urllib.parse
from collections.abc import Callable
from typing import NamedTuple, cast

from jdc.data.formats import import_extra

_MAX_BYTES = 16 << 20  # of a response
_CONNECT_S = 10.0


class Response(NamedTuple):
  """What a server answered."""

  status: int
  retry_after: str
  body: bytes


class Broken(ConnectionError):
  """The connection ended, or what came is no HTTP, before the response was whole."""


class Address:
  """Where requests go.

  Args:
    url: `http` or `https`.
    headers: of every request.
  """

  def __init__(self, url: str, headers: dict[str, str]):
    parts = urllib.parse.urlsplit(url)
    assert parts.hostname is not None  # `params.Server` has looked
    host = parts.hostname
    self._host = host if host.isascii() else host.encode("idna").decode()
    self._tls = ssl.create_default_context() if parts.scheme == "https" else None
    self._port = parts.port or (443 if self._tls else 80)
    name = f"[{self._host}]" if ":" in self._host else self._host
    named = {"Host": f"{name}:{parts.port}" if parts.port else name, **headers}
    path = urllib.parse.quote(parts.path, safe="/%:@!$&'()*+,;=~-._")
    lines = [f"POST {path} HTTP/1.1", *(f"{k}: {v}" for k, v in named.items())]
    self._head = "\r\n".join([*lines, "Content-Length: "]).encode()

  def request(self, body: bytes) -> bytes:
    """Returns what is sent."""
    return b"%s%d\r\n\r\n%s" % (self._head, len(body), body)

  async def connect(self, done: "Done") -> "Connection":
    """Opens a connection.

    Raises:
      OSError: if there is no connection within ten seconds.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(_CONNECT_S):
      _, made = await loop.create_connection(
        lambda: Connection(done), self._host, self._port, ssl=self._tls
      )
    return made


class Connection(asyncio.Protocol):
  """A connection with at most one request under way.

  Args:
    done: is told of each outcome as soon as it is there, before anyone else goes on.
  """

  def __init__(self, done: "Done"):
    self._done = done
    self._loop = asyncio.get_running_loop()
    httptools = import_extra("httptools", "llm")
    self._parser = httptools.HttpResponseParser(self)
    self._wrong = (httptools.HttpParserError, httptools.HttpParserUpgrade)
    self._future: asyncio.Future[Response] | None = None
    self._clear()

  def _clear(self) -> None:
    self._retry_after = ""
    self._parts: list[bytes] = []
    self._size = 0
    self._in_body = self._has_length = self._is_whole = False

  @property
  def is_open(self) -> bool:
    """Whether another request may be sent."""
    return self._keep and not self._transport.is_closing()

  def send(self, request: bytes, future: "asyncio.Future[Response]", timeout_s: float) -> None:
    """Sends a request; `done` gets its response, or an error, within `timeout_s`."""
    self._future = future
    self._timer = self._loop.call_later(timeout_s, self._end, TimeoutError())
    self._transport.write(request)

  def close(self) -> None:
    """Ends the connection without further ado."""
    self._keep = False
    self._transport.abort()

  def connection_made(self, transport: asyncio.BaseTransport) -> None:
    self._transport = cast(asyncio.Transport, transport)
    self._keep = True

  def data_received(self, data: bytes) -> None:
    if self._future is None:  # nobody asked
      self.close()
      return
    try:
      self._parser.feed_data(data)
    except self._wrong as error:
      self._end(Broken(str(error)))
      return
    if self._size > _MAX_BYTES:
      self._end(Broken(f"the response is longer than {_MAX_BYTES >> 20} MiB"))
    elif self._is_whole:
      self._end(self._response())

  def connection_lost(self, error: Exception | None) -> None:
    self._keep = False
    if self._future is None:
      return
    until_the_end = error is None and self._in_body and not self._has_length
    self._end(self._response() if until_the_end else Broken(str(error or "it was closed")))

  def on_message_begin(self) -> None:
    """Is called by the parser."""
    if self._is_whole:
      raise Broken("more came than was asked for")

  def on_header(self, name: bytes, value: bytes) -> None:
    """Is called by the parser."""
    name = name.lower()
    if name == b"retry-after":
      self._retry_after = value.decode("latin-1")
    elif name in (b"content-length", b"transfer-encoding"):
      self._has_length = True

  def on_headers_complete(self) -> None:
    """Is called by the parser."""
    self._in_body = True

  def on_body(self, data: bytes) -> None:
    """Is called by the parser."""
    self._parts.append(data)
    self._size += len(data)

  def on_message_complete(self) -> None:
    """Is called by the parser."""
    if self._parser.get_status_code() < 200:  # the response is yet to come
      self._clear()
    else:
      self._is_whole = True
      self._keep = self._parser.should_keep_alive()

  def _response(self) -> Response:
    body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
    return Response(self._parser.get_status_code(), self._retry_after, body)

  def _end(self, outcome: Response | Exception) -> None:
    """Says what became of the request."""
    future, self._future = self._future, None
    assert future is not None  # each request ends once
    self._timer.cancel()
    self._clear()
    if isinstance(outcome, Exception) or not self._keep:
      self.close()
    self._done(self, future, outcome)


Done = Callable[[Connection, "asyncio.Future[Response]", Response | Exception], None]
