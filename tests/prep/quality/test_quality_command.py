"""Tests of launch/quality.py, as it is called: what it makes, shows and refuses."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jdc.prep.quality import classifier

ROOT = Path(__file__).parents[3]
GOOD, OTHER = ["fig", "plum", "pear"], ["bolt", "cog", "gear"]


# All commands in one process: most of the time goes into imports.
DRIVER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import quality
from absl import app, flags
for arguments in json.loads(sys.argv[2]):
  flags.FLAGS.unparse_flags()
  try:
    status = quality.main(flags.FLAGS(["quality", *arguments]))
  except app.UsageError as error:
    status = str(error)
  finally:
    [flags.FLAGS[name].unparse() for name in ("positive", "negative", "labels", "output")]
  print(end=f"\\0{status}\\0", flush=True)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Sides that are told apart, labels that are, and labels by chance."""
  folder, rng = tmp_path_factory.mktemp("quality"), random.Random(0)
  sides = {
    name: [f"{' '.join(rng.choices(words, k=8))} {n}" for n in range(200)]
    for name, words in (("good", GOOD), ("other", OTHER))
  }
  labels = [(text, 4) for text in sides["good"]] + [(text, 1) for text in sides["other"]]
  chance = [(text, rng.choice([1, 4])) for text, _ in labels]
  files = {"labels": labels, "chance": chance} | {
    name: [(text, None) for text in texts] for name, texts in sides.items()
  }
  for name, rows in files.items():
    lines = [json.dumps({"text": text, "score": score}) for text, score in rows]
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
  return folder


def test_commands(root):
  """What is made is shown; labels by chance are told of; what is wrong makes no file."""
  few = "--buckets=4096"
  calls = [
    ["fit", "--positive=g*.jsonl", "--negative=other.jsonl", "--output=a.safetensors", few],
    ["show", "a.safetensors"],
    ["fit", "--labels=labels.jsonl", "--output=a.safetensors"],
    ["fit", "--labels=chance.jsonl", "--output=c.safetensors", few],
    ["fit", "--labels=good.jsonl", "--output=d.safetensors"],
    ["shwo", "a.safetensors"],
  ]
  done = subprocess.run(
    [sys.executable, "-c", DRIVER, str(ROOT / "launch"), json.dumps(calls)],
    cwd=root, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  parts = done.stdout.split("\0")
  made, shown, _, chance, *nothing = parts[::2]
  assert parts[1::2] == [
    "0", "0", "--output=a.safetensors exists already", "0", "2",
    "unknown command 'shwo', did you mean 'show'? known: fit, show",
  ]  # fmt: skip
  assert made == f"{shown}classifier: a.safetensors\n"
  assert "200 positive, 200 negative" in made
  assert "AUC 1.0000" in made
  assert "warning" not in made
  p = classifier.load(root / "a.safetensors").score(pa.array(["fig pear", "cog bolt"]))
  assert np.round(p).tolist() == [1, 0]
  assert "no better than by chance" in chance
  assert "agreement with labels" in chance
  assert "".join(nothing) == ""
  assert "field 'score' is no number in 200 records" in done.stderr
  found = sorted(path.name for path in root.glob("*.safetensors"))
  assert found == ["a.safetensors", "c.safetensors"]
