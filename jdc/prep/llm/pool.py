"""Connections to one server, and the requests that wait for one."""

import asyncio
import collections
import time
from typing import NamedTuple

from jdc.prep.llm.connection import Address, Broken, Connection, Response

_IDLE_S = 15.0  # after which a connection is not trusted to be still there
_LATER_S = 1e-3  # so that a timer never ends before the pause that it is for


class _Waiting(NamedTuple):
  """A request that is to be sent."""

  request: bytes
  future: "asyncio.Future[Response]"
  most: int
  timeout_s: float


class NotConnected(ConnectionError):
  """The server cannot be reached."""


class Pool:
  """Sends requests in their order, at most some at a time.

  Args:
    address: where they go.
  """

  def __init__(self, address: Address):
    self._address = address
    self._waiting: collections.deque[_Waiting] = collections.deque()
    self._idle: list[tuple[float, Connection]] = []  # since when
    self._busy = 0  # requests under way
    self._connections: set[Connection] = set()
    self._connecting: set[asyncio.Task[None]] = set()
    self._resume = 0.0  # no request is sent before this time

  async def post(self, body: bytes, most: int, timeout_s: float) -> Response:
    """Returns the response to a request; where it is not of status 200, `go_on` must follow.

    Args:
      body: of the request.
      most: requests that may be under way with this one.
      timeout_s: from sending it to the end of its response.

    Raises:
      NotConnected: if the server cannot be reached.
      TimeoutError: if it does not answer in time.
      OSError: if the connection broke.
    """
    future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    self._waiting.append(_Waiting(self._address.request(body), future, most, timeout_s))
    self.go_on()
    return await future

  def hold(self, seconds: float) -> None:
    """Sends nothing for some time."""
    self._resume = max(self._resume, time.monotonic() + seconds)
    asyncio.get_running_loop().call_later(seconds + _LATER_S, self.go_on)

  async def close(self) -> None:
    """Closes connections."""
    for task in self._connecting:
      task.cancel()
    await asyncio.gather(*self._connecting, return_exceptions=True)
    for connection in self._connections:
      connection.close()
    await asyncio.sleep(0)  # they close in the loop

  def go_on(self) -> None:
    """Sends what waits, as far as there is room and the server wants no pause."""
    if self._resume > time.monotonic():
      return
    while self._waiting and self._busy < self._waiting[0].most:
      waiting = self._waiting.popleft()
      if waiting.future.done():  # whoever asked is gone
        continue
      self._busy += 1
      if (connection := self._pop()) is not None:
        connection.send(waiting.request, waiting.future, waiting.timeout_s)
      else:
        task = asyncio.create_task(self._connect(waiting))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

  def _pop(self) -> Connection | None:
    """Returns a connection that waits for a request, if there is one."""
    while self._idle:
      since, connection = self._idle.pop()
      if connection.is_open and time.monotonic() < since + _IDLE_S:
        return connection
      connection.close()
      self._connections.discard(connection)
    return None

  async def _connect(self, waiting: _Waiting) -> None:
    future = waiting.future
    try:
      connection = await self._address.connect(self._take)
    except Exception as error:
      self._busy -= 1
      if future.done():  # whoever asked is gone
        self.go_on()
      elif isinstance(error, OSError):
        future.set_exception(NotConnected(str(error) or type(error).__name__))
      else:
        future.set_exception(error)
    else:
      self._connections.add(connection)
      if future.done():
        self._take(connection, future, Broken())
      else:
        connection.send(waiting.request, future, waiting.timeout_s)

  def _take(
    self,
    connection: Connection,
    future: "asyncio.Future[Response]",
    outcome: Response | Exception,
  ) -> None:
    """Takes a response; sends the next request before anything is made of it.

    Other statuses than 200 may ask for a pause, and errors may be grave: there `go_on` is left
    to whoever asked.
    """
    self._busy -= 1
    if connection.is_open:
      self._idle.append((time.monotonic(), connection))
    else:
      self._connections.discard(connection)
    if future.done():  # whoever asked is gone
      self.go_on()
    elif isinstance(outcome, Exception):
      future.set_exception(outcome)
    else:
      if outcome.status == 200:
        self.go_on()
      future.set_result(outcome)
