"""Two processes write the checkpoint that one writes, and each reads what its devices need."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from jdc.models.hf import fingerprint

SCRIPT = pathlib.Path(__file__).with_name("hf_process.py")
ROOT = pathlib.Path(__file__).parents[2]


def run_processes(count, folder):
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
      [sys.executable, SCRIPT, str(index), str(count), str(port), folder],
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
def test_two_processes_equal_one(tmp_path):
  (alone,) = run_processes(1, tmp_path)
  first, second = run_processes(2, tmp_path)
  assert fingerprint(tmp_path / "of_2") == fingerprint(tmp_path / "of_1")
  for path in (tmp_path / "of_1").iterdir():
    assert (tmp_path / "of_2" / path.name).read_bytes() == path.read_bytes()
  assert [result["same"] for result in (alone, first, second)] == [True] * 3
  # All parameters are split, so that no byte is needed by both.
  assert first["bytes"] + second["bytes"] == alone["bytes"]
  assert first["bytes"] == second["bytes"]
  # Only process 0 knows what is wrong with the folder, and the other one does not wait for it.
  assert first["error"].startswith("ValueError: folder")
  assert second["error"].startswith("RuntimeError: process 0 could not write")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["of_1", "of_2"]
