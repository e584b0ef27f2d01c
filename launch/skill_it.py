r"""Learns which domains help which, then trains under Skill-It with that graph.

  python launch/skill_it.py --config=configs/pretrain_mixture.py:mixture=skill_it \
    --config.data=DIR --config.corpus.target_fraction=0.05 --steps_per_skill=40 \
    --workdir=runs/skill_it

A run on each domain alone, as large as the config's but of `--steps_per_skill` steps, is
evaluated on the target split before and after. The same command continues wherever it was
stopped; finished runs are not repeated. The workdir holds `proxies/` and `proxies.json` (the
runs on one domain), `skill_graph.json` and `target/`. Any field of the config can be overridden
with `--config.FIELD=VALUE`.
"""

import os

import jax
from absl import app, flags
from ml_collections import config_flags

from jdc.recipes import skill_graph
from jdc.report import summary
from jdc.train import command, process
from jdc.train import config as config_lib

CONFIG = config_flags.DEFINE_config_file("config", help_string="The run's config file.")
flags.mark_flag_as_required("config")
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is kept.", required=True)
STEPS = flags.DEFINE_integer(
  "steps_per_skill", None, "Of the run on each domain.", lower_bound=1, required=True
)


def main(argv: list[str]) -> None:
  process.log_to_terminal()
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  config = config_lib.from_config_dict(CONFIG.value)
  outcome = skill_graph.run(config, WORKDIR.value, command.train, STEPS.value)
  if jax.process_index() != 0:
    return
  if outcome.target is None:
    print("stopped: SIGTERM; the same command continues")
    return
  print(summary.table(f"{WORKDIR.value}/target"))
  print(f"graph: {WORKDIR.value}/skill_graph.json")


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  app.run(main)
