"""A comparison that is killed and launched again repeats no run and makes the same table."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
# Two policies and two seeds are all the runs there are.
FLAGS = {
  "config": f"{ROOT}/configs/comparison.py:tiny",
  "config.controls": "('uniform',)",
  "only": "odm",
  "seeds": "0,1",
  "skew": 4,
  "config.base.num_steps": 12,
  "config.base.sequence_length": 32,
  "config.base.model.width": 16,
  "config.base.model.num_layers": 1,
  "config.base.model.mlp_width": 32,
  "config.base.checkpoint.every_steps": 3,
  "config.base.logging.every_steps": 2,
}
ORDER = [(name, seed) for seed in (0, 1) for name in ("uniform", "odm")]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  """Returns `start(workdir, **flags)`, which launches a comparison; dots in flags are `__`."""
  rng, data = np.random.default_rng(0), tmp_path_factory.mktemp("domains")
  for k, name in enumerate(("fruit", "noise")):
    words = [f"{name}{i}" for i in range(5 * 20**k)]
    for split, count in (("train", 80), ("val", 12)):
      texts = [" ".join(rng.choice(words, 20)) for _ in range(count)]
      lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
      (data / f"{name}.{split}.jsonl").write_text(lines)
  environment = os.environ | {
    "JDC_CACHE": str(tmp_path_factory.mktemp("cache")),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "PYTHONPATH": str(ROOT),
  }

  def start(workdir, **changes):
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    flags = FLAGS | {"config.base.data": data, "workdir": workdir} | changes
    with workdir.with_suffix(".log").open("a") as output:
      return subprocess.Popen(
        [sys.executable, ROOT / "launch/compare.py", *(f"--{k}={v}" for k, v in flags.items())],
        env=environment, stdout=output, stderr=subprocess.STDOUT,
      )  # fmt: skip

  return start


def finished(workdir):
  """The results there are, by run, with the time at which each was written."""
  paths = [workdir / "runs" / name / f"seed-{seed}/result.json" for name, seed in ORDER]
  return {path: path.stat().st_mtime_ns for path in paths if path.exists()}


def table(workdir):
  """The table without what the clock decides."""
  with (workdir / "comparison.csv").open() as file:
    lines = list(csv.DictReader(file))
  return [{name: x for name, x in line.items() if name != "seconds"} for line in lines]


def wait_for(process, condition):
  deadline = time.monotonic() + 300
  while not condition():
    assert process.poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_comparison_continues(start, tmp_path):
  killed, whole = tmp_path / "killed", tmp_path / "whole"
  process = start(killed)
  saved = killed / "runs" / ORDER[1][0] / "seed-0/run/checkpoints"
  try:  # in the middle of the second run
    wait_for(process, lambda: any(path.name.isdigit() for path in saved.glob("*")))
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  before = finished(killed)
  assert len(before) == 1
  assert start(killed).wait(timeout=300) == 0
  after = finished(killed)
  assert len(after) == len(ORDER)
  assert after.items() >= before.items()
  assert "continuing from step" in killed.with_suffix(".log").read_text()

  assert start(whole).wait(timeout=300) == 0
  assert table(killed) == table(whole)
  rows = {row["policy"]: row for row in table(whole)}
  assert rows.keys() == {"uniform", "odm"}
  assert rows["odm"]["seeds"] == "2"
  assert rows["odm"]["train_tokens"] == str(12 * 8 * 32)
  pairs = [
    [
      json.loads((whole / f"runs/{name}/seed-{seed}/result.json").read_text())
      for seed in (0, 1)
    ]
    for name in ("odm", "uniform")
  ]
  scores = np.array([[run["bits_per_byte"] for run in runs] for runs in pairs])
  assert float(rows["odm"]["against_uniform"]) == pytest.approx(np.mean(scores[0] - scores[1]))
  for kind in ("md", "png"):
    assert (whole / f"comparison.{kind}").stat().st_size > 100

  # Once more: nothing is left to do; under another config the results are of no use.
  lines = (whole / "comparison.csv").read_text()
  assert start(whole).wait(timeout=300) == 0
  assert (whole / "comparison.csv").read_text() == lines
  assert start(whole, config__base__optimizer__learning_rate=0.5).wait(timeout=300) != 0
  log = whole.with_suffix(".log").read_text()
  assert "holds a result of another config" in log
  assert "optimizer.learning_rate: 0.003 -> 0.5" in log
  assert (whole / "comparison.csv").read_text() == lines
