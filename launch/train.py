"""Trains a language model under data policies.

  python launch/train.py --config=configs/quickstart.py --workdir=runs/quickstart

`--config=FILE:ARG` passes ARG to the file's `get_config`; `--config.FIELD=VALUE` overrides any
field. The same command resumes a run that was stopped. `--dry_run` allocates nothing and prints
sizes, memory and FLOPs; with `--compile` it also compiles the step.
"""

import os

import jax
from absl import app, flags
from ml_collections import config_flags

from jdc.report import summary
from jdc.train import command, estimate, loop, process
from jdc.train import config as config_lib

CONFIG = config_flags.DEFINE_config_file("config", help_string="The run's config file.")
flags.mark_flag_as_required("config")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is kept.", required=True)
PROFILE = flags.DEFINE_bool("profile", False, "Write a trace of a few steps to the workdir.")
CACHE = flags.DEFINE_string(
  "compilation_cache",
  None,
  "Persistent compilation cache; empty: none, default: $JAX_COMPILATION_CACHE_DIR, else beside "
  "the rows.",
)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Start jax.distributed (several hosts).")


DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print sizes, memory and FLOPs; train nothing.")
COMPILE = flags.DEFINE_bool("compile", False, "With --dry_run: compile the training step.")


def main(argv: list[str]) -> None:
  process.log_to_terminal()
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  if COMPILE.value and not DRY_RUN.value:
    raise app.UsageError("--compile needs --dry_run")
  if DISTRIBUTED.value:
    jax.distributed.initialize()
  config = config_lib.from_config_dict(CONFIG.value)
  if DRY_RUN.value:
    print(estimate.report(config, compiles=COMPILE.value))
  else:
    result = command.train(config, WORKDIR.value, CACHE.value, profile=PROFILE.value)
    if jax.process_index() == 0:
      show(config, WORKDIR.value, result)


def show(config: config_lib.TrainConfig, workdir: str, result: loop.Result) -> None:
  """Prints what came out, and draws it."""
  print(summary.table(workdir))
  picture = summary.plot(workdir)
  folder = config.checkpoint.folder or f"{workdir}/checkpoints"
  for what, where in (
    ("stopped", result.stopped),
    ("checkpoint", f"{folder}/{int(result.plan.step)}"),
    ("metrics", f"{workdir}/metrics.jsonl"),
    ("picture", picture),
  ):
    print(f"{what:>10}: {where}")


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  app.run(main, flags_parser=command.parse_flags)
