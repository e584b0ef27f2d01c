"""Weighs a pool of examples by the words of a target, without a model, and writes a table.

  python launch/dsir.py --config=configs/pretrain_mixture.py --config.data=DIR \
    --config.corpus.target_fraction=0.05 --output=weights.parquet

The config is that of the run that trains on a part of the pool: with other fields of the
corpus, rows are other rows, which the run notices. `score` in the Parquet file is the logarithm
of a row's importance weight, so that the run draws by it without replacement:

  python launch/train.py --config=configs/pretrain_mixture.py:selection=from_file \
    --config.data=DIR --config.corpus.target_fraction=0.05 \
    --config.selection.path=weights.parquet --workdir=runs/mine

Records that cannot be read, and rows where the config names no cache for them, are kept in the
folder `weights.parquet.work`.
"""

import importlib.util
import os
import time
from pathlib import Path

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from jdc.recipes import dsir
from jdc.train import command, process
from jdc.train import config as config_lib

CONFIG = config_flags.DEFINE_config_file("config", help_string="A run's config file.")
flags.mark_flag_as_required("config")
OUTPUT = flags.DEFINE_string("output", None, "The table, a new .parquet file.", required=True)


def main(argv: list[str]) -> None:
  process.log_to_terminal()
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  output = Path(OUTPUT.value)
  problems = []
  if output.suffix != ".parquet":
    problems.append(f"--output must end with .parquet, got {output}")
  if output.exists():
    problems.append(f"--output={output} exists already")
  if importlib.util.find_spec("pyarrow") is None:
    problems.append("pyarrow is needed to write the table: pip install -e '.[parquet]'")
  if problems:
    raise app.UsageError("; ".join(problems))
  begin = time.monotonic()
  config = config_lib.from_config_dict(CONFIG.value)
  weighed = dsir.weigh(config, f"{output}.work")
  dsir.write(output, weighed)
  score_N = weighed.columns["score"]
  print(
    f"{output}: {len(score_N)} rows weighed by {weighed.num_target_rows} target rows in "
    f"{time.monotonic() - begin:.1f} s, log weights from {np.min(score_N):.1f} to "
    f"{np.max(score_N):.1f}"
  )


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  app.run(main, flags_parser=command.parse_flags)
