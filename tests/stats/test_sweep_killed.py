"""A sweep that is killed goes on where it was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = Path(__file__).with_name("sweep_process.py")
ROOT = Path(__file__).parents[2]
TIMEOUT = 120  # seconds


def start(folder, delay):
  environment = os.environ | {
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
  }
  folder.mkdir(exist_ok=True)
  with (folder / "log").open("a") as log:
    return subprocess.Popen(
      [sys.executable, SCRIPT, folder, str(delay)], env=environment, stdout=log, stderr=log
    )


def count(path):
  return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_killed_sweep_goes_on(tmp_path):
  begun = tmp_path / "begun"
  before = 0
  for more in (3, 5):
    process = start(tmp_path, 0.1)
    deadline = time.monotonic() + TIMEOUT
    while count(begun) < before + more:
      assert process.poll() is None, (tmp_path / "log").read_text()[-4000:]
      assert time.monotonic() < deadline
      time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = count(begun)
  process = start(tmp_path, 0.0)
  output = (tmp_path / "log").read_text
  assert process.wait(TIMEOUT) == 0, output()[-4000:]
  counts = json.loads(output().splitlines()[-1])
  # Of each killed process, one chunk at most was begun and not written.
  assert counts["chunks"] <= count(begun) <= counts["chunks"] + 2
  assert counts["computed"] == count(begun) - before
  assert counts["computed"] <= counts["chunks"] - before + 2
  assert len(list(tmp_path.glob("store/*/*.journal"))) == 1
