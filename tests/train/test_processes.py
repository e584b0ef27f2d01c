"""Two processes with four devices each, and one with four, train as one with eight."""

import dataclasses
import json
import os
import pathlib
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from jdc import metrics
from jdc.train.config import MeshConfig

pytestmark = pytest.mark.slow

SCRIPT = pathlib.Path(__file__).with_name("fit_process.py")
ROOT = pathlib.Path(__file__).parents[2]
TIMEOUT = 300  # seconds; a process that waits for another one for ever fails
SAVED, LAST = 7, 12  # step 7 lies in the second round of 5 steps and in the third log window


class Launcher:
  """Starts runs of `fit_process.py` and waits for them."""

  def __init__(self, run, compilation_cache):
    self._run, self._cache = run, compilation_cache

  def start(self, count, workdir, case, num_steps, devices=8):
    workdir.mkdir(exist_ok=True)
    with socket.socket() as listener:
      listener.bind(("127.0.0.1", 0))
      port = listener.getsockname()[1]
    here = f"--xla_force_host_platform_device_count={devices // count}"
    environment = os.environ | {
      "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} {here}",
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": str(self._cache),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
      "PYTHONPATH": str(ROOT),
    }
    processes = []
    for index in range(count):
      arguments = (index, count, port, self._run, workdir, case, num_steps)
      # Files, not pipes: a process must not wait for somebody to read what it says.
      with (
        (workdir / f"out{index}").open("w") as out,
        (workdir / f"err{index}").open("w") as err,
      ):
        command = [sys.executable, SCRIPT, *map(str, arguments)]
        processes.append(subprocess.Popen(command, env=environment, stdout=out, stderr=err))
    return processes

  def finish(self, processes, workdir):
    """Waits for the processes and returns what each printed last."""
    deadline = time.monotonic() + TIMEOUT
    try:
      for process in processes:
        process.wait(timeout=deadline - time.monotonic())
    finally:
      for process in processes:
        process.kill()
        process.wait()
    for index, process in enumerate(processes):
      assert process.returncode == 0, (workdir / f"err{index}").read_text()[-4000:]
    outputs = [(workdir / f"out{index}").read_text() for index in range(len(processes))]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.fixture(scope="module")
def launcher(domains, model_config, tiny_config, tmp_path_factory, pytestconfig):
  run = tmp_path_factory.mktemp("run") / "run.pkl"
  run.write_bytes(pickle.dumps((domains, model_config, tiny_config)))
  return Launcher(run, pytestconfig.cache.mkdir("xla"))


@pytest.fixture(scope="module")
def whole_runs(launcher, tmp_path_factory):
  """The same run in one and in two processes, by their number."""
  folders = {count: tmp_path_factory.mktemp(f"processes{count}") for count in (1, 2)}
  for count, folder in folders.items():
    results = launcher.finish(launcher.start(count, folder, "everything", LAST), folder)
    assert results == [{"stopped": "finished", "step": LAST, "devices": 8}] * count
  return folders


def assert_same_run(folder, expected, shape=(LAST, 8)):
  """Asserts equal rows in every step, and equal metrics but for rounding."""
  ids, expected_ids = (metrics.read_example_ids(path) for path in (folder, expected))
  assert ids.shape == shape
  assert (ids == expected_ids).all()
  lines, expected_lines = (metrics.read_metrics(path) for path in (folder, expected))
  assert len(lines) == len(expected_lines)
  for line, expected_line in zip(lines, expected_lines, strict=True):
    assert line == pytest.approx(expected_line, rel=1e-5)


def test_two_processes_train_as_one(whole_runs):
  assert_same_run(whole_runs[2], whole_runs[1])


def test_two_processes_train_adapters_on_packed_records_as_one(
  finetune_run, tmp_path, pytestconfig
):
  run = finetune_run(tmp_path / "here", mesh=MeshConfig(data=2, fsdp=-1))
  content = tmp_path / "run.pkl"
  content.write_bytes(pickle.dumps((run.domains, dataclasses.replace(run.config, model=None))))
  launcher = Launcher(content, pytestconfig.cache.mkdir("xla"))
  folders = [tmp_path / str(count) for count in (1, 2)]
  for count, folder in enumerate(folders, 1):
    results = launcher.finish(launcher.start(count, folder, "adapters", 9), folder)
    assert results == [{"stopped": "finished", "step": 9, "devices": 8}] * count
  assert_same_run(*folders, shape=(9, 8 * 5))


@pytest.mark.parametrize(("saved_by", "resumed_by"), [(1, 2), (2, 1)])
def test_a_run_saved_by_one_resumes_under_the_other(
  launcher, whole_runs, tmp_path, saved_by, resumed_by
):
  folder = tmp_path / "run"
  shutil.copytree(whole_runs[saved_by], folder)
  # As if the run had been killed just before its last checkpoint.
  shutil.rmtree(folder / "checkpoints" / str(LAST))
  launcher.finish(launcher.start(resumed_by, folder, "everything", LAST), folder)
  assert_same_run(folder, whole_runs[resumed_by])
  before, after = (
    (path / "metrics.jsonl").read_text() for path in (whole_runs[saved_by], folder)
  )
  kept = [line for line in before.splitlines() if json.loads(line)["step"] <= SAVED]
  assert len(kept) > 2
  assert after.splitlines()[: len(kept)] == kept  # of the saved run, not run again


def test_a_run_saved_on_eight_devices_resumes_on_four(launcher, whole_runs, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(whole_runs[1], folder)
  # As if the run had been killed just before its last checkpoint.
  shutil.rmtree(folder / "checkpoints" / str(LAST))
  with (folder / "example_ids.i32").open("r+b") as log:
    log.seek(SAVED * 8 * 4)
    log.write(b"\xff" * (LAST - SAVED) * 8 * 4)  # the rows to come are to be drawn anew
  results = launcher.finish(launcher.start(1, folder, "everything", LAST, devices=4), folder)
  assert results == [{"stopped": "finished", "step": LAST, "devices": 4}]
  assert_same_run(folder, whole_runs[1])


def test_sigterm_to_one_stops_all_processes_at_one_step(launcher, tmp_path):
  processes = launcher.start(2, tmp_path, "static", 10**6)
  deadline = time.monotonic() + TIMEOUT
  while not (tmp_path / "checkpoints/7").exists():
    assert time.monotonic() < deadline
    assert [process.poll() for process in processes] == [None, None], (
      tmp_path / "err0"
    ).read_text()[-4000:]
    time.sleep(0.2)
  # While the save is being completed, to the process that does not write.
  processes[1].send_signal(signal.SIGTERM)
  first, second = launcher.finish(processes, tmp_path)
  assert first["stopped"] == "SIGTERM"
  assert first == second
  assert (tmp_path / "checkpoints" / str(first["step"])).is_dir()
  assert len(metrics.read_example_ids(tmp_path)) == first["step"]
