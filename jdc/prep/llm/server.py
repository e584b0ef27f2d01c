"""Requests to an OpenAI-compatible server: retries, pauses, when to give up."""

import asyncio
import collections
import email.utils
import hashlib
import logging
import os
import time
from typing import Any, NamedTuple

import orjson

from jdc.prep.llm.answers import NOT_TOLD, Question, Reply
from jdc.prep.llm.connection import Address, Connection, Response
from jdc.prep.llm.params import Server

_LOG = logging.getLogger(__name__)
_BACK_OFF = 0.5  # seconds before the second try, doubled with each, with jitter
_LONGEST = 15.0
_IDLE_S = 15.0  # after which a connection is not trusted to be still there
_MOST_TOKENS = 1 << 40  # of a request; a server that tells of more is wrong
_AWAY = (408, 409, 425, 429, 502, 503, 504)  # the server cannot, just now
_STOPS = {
  401: "the server does not accept the key",
  402: "the server asks for payment",
  403: "the server does not allow this with the key",
  404: "the server has not got this model, or this address",
}


class Stopped(RuntimeError):
  """Going on makes no sense before something outside is mended; nothing answered is lost."""


class _NotConnected(ConnectionError):
  """The server cannot be reached."""


class _Failure(NamedTuple):
  """A try without an answer."""

  cause: str
  away: bool  # the server cannot answer anything; else this request may be at fault
  wait: float | None = None  # seconds that the server asks for


_Waiting = tuple[bytes, "asyncio.Future[Response]"]


def read_key(server: Server) -> str:
  """Returns the key in the environment, empty where the server needs none.

  Raises:
    ValueError: if there is none, or it cannot be one; the message has no part of it.
  """
  name = server.api_key_env
  if not name:
    return ""
  key = os.environ.get(name, "").strip()
  if not key:
    raise ValueError(f"server.api_key_env: the environment has no {name}")
  if not (key.isascii() and key.isprintable()) or " " in key:
    raise ValueError(f"server.api_key_env: ${name} holds characters that no key has")
  return key


