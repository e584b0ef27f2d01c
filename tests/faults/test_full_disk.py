"""A disk that fills up stops the run with a clear error and leaves the last good checkpoint."""

import resource
import time

import pytest


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_spoils_nothing(start, run, tmp_path):
  config, fields = "pretrain_mixture.py:tiny,mixture=odm", {"logging__every_steps": 20}
  workdir = tmp_path / "run"
  process = start(config, workdir, **fields)
  while not any((workdir / "checkpoints").glob("[0-9]")) and process.poll() is None:
    time.sleep(0.001)
  # From now on no file may grow beyond what the log of the run needs, less than the parameters.
  resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (32 << 10, 32 << 10))
  assert process.wait(timeout=200) == 1
  last_line = (tmp_path / "run.log").read_text().strip().splitlines()[-1]
  assert "RuntimeError: the checkpoint in" in last_line
  assert f"{workdir}/checkpoints could not be saved (intact are those of steps [" in last_line
  assert "File too large" in last_line

  whole = tmp_path / "whole"
  for folder in (workdir, whole):  # once there is room again
    status, output = run(config, folder, **fields)
    assert status == 0, output
  assert "continuing from step" in (tmp_path / "run.log").read_text()
  for file in ("metrics.jsonl", "example_ids.i32"):
    assert (workdir / file).read_bytes() == (whole / file).read_bytes()
