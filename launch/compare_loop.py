"""Does the loop pay? On a dirty and a clean corpus, beside two uses of the same tokens.

  python launch/compare_loop.py --data=DIR --workdir=runs/compare_loop --seeds=0,1,2

DIR is that of `launch/loop_corpus.py`, which makes both corpora in the workdir. With each seed,
the same model is trained on the same number of tokens three times:

- `loop`: `launch/loop.py`, whose arms that are not kept count;
- `unchanged`: one run on the raw files as they are;
- `once`: one run on what the plan makes of them, without feedback.

All are scored on texts that nothing before has read (`test`): bits per byte, the mean over the
good domains. `compare_loop.md` has the table and the differences over pairs of the same seed,
with the seeds' standard error. The same command goes on where it was stopped.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from jdc.prep.feedback.held_out import HeldOut
from jdc.prep.spec import InputSpec, OutputSpec, PlanSpec, step
from jdc.recipes import data_loop, held_out_losses, runs
from jdc.train import config as config_lib
from jdc.train import process
from jdc.train.config import TrainConfig

HERE = Path(__file__).parent
CONFIG = config_flags.DEFINE_config_file(
  "config", str(HERE.parent / "configs" / "loop.py"), help_string="Of all runs."
)
DATA = flags.DEFINE_string("data", None, "Files of good domains.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is kept.", required=True)
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Of the runs.")
TOKENS = flags.DEFINE_integer("tokens", 1_200_000, "Of each way.")
ROUNDS = flags.DEFINE_integer("rounds", 2, "Of the loop, at most.")
TRIAL = flags.DEFINE_float("trial", 0.05, "Share of the tokens of an arm.")
CORPORA, WAYS = ("dirty", "clean"), ("loop", "unchanged", "once")


def main(argv: list[str]) -> None:
  process.log_to_terminal()
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  workdir, config = Path(WORKDIR.value), config_lib.from_config_dict(CONFIG.value)
  folders = {n: make_corpus(workdir / n, clean=n == "clean") for n in CORPORA}
  results = [
    score(way, corpus, seed, folder, config, workdir)
    for seed in map(int, SEEDS.value)
    for corpus, folder in folders.items()
    for way in WAYS
  ]
  text = table(results)
  (workdir / "compare_loop.md").write_text(text, encoding="utf-8")
  runs.write_json(workdir / "compare_loop.json", results)
  print(text)


def make_corpus(folder: Path, *, clean: bool) -> Path:
  """Makes a corpus unless it is there."""
  if not (folder / "test").exists():
    command = [sys.executable, str(HERE / "loop_corpus.py"), f"--data={DATA.value}"]
    subprocess.run([*command, f"--output={folder}", f"--clean={clean}"], check=True)
  return folder


def plan_of(folder: Path, *, steps: bool) -> PlanSpec:
  """Returns what prepares a corpus: exact duplicates and odd texts go, or nothing does."""
  names = sorted(path.name.partition(".")[0] for path in (folder / "raw").iterdir())
  rules = {"word_count": {"min": 20}, "mean_word_length": {}, "symbol_ratio": {}}
  chosen = (step("exact_dedup"), step("filter", rules=rules)) if steps else ()
  tokens = {
    "tokenizer": "bytes", "seq_len": CONFIG.value.sequence_length, "format": "parquet",
    "validation_fraction": 0.02,
  }  # fmt: skip
  return PlanSpec(
    goal="text for pre-training, no duplicates" if steps else "",
    input=InputSpec(paths={name: (f"raw/{name}.jsonl.gz",) for name in names}),
    step=chosen,
    output=OutputSpec(format="tokens", tokens=tokens),
  )


def score(
  way: str, corpus: str, seed: int, folder: Path, config: TrainConfig, workdir: Path
) -> dict:
  """Trains in one way, unless its result is there; returns the scores."""
  own = workdir / "runs" / corpus / way / f"seed-{seed}"
  path = own / "result.json"
  if path.exists():
    return dict(json.loads(path.read_text(encoding="utf-8")))
  plan = folder / ("unchanged.toml" if way == "unchanged" else "pipeline.toml")
  plan.write_text(plan_of(folder, steps=way != "unchanged").to_toml(), encoding="utf-8")
  rounds = ROUNDS.value if way == "loop" else 0
  settings = data_loop.Settings(tokens=TOKENS.value, rounds=rounds, trial=TRIAL.value)
  target = dataclasses.replace(config.target, folder=str(folder / "target"))
  seeded = dataclasses.replace(config, seed=seed, target=target)
  found = data_loop.run(settings, plan, seeded, folder / "held_out", own)
  texts = HeldOut(folder / "test").texts
  scores = held_out_losses.losses(found.run, texts, config.batch_size)
  value = {
    "corpus": corpus, "way": way, "seed": seed, "bits_per_byte": scores.macro(),
    "domains": scores.bits_per_byte(), "rounds": [told["kept"] for told in found.rounds],
  }  # fmt: skip
  runs.write_json(path, value)
  return value


def table(results: Sequence[dict]) -> str:
  """Returns the scores of all runs, and the differences of the loop to the other ways."""
  seeds = sorted({r["seed"] for r in results})
  of = {(r["corpus"], r["way"], r["seed"]): r for r in results}
  heads = " | ".join(f"seed {seed}" for seed in seeds)
  lines = [f"| corpus | way | {heads} | mean |", "|---|---|" + "---|" * (len(seeds) + 1)]
  for corpus in CORPORA:
    for way in WAYS:
      values = [of[corpus, way, seed]["bits_per_byte"] for seed in seeds]
      cells = " | ".join(f"{value:.4f}" for value in (*values, np.mean(values)))
      lines.append(f"| {corpus} | {way} | {cells} |")
  lines += ["", f"| corpus | loop less | {heads} | mean +- s.e. |"]
  lines.append("|---|---|" + "---|" * (len(seeds) + 1))
  for corpus in CORPORA:
    for way in WAYS[1:]:
      deltas = [
        of[corpus, "loop", seed]["bits_per_byte"] - of[corpus, way, seed]["bits_per_byte"]
        for seed in seeds
      ]
      error = np.std(deltas, ddof=1) / np.sqrt(len(deltas)) if len(deltas) > 1 else np.nan
      cells = " | ".join(f"{delta:+.4f}" for delta in deltas)
      lines.append(f"| {corpus} | {way} | {cells} | {np.mean(deltas):+.4f} +- {error:.4f} |")
  words = {True: "kept", False: "not kept", None: "nothing to change"}
  kept = [
    f"{r['corpus']}, seed {r['seed']}: {', '.join(words[k] for k in r['rounds'])}"
    for r in results
    if r["way"] == "loop"
  ]
  return "\n".join([*lines, "", "Rounds. " + "; ".join(kept) + ".", ""])


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  app.run(main)
