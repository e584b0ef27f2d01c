"""A pool of ten million rows costs little memory, and any step of it is reached at once."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("draw_at_scale.py")
ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("num_domains", [1, 5, 1000])
def test_ten_million_rows(num_domains):
  # The limits are those that the project promises. JAX and the policy take 75 of the megabytes.
  command = [sys.executable, SCRIPT, str(num_domains), str(10**7 // num_domains)]
  done = subprocess.run(
    command, capture_output=True, text=True, timeout=120,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["rows"] == 10**7
  assert found["megabytes"] < 200
  assert found["seconds"] < 1
