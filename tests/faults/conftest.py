"""Real runs of `launch/train.py` in processes of their own, small enough to be killed often."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SMALL = {
  "num_steps": 60,
  "sequence_length": 32,
  "model.width": 16,
  "model.num_layers": 1,
  "model.num_heads": 2,
  "model.mlp_width": 32,
  "evaluation.max_rows": 8,
  "checkpoint.every_steps": 3,
  "logging.every_steps": 2,
}


@pytest.fixture(scope="session")
def folder_of_domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
  rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("domains")
  for k, name in enumerate(("fruit", "metal", "noise")):
    words = [f"{name}{i}" for i in range(5 * 10**k)]
    texts = [" ".join(rng.choice(words, 20)) for _ in range(60 // (k + 1))]
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
  return folder


@pytest.fixture(scope="session")
def target_folder(tmp_path_factory: pytest.TempPathFactory, instruct_folder: Path) -> Path:
  """The first records of one of the domains, as the examples of a task."""
  folder = tmp_path_factory.mktemp("targets")
  records = (instruct_folder / "copy.jsonl").read_text().splitlines(keepends=True)
  (folder / "copy.jsonl").write_text("".join(records[:6]))
  return folder


@pytest.fixture(scope="session")
def start(
  pytestconfig: pytest.Config,
  tmp_path_factory: pytest.TempPathFactory,
  folder_of_domains: Path,
  base_folder: Path,
  instruct_folder: Path,
  target_folder: Path,
) -> Callable[..., subprocess.Popen]:
  """Returns `start(config, workdir, **fields)`, which starts a run; dots in fields are `__`."""
  compiled = pytestconfig.cache.mkdir("xla")
  environment = os.environ | {
    "JDC_CACHE": str(tmp_path_factory.mktemp("cache")),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
    "PYTHONPATH": str(ROOT),
  }

  def start(config: str, workdir: Path, **fields: object) -> subprocess.Popen:
    values = SMALL | {"data": folder_of_domains}
    if config.startswith(("finetune", "select")):
      values = {name: x for name, x in SMALL.items() if not name.startswith("model.")}
      values |= {"data": instruct_folder, "weights.folder": base_folder}
    if config.startswith("select"):
      values["target.folder"] = target_folder
    values |= {name.replace("__", "."): value for name, value in fields.items()}
    flags = [f"--config.{name}={value}" for name, value in values.items()]
    workdir.parent.mkdir(parents=True, exist_ok=True)
    output = (workdir.parent / f"{workdir.name}.log").open("a")
    with output:
      return subprocess.Popen(
        [sys.executable, ROOT / "launch/train.py", f"--config={ROOT}/configs/{config}",
         f"--workdir={workdir}", f"--compilation_cache={compiled}", *flags],
        env=environment, stdout=output, stderr=subprocess.STDOUT,
      )  # fmt: skip

  return start


@pytest.fixture(scope="session")
def run(start: Callable[..., subprocess.Popen]) -> Callable[..., tuple[int, str]]:
  """Returns `run(config, workdir, **fields)`, which runs to the end: exit status and output."""

  def run(config: str, workdir: Path, **fields: object) -> tuple[int, str]:
    process = start(config, workdir, **fields)
    status = process.wait(timeout=300)
    return status, (workdir.parent / f"{workdir.name}.log").read_text()

  return run
