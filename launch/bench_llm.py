"""What asking a language model costs: how busy a server is kept, how fast answers replay.

The server of the measurement is a process of its own that answers each request after 50 ms, 64
at a time, and counts for how long its slots are busy. Plans run as `launch/prep.py run` does.
"""

import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
import urllib.request
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from absl import flags

from jdc.prep import InputSpec, OutputSpec, PlanSpec, runner, step
from jdc.prep.llm.answers import Answers, Reply, key_of
from jdc.prep.llm.params import Map
from jdc.prep.llm.work import Document, Work
from jdc.prep.spec import StepSpec

DOCUMENTS = flags.DEFINE_integer(
  "llm_documents", 10_000, "Documents that a server is asked of."
)
ANSWERS = flags.DEFINE_integer("llm_answers", 100_000, "Cached answers that are replayed.")
REPEATS = flags.DEFINE_integer("llm_repeats", 3, "Runs of each measurement.")
LATENCY, SLOTS = 0.05, 64
_TEXT = "A sentence of some words, as they stand in texts, to be looked at by a model. " * 15


def main() -> None:
  """Prints what each kind of plan reaches."""
  for concurrency in (64, 72, 96):
    runs = [measure_server(concurrency) for _ in range(REPEATS.value)]
    shares, rates, costs, served = zip(*runs, strict=True)
    print(
      f"server of {SLOTS} slots and {LATENCY * 1e3:.0f} ms, concurrency {concurrency}: busy "
      f"{_spread(shares, '.1%')}; {_spread(rates, '.0f')} documents/s; CPU "
      f"{_spread(costs, '.2f')} ms a document, beside {_spread(served, '.2f')} ms of the "
      "server's",
      flush=True,
    )
  for name, schema in (("text", None), ("JSON by a schema", _SCHEMA)):
    replays = [measure_replay(schema) for _ in range(REPEATS.value)]
    rates, costs = zip(*replays, strict=True)
    print(
      f"{ANSWERS.value} cached answers, {name}: {_spread(rates, '.0f')} records/s; CPU "
      f"{_spread(costs, '.3f')} ms a record",
      flush=True,
    )


def _spread(values: Any, form: str) -> str:
  return f"min {min(values):{form}}, median {statistics.median(values):{form}}"


def measure_server(concurrency: int) -> tuple[float, float, float, float]:
  """Returns the share of busy slots, documents/s, CPU ms of each, and the server's own.

  The share is of the time from the first request to the end of the last one.
  """
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe()
  process = context.Process(target=_serve, args=(theirs,), daemon=True)
  process.start()
  port = ours.recv()
  try:
    with tempfile.TemporaryDirectory() as name:
      root = Path(name)
      _write(root, DOCUMENTS.value)
      made = _step(f"http://127.0.0.1:{port}/v1", concurrency, None)
      manifest = runner.Run(_plan(made), root / "out", root=root, report=False).execute()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats") as response:
      stats = json.load(response)
  finally:
    process.terminate()
    process.join()
  seconds = stats["last"] - stats["first"]
  cost = 1e3 * _stage(manifest)["cpu_s"] / DOCUMENTS.value
  served = 1e3 * stats["cpu"] / DOCUMENTS.value
  return stats["busy"] / (SLOTS * seconds), stats["count"] / seconds, cost, served


def measure_replay(schema: dict[str, Any] | None) -> tuple[float, float]:
  """Returns how many documents a second pass whose answers are all there, CPU ms of each."""
  made = _step("http://127.0.0.1:9/v1", 64, schema)  # where nobody listens
  content = json.dumps({"answer": _TEXT[:400]}) if schema else _TEXT[:400]
  with tempfile.TemporaryDirectory() as name:
    root = Path(name)
    _write(root, ANSWERS.value)
    (root / "out").mkdir()
    (root / "out" / "run.lock").touch()
    asked = Work(Map.model_validate_json(json.dumps(made.params)))
    log = Answers(root / "out")
    for number in range(ANSWERS.value):
      document = Document(b"", _document(number), {})
      body = asked.body(asked.messages(document), 0, 0)
      log.add(key_of(body, "", *asked.apart(0, 0)), "m", Reply(content, "stop", 300, 100))
    log.close()
    manifest = runner.Run(_plan(made), root / "out", root=root, report=False).execute()
  stage = _stage(manifest)
  assert stage["counts"]["cached"] == ANSWERS.value
  cost = 1e3 * stage["cpu_s"] / ANSWERS.value
  return ANSWERS.value / float(stage["counts"]["seconds"]), cost


def _stage(manifest: dict[str, Any]) -> dict[str, Any]:
  (stage,) = [held for held in manifest["stages"] if held["name"].endswith("/model")]
  return dict(stage)


_SCHEMA = {
  "type": "object",
  "properties": {"answer": {"type": "string"}},
  "required": ["answer"],
  "additionalProperties": False,
}


def _step(url: str, concurrency: int, schema: dict[str, Any] | None) -> StepSpec:
  outputs = (
    {"json_schema": schema, "outputs": {"answer": "reply"}} if schema else {"into": "reply"}
  )
  return step(
    "llm_map",
    model="m",
    server={"base_url": url, "concurrency": concurrency},
    system="Answer.",
    user="{text}",
    fields=["text"],
    **outputs,
  )


def _plan(made: StepSpec) -> PlanSpec:
  return PlanSpec(
    input=InputSpec(paths=("raw.jsonl",)), step=(made,), output=OutputSpec(format="jsonl")
  )


def _document(number: int) -> str:
  return f"{number} {_TEXT}"


def _write(root: Path, count: int) -> None:
  with open(root / "raw.jsonl", "w", encoding="utf-8") as file:
    for number in range(count):
      file.write(json.dumps({"text": _document(number)}) + "\n")


class _Counts:
  """What the server has seen."""

  def __init__(self) -> None:
    self.busy, self.count = 0.0, 0
    self.first = self.last = 0.0
    self.begin = time.process_time()
    self.slots = asyncio.Semaphore(SLOTS)


class _Connection(asyncio.Protocol):
  """Answers the requests of one connection, as cheaply as can be."""

  def __init__(self, counts: _Counts):
    self._counts, self._data = counts, b""

  def connection_made(self, transport: Any) -> None:
    self._transport = transport

  def data_received(self, data: bytes) -> None:
    self._data += data
    head, mark, rest = self._data.partition(b"\r\n\r\n")
    if not mark:
      return
    if head.startswith(b"GET"):
      held = {k: v for k, v in vars(self._counts).items() if k != "slots"}
      self._send(json.dumps({**held, "cpu": time.process_time() - self._counts.begin}))
      return
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    if len(rest) >= length:
      self._data = rest[length:]
      task = asyncio.get_running_loop().create_task(self._answer())
      task.add_done_callback(lambda task: task.result())

  async def _answer(self) -> None:
    counts = self._counts
    counts.first = counts.first or time.monotonic()
    async with counts.slots:
      begin = time.monotonic()
      await asyncio.sleep(LATENCY)
      counts.last = time.monotonic()
      counts.busy += counts.last - begin
      counts.count += 1
    self._send(_COMPLETION)

  def _send(self, body: str) -> None:
    self._transport.write(
      f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )


_COMPLETION = json.dumps(
  {
    "choices": [
      {"message": {"role": "assistant", "content": _TEXT[:400]}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 300, "completion_tokens": 100},
  }
)


def _serve(ready: Connection) -> None:
  async def run() -> None:
    counts = _Counts()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(counts), "127.0.0.1", 0)
    ready.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()

  asyncio.run(run())
