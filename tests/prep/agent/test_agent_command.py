"""The commands `plan` and `verify`, as they are typed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# All commands in one process: most of the time goes into imports.
DRIVER = """
import json, sys
sys.path.insert(0, "launch")
import prep
from absl import flags
for line in json.loads(sys.argv[1]):
  flags.FLAGS.unparse_flags()
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
  rest = flags.FLAGS(["prep", *line])
  print(">>>", *rest[1:], flush=True)
  try:
    print("status", prep.main(rest), flush=True)
  except Exception as error:
    print(type(error).__name__, error, flush=True)
"""


@pytest.fixture(scope="module")
def printed(raw, tmp_path_factory):
  """What each command printed."""
  folder = tmp_path_factory.mktemp("command")
  data = f"--input={raw / '*.jsonl'}"
  good, bad = folder / "good", folder / "bad"
  wish = "clean English text without duplicates about astronomy"
  lines = [
    ["plan", wish, data, f"--output={good}", "--held=100"],
    ["explain", str(good / "pipeline.toml")],
    ["verify", str(good / "pipeline.toml"), data, "--held=100"],
    ["plan", f"{wish}, keep at least 99 %", data, f"--output={bad}", "--rounds=1"],
    ["plan", "rhymed limericks", data, f"--output={bad}"],
    ["plan", wish],
    ["plan", wish, data, f"--output={bad}", "--planner=magic"],
  ]
  done = subprocess.run(
    [sys.executable, "-c", DRIVER, json.dumps(lines)],
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  parts = done.stdout.split(">>> ")[1:]
  assert len(parts) == len(lines)
  return folder, parts, done.stderr


def test_plan_prints_what_it_does_and_what_it_did_not_understand(printed):
  folder, parts, _ = printed
  assert "status 0" in parts[0], parts[0]
  assert "accepted after 0 repairs" in parts[0]
  assert "holds: near_dup_rate_after" in parts[0]
  assert "not understood: 'astronomy'" in parts[0]
  assert {p.name for p in (folder / "good").iterdir()} == {
    "pipeline.toml", "profile.json", "verification.json", "work",
  }  # fmt: skip


def test_explain_says_why_each_step_is_there(printed):
  _, parts, _ = printed
  assert "why: goal: 'without duplicates'; profile: exact_dup_rate=" in parts[1]
  assert "expects near_dup_rate_after in [None, 0.01]" in parts[1]
  assert "usually stands before" not in parts[1]


def test_verify_tries_the_same_plan_again(printed):
  _, parts, _ = printed
  assert "status 0" in parts[2], parts[2]
  assert "canaries junk_dropped: 100%" in parts[2]


def test_what_cannot_be_is_told_with_a_status(printed):
  folder, parts, errors = printed
  assert "status 1" in parts[3]
  assert "expected kept_rate in [0.99, None]" in errors
  assert (folder / "bad" / "pipeline.toml").exists()
  assert "status 2" in parts[4]
  assert "nothing in it asks for a step; not understood: rhymed, limericks" in errors
  assert "UsageError" in parts[5]
  assert "accepted: rules, llm:MODEL" in errors
