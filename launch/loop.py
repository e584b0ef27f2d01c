"""Prepares data, trains, feeds back what was learnt, and keeps what a held-out set prefers.

  python launch/loop.py --plan=pipeline.toml --config=configs/pretrain_mixture.py \\
    --held_out=DIR --tokens=100_000_000 --rounds=2 --workdir=runs/loop

The plan's output must be token shards. The budget counts the tokens of all runs. Neither the
plan nor the config may name a file of the held-out folder, and no document may have one of its
texts: both are errors. `jdc.recipes.data_loop` says what a round is and when it is kept. The
same command goes on where it was stopped; stages that have ended are not done again.

The workdir holds the versions of the data (`data-0.toml` and the folder `data-0`, ...), what
each proposal rests on (`data-1.report.json`), the runs, and `loop.json` with all decisions. A
policy that observes `target_alignment`, on a target set of its own, gives feedback the
influence of examples; without one, only what the losses say is used.
"""

import os
import sys

from absl import app, flags
from ml_collections import config_flags

from jdc.prep.feedback.propose import Limits
from jdc.recipes import data_loop
from jdc.train import command, process
from jdc.train import config as config_lib

CONFIG = config_flags.DEFINE_config_file("config", help_string="Of all runs.")
PLAN = flags.DEFINE_string("plan", None, "pipeline.toml, with token shards.", required=True)
HELD_OUT = flags.DEFINE_string("held_out", None, "Folder of NAME.jsonl[.gz].", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is kept.", required=True)
TOKENS = flags.DEFINE_integer("tokens", None, "Trained in all.", required=True, lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 1, "Most rounds.", lower_bound=0)
FIRST = flags.DEFINE_float("first", 0.25, "Share of the tokens before the first round.")
TRIAL = flags.DEFINE_float("trial", 0.1, "Share of the tokens of each arm of a round.")
MIN_GAIN = flags.DEFINE_float("min_gain", 0.0, "Bits per byte to win by.")
MAX_DROP = flags.DEFINE_float("max_drop", 0.3, "Most of the tokens that a round drops.")
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> int:
  process.log_to_terminal()
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  config = config_lib.from_config_dict(CONFIG.value)
  try:
    settings = data_loop.Settings(
      tokens=TOKENS.value,
      rounds=ROUNDS.value,
      first=FIRST.value,
      trial=TRIAL.value,
      min_gain=MIN_GAIN.value,
      limits=Limits(max_drop=MAX_DROP.value),
    )
    found = data_loop.run(settings, PLAN.value, config, HELD_OUT.value, WORKDIR.value)
  except data_loop.Stopped:
    print("stopped; the same command continues", file=sys.stderr)
    return 1
  except (ValueError, OSError, ImportError) as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return 2
  for told in found.rounds:
    if told["kept"] is None:
      print(f"round {told['round']}: nothing to change")
      continue
    d, word = told["difference"], "kept" if told["kept"] else "not kept"
    print(
      f"round {told['round']}: {d['difference']:+.4f} bits per byte "
      f"[{d['low']:+.4f}, {d['high']:+.4f}], {word}"
    )
  print(f"held out: {found.bits_per_byte:.4f} bits per byte; data: {found.plan}; {found.run}")
  return 0


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  app.run(main, flags_parser=command.parse_flags)
