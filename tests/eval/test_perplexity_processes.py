"""Two processes with four devices each evaluate as one process with eight."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("evaluate_process.py")
ROOT = pathlib.Path(__file__).parents[2]


def run_processes(count):
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
  devices = f"--xla_force_host_platform_device_count={8 // count}"
  environment = os.environ | {
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {devices}",
    "JAX_PLATFORMS": "cpu",
    "PYTHONPATH": str(ROOT),
  }
  processes = [
    subprocess.Popen(
      [sys.executable, SCRIPT, str(index), str(count), str(port)],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(count)
  ]
  try:
    results = [process.communicate(timeout=300) for process in processes]
  finally:
    for process in processes:
      process.kill()
  for process, (_, errors) in zip(processes, results, strict=True):
    assert process.returncode == 0, errors
  return [json.loads(output.splitlines()[-1]) for output, _ in results]


@pytest.mark.slow
def test_two_processes_equal_one():
  (alone,) = run_processes(1)
  first, second = run_processes(2)
  assert first["metrics"] == second["metrics"]
  assert first["metrics"] == pytest.approx(alone["metrics"], rel=1e-6)
  for name in ("nine", "three"):
    assert set(first["read"][name]) | set(second["read"][name]) == set(alone["read"][name])
  # Each reads its own half of a batch; a process without a row reads row 0 for its shape.
  assert first["read"]["nine"] == [0, 1, 2, 3, 8]
  assert second["read"]["nine"] == [0, 4, 5, 6, 7]
