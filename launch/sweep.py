"""Scores a pool of examples by a selection, without training, and writes a table.

  python launch/sweep.py --config=configs/select_less.py:scores --config.data=DIR \
    --config.target.folder=TARGETS --run=runs/warmup --output=scores.parquet

The config is that of a run: its data, its model and its round-scope selection as it decides in
its first round, without a warm-up before it. `--run` is a run directory whose newest
checkpoint, or those of `--steps=100,200`, give parameters and optimizer; it has trained the
same parameters, under any policies. Without it the parameters are those that the config starts
from. With several checkpoints each begins a round, so that LESS with `checkpoints="sum"` adds
them up.

The Parquet file has a row for each row of the pool: `example_id`, `domain`, `where` it was,
`score`, the logit by which it would be drawn, and the statistics that were observed.
`selection.from_file` reads it, and so does anything else. An interrupted sweep goes on where it
was when the same command is given again.

With `--features=DIR` the gradients that the selection compares stay in files that are mapped
into memory, a folder for each step. A sweep of the same parameters and data for other targets,
or by another policy that reads the same gradients, then passes over no row of the pool.
"""

import importlib.util
import os
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from jdc.policies.selection import score_files
from jdc.train import command, loop, offline, process, sweeps
from jdc.train import config as config_lib

CONFIG = config_flags.DEFINE_config_file("config", help_string="A run's config file.")
flags.mark_flag_as_required("config")
RUN = flags.DEFINE_string("run", "", "A run directory; empty: the parameters of the config.")
STEPS = flags.DEFINE_list("steps", [], "Steps of the run's checkpoints; empty: the newest.")
OUTPUT = flags.DEFINE_string("output", None, "The table, a new .parquet file.", required=True)
WORKDIR = flags.DEFINE_string(
  "workdir", "", "Where an interrupted sweep is kept; empty: OUTPUT.partial."
)
FEATURES = flags.DEFINE_string(
  "features", "", "A folder that keeps projected gradients for the next sweep; empty: none."
)
CACHE = flags.DEFINE_string(
  "compilation_cache",
  None,
  "Persistent compilation cache; empty: none, default: $JAX_COMPILATION_CACHE_DIR, else beside "
  "the rows.",
)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Start jax.distributed (several hosts).")


def main(argv: list[str]) -> None:
  process.log_to_terminal()
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  output = Path(OUTPUT.value)
  steps, folder = _checked(output)
  if DISTRIBUTED.value:
    jax.distributed.initialize()
  config = config_lib.from_config_dict(CONFIG.value)
  workdir = WORKDIR.value or f"{output}.partial"
  run = command.build_run(config, workdir, CACHE.value)
  scored = offline.score(run, workdir, folder, steps, FEATURES.value or None)
  if jax.process_index() == 0:
    write(output, run, scored)
    sweeps.forget(f"{workdir}/sweeps", max(scored.steps) + 1)  # the table has it all
    print(f"{output}: {len(scored.columns['score'])} rows, {_summary(scored)}")


def write(output: Path, run: loop.Run, scored: offline.Scored) -> None:
  """Writes the table, whole or not at all."""
  import pyarrow as pa

  names = np.array(list(run.domains))
  tables = [domain.train for domain in run.domains.values()]
  columns = dict(scored.columns)
  columns["domain"] = names[columns["domain"]]
  table = pa.table(columns)
  where = [_where(t, row) for t in tables for row in range(len(t))]
  table = table.add_column(2, "where", pa.array(where, pa.string()))
  described = {
    "data_fingerprint": scored.fingerprint,
    "config": config_lib.to_json(run.config),
    "steps": list(scored.steps),
    "metrics": {name: np.asarray(x).tolist() for name, x in scored.metrics.items()},
    "extra_rows": scored.cost._asdict(),
  }
  score_files.write_parquet(output, table, described)


def _where(table: object, row: int) -> str | None:
  # Rows of documents have no single place.
  found = getattr(table, "where", None)
  return None if found is None else found(row)


def _checked(output: Path) -> tuple[list[int], str | None]:
  """The steps and the folder of checkpoints that the flags name."""
  problems = []
  if output.suffix != ".parquet":
    problems.append(f"--output must end with .parquet, got {output}")
  if output.exists():
    problems.append(f"--output={output} exists already")
  if importlib.util.find_spec("pyarrow") is None:
    problems.append("pyarrow is needed to write the table: pip install -e '.[parquet]'")
  wrong = [step for step in STEPS.value if not step.isdecimal()]
  if wrong:
    problems.append(f"--steps must be whole numbers, got {wrong}")
  folder = Path(RUN.value) / "checkpoints" if RUN.value else None
  if folder is not None and not folder.is_dir():
    problems.append(f"--run={RUN.value} holds no checkpoints")
  if STEPS.value and folder is None:
    problems.append("--steps are of a --run, and none is given")
  if problems:
    raise app.UsageError("; ".join(problems))
  return [int(step) for step in STEPS.value], None if folder is None else str(folder)


def _summary(scored: offline.Scored) -> str:
  finite = int(np.sum(np.isfinite(scored.columns["score"])))
  cost = scored.cost
  return (
    f"{finite} of them may be drawn; passed forward: {cost.forward} rows, backward: "
    f"{cost.backward}"
  )


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  app.run(main, flags_parser=command.parse_flags)
