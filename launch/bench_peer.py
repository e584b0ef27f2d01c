"""DataFlex in a process of its own, which `bench_peer_dataflex.py` runs and answers for."""

import contextlib
import json
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np
from bench_setup import CPU_TIME
from bench_sweep_measures import RANK, SIZE, VOCAB, Cost

_QUESTIONS: dict[str, dict[str, Any]] = {
  "DataFlex, loss, batches of 1": {"what": "loss", "batch_size": 1},
  "DataFlex, loss, batches of 8": {"what": "loss", "batch_size": 8},
  "DataFlex, features": {"what": "features"},
}


@contextlib.contextmanager
def dataflex(
  python: str, lengths: np.ndarray, prompts: np.ndarray, num_feature_examples: int
) -> Iterator[dict[str, Callable[[], Cost]]]:
  """Starts it, and gives what asks it for its loss pass and its features, by name.

  Args:
    python: the interpreter of its environment.
    lengths: tokens of each example.
    prompts: how many of these are no targets.
    num_feature_examples: features are of so many, at equal distances among the sorted ones, so
      that their mean length is that of all.
  """
  count = min(num_feature_examples, len(lengths))
  places = (2 * np.arange(count) + 1) * len(lengths) // (2 * count)
  setting = {
    "lengths": lengths.tolist(),
    "prompts": prompts.tolist(),
    "feature_examples": np.argsort(lengths)[places].tolist(),
    "size": SIZE,
    "vocab_size": VOCAB,
    "rank": RANK,
  }
  script = pathlib.Path(__file__).with_name("bench_peer_dataflex.py")
  environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
  environment.pop("PYTHONPATH", None)
  with (
    tempfile.TemporaryFile("w+") as log,
    subprocess.Popen(
      [python, str(script)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=log,
      text=True,
      env=environment,
    ) as process,
  ):  # its end of input is the end of the process
    ready = _ask(process, log, setting)
    print(f"peer: {ready['versions']}; {ready['num_trained']} trained parameters", flush=True)
    yield {name: _measure(process, log, x) for name, x in _QUESTIONS.items()}


def _measure(
  process: subprocess.Popen, log: IO[str], question: dict[str, Any]
) -> Callable[[], Cost]:
  def measure() -> Cost:
    answer = _ask(process, log, question)
    return Cost(answer["cpu_seconds" if CPU_TIME.value else "seconds"], answer["examples"])

  return measure


def _ask(process: subprocess.Popen, log: IO[str], question: dict[str, Any]) -> dict[str, Any]:
  assert process.stdin is not None
  assert process.stdout is not None
  process.stdin.write(json.dumps(question) + "\n")
  process.stdin.flush()
  answer = process.stdout.readline()
  if not answer:
    status = process.wait()
    log.seek(0)
    raise RuntimeError(f"the peer ended with status {status}: {log.read()[-4000:]}")
  return json.loads(answer)
