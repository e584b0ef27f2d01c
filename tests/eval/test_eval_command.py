"""Tests of launch/eval.py in a process of its own: its result, and its mistakes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jdc.models import DecoderConfig, hf
from jdc.models.decoder import decoder
from jdc.train.checkpoint import fingerprint

ROOT = Path(__file__).parents[2]
CONFIG = DecoderConfig(
  vocab_size=258,
  width=16,
  num_layers=1,
  num_heads=2,
  num_kv_heads=2,
  mlp_width=16,
  context_length=256,
)
PARAMS = decoder(CONFIG).init(jax.random.key(0))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A checkpoint, domains, questions with options and questions with answers."""
  folder = tmp_path_factory.mktemp("eval")
  hf.save(folder / "checkpoint", CONFIG, PARAMS)
  (folder / "text").mkdir()
  (folder / "text" / "prose.txt").write_text("Words and more words. " * 20)
  choice = {"question": "Which?", "choices": ["one", "two", "three"], "answer": "B"}
  answer = {"question": "How many?", "answer": "Two.\n#### 2"}
  for name, record, count in (("quiz", choice, 5), ("sums", answer, 3)):
    for split, repeats in (("test", count), ("dev", 2)):
      path = folder / f"{name}.{split}.jsonl"
      path.write_text("".join(json.dumps(record) + "\n" for _ in range(repeats)))
  return folder


def run(*arguments, cwd):
  environment = os.environ | {
    "PYTHONPATH": str(ROOT),
    "JDC_CACHE": str(cwd / "cache"),
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
  }
  return subprocess.run(
    [sys.executable, ROOT / "launch/eval.py", *arguments],
    cwd=cwd, env=environment, capture_output=True, text=True, timeout=500,
  )  # fmt: skip


def read_records(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_the_result(files):
  tasks = ("perplexity:text", "choice:quiz.test.jsonl", "gsm8k:sums.test.jsonl")
  arguments = (
    "--checkpoint=checkpoint", "--tokenizer=bytes", f"--tasks={','.join(tasks)}",
    "--num_shots=1", "--max_new_tokens=5", "--batch_size=4", "--output=result.json",
  )  # fmt: skip
  finished = run(*arguments, cwd=files)
  assert finished.returncode == 0, finished.stderr
  result = json.loads((files / "result.json").read_text())

  evaluated = result["evaluated"]
  assert evaluated["parameters_fingerprint"] == fingerprint(PARAMS)
  assert evaluated["parameters"] == sum(x.size for x in jax.tree.leaves(PARAMS))
  assert evaluated["tokenizer"]["puts_before_a_text"] == 256
  assert evaluated["tokenizer"]["stop_ids"] == [257]
  assert evaluated["devices"].startswith("2 x ")

  assert list(result["tasks"]) == list(tasks)
  perplexity, choice, sums = (result["tasks"][task] for task in tasks)
  metrics = perplexity["metrics"]
  assert metrics["prose/num_tokens"] == 20 * 22 + 1  # and EOS
  assert perplexity["settings"]["sequence_length"] == 256
  assert metrics["prose/perplexity"] == pytest.approx(math.exp(metrics["prose/loss"]))

  assert choice["metrics"]["count"] == 5
  assert choice["metrics"]["micro_accuracy"] in (0.0, 1.0)  # five times the same question
  assert set(choice["settings"]["files"]) == {"quiz.test.jsonl", "quiz.dev.jsonl"}
  records = read_records(files / choice["records"])
  assert len(records) == 5
  assert np.isfinite(records[0]["log_probabilities"]).all()

  assert sums["settings"]["max_new_tokens"] == 5
  [first, *_] = read_records(files / sums["records"])
  assert first["where"] == "sums.test.jsonl:1"
  assert isinstance(first["completion"], str)
  assert "micro_accuracy" in finished.stdout
  assert "result: result.json" in finished.stdout

  again = run(*arguments, cwd=files)
  assert again.returncode == 1
  assert "--output=result.json exists" in again.stderr


def test_mistakes_are_listed_before_the_model_is_opened(files):
  finished = run(
    "--checkpoint=absent",
    "--tasks=quiz:x,choice:absent.jsonl:quiz.dev.jsonl,gsm8k:quiz.dev.jsonl,perplexity:nowhere",
    "--output=absent/result.json",
    cwd=files,
  )
  assert finished.returncode == 1
  for part in [
    "task 'quiz:x' must be KIND:PATH or KIND:PATH:SHOTS",
    "absent.jsonl: no such file",
    "num_shots 5 needs a file of shots",
    "nowhere: no such folder of domains",
    "its folder does not exist",
  ]:
    assert part in finished.stderr, part


def test_mistakes_that_need_the_model_are_listed_before_it_is_run(files):
  (files / "long.jsonl").write_text(
    json.dumps({"question": "Why? " * 60, "choices": ["x", "y"], "answer": 0}) + "\n"
  )
  finished = run(
    "--checkpoint=checkpoint",
    "--tokenizer=bytes",
    "--tasks=choice:long.jsonl,gsm8k:sums.test.jsonl,perplexity:text",
    "--num_shots=0",
    "--max_new_tokens=250",
    "--sequence_length=300",
    "--output=other.json",
    cwd=files,
  )
  assert finished.returncode == 1
  for part in [
    "long.jsonl:1 (",
    "sums.test.jsonl:1 (",
    "sequence_length 300 is beyond the model's context of 256",
  ]:
    assert part in finished.stderr, part
  assert not list(files.glob("other*"))
