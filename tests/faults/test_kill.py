"""Runs that are killed at any moment and started again end as if nothing had happened."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

NUM_STEPS = 60
CONFIGS = {
  # Rounds of 5 steps, checkpoints every 3: most lie in the middle of a round.
  "three policies": ("three_in_one.py:tiny", {"plan__sweep_rows": 24}),
  # Packed records, dropout, and frozen parameters that no checkpoint holds.
  "adapters": ("finetune_lora.py:tiny", {"plan__sweep_rows": 24, "sequence_length": 64}),
  # LESS, ODM and loss reweighting at once; each round sweeps the whole pool.
  "influence": (
    "select_less.py:tiny,composed",
    {"target__every_steps": 30, "plan__steps_per_round": 12, "sequence_length": 64},
  ),
}
EXAMPLES = {"adapters": 8 * 16}  # of a step, where they are not 8


def committed(workdir: Path) -> list[int]:
  return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit())


def wait_until(condition, process: subprocess.Popen) -> bool:
  """Waits for the condition; returns whether the process lived to see it."""
  deadline = time.monotonic() + 200
  while process.poll() is None:
    if condition():
      return True
    if time.monotonic() > deadline:
      process.kill()
      raise TimeoutError
    time.sleep(0.001)
  return False


def progressed(workdir: Path, since: list[int]):
  return lambda: any(step not in since for step in committed(workdir))


def saving(workdir: Path, since: list[int]):
  """True while a checkpoint is being written, once another one was finished."""
  has_progressed = progressed(workdir, since)
  return lambda: (
    has_progressed() and any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
  )


def sweeping(workdir: Path, since: list[int]):
  """True while a sweep goes on, once a checkpoint was finished."""
  has_progressed = progressed(workdir, since)
  chunks = lambda: any(path.stat().st_size for path in workdir.glob("sweeps/*/*.journal"))
  return lambda: has_progressed() and chunks()


def final(workdir: Path) -> tuple[int, dict[str, np.ndarray], dict[str, Any]]:
  """Returns the last step, its arrays by path, and what else its checkpoint says."""
  step = committed(workdir)[-1]
  folder = workdir / "checkpoints" / str(step)
  metadata = json.loads((folder / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
    dict(ocp.checkpointables_metadata(folder).metadata),
  )
  loaded = ocp.load_checkpointables(folder, abstract)
  arrays = {
    jax.tree_util.keystr(path): np.asarray(_without_keys(x))
    for path, x in jax.tree_util.tree_leaves_with_path(loaded)
  }
  return step, arrays, json.loads(metadata["payload"])


def _without_keys(x: Any) -> Any:
  return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x


def assert_same_run(left: Path, right: Path) -> None:
  for file in ("metrics.jsonl", "example_ids.i32"):
    assert (left / file).read_bytes() == (right / file).read_bytes(), file
  (step, arrays, said), (other_step, other_arrays, other_said) = final(left), final(right)
  assert step == other_step
  assert said == other_said
  assert arrays.keys() == other_arrays.keys()
  assert any("opt_state" in path for path in arrays)
  assert any("policies" in path for path in arrays)
  for path, x in arrays.items():
    assert x.dtype == other_arrays[path].dtype, path
    assert x.tobytes() == other_arrays[path].tobytes(), path


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_interruptions_change_nothing(name, start, run, tmp_path):
  config, fields = CONFIGS[name]
  status, output = run(config, tmp_path / "whole", **fields)
  assert status == 0, output
  workdir, rng, kills = tmp_path / "run", random.Random(name), 0
  last = sweeping if name == "influence" else saving
  for moment in (saving, progressed, last):
    process = start(config, workdir, **fields)
    if wait_until(moment(workdir, committed(workdir)), process):
      time.sleep(rng.random() * 0.03)  # anywhere in the save, or in the steps after it
    process.kill()
    kills += process.wait() == -signal.SIGKILL
  assert kills == 3  # each before the run had finished
  stopped_at = stop(start(config, workdir, **fields), workdir, EXAMPLES.get(name, 8))
  status, output = run(config, workdir, **fields)
  assert status == 0, output
  assert f"continuing from step {stopped_at}\n" in output
  assert_same_run(workdir, tmp_path / "whole")


def stop(process: subprocess.Popen, workdir: Path, num_examples: int) -> int:
  """Sends SIGTERM after a few steps; returns the step whose checkpoint the run leaves."""
  assert wait_until(progressed(workdir, committed(workdir)), process)
  process.terminate()
  assert process.wait(timeout=100) == 0
  output = (workdir.parent / f"{workdir.name}.log").read_text()
  assert "stopped: SIGTERM" in output
  step = committed(workdir)[-1]
  assert f"checkpoint: {workdir}/checkpoints/{step}\n" in output
  assert step < NUM_STEPS
  # Nothing was trained beyond it.
  assert len(np.fromfile(workdir / "example_ids.i32", "<i4")) == step * num_examples
  return step
