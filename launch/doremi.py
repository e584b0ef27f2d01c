"""Trains a reference, a proxy that finds domain weights, and the target, in order.

  python launch/doremi.py --workdir=runs/doremi --data=DIR --target.num_steps=1000

Each stage has a config file (default: `configs/doremi.py`) whose fields flags override:
`--reference.FIELD=VALUE`, `--proxy.FIELD=VALUE`, `--target.FIELD=VALUE`. The same command
continues wherever it was stopped.
"""

import dataclasses
import os
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import config_flags

from jdc.recipes import doremi
from jdc.report import summary
from jdc.train import command, process
from jdc.train import config as config_lib

_CONFIG = Path(__file__).parents[1] / "configs" / "doremi.py"
STAGES = {
  name: config_flags.DEFINE_config_file(name, f"{_CONFIG}:{name}", f"Config of the {name}.")
  for name in ("reference", "proxy", "target")
}
WORKDIR = flags.DEFINE_string("workdir", None, "Holds a folder for each stage.", required=True)
DATA = flags.DEFINE_string("data", "", "A folder of domains for all stages; empty: their own.")


def main(argv: list[str]) -> None:
  process.log_to_terminal()
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  configs = [config_lib.from_config_dict(flag.value) for flag in STAGES.values()]
  if DATA.value:
    configs = [dataclasses.replace(config, data=DATA.value) for config in configs]
  reference, proxy, target = configs
  outcome = doremi.run(reference, proxy, target, WORKDIR.value, command.train)
  if jax.process_index() != 0:
    return
  if outcome.target is None:
    print("stopped: SIGTERM; the same command continues")
    return
  print(summary.table(f"{WORKDIR.value}/target"))
  print("domain weights:", ", ".join(f"{n} {w:.4f}" for n, w in outcome.weights.items()))


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  app.run(main)
