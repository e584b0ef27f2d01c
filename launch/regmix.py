r"""Trains small runs on random mixtures, fits their losses, trains the target on the best one.

  python launch/regmix.py --workdir=runs/regmix --data=DIR --search.num_proxies=64 \
    --target.num_steps=1000

Each part has a config file (default: `configs/regmix.py`) whose fields flags override:
`--search.FIELD=VALUE` (how many mixtures, how they are drawn), `--proxy.FIELD=VALUE`,
`--target.FIELD=VALUE`. The mixture is to be good for the mean of all domains, or of those that
`--search.target_domains=NAME` names, once for each. The same command continues wherever it was
stopped; finished proxies are not trained again. The workdir holds `proxies/`, `proxies.json`
(their losses on the target split), `regmix.json` (the regression, how well it predicts proxies
held out of it, and the mixture) and `target/`.
"""

import os
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import config_flags

from jdc.recipes import regmix, runs
from jdc.report import summary
from jdc.train import command, process
from jdc.train import config as config_lib

_CONFIG = Path(__file__).parents[1] / "configs" / "regmix.py"
PARTS = {
  name: config_flags.DEFINE_config_file(name, f"{_CONFIG}:{name}", help_string)
  for name, help_string in (
    ("search", "Which mixtures are tried."),
    ("proxy", "Config of each small run."),
    ("target", "Config of the run proper."),
  )
}
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is kept.", required=True)
DATA = flags.DEFINE_string("data", "", "A folder of domains for all runs; empty: their own.")


def main(argv: list[str]) -> None:
  process.log_to_terminal()
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  search = config_lib.from_config_dict(PARTS["search"].value, regmix.Search)
  proxy, target = (
    config_lib.from_config_dict(PARTS[name].value) for name in ("proxy", "target")
  )
  if DATA.value:
    proxy, target = (runs.on_data(run, DATA.value) for run in (proxy, target))
  outcome = regmix.run(search, proxy, target, WORKDIR.value, command.train)
  if jax.process_index() != 0:
    return
  if outcome.target is None:
    print("stopped: SIGTERM; the same command continues")
    return
  print(summary.table(f"{WORKDIR.value}/target"))
  print("mixture:", ", ".join(f"{n} {w:.4f}" for n, w in outcome.mixture.items()))


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  app.run(main)
