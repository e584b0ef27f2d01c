"""A scripted OpenAI-compatible server on the loopback address, and plans that ask it."""

import asyncio
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import NamedTuple

import pytest

from jdc.prep import InputSpec, OutputSpec, PlanSpec, runner


class Answer(NamedTuple):
  """What the server does with a request."""

  content: str | None = "fine"
  finish: str = "stop"
  status: int = 200
  delay: float = 0.0
  headers: Mapping = MappingProxyType({})
  raw: bytes | None = None  # instead of a chat completion
  drop: str = ""  # "before": closes without a word; "middle": in the middle of the body
  usage: tuple[int, int] | None = None  # else counted by words


class Request(NamedTuple):
  """What came, and what was sent."""

  body: dict
  headers: dict
  path: str
  time: float
  answer: Answer

  @property
  def user(self) -> str:
    return self.body["messages"][-1]["content"]


class ScriptedServer:
  """Answers as `script(body, number of the request)` says; `slots` requests at a time."""

  def __init__(self, script=lambda body, number: Answer(), slots=10_000, port=0):
    self.script, self.slots, self.port = script, slots, port
    self.requests: list[Request] = []  # answered to the end, or refused
    self.came = 0
    self.stalls = False  # while it does, nothing is answered
    self.under_way = self.most_under_way = 0
    self.busy = 0.0
    self.start()

  @property
  def url(self) -> str:
    return f"http://127.0.0.1:{self.port}/v1"

  def start(self):
    ready = threading.Event()
    self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), daemon=True)
    self._thread.start()
    assert ready.wait(10)

  def stop(self):
    if self._thread.is_alive():
      self._loop.call_soon_threadsafe(self._end.set)
      self._thread.join(10)

  async def _main(self, ready):
    self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
    self._semaphore = asyncio.Semaphore(self.slots)
    self._open = set()
    server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
    self.port = server.sockets[0].getsockname()[1]
    ready.set()
    await self._end.wait()
    server.close()
    for task in list(self._open):
      task.cancel()
    await asyncio.gather(*self._open, return_exceptions=True)

  async def _serve(self, reader, writer):
    self._open.add(asyncio.current_task())
    try:
      while await self._one(reader, writer):
        pass
    except (asyncio.IncompleteReadError, ConnectionError):
      pass
    finally:
      self._open.discard(asyncio.current_task())
      writer.close()

  async def _one(self, reader, writer):
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or "{}")
    number, self.came = self.came, self.came + 1
    self.under_way += 1
    self.most_under_way = max(self.most_under_way, self.under_way)
    try:
      async with self._semaphore:
        answer = self.script(body, number)
        begin = time.monotonic()
        await asyncio.sleep(answer.delay)
        while self.stalls:
          await asyncio.sleep(0.01)
        self.busy += time.monotonic() - begin
    finally:
      self.under_way -= 1
    if answer.drop == "before":
      return False
    data = answer.raw if answer.raw is not None else _completion(body, answer)
    lines = [f"HTTP/1.1 {answer.status} X", f"Content-Length: {len(data)}"]
    lines += [f"{k}: {v}" for k, v in answer.headers.items()]
    sent = "\r\n".join([*lines, "", ""]).encode() + data
    if answer.drop == "middle":
      writer.write(sent[: len(sent) - len(data) // 2])
      await writer.drain()
      return False
    writer.write(sent)
    await writer.drain()
    path = head[0].split()[1]
    self.requests.append(Request(body, headers, path, time.monotonic(), answer))
    return True


def _completion(body, answer):
  if answer.status != 200:
    return json.dumps({"error": {"message": answer.content}}).encode()
  words = sum(len(m["content"].split()) for m in body["messages"])
  prompt, completion = answer.usage or (words, len((answer.content or "").split()))
  message = {"role": "assistant", "content": answer.content}
  return json.dumps(
    {
      "object": "chat.completion",
      "model": body.get("model"),
      "choices": [{"index": 0, "message": message, "finish_reason": answer.finish}],
      "usage": {"prompt_tokens": prompt, "completion_tokens": completion},
    }
  ).encode()


@pytest.fixture
def serve():
  """Starts servers that end with the test."""
  started = []

  def start(script=lambda body, number: Answer(), **options):
    started.append(ScriptedServer(script, **options))
    return started[-1]

  yield start
  for server in started:
    server.stop()


def write_raw(root: Path, texts, name="raw.jsonl", **fields):
  """Writes documents; `text` stands first, so that offsets differ by text."""
  rows = [json.dumps({"text": text, "number": i, **fields}) for i, text in enumerate(texts)]
  (root / name).write_text("\n".join(rows) + "\n")


def plan_of(*steps, task_mb=64.0, **output):
  return PlanSpec(
    input=InputSpec(paths=("raw*.jsonl",), task_mb=task_mb),
    step=steps,
    output=OutputSpec(**{"format": "jsonl", **output}),
  )


def model_of(server, **options):
  """Returns the parameters of a step that name a model of a server."""
  return {"model": "m", "server": {"base_url": server.url, **options}}


def execute(plan, root, out="out", **options):
  job = runner.Run(plan, root / out, root=root, **{"report": False, **options})
  return job.execute()


def records_of(folder: Path, name="data"):
  """Returns the records of JSON lines, zstd or not."""
  import zstandard

  found = []
  for path in sorted((folder / name).rglob("*.jsonl*")):
    data = path.read_bytes()
    if path.suffix == ".zst":
      data = zstandard.ZstdDecompressor().stream_reader(data).read()
    found += [json.loads(line) for line in data.decode().splitlines()]
  return found


@pytest.fixture
def kit():
  """What tests of this folder share; they cannot import each other."""
  return SimpleNamespace(
    Answer=Answer,
    write_raw=write_raw,
    plan=plan_of,
    execute=execute,
    records=records_of,
    model=model_of,
  )
