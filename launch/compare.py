"""Trains policies over several seeds on the same number of tokens and compares them.

  python launch/compare.py --config=configs/comparison.py --config.base.data=DIR --skew=20 \
    --seeds=0,1,2 --workdir=runs/comparison

Scores are on the validation split; policies look at the target split only. The same command
continues where it was stopped, and finished runs are not repeated. It writes `comparison.csv`,
`.md` and `.png`: for each policy the difference to each control over pairs of the same seed,
with its 95 % interval, and what the policy cost.
"""

import dataclasses
import json
import logging
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from jdc import metrics
from jdc.data.domains import find_domains
from jdc.data.skew import write_skewed
from jdc.models.decoder_config import DecoderConfig
from jdc.recipes import runs
from jdc.recipes.contestants import Stopped
from jdc.report import comparison
from jdc.train import checkpoint, checks, command, corpus, estimate, process, sources
from jdc.train import config as config_lib
from jdc.train.config import TrainConfig
from jdc.train.loop import Result

CONFIG = config_flags.DEFINE_config_file("config", help_string="Base run and contestants.")
flags.mark_flag_as_required("config")
WORKDIR = flags.DEFINE_string("workdir", None, "Where runs and tables are kept.", required=True)
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "A run of each policy for each of them.")
ONLY = flags.DEFINE_list("only", [], "Contestants, beside the controls; empty: all.")
SKEW = flags.DEFINE_float(
  "skew", 0.0, "Subsample the domains, the first to so many times the last; 0: as they are."
)
_LOG = logging.getLogger("jdc")


def main(argv: list[str]) -> None:
  process.log_to_terminal()
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  config, workdir = CONFIG.value, Path(WORKDIR.value)
  base = config_lib.from_config_dict(config.base)
  names = _chosen(config.contestants, config.controls)
  seeds = [int(seed) for seed in SEEDS.value]
  _check(base, {name: config.contestants[name] for name in names})
  if SKEW.value:
    folder = workdir / f"data_skew_{SKEW.value:g}"
    sizes = write_skewed(base.data, folder, SKEW.value, text_field=base.corpus.text_field)
    _LOG.info("bytes of training text: %s", sizes)
    base = dataclasses.replace(base, data=str(folder))
  failed: list[str] = []
  try:
    for seed in seeds:  # a whole comparison of one seed comes before the next seed
      seeded = dataclasses.replace(base, seed=seed)
      for name in names:
        try:
          _run(name, config.contestants[name], seeded, workdir)
        except FloatingPointError as error:  # the others go on, and the table leaves it out
          failed.append(f"{name}, seed {seed}: {error}")
  except Stopped:
    _LOG.warning("stopped; the same command continues")
  results = comparison.read(workdir / "runs")
  # Other seeds may be there, of another config.
  asked = {
    name: {seed: by_seed[seed] for seed in by_seed if seed in seeds}
    for name, by_seed in results.items()
    if name in names
  }
  found = comparison.rows({n: kept for n, kept in asked.items() if kept}, config.controls)
  files = comparison.write(found, config.controls, workdir)
  print(files["md"].read_text(encoding="utf-8"))
  for kind, path in files.items():
    print(f"{kind:>4}: {path}")
  if failed:
    sys.exit("not in the table, as their losses were not finite: " + "; ".join(failed))


def _chosen(contestants: Mapping[str, Any], controls: tuple[str, ...]) -> list[str]:
  """The policies to run, controls first."""
  unknown = [name for name in (*ONLY.value, *controls) if name not in contestants]
  if unknown:
    raise app.UsageError(f"unknown contestants {unknown}; known: {', '.join(contestants)}")
  wanted = ONLY.value or list(contestants)
  return list(dict.fromkeys([*controls, *wanted]))


def _check(base: TrainConfig, contestants: Mapping[str, Any]) -> None:
  """Raises a ValueError that lists what would stop the comparison at one of its runs."""
  corpus.check(base.data, base.corpus)
  errors, targeted = [], []
  if base.checkpoint.folder:
    errors.append(
      f"checkpoint.folder={base.checkpoint.folder!r} must be empty: each run has its own"
    )
  if SKEW.value and base.corpus.format != "text":
    errors.append(f"--skew is for documents of text, not corpus.format={base.corpus.format!r}")
  for name, contestant in contestants.items():
    try:
      config = _changed(base, contestant)
      policies = config_lib.build_policies(config)
      checks.check_plan(config, policies)
    except (TypeError, ValueError) as error:
      errors.append(f"{name}: {error}")
      continue
    if "recipe" in contestant or checks.observed(policies) & sources.TARGETED:
      targeted.append(name)
  if targeted and not (SKEW.value or base.corpus.target_fraction or base.target.folder):
    files = {} if base.data == "python" else find_domains(Path(base.data).expanduser())
    if not files or not all(held.target for held in files.values()):
      errors.append(
        f"{', '.join(targeted)}: no target set; give --skew, NAME.target.jsonl files beside "
        "those of each domain, or --config.base.corpus.target_fraction"
      )
  if errors:
    raise ValueError("; ".join(errors))


