"""The corpus on which the loop is tried, and the loop's command on it."""

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("numba")  # of the extra `prep`

ROOT = Path(__file__).parent.parent
WORDS = ["apple", "pear", "plum", "iron", "copper", "silver", "river", "meadow", "window"]
PLAN = """
jdc_pipeline = 1

[input.paths]
web = ["raw/web.jsonl.gz"]
scrambled = ["raw/scrambled.jsonl.gz"]

[[step]]
op = "exact_dedup"

[output]
format = "tokens"
tokens = { tokenizer = "bytes", seq_len = 64, format = "parquet", validation_fraction = 0.1 }
"""


def run(*command: str, folder: Path, status: int = 0) -> str:
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
  done = subprocess.run(
    [sys.executable, *command],
    cwd=ROOT,
    env=os.environ | {"JDC_CACHE": str(folder / "cache"), "XLA_FLAGS": flags},
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  assert done.returncode == status, done.stderr
  return done.stderr if status else done.stdout


def read(path: Path) -> list[str]:
  lines = gzip.decompress(path.read_bytes()).decode().splitlines()
  return [json.loads(line)["text"] for line in lines]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """What the script makes of a domain, twice, and of the same without anything planted."""
  folder, rng = tmp_path_factory.mktemp("loop"), random.Random(0)
  for split, count in (("train", 160), ("val", 40)):
    texts = [" ".join(rng.choices(WORDS, k=30)) for _ in range(count)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / f"web.{split}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
  sizes = ("texts=60", "scrambled=80", "originals=2", "copies=5", "held_out=12", "test=12")
  flags = [f"--data={folder}", "--domains=web", *(f"--{size}" for size in sizes)]
  script = "launch/loop_corpus.py"
  for name, more in {"made": [], "again": [], "clean": ["--clean"]}.items():
    run(script, *flags, f"--output={folder / name}", *more, folder=folder)
  (folder / "made" / "pipeline.toml").write_text(PLAN)
  return folder


def test_the_corpus_has_what_was_planted_and_nothing_twice(corpus):
  made, clean = corpus / "made", corpus / "clean"
  original = {text.rsplit(" ", 1)[0] for text in read(corpus / "web.train.jsonl.gz")}
  web, scrambled = (read(made / "raw" / f"{name}.jsonl.gz") for name in ("web", "scrambled"))
  assert len(web) == 60 + 2 * 5 + 2 * 5
  counts = sorted((web.count(text) for text in set(web) & original), reverse=True)
  assert counts[:2] == [5, 5]
  thinned = set(web) - original
  assert 2 < len(thinned) <= 10
  assert len(scrambled) == 80
  assert not original & set(scrambled)
  letters = {"".join(sorted(text)) for text in original}
  assert all("".join(sorted(text)) in letters for text in scrambled)
  assert [path.name for path in sorted((clean / "raw").iterdir())] == ["web.jsonl.gz"]
  held = [set(read(made / split / "web.jsonl.gz")) for split in ("held_out", "test", "target")]
  assert [len(texts) for texts in held] == [12, 12, 16]
  assert not held[0] & held[1] | held[0] & held[2] | held[1] & held[2]
  for path in sorted(made.rglob("*.gz")):
    again = corpus / "again" / path.relative_to(made)
    assert path.read_bytes() == again.read_bytes()


@pytest.mark.slow
def test_the_loop_runs_from_its_config(corpus):
  made = corpus / "made"
  out = run(
    "launch/loop.py", f"--plan={made}/pipeline.toml", "--config=configs/loop.py:tiny",
    f"--config.target.folder={made}/target", f"--held_out={made}/held_out",
    f"--tokens={100 * 8 * 64}", "--rounds=1", "--first=0.4", f"--workdir={corpus}/run",
    folder=corpus,
  )  # fmt: skip
  value = json.loads((corpus / "run" / "loop.json").read_text())
  assert f"held out: {value['held_out']['macro']:.4f} bits per byte" in out
  (told,) = value["rounds"]
  assert "round 1: " in out
  assert (told["kept"] is None) == ("nothing to change" in out)
  report = json.loads((corpus / "run" / "data-1.report.json").read_text())
  domains = report["domains"]
  assert domains["scrambled"]["influence"] < domains["web"]["influence"]


def test_a_mistake_is_told_in_a_line(corpus):
  made = corpus / "made"
  told = run(
    "launch/loop.py", f"--plan={made}/pipeline.toml", "--config=configs/loop.py:tiny",
    f"--config.target.folder={made}/target", f"--held_out={made}/held_out", "--tokens=100",
    f"--workdir={corpus}/few", folder=corpus, status=2,
  )  # fmt: skip
  assert told.splitlines()[-1].startswith("ValueError: tokens=100 are too few")
  assert "Traceback" not in told


def test_advice_comes_from_proxies_that_were_trained_and_is_followed(corpus):
  made, advised = corpus / "made", corpus / "advice"
  plan = made / "with_target.toml"
  plan.write_text(PLAN.replace("seq_len = 64", "seq_len = 64, target_fraction = 0.1"))
  run("launch/prep.py", "run", str(plan), f"--output={corpus}/shards", folder=corpus)
  profile = f"{corpus}/profile.json"
  raw = str(made / "raw" / "web.jsonl.gz")
  run("launch/prep.py", "profile", raw, f"--output={profile}", folder=corpus)
  data = f"{corpus}/shards/data"
  parts = [f"--{part}=configs/regmix.py:{part},tiny" for part in ("search", "proxy", "target")]
  command = (
    "launch/advise.py", f"--data={data}", f"--profile={profile}", f"--workdir={advised}",
    *parts, "--search.num_proxies=4", "--proxy.num_steps=5", "--resamples=20",
  )  # fmt: skip
  out = run(*command, folder=corpus)
  found = json.loads((advised / "advice.json").read_text())
  assert found["proportions"].keys() == {"scrambled", "web"}
  assert abs(sum(found["proportions"].values()) - 1) < 1e-6
  assert len(list((advised / "proxies").iterdir())) == 4
  losses = json.loads((advised / "regmix.json").read_text())["losses"]
  assert len(set(losses)) == 4  # of real runs, on four mixtures
  flags = (advised / "advice.flags").read_text().split()
  assert all(flag in out for flag in flags)
  before = {path: path.stat().st_mtime_ns for path in (advised / "proxies").rglob("*")}
  assert run(*command, folder=corpus) == out
  assert {path: path.stat().st_mtime_ns for path in (advised / "proxies").rglob("*")} == before
  run(
    "launch/train.py", "--config=configs/regmix.py:target,tiny", f"--config.data={data}",
    "--config.num_steps=3", "--config.optimizer.warmup_steps=1", *flags,
    f"--workdir={corpus}/followed", folder=corpus,
  )  # fmt: skip
  assert (corpus / "followed" / "metrics.jsonl").exists()
