"""Tests of the command line, and of what an installation without the extra says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLAN = """
jdc_pipeline = 1
goal = "figs"
[input]
paths = ["raw/*.jsonl"]
[[step]]
op = "exact_dedup"
why = "there are some twice"
[[step]]
op = "strip_citations"
[expect]
kept_rate = [0.0, {most}]
"""
# All commands in one process: most of the time goes into imports.
DRIVER = """
import json, sys
sys.path.insert(0, "launch")
import prep
from absl import flags
flags.FLAGS(["prep"])
for arguments, given in json.loads(sys.argv[1]):
  for name, value in given.items():
    setattr(flags.FLAGS, name, value)
  print(">", *arguments)
  print("status", prep.main(["prep", *arguments]), flush=True)
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
  """What each command printed, with its status."""
  folder = tmp_path_factory.mktemp("command")
  (folder / "raw").mkdir()
  lines = [json.dumps({"text": f"{i % 7} figs[1]", "id": i}) for i in range(14)]
  (folder / "raw" / "a.jsonl").write_text("\n".join([*lines, "no JSON"]))
  for name, most in (("good", 0.5), ("bad", 0.1)):
    (folder / f"{name}.toml").write_text(PLAN.replace("{most}", str(most)))
  changed = (
    (folder / "good.toml").read_text().replace('op = "exact', 'normalize = false\nop = "exact')
  )
  (folder / "changed.toml").write_text(changed)
  (folder / "typo.toml").write_text(changed.replace("exact_dedup", "exact_dedupe"))
  out = {"output": str(folder / "out"), "report": False}
  commands = [
    (["run", str(folder / "good.toml")], out),
    (["run", str(folder / "good.toml")], out),
    (["run", str(folder / "bad.toml")], {"output": str(folder / "bad")}),
    (["run", str(folder / "typo.toml")], {"output": str(folder / "typo")}),
    (["diff", str(folder / "good.toml"), str(folder / "changed.toml")], {}),
    (["diff", str(folder / "out"), str(folder / "out")], {}),
    (["explain"], {}),
    (["explain", "exact_dedup"], {}),
    (["explain", str(folder / "good.toml")], {}),
    (["explain", "exact_dedupe"], {}),
    (["profile", str(folder / "raw")], {"output": str(folder / "profile.json")}),
  ]
  done = subprocess.run(
    [sys.executable, "-c", DRIVER, json.dumps(commands)],
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  parts = done.stdout.split("\n> ")
  assert len(parts) == len(commands), done.stdout
  return folder, parts, done.stderr


def test_run_says_where_the_records_went(printed):
  _, parts, _ = printed
  assert "15 records read" in parts[0]
  assert "1  invalid JSON" in parts[0]
  assert "7  exact_dedup" in parts[0]
  assert "7 kept" in parts[0]
  assert parts[0].endswith("status 0")
  assert " 0 were there already" in parts[0]
  assert "\n0 pieces of work done" in parts[1]


def test_run_fails_where_an_expectation_does_not_hold(printed):
  _, parts, errors = printed
  assert parts[2].endswith("status 1")
  assert "expected kept_rate in [0.0, 0.1], got 0.4666" in errors


def test_a_typo_is_explained_before_anything_runs(printed):
  folder, parts, errors = printed
  assert parts[3].endswith("status 2")
  assert "unknown operator 'exact_dedupe', did you mean 'exact_dedup'?" in errors
  assert not (folder / "typo").exists()


def test_diff_and_explain(printed):
  _, parts, _ = printed
  assert "steps.1 exact_dedup.normalize: True -> False" in parts[4]
  assert "no difference" in parts[5]
  assert "minhash_dedup" in parts[6]
  assert "normalize: boolean; default True" in parts[7]
  assert "why: there are some twice" in parts[8]
  assert parts[9].endswith("status 2")


def test_profile_measures_the_input(printed):
  folder, parts, _ = printed
  assert "bad: 1 x invalid JSON, as " in parts[10]
  found = json.loads((folder / "profile.json").read_text())
  assert found["exact_dup_rate"] == 0.5
  assert found["columns"] == {"id": {"null_rate": 0.0, "types": {"int": 14}}}
  assert found["length"]["0.5"] == 9
  assert found["signals"]["n_words"]["1"] == 2


def test_a_run_leaves_a_card_and_its_plan(printed):
  folder, _, _ = printed
  assert (folder / "out" / "README.md").read_text().startswith("---\n")
  assert 'op = "exact_dedup"' in (folder / "out" / "pipeline.toml").read_text()


def test_without_the_extra_it_says_what_to_install():
  script = "import jdc\ntry:\n  import jdc.prep\nexcept ImportError as error:\n  print(error)"
  done = subprocess.run(
    [sys.executable, "-S", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True,
    env={**os.environ, "PYTHONPATH": ""},
  )  # fmt: skip
  assert done.stdout == (
    "numba, orjson, pyarrow, pydantic, zstandard needed here: pip install jdc[prep]\n"
  )
