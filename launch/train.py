"""Trains a language model under data policies.

  python launch/train.py --config=configs/quickstart.py --workdir=runs/quickstart

`--config=FILE:ARG` passes ARG to the file's `get_config`; `--config.FIELD=VALUE` overrides any
field. The same command resumes a run that was stopped.
"""

import logging
import os
from pathlib import Path

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from jdc.models.decoder import decoder
from jdc.report import summary
from jdc.train import config as config_lib
from jdc.train import corpus, loop
from jdc.train.optimizer import make_optimizer

CONFIG = config_flags.DEFINE_config_file("config", help_string="The run's config file.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where the run is kept.", required=True)
PROFILE = flags.DEFINE_bool("profile", False, "Write a trace of a few steps to the workdir.")
CACHE = flags.DEFINE_string(
  "compilation_cache",
  None,
  "Persistent compilation cache; empty: none, default: beside the rows.",
)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Start jax.distributed (several hosts).")


def main(argv: list[str]) -> None:
  _log_to_terminal()
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  if DISTRIBUTED.value:
    jax.distributed.initialize()
  train(config_lib.from_config_dict(CONFIG.value), WORKDIR.value)


def train(config: config_lib.TrainConfig, workdir: str) -> loop.Result:
  """Builds what the config describes, trains it, and prints what came out."""
  # Everything that can be wrong without looking at the data.
  policies = config_lib.build_policies(config)
  if config.model is None:
    raise ValueError("the config has no model; set config.model to a DecoderConfig")
  model = decoder(config.model)
  optimizer, learning_rate = make_optimizer(config.optimizer, config.num_steps)

  if "://" in workdir:
    raise ValueError(
      f"--workdir={workdir} must be a local folder; checkpoints alone can go elsewhere, with "
      "--config.checkpoint.folder=gs://..."
    )

  # Text to packed rows, from the cache where they are there already.
  cache_dir = corpus.cache_dir(config.data)
  cache = str(cache_dir / "xla") if CACHE.value is None else CACHE.value
  if cache:
    jax.config.update("jax_compilation_cache_dir", cache)
  Path(workdir).mkdir(parents=True, exist_ok=True)
  domains = corpus.prepare(config.data, config.sequence_length, config.seed, workdir)

  run = loop.Run(model, optimizer, learning_rate, policies, domains, config)
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


def _log_to_terminal() -> None:
  absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax writes a page for every checkpoint
  handler = logging.StreamHandler()
  handler.setFormatter(logging.Formatter("%(message)s"))
  log = logging.getLogger("jdc")
  log.addHandler(handler)
  log.setLevel(logging.INFO)
  log.propagate = False


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  app.run(main)