def _run(name: str, contestant: Any, base: TrainConfig, workdir: Path) -> None:
  """Trains one policy with one seed, unless its result is there already."""
  folder = workdir / "runs" / name / f"seed-{base.seed}"
  config = _changed(base, contestant)
  described = config_lib.to_json(config)
  data = runs.read_data(base, str(folder)).fingerprints
  path = folder / "result.json"
  if path.exists():
    saved = json.loads(path.read_text(encoding="utf-8"))
    changed = config_lib.differences(saved["config"], json.loads(json.dumps(described)))
    changed += [f"data of {name}" for name in data if data[name] != saved["data"].get(name)]
    if changed:
      raise ValueError(
        f"{folder} holds a result of another config or other data, choose another workdir or "
        "restore: " + "; ".join(changed)
      )
    return
  _LOG.info("%s, seed %d", name, base.seed)
  if "recipe" in contestant:
    config = contestant["recipe"](config, str(folder / "before"), _train)
  result = _train(config, str(folder / "run"))
  content = _result(config, folder, result) | {"config": described, "data": data}
  partial = path.with_suffix(".partial")
  partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
  os.replace(partial, path)


def _changed(base: TrainConfig, contestant: Mapping[str, Any]) -> TrainConfig:
  """The base run with the contestant's policies, and its fields of parts such as the plan."""
  changes = {}
  for name, value in contestant.items():
    if name == "recipe":
      continue
    part = getattr(base, name, None)
    if dataclasses.is_dataclass(part):
      value = dataclasses.replace(part, **value)  # type: ignore[type-var]
    changes[name] = value
  return dataclasses.replace(base, **changes)


def _train(config: TrainConfig, workdir: str) -> Result:
  result = command.train(config, workdir)
  if result.stopped == "SIGTERM":
    raise Stopped
  if result.stopped != "finished":
    raise ValueError(f"{workdir} ended before its last step: {result.stopped}")
  return result


def _result(config: TrainConfig, folder: Path, result: Result) -> dict[str, Any]:
  """What is kept of a run: its score, and its cost over that of training without a policy."""
  assert result.after is not None
  assert config.model is not None
  per_row = estimate.forward_flops_per_row(config.model, config.sequence_length)
  forward, backward = (per_row * rows for rows in _extra_rows(folder / "run"))
  seconds = _seconds(folder / "run", config.num_steps)
  runs_before = [path.parent for path in (folder / "before").rglob("metrics.jsonl")]
  for earlier in runs_before:
    _, payload = checkpoint.read_payload(earlier / "checkpoints")
    flat = payload["host"]["config"]
    model = config_lib.from_json(flat, DecoderConfig, "model.")
    earlier_row = estimate.forward_flops_per_row(model, flat["sequence_length"])
    trained = flat["num_steps"] * flat["batch_size"]
    more = [earlier_row * (trained + rows) for rows in _extra_rows(earlier)]
    forward, backward = forward + more[0], backward + more[1]
    seconds += _seconds(earlier, flat["num_steps"])
  own = per_row * config.num_steps * config.batch_size
  domains = result.spec.domain_names
  return {
    "bits_per_byte": result.after["validation/macro_bits_per_byte"],
    "domains": {name: result.after[f"validation/{name}/bits_per_byte"] for name in domains},
    "train_tokens": config.num_steps * config.batch_size * config.sequence_length,
    "seconds": seconds,
    "extra_forward": forward / own,
    "extra_backward": backward / own,
    "runs_before": len(runs_before),
  }


def _seconds(workdir: Path, num_steps: int) -> float:
  """What a run's steps, and the rounds and refreshes of its policy, took.

  The compilation of the step is left out. Steps that were not timed count as the median step.
  """
  lines = metrics.read_metrics(workdir, "timing.jsonl")
  steps = [line["time/step_seconds"] for line in lines if "time/step_seconds" in line]
  policy = sum(line.get("time/policy_seconds", 0.0) for line in lines)
  return policy + (float(np.median(steps)) * num_steps if steps else math.nan)


def _extra_rows(workdir: Path) -> tuple[float, float]:
  """Rows passed forward and backward through models besides those that were trained."""
  lines = metrics.read_metrics(workdir)
  last = next(line for line in reversed(lines) if "cost/extra_forward_rows" in line)
  return last["cost/extra_forward_rows"], last["cost/extra_backward_rows"]


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  app.run(main)
