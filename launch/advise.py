r"""Proposes the proportions that a run begins with, and how sure they are.

  python launch/prep.py profile 'raw/*.jsonl.gz' --output=profile.json
  python launch/advise.py --data=tokens --profile=profile.json --workdir=runs/advice \
    --search.num_proxies=64 --proxy.num_steps=200
  python launch/train.py --config=configs/regmix.py:target --config.data=tokens \
    $(cat runs/advice/advice.flags) --workdir=runs/mine

Small runs on random mixtures (`launch/regmix.py`, whose config files and flags these are) are
scored on the target split; their regression, refitted to resamples of the runs, gives each
domain a share and an interval. `advice.json` has them, `advice.flags` the flag of
`launch/train.py`. The same command goes on where it was stopped.
"""

import os
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from jdc.recipes import advice, regmix, runs
from jdc.train import command, process
from jdc.train import config as config_lib

_CONFIG = Path(__file__).parents[1] / "configs" / "regmix.py"
PARTS = {
  name: config_flags.DEFINE_config_file(name, f"{_CONFIG}:{name}", help_string)
  for name, help_string in (
    ("search", "Which mixtures are tried."),
    ("proxy", "Config of each small run."),
    ("target", "Config of the run that the advice is for."),
  )
}
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is kept.", required=True)
DATA = flags.DEFINE_string("data", "", "A folder of domains for all runs; empty: their own.")
PROFILE = flags.DEFINE_string("profile", "", "A file of launch/prep.py profile.")
RESAMPLES = flags.DEFINE_integer("resamples", 200, "Refits of the regression.", lower_bound=20)


def main(argv: list[str]) -> int:
  process.log_to_terminal()
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  search = config_lib.from_config_dict(PARTS["search"].value, regmix.Search)
  proxy, target = (
    config_lib.from_config_dict(PARTS[name].value) for name in ("proxy", "target")
  )
  if DATA.value:
    proxy, target = (runs.on_data(run, DATA.value) for run in (proxy, target))
  try:
    found = advice.advise(
      search, proxy, target, WORKDIR.value, command.train,
      profile=PROFILE.value or None, resamples=RESAMPLES.value,
    )  # fmt: skip
  except (ValueError, OSError) as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return 2
  if found is None:
    print("stopped: SIGTERM; the same command continues", file=sys.stderr)
    return 1
  print(advice.table(found))
  return 0


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  app.run(main)
