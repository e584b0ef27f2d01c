"""Requests to an OpenAI-compatible server: retries, pauses, when to give up."""

import asyncio
import hashlib
import logging
import os
import time

import orjson

from jdc.prep.llm import responses
from jdc.prep.llm.answers import Question, Reply
from jdc.prep.llm.connection import Address, Response
from jdc.prep.llm.params import Server
from jdc.prep.llm.pool import NotConnected, Pool
from jdc.prep.llm.responses import Failure

_LOG = logging.getLogger(__name__)
_BACK_OFF = 0.5  # seconds before the second try, doubled with each, with jitter
_LONGEST = 15.0
_SILENT_S = 1.0  # without an answer, from which on trouble is worth a line
_AWAY = (408, 409, 425, 429, 502, 503, 504)  # the server cannot, just now
_STOPS = {
  401: "the server does not accept the key",
  402: "the server asks for payment",
  403: "the server does not allow this with the key",
  404: "the server has not got this model, or this address",
}


Pools = dict[tuple[str, str], Pool]  # by address and the variable with the key


class Stopped(RuntimeError):
  """Going on makes no sense before something outside is mended; nothing answered is lost."""


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
    pools: of all clients; those of one server share its slots and pauses.
  """

  def __init__(self, server: Server, model: str, pools: Pools):
    self._server, self._model = server, model
    key = read_key(server)
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if key:
      headers["Authorization"] = f"Bearer {key}"
    self._secrets = {key, orjson.dumps(key).decode()[1:-1], key.replace("/", "\\/")} - {""}
    self.name, self.identity, self.concurrency = model, "", server.concurrency
    self._url = f"{server.base_url}/chat/completions"
    where = (self._url, server.api_key_env)
    self._pool = pools.get(where) or pools.setdefault(where, Pool(Address(self._url, headers)))
    self._probing = asyncio.Lock()
    self._answered = self._trouble = time.monotonic()
    self._failing = self._told = False

  async def open(self) -> None:
    """Does nothing: connections are made as they are needed."""

  async def close(self) -> None:
    """Closes connections."""
    await self._pool.close()

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

  async def _try(self, body: bytes) -> Reply | Failure:
    try:
      limits = self._server.concurrency, self._server.timeout_s
      found = self._judge(await self._pool.post(body, *limits))
    except NotConnected as error:
      found = Failure(f"no connection: {self._clean(str(error))}", True)
    except TimeoutError:
      found = Failure(f"no answer within {self._server.timeout_s:g} s", False)
    except OSError as error:
      found = Failure(f"the connection broke: {self._clean(str(error))}", False)
    self._pool.go_on()
    return found

  def _judge(self, response: Response) -> Reply | Failure:
    status = response.status
    if status == 200:
      found = responses.parse(response.body)
      if self._secrets and isinstance(found, Reply):
        content, finish = self._hide(found.content), self._hide(found.finish)
        return found._replace(content=content, finish=finish)
      return found
    said = self._clean(responses.message(response.body))
    if status in _STOPS or 300 <= status < 400:
      # What is said of a key may hold parts of it.
      said = "" if status in (401, 403) else f": {said}"
      why = _STOPS.get(status, "the server sends us elsewhere, which is not followed")
      name = f" in ${self._server.api_key_env}" if "key" in why else ""
      raise Stopped(f"{self._url}, model {self._model!r}: HTTP {status}: {why}{name}{said}")
    if status in _AWAY or status >= 500:
      wait = responses.seconds(response.retry_after)
      if wait is not None:
        self._pool.hold(wait)
      return Failure(f"HTTP {status}: {said}", status in _AWAY, wait)
    return Reply("", "", 0, 0, f"refused: HTTP {status}: {said}")

  def _note_answer(self) -> None:
    if self._told:
      _LOG.info("%s answers again", self._url)
    self._answered, self._failing, self._told = time.monotonic(), False, False

  def _note_trouble(self, now: float, found: Failure) -> None:
    """Remembers since when nothing is answered; stops when that is too long."""
    server = self._server
    if not self._failing:
      self._failing, self._trouble = True, now
    if not self._told and now > self._answered + _SILENT_S:
      self._told = True
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

  def _pause(self, key: bytes, tries: int, found: Failure) -> float:
    """Returns how long a request waits for its next try, the same for the same request."""
    digest = hashlib.blake2b(b"%s%d" % (key, tries), digest_size=4).digest()
    share = int.from_bytes(digest) / (1 << 32)
    pause = min(_LONGEST, _BACK_OFF * 2.0 ** min(tries - 1, 10)) * (0.5 + 0.5 * share)
    # Requests that waited together do not come back together.
    return found.wait + 0.1 * pause if found.wait is not None else pause

  def _clean(self, text: str) -> str:
    return self._hide(text)[:300]

  def _hide(self, text: str) -> str:
    """Returns a text without the key."""
    for secret in self._secrets:
      text = text.replace(secret, "[key]")
    return text
