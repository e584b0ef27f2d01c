"""Whole recipes, as launched: killed or stopped in the middle and launched again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jdc import metrics
from jdc.train import pretrained

ROOT = Path(__file__).parents[2]
SMALL = {
  "num_steps": 40,
  "sequence_length": 32,
  "model.width": 16,
  "model.num_layers": 1,
  "model.mlp_width": 32,
  "evaluation.max_rows": 8,
  "checkpoint.every_steps": 8,
  "logging.every_steps": 4,
  "logging.tensorboard": False,
}


@pytest.fixture(scope="module")
def folder_of_domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
  rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("domains")
  for k, name in enumerate(("fruit", "noise")):
    words = [f"{name}{i}" for i in range(5 * 20**k)]
    texts = [" ".join(rng.choice(words, 20)) for _ in range(60)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / f"{name}.jsonl").write_text(lines)
  return folder


@pytest.fixture(scope="module")
def start(
  tmp_path_factory: pytest.TempPathFactory, folder_of_domains: Path
) -> Callable[..., subprocess.Popen]:
  """Returns `start(recipe, stages, workdir, *flags)`, which launches a recipe."""
  environment = os.environ | {
    "JDC_CACHE": str(tmp_path_factory.mktemp("cache")),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1",
  }

  def start(
    recipe: str, stages: tuple[str, ...], workdir: Path, *flags: str
  ) -> subprocess.Popen:
    config = ROOT / "configs" / f"{recipe}.py"
    given = [f"--{stage}={config}:{stage},tiny" for stage in stages]
    given += [f"--{stage}.{name}={value}" for stage in stages for name, value in SMALL.items()]
    with workdir.with_suffix(".log").open("a") as output:
      return subprocess.Popen(
        [sys.executable, ROOT / "launch" / f"{recipe}.py", f"--workdir={workdir}",
         f"--data={folder_of_domains}", *given, *flags],
        env=environment, stdout=output, stderr=subprocess.STDOUT,
      )  # fmt: skip

  return start


def finish(process: subprocess.Popen, workdir: Path) -> str:
  status, output = process.wait(timeout=300), workdir.with_suffix(".log").read_text()
  assert status == 0, output
  return output


def wait_for_checkpoint(run: Path, process: subprocess.Popen) -> None:
  deadline = time.monotonic() + 200
  while not any((run / "checkpoints").glob("[0-9]")):
    assert process.poll() is None, "the recipe ended before it was interrupted"
    assert time.monotonic() < deadline
    time.sleep(0.001)


@pytest.mark.slow
def test_doremi_killed_in_its_proxy_ends_as_if_nothing_had_happened(start, tmp_path):
  stages = ("reference", "proxy", "target")
  workdir, whole = tmp_path / "run", tmp_path / "whole"
  process = start("doremi", stages, workdir)
  wait_for_checkpoint(workdir / "proxy", process)
  process.kill()
  assert process.wait() == -signal.SIGKILL
  assert not (workdir / "domain_weights.json").exists()
  output = finish(start("doremi", stages, workdir), workdir)
  assert output.count("continuing from step") == 2  # the reference's last, and the proxy's
  finish(start("doremi", stages, whole), whole)
  weights = json.loads((workdir / "domain_weights.json").read_text())
  assert weights == json.loads((whole / "domain_weights.json").read_text())
  assert sum(weights.values()) == pytest.approx(1)
  for stage in stages:
    left, right = workdir / stage, whole / stage
    assert pretrained.reference(left).fingerprint == pretrained.reference(right).fingerprint
    for file in ("metrics.jsonl", "example_ids.i32"):
      assert (left / file).read_bytes() == (right / file).read_bytes(), (stage, file)
  assert metrics.read_metrics(workdir / "target")[-1]["step"] == SMALL["num_steps"]


@pytest.mark.slow
def test_regmix_stopped_among_its_proxies_trains_only_the_rest(start, tmp_path):
  workdir, arguments = tmp_path / "run", ("regmix", ("proxy", "target"), tmp_path / "run")
  flags = ("--search.num_proxies=3", "--search.num_simulated=2000")
  process = start(*arguments, *flags)
  wait_for_checkpoint(workdir / "proxies/0001", process)
  process.terminate()
  output = finish(process, workdir)
  assert output.endswith("stopped: SIGTERM; the same command continues\n")
  assert not (workdir / "target").exists()
  first = (workdir / "proxies/0000/timing.jsonl").stat()
  finish(start(*arguments, *flags), workdir)
  output = finish(start(*arguments, *flags), workdir)  # there is nothing left to do
  assert (workdir / "proxies/0000/timing.jsonl").stat() == first
  assert output.count("proxy 0000, 1 of 3") == 1
  assert output.count("proxy 0001, 2 of 3") == 2
  assert output.count("proxy 0002, 3 of 3") == 1
  runs = json.loads((workdir / "proxies.json").read_text())["runs"]
  for name, run in runs.items():
    lines = metrics.read_metrics(workdir / "proxies" / name)
    assert [key for key in lines[-1] if "validation" in key] == []
    for domain in ("fruit", "noise"):
      assert lines[-1][f"target/{domain}/loss"] == run["after"][domain]
      assert lines[0][f"target/{domain}/loss"] == run["before"][domain]
  found = json.loads((workdir / "regmix.json").read_text())
  assert found["losses"] == [
    float(np.mean(list(run["after"].values()))) for run in runs.values()
  ]
  asked = metrics.read_metrics(workdir / "target")[-1]
  for name, share in found["mixture"].items():
    assert asked[f"data/domain/{name}/share_asked"] == pytest.approx(share, abs=1e-6)
  assert "validation/macro_loss" in asked
