"""Every config trains in its tiny form, through the launch script, as its docstring says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jdc import metrics

ROOT = Path(__file__).parent.parent
RUNS = {
  "quickstart": ("quickstart.py:tiny", []),
  "pretrain_mixture": (
    "pretrain_mixture.py:tiny,mixture=odm",
    ["--config.mixture.smoothing=0.5"],
  ),
  "pretrain_all_slots": (
    "pretrain_mixture.py:tiny,mixture=by_size,selection=loss,ordering=sorting",
    ["--config.mixture.temperature=2.0"],
  ),
  "three_in_one": ("three_in_one.py:tiny", []),
  "curriculum": ("curriculum.py:tiny", []),
  "curriculum_infobatch": ("curriculum.py:tiny,selection=infobatch,ordering=folding", []),
  "curriculum_alone": ("curriculum.py:tiny,selection=none,ordering=none", []),
  "finetune_lora": ("finetune_lora.py:tiny", []),
  "finetune_lora_alone": ("finetune_lora.py:tiny,policy=none", []),
  "finetune_full": ("finetune_full.py:tiny", ["--config.corpus.template=tokenizer"]),
  "select_less": ("select_less.py:tiny,composed", []),
  "select_tsds": ("select_tsds.py:tiny", []),
  "select_nice": ("select_nice.py:tiny", []),
  "select_coincide": ("select_coincide.py:tiny", []),
  "select_el2n": ("select_el2n.py:tiny", []),
  "select_grand": ("select_el2n.py:tiny,policy=grand", []),
  "select_greats": ("select_greats.py:tiny", []),
  "mixture_of_experts": ("mixture_of_experts.py:tiny", []),
  # The other stages of recipes are launched in tests/recipes, one after the other.
  "doremi_reference": ("doremi.py:reference,tiny", []),
  "regmix_proxy": ("regmix.py:proxy,tiny", ["--config.mixture.proportions=(0.3,0.7)"]),
}
WITHOUT_TARGET = {"select_coincide", "select_el2n", "select_grand"}
# By tests/test_compare.py and tests/test_loop_command.py.
LAUNCHED_ELSEWHERE = {"comparison", "loop"}


def write_domains(folder: Path) -> Path:
  rng = np.random.default_rng(0)
  for name, letters in (("few", "abc "), ("many", "abcdefghijklmnopqrstuvwxyz ")):
    texts = ["".join(rng.choice(list(letters), 200)) for _ in range(60)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / f"{name}.jsonl").write_text(lines)
  return folder


def write_task(instruct_folder: Path, folder: Path) -> Path:
  """Records of one of the domains, as a target set."""
  tasks = folder / "tasks"
  tasks.mkdir()
  source = sorted(path for path in instruct_folder.iterdir() if path.suffix == ".jsonl")[0]
  lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
  (tasks / source.name).write_text("".join(lines[:8]), encoding="utf-8")
  return tasks


def test_every_config_is_run():
  configs = {path.stem for path in (ROOT / "configs").glob("*.py")}
  run = {file.partition(".")[0] for file, _ in RUNS.values()}
  assert configs == run | LAUNCHED_ELSEWHERE


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_config_trains_in_its_tiny_form(name, tmp_path, base_folder, instruct_folder):
  config, arguments = RUNS[name]
  if name.startswith(("finetune", "select")):
    folders = [f"--config.weights.folder={base_folder}", f"--config.data={instruct_folder}"]
    arguments = [*arguments, *folders]
    if name.startswith("select") and name not in WITHOUT_TARGET:
      arguments.append(f"--config.target.folder={write_task(instruct_folder, tmp_path)}")
  elif name != "quickstart":
    folder = tmp_path / "domains"
    folder.mkdir()
    arguments = [*arguments, f"--config.data={write_domains(folder)}"]
  # The quickstart is compiled as for users, the rest in less time.
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
  flags = "" if name == "quickstart" else flags
  workdir = tmp_path / "run"
  command = [sys.executable, "launch/train.py", f"--config=configs/{config}", *arguments]
  done = subprocess.run(
    [*command, f"--workdir={os.path.relpath(workdir, ROOT)}"],  # as in the README
    cwd=ROOT,
    env=os.environ | {"JDC_CACHE": str(tmp_path / "cache"), "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert "finished" in done.stdout
  assert (workdir / "shares_and_losses.png").stat().st_size > 10_000
  lines = metrics.read_metrics(workdir)
  split = "target" if name == "regmix_proxy" else "validation"
  before, after = lines[0][f"{split}/macro_loss"], lines[-1][f"{split}/macro_loss"]
  assert after < before - 0.3
  seen = [value for key, value in lines[-1].items() if key.endswith("/share_seen")]
  assert sum(seen) == pytest.approx(1)
