"""The loop spends its budget, keeps what the held-out set prefers, and cannot read that set."""

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")
pytest.importorskip("numba")  # of the extra `prep`

from jdc import metrics, policies
from jdc.models.configs import DecoderConfig
from jdc.policies import mixture
from jdc.prep.spec import PlanSpec
from jdc.recipes import data_loop, held_out_losses
from jdc.recipes.data_loop import Settings
from jdc.train import config as c

WORDS = ["apple", "pear", "plum", "iron", "copper", "silver", "river", "meadow", "window"]
PLAN = """
jdc_pipeline = 1

[input.paths]
good = ["raw/good.jsonl"]
bad = ["raw/bad.jsonl"]

[[step]]
op = "exact_dedup"

[output]
format = "tokens"
tokens = { tokenizer = "bytes", seq_len = 64, format = "parquet", validation_fraction = 0.1 }
"""
STEPS = 60
LAUNCH = Path(__file__).parents[2] / "launch"


def write(path: Path, texts: list[str]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
  folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(0)
  good = [" ".join(rng.choices(WORDS, k=30)) for _ in range(110)]
  bad = ["".join(rng.choices("qxzjkvwy ", k=180)) for _ in range(80)]
  write(folder / "raw" / "good.jsonl", good[:80])
  write(folder / "raw" / "bad.jsonl", bad)
  write(folder / "target" / "good.jsonl", good[80:95])
  write(folder / "held_out" / "good.jsonl", good[95:])
  (folder / "pipeline.toml").write_text(PLAN)
  return folder


@pytest.fixture(scope="module")
def config(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> c.TrainConfig:
  return c.TrainConfig(
    batch_size=8,
    sequence_length=64,
    corpus=c.CorpusConfig(cache_dir=str(tmp_path_factory.mktemp("cache"))),
    model=DecoderConfig(
      vocab_size=258, width=16, num_layers=1, num_heads=2, num_kv_heads=2, mlp_width=32
    ),
    optimizer=c.OptimizerConfig(learning_rate=1e-2, warmup_steps=3),
    mixture=c.policy(
      policies.observing, fields=("target_alignment",), policy=c.policy(mixture.by_size)
    ),
    target=c.TargetConfig(folder=str(corpus / "target"), rows=16, alignment="linear_maps"),
    evaluation=c.EvaluationConfig(max_rows=8),
    logging=c.LoggingConfig(every_steps=10, tensorboard=False),
  )


SETTINGS = Settings(tokens=STEPS * 8 * 64, rounds=1, first=0.4, trial=0.15)


@pytest.fixture(scope="module")
def ended(corpus, config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("loop")
  found = data_loop.run(
    SETTINGS, corpus / "pipeline.toml", config, corpus / "held_out", workdir
  )
  return workdir, found


def test_all_runs_together_spend_the_budget(ended):
  workdir, found = ended
  assert found.rounds[0]["kept"] is not None
  steps = {
    path.parent.name: len(metrics.read_example_ids(path.parent))
    for path in workdir.glob("runs/*/example_ids.i32")
  }
  assert steps == {"first": 24, "round-1-old": 9, "round-1-new": 9, "last": 18}
  assert sum(steps.values()) == STEPS


def test_the_arm_that_the_held_out_set_prefers_goes_on(ended):
  workdir, found = ended
  (told,) = found.rounds
  arms = {
    name: held_out_losses.from_json(
      json.loads((workdir / f"runs/round-1-{name}/held_out.json").read_text())["losses"]
    )
    for name in ("old", "new")
  }
  # By hand, from the losses of single texts.
  bits = {
    name: losses.nats.sum() / losses.num_bytes.sum() / np.log(2)
    for name, losses in arms.items()
  }
  difference = told["difference"]
  assert difference["difference"] == pytest.approx(bits["new"] - bits["old"])
  assert difference["low"] < difference["difference"] < difference["high"]
  assert told["kept"] == (difference["high"] < 0)
  expected = workdir / ("data-1.toml" if told["kept"] else "data-0.toml")
  assert found.plan == expected
  report = json.loads((workdir / told["proposal"]).read_text())
  assert report["domains"]["bad"]["factor"] < report["domains"]["good"]["factor"]


def test_ended_stages_are_not_done_again(corpus, config, ended):
  workdir, found = ended
  watched = [*workdir.rglob("metrics.jsonl"), *workdir.rglob("manifest.json")]
  before = {path: path.stat().st_mtime_ns for path in watched}
  (workdir / "loop.json").unlink()
  (workdir / "runs/last/held_out.json").unlink()
  again = data_loop.run(
    SETTINGS, corpus / "pipeline.toml", config, corpus / "held_out", workdir
  )
  assert again == found
  assert {path: path.stat().st_mtime_ns for path in watched} == before
  assert (workdir / "loop.json").exists()


def test_the_command_proposes_the_same_next_version(ended):
  workdir, _ = ended
  command = [
    sys.executable, str(LAUNCH / "prep.py"), "feedback", f"--run={workdir}/runs/first",
    f"--pipeline={workdir}/data-0.toml", f"--output={workdir}/again.toml",
  ]  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert f"next plan: {workdir}/again.toml" in done.stdout
  made, again = (PlanSpec.read(workdir / f"{name}.toml") for name in ("data-1", "again"))
  assert [step.op for step in again.step] == [step.op for step in made.step]
  assert again.provenance == made.provenance


def test_a_workdir_of_other_settings_is_refused(corpus, config, ended):
  workdir, _ = ended
  with pytest.raises(ValueError, match="another loop, choose another workdir: config differ"):
    data_loop.run(
      SETTINGS, corpus / "pipeline.toml", dataclasses.replace(config, seed=1),
      corpus / "held_out", workdir,
    )  # fmt: skip


def test_neither_side_may_read_the_held_out_set(corpus, config, tmp_path):
  plan = (corpus / "pipeline.toml").read_text()
  for number, (changed, fields, message) in enumerate(
    [
      (plan.replace("raw/bad.jsonl", "held_out/good.jsonl"), {}, "input.paths="),
      (
        plan,
        {"target": c.TargetConfig(folder=str(corpus / "held_out"), rows=16)},
        "target.folder=",
      ),
    ]
  ):
    path = corpus / f"other-{number}.toml"
    path.write_text(changed)
    with pytest.raises(ValueError, match=f"is held out: {message}"):
      data_loop.run(
        SETTINGS, path, dataclasses.replace(config, **fields), corpus / "held_out",
        tmp_path / str(number),
      )  # fmt: skip
    assert not (tmp_path / str(number)).exists()
  text = json.loads((corpus / "held_out/good.jsonl").read_text().splitlines()[0])["text"]
  write(corpus / "raw" / "copied.jsonl", [text.upper(), "something else, of no account"])
  path = corpus / "other.toml"
  path.write_text(plan.replace("raw/bad.jsonl", "raw/copied.jsonl"))
  with pytest.raises(ValueError, match=r"texts of the held-out set.*copied.jsonl@0"):
    data_loop.run(SETTINGS, path, config, corpus / "held_out", tmp_path / "copied")


def test_a_target_set_with_copies_of_held_out_texts_is_refused(corpus, config, tmp_path):
  texts = [
    json.loads(line)["text"]
    for folder in ("target", "held_out")
    for line in (corpus / folder / "good.jsonl").read_text().splitlines()
  ]
  write(tmp_path / "target" / "good.jsonl", [text.upper() + "!" for text in texts[:17]])
  copied = dataclasses.replace(config.target, folder=str(tmp_path / "target"))
  with pytest.raises(
    ValueError, match=r"target.folder=.*: 2 texts of the held-out set, in .*16"
  ):
    data_loop.run(
      SETTINGS, corpus / "pipeline.toml", dataclasses.replace(config, target=copied),
      corpus / "held_out", tmp_path / "loop",
    )  # fmt: skip
  assert not (tmp_path / "loop").exists()


def test_settings_that_leave_nothing_to_the_end_are_refused():
  with pytest.raises(ValueError, match=r"must be below 1, got 1\.05"):
    Settings(tokens=10**6, rounds=4, first=0.25, trial=0.1)
  with pytest.raises(ValueError, match=r"trial must be in \(0, 1\)"):
    Settings(tokens=10**6, trial=0.0)


def test_a_comparison_finds_a_difference_and_its_uncertainty():
  rng = np.random.default_rng(0)
  num_bytes = rng.integers(100, 1000, 200)
  domain = np.repeat(["a", "b"], 100)
  base = held_out_losses.Losses(num_bytes * rng.normal(1.5, 0.2, 200), num_bytes, domain)
  noise = num_bytes * rng.normal(-0.05, 0.1, 200)
  other = base._replace(nats=base.nats + noise)
  found = held_out_losses.compare(other, base)
  assert found.difference == pytest.approx(other.macro() - base.macro())
  # The standard error of a ratio of means, by the delta method, of each domain.
  errors = []
  for name in ("a", "b"):
    of = domain == name
    mean = noise[of].sum() / num_bytes[of].sum()
    deviation = noise[of] - mean * num_bytes[of]
    errors.append(np.sqrt((deviation**2).sum()) / num_bytes[of].sum() / np.log(2))
  error = np.sqrt(np.sum(np.square(errors))) / 2
  assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
  assert found.high < 0
