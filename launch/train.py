"""Trains a language model under data policies.

  python launch/train.py --config=configs/quickstart.py --workdir=runs/quickstart

`--config=FILE:ARG` passes ARG to the file's `get_config`; `--config.FIELD=VALUE` overrides any
field. The same command resumes a run that was stopped. `--dry_run` allocates nothing and prints
sizes, memory and FLOPs; with `--compile` it also compiles the step.
"""

import os
import sys
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import config_flags

from jdc.report import summary
from jdc.train import config as config_lib
from jdc.train import corpus, estimate, loop, model_parts, process, setup
from jdc.train.optimizer import make_optimizer

CONFIG = config_flags.DEFINE_config_file("config", help_string="The run's config file.")
flags.mark_flag_as_required("config")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is kept.", required=True)
PROFILE = flags.DEFINE_bool("profile", False, "Write a trace of a few steps to the workdir.")
CACHE = flags.DEFINE_string(
  "compilation_cache",
  None,
  "Persistent compilation cache; empty: none, default: beside the rows.",
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
    train(config, WORKDIR.value)


def train(config: config_lib.TrainConfig, workdir: str) -> loop.Result:
  """Builds what the config describes, trains it, and prints what came out."""
  # Everything that can be wrong without looking at the data.
  policies, parts, (optimizer, learning_rate), corpus_config, _ = config_lib.collect(
    lambda: config_lib.build_policies(config),
    lambda: model_parts.build(config),
    lambda: make_optimizer(config.optimizer, config.num_steps),
    lambda: _corpus(config),
    lambda: _check_local(workdir),
  )
  config, start = parts
  setup.check_plan(config, policies)

  # Text to packed rows, from the cache where they are there already.
  cache_dir = corpus.cache_dir(corpus_config)
  cache = str(cache_dir / "xla") if CACHE.value is None else CACHE.value
  if cache:
    jax.config.update("jax_compilation_cache_dir", cache)
  Path(workdir).mkdir(parents=True, exist_ok=True)
  domains = corpus.prepare(
    config.data, corpus_config, config.sequence_length, config.seed, workdir
  )

  run = loop.Run(
    start.model,
    optimizer,
    learning_rate,
    policies,
    domains,
    config,
    weights=start.weights,
    trainable=start.trainable,
  )
  result = loop.fit(run, workdir, profile=PROFILE.value)
  if jax.process_index() == 0:
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
  return result


def _corpus(config: config_lib.TrainConfig) -> config_lib.CorpusConfig:
  found = corpus.with_tokenizer_of(config.weights.folder, config.corpus)
  corpus.check(config.data, found)
  return found


def _check_local(workdir: str) -> None:
  if "://" in workdir:
    raise ValueError(
      f"--workdir={workdir} must be a local folder; checkpoints alone can go elsewhere, with "
      "--config.checkpoint.folder=gs://..."
    )


def _parse_flags(argv: list[str]) -> list[str]:
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, TypeError) as error:  # an unknown field, hardly named
    overrides = [arg for arg in argv if arg.lstrip("-").startswith("config.")]
    sys.argv = [arg for arg in argv if arg not in overrides]
    app.parse_flags_with_usage(sys.argv)
    paths = [arg.lstrip("-").partition("=")[0].removeprefix("config.") for arg in overrides]
    problems = config_lib.unknown_overrides(CONFIG.value, paths) or [str(error)]
    sys.exit(f"FATAL Flags parsing error: {'; '.join(problems)}")


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  app.run(main, flags_parser=_parse_flags)