class Client:
  """A server that requests go to, at most `concurrency` at a time.

  Args:
    server: where it is, and how it is asked.
    model: the server's name of the model.
  """

  def __init__(self, server: Server, model: str):
    self._server, self._model = server, model
    key = read_key(server)
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key:
      headers["Authorization"] = f"Bearer {key}"
    forms = {key, orjson.dumps(key).decode()[1:-1], key.replace("/", "\\/")} if key else set()
    self._secrets = [form.encode() for form in forms]
    self.name, self.identity, self.concurrency = model, "", server.concurrency
    self._url = f"{server.base_url}/chat/completions"
    self._address = Address(self._url, headers)
    self._waiting: collections.deque[_Waiting] = collections.deque()
    self._idle: list[tuple[float, Connection]] = []  # since when
    self._busy = 0  # requests under way
    self._connections: set[Connection] = set()
    self._connecting: set[asyncio.Task[None]] = set()
    self._probing = asyncio.Lock()
    self._resume = 0.0  # no request is sent before this time
    self._answered = self._trouble = time.monotonic()
    self._failing = False

  async def open(self) -> None:
    """Does nothing: connections are made as they are needed."""

  async def close(self) -> None:
    """Closes connections."""
    for task in self._connecting:
      task.cancel()
    await asyncio.gather(*self._connecting, return_exceptions=True)
    for connection in self._connections:
      connection.close()
    await asyncio.sleep(0)  # they close in the loop

  async def ask(self, question: Question) -> tuple[Reply, int]:
    """Returns the answer to a request, and how many tries failed before.

    Raises:
      Stopped: if the server does not let us, or has not answered anything for `patience_s`.
    """
    tries = failed = 0
    first = 0.0
    while True:
      found = await self._try(question.body)
      if isinstance(found, Reply):
        self._note_answer()
        return found, tries
      now = time.monotonic()
      first = first or now
      tries += 1
      failed += not found.away
      self._note_trouble(now, found)
      if failed >= self._server.tries and (self._answered > first or await self._alive()):
        cause = f"no answer: {failed} tries, the last: {found.cause}"
        return Reply("", "", 0, 0, cause), tries
      await asyncio.sleep(self._pause(question.key, tries, found))

  async def _try(self, body: bytes) -> Reply | _Failure:
    future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    self._waiting.append((self._address.request(body), future))
    self._send()
    try:
      found = self._judge(await future)
    except _NotConnected as error:
      found = _Failure(f"no connection: {self._clean(str(error).encode())}", True)
    except TimeoutError:
      found = _Failure(f"no answer within {self._server.timeout_s:g} s", False)
    except OSError as error:
      found = _Failure(f"the connection broke: {self._clean(str(error).encode())}", False)
    self._send()  # where `_take` has left that until the response was judged
    return found

  def _send(self) -> None:
    """Sends what waits, as far as there is room and the server wants no pause."""
    while self._waiting and self._busy < self.concurrency:
      if self._resume and (wait := self._resume - time.monotonic()) > 0:
        asyncio.get_running_loop().call_later(wait, self._send)
        return
      request, future = self._waiting.popleft()
      if future.done():  # whoever asked is gone
        continue
      self._busy += 1
      if (connection := self._pop()) is not None:
        connection.send(request, future)
      else:
        task = asyncio.create_task(self._connect(request, future))
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

  async def _connect(self, request: bytes, future: "asyncio.Future[Response]") -> None:
    try:
      connection = await self._address.connect(self._take, self._server.timeout_s)
    except OSError as error:
      self._busy -= 1
      if not future.done():
        future.set_exception(_NotConnected(str(error) or type(error).__name__))
    else:
      self._connections.add(connection)
      connection.send(request, future)

  def _take(
    self,
    connection: Connection,
    future: "asyncio.Future[Response]",
    outcome: Response | Exception,
  ) -> None:
    """Takes a response; sends the next request before anything is made of it."""
    self._busy -= 1
    if connection.is_open:
      self._idle.append((time.monotonic(), connection))
    else:
      self._connections.discard(connection)
    if future.done():  # whoever asked is gone
      self._send()
    elif isinstance(outcome, Exception):
      future.set_exception(outcome)
    else:
      if outcome.status == 200:
        self._send()
      future.set_result(outcome)

  def _judge(self, response: Response) -> Reply | _Failure:
    status, data = response.status, response.body
    for secret in self._secrets:
      data = data.replace(secret, b"[key]")
    if status == 200:
      return _parse(data)
    said = _message(data)
    if status in _STOPS or 300 <= status < 400:
      # What is said of a key may hold parts of it.
      said = "" if status in (401, 403) else f": {said}"
      why = _STOPS.get(status, "the server sends us elsewhere, which is not followed")
      name = f" in ${self._server.api_key_env}" if "key" in why else ""
      raise Stopped(f"{self._url}, model {self._model!r}: HTTP {status}: {why}{name}{said}")
    if status in _AWAY or status >= 500:
      wait = _seconds(response.retry_after)
      if wait is not None:
        self._resume = max(self._resume, time.monotonic() + wait)
      return _Failure(f"HTTP {status}: {said}", status in _AWAY, wait)
    return Reply("", "", 0, 0, f"refused: HTTP {status}: {said}")

  def _note_answer(self) -> None:
    if self._failing:
      _LOG.info("%s answers again", self._url)
    self._answered, self._failing = time.monotonic(), False

  def _note_trouble(self, now: float, found: _Failure) -> None:
    """Remembers since when nothing is answered; stops when that is too long."""
    server = self._server
    if not self._failing:
      self._failing, self._trouble = True, now
      _LOG.info("%s: %s; trying again", self._url, found.cause)
    silent = now - self._trouble
    if silent > server.patience_s:
      raise Stopped(
        f"{self._url} has answered nothing for {silent:.0f} s, longer than patience_s="
        f"{server.patience_s:g}; the last: {found.cause}"
      )
    if found.wait is not None and found.wait > server.patience_s:
      raise Stopped(
        f"{self._url} asks to wait {found.wait:.0f} s, longer than patience_s="
        f"{server.patience_s:g}; the last: {found.cause}"
      )

  async def _alive(self) -> bool:
    """Whether the server answers the shortest of requests."""
    message = {"role": "user", "content": "1"}
    body = orjson.dumps({"model": self._model, "messages": [message], "max_tokens": 1})
    begin = time.monotonic()
    async with self._probing:
      if self._answered > begin:  # while this one waited
        return True
      alive = isinstance(await self._try(body), Reply)
      if alive:
        self._note_answer()
      return alive

  def _pause(self, key: bytes, tries: int, found: _Failure) -> float:
    """Returns how long a request waits for its next try, the same for the same request."""
    digest = hashlib.blake2b(b"%s%d" % (key, tries), digest_size=4).digest()
    share = int.from_bytes(digest) / (1 << 32)
    pause = min(_LONGEST, _BACK_OFF * 2.0 ** min(tries - 1, 10)) * (0.5 + 0.5 * share)
    # Requests that waited together do not come back together.
    return found.wait + 0.1 * pause if found.wait is not None else pause

  def _clean(self, data: bytes) -> str:
    for secret in self._secrets:
      data = data.replace(secret, b"[key]")
    return data.decode("utf-8", "replace")[:300]


def _parse(data: bytes) -> Reply | _Failure:
  """Returns the answer in a response."""
  try:
    value = orjson.loads(data)
    choice = value["choices"][0]
    content = choice["message"].get("content")
    finish = str(choice.get("finish_reason") or "stop")
  except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
    return _Failure(f"a response that is no chat completion: {type(error).__name__}", False)
  if content is not None and not isinstance(content, str):
    return _Failure("a response whose content is no text", False)
  usage = value.get("usage")
  told = usage if isinstance(usage, dict) else {}
  prompt, completion = map(_count, (told.get("prompt_tokens"), told.get("completion_tokens")))
  return Reply(content or "", finish, prompt, completion)


def _count(value: Any) -> int:
  """Returns a number of tokens, `NOT_TOLD` where it is none."""
  return value if type(value) is int and 0 <= value <= _MOST_TOKENS else NOT_TOLD


def _message(data: bytes) -> str:
  """Returns what an error response says."""
  try:
    value = orjson.loads(data)
    value = value.get("error", value) if isinstance(value, dict) else value
    value = value.get("message", value) if isinstance(value, dict) else value
    text = value if isinstance(value, str) else orjson.dumps(value).decode()
  except ValueError:
    text = data.decode("utf-8", "replace")
  return " ".join(text.split())[:300]


def _seconds(value: str | None) -> float | None:
  """Returns how long `Retry-After` asks to wait: seconds, or a date."""
  if not value:
    return None
  try:
    return max(0.0, float(value))
  except ValueError:
    pass
  try:
    return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
  except (TypeError, ValueError):
    return None
