"""Do selections find the right data? Each picks a tenth of a pool whose sources are known.

  python launch/right_data.py --data=DIR --workdir=runs/right_data --seeds=0,1,2 \
    --targets=gsm8k,humaneval

DIR holds `pool.jsonl.gz`, records of `instruction`, `input`, `output` and `source`; a file
`target_TASK.dev.jsonl.gz` a task; and `relevance.json`, the sources that are relevant to each
task and those that are `never_relevant`. A small decoder is trained on the pool, from each seed
anew. At its last checkpoint every method picks a tenth of the pool for each target, or, where
it weighs tasks against each other, for all of them at once; `right_data.md` and
`right_data.json` in the workdir say after each seed how much of that is relevant. A TF-IDF
match of the texts, DSIR and a random tenth stand beside.

`--online=all`, or some of the names in `jdc/recipes/right_data_methods.py`, adds methods that
choose while they train: each continues the model, is offered `--offered` rows of the pool, and
the table of examples that its run writes tells which of these it chose. `right_data_online.md`
and `.json` set the shares of these beside those of all that were offered. `rho_loss` compares
with a model of rows outside of the pool, and needs `--rows`.

No selection can read `source`: runs see a copy of the texts. Stopped, the same command
continues; a selection is made again where its config or data have changed. A change of the code
is not seen: remove `seed-*/picked` then. `--rows=N` takes a part of the pool, and says how long
the whole would take.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from absl import app, flags

from jdc.models.decoder_config import DecoderConfig
from jdc.recipes import right_data, right_data_methods, right_data_online, runs
from jdc.recipes.right_data import Staged
from jdc.report import right_data as report
from jdc.report import right_data_online as online_report
from jdc.train import command, process
from jdc.train import config as c
from jdc.train.config import TrainConfig

DATA = flags.DEFINE_string("data", None, "Pool, targets and relevance.", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is kept.", required=True)
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "A model and all selections for each.")
TARGETS = flags.DEFINE_list("targets", ["gsm8k", "humaneval"], "Tasks.")
METHODS = flags.DEFINE_list(
  "methods", [], "That pick from the pool; empty: all, or none where --online names some."
)
ONLINE = flags.DEFINE_list("online", [], "Methods that choose while they train, or `all`.")
OFFERED = flags.DEFINE_integer("offered", 512, "Rows that each of these chooses from.")
ROWS = flags.DEFINE_integer("rows", 0, "Rows of the pool; 0: all.", lower_bound=0)
SAMPLE = flags.DEFINE_integer(
  "sample", 0, "Rows of the pool, drawn at random, that a model scores; 0: all.", lower_bound=0
)
PASSES = flags.DEFINE_float("passes", 3.0, "Passes over the pool in training.")
TINY = flags.DEFINE_bool("tiny", False, "A model of some thousand parameters, to try things.")

VOCAB_SIZE = 4096
T = TypeVar("T")


def config_of(staged: Staged, num_steps: int, seed: int, tiny: bool = False) -> TrainConfig:
  """Returns the run that trains the model on the pool."""
  vocabulary = json.loads(staged.tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
  return TrainConfig(
    seed=seed,
    num_steps=num_steps,
    batch_size=8,
    sequence_length=512,
    data=str(staged.folder / "data"),
    corpus=c.CorpusConfig(
      tokenizer=str(staged.tokenizer),
      eos_token=right_data.END,
      format="alpaca",
      on_long="truncate",
      on_bad_record="quarantine",  # questions that leave no room for an answer
      cache_dir=str(staged.folder / "cache"),
    ),
    model=DecoderConfig(
      vocab_size=len(vocabulary),
      width=16 if tiny else 128,
      num_layers=2 if tiny else 4,
      num_heads=2 if tiny else 4,
      num_kv_heads=2 if tiny else 4,
      mlp_width=32 if tiny else 344,
      tie_embeddings=True,
    ),
    optimizer=c.OptimizerConfig(
      learning_rate=3e-3, warmup_steps=max(num_steps // 20, 1), weight_decay=0.0
    ),
    plan=c.PlanConfig(max_segments=16),
    evaluation=c.EvaluationConfig(max_rows=128),
    checkpoint=c.CheckpointConfig(every_steps=num_steps // 4, keep=5),
    logging=c.LoggingConfig(every_steps=max(num_steps // 20, 1), tensorboard=False),
  )


def run(
  data: Path, workdir: Path, seeds: Sequence[int], tasks: Sequence[str], names: Sequence[str],
  num_rows: int, passes: float, tiny: bool, online: Sequence[str] = (), offered: int = 512,
  sample: int = 0,
) -> str:  # fmt: skip
  """Trains, picks and compares; returns the tables."""
  if passes <= 0:
    raise ValueError(f"--passes must be positive, got {passes}")
  begin = time.monotonic()
  staged = right_data.stage(data, workdir, tasks, num_rows, VOCAB_SIZE)
  relevance = json.loads((data / "relevance.json").read_text(encoding="utf-8"))
  report.shares([], staged.sources, relevance, "+".join(tasks))  # refuses unknown tasks
  count = -(-(sample or len(staged.records)) // right_data.ONE_IN)
  picking = _named(right_data_methods.offline(count, 2 if tiny else 4), names, not online)
  choosing = _named(right_data_methods.online(), online, "all" in online)

  # As many steps as the passes over the pool take, in four quarters.
  first = config_of(staged, 4, 0, tiny)
  num_tokens = sum(runs.read_data(first, str(workdir)).tokens.values())
  tokens_per_step = first.batch_size * (first.sequence_length + 1)
  num_steps = 4 * max(1, round(passes * num_tokens / tokens_per_step / 4))
  reference = workdir / "reference"
  if any(method.refers for method in choosing.values()):
    half = config_of(staged, max(4, num_steps // 2), 0, tiny)  # ahead of a quarter
    _train(right_data_online.held_out(half, staged), reference)

  found, chosen, tables = [], [], {}
  for seed in seeds:
    base, folder = config_of(staged, num_steps, seed, tiny), workdir / f"seed-{seed}"
    _train(base, folder)
    for name, method in picking.items():
      found += [
        right_data.pick(name, method, target, base, staged, folder, count, sample)
        for target in method.targets(tasks)
      ]
    for name, in_run in choosing.items():
      chosen += right_data_online.choose(
        name, in_run, tasks, base, staged, folder, offered, reference
      )
    if found:
      shutil.rmtree(folder / right_data.FEATURES, ignore_errors=True)
      tables["picked"] = report.write(found, staged.sources, relevance, workdir)
    if chosen:
      tables["chosen"] = online_report.write(chosen, staged.sources, relevance, workdir)
  hours, share = (time.monotonic() - begin) / 3600, len(staged.records) / staged.num_rows
  print(
    f"{len(seeds)} seeds of {num_steps} steps on {share:.0%} of the pool: {hours:.2f} h now"
  )
  if share < 1 and not choosing:
    print(f"at most {hours / share:.1f} h on the whole pool, since compilation takes no longer")
  return "\n\n".join(tables.values())


def _named(known: Mapping[str, T], names: Sequence[str], everything: bool) -> dict[str, T]:
  """Returns the methods of some names; without any all or none of them."""
  names = [name for name in names if name != "all"]
  if unknown := [name for name in names if name not in known]:
    raise ValueError(f"unknown methods {unknown}; known: {', '.join(known)}")
  return {name: known[name] for name in names or (known if everything else ())}


def _train(config: TrainConfig, folder: Path) -> None:
  if command.train(config, str(folder)).stopped != "finished":
    raise SystemExit("stopped; the same command continues")


def main(argv: list[str]) -> None:
  process.log_to_terminal()
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  table = run(
    Path(DATA.value), Path(WORKDIR.value), [int(seed) for seed in SEEDS.value], TARGETS.value,
    METHODS.value, ROWS.value, PASSES.value, TINY.value, ONLINE.value, OFFERED.value,
    SAMPLE.value,
  )  # fmt: skip
  print(table)


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  app.run(main)
