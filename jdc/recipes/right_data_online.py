"""Methods that choose while they train: a short run of each, and what its log says it chose."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jdc.metrics import read_metrics
from jdc.models import hf
from jdc.recipes import runs
from jdc.recipes.right_data import HELD_OUT, ONE_IN, UNTARGETED, Staged
from jdc.report.right_data_online import Chosen
from jdc.train import command, example_table, pretrained, sharding
from jdc.train import config as c
from jdc.train.config import TrainConfig

SEQUENCE_LENGTH = 256  # of rows that are not packed, most of which are shorter
CANDIDATES = 4  # offered for each row that a step keeps
LEARNING_RATE = 3e-4  # that at which the model's own training ends

# What of a run tells its choice: rows kept of the candidates of a step; rows left out of the
# second round; the tenth of the highest logits when it begins; that of the largest weights.
Choice = Literal["kept", "pruned", "logit", "weight"]


class Online(NamedTuple):
  """A method, and which rows it is said to choose."""

  policy: Any  # of `config.policy`
  choice: Choice
  target: Mapping[str, Any] | None = None  # fields of `TargetConfig`; `None`: it has no target
  # Whether it compares with a reference of held-out rows, of which the model must not be ahead:
  # it starts from the checkpoint after a quarter of the training.
  refers: bool = False


def run_config(
  method: Online, base: TrainConfig, start: Path, offered: int, tasks: Path, reference: Path
) -> TrainConfig:
  """Returns the run in which a method is offered so many rows, each once.

  Args:
    method: what chooses.
    base: of the model's own training.
    start: a Hugging Face folder, the model that it continues.
    offered: rows, a multiple of the candidates of a step.
    tasks: folder of the target, where the method has one.
    reference: a run directory, where the method has a reference.

  Raises:
    ValueError: if `offered` is no such multiple.
  """
  of_step = base.batch_size * (CANDIDATES if method.choice == "kept" else 1)
  if offered < of_step or offered % of_step:
    raise ValueError(
      f"the rows offered must be a positive multiple of {of_step}, those of a step, got "
      f"{offered}"
    )
  steps, plan, slot = offered // of_step, c.PlanConfig(), "selection"
  if method.choice == "kept":
    plan = c.PlanConfig(num_candidates=of_step)
  elif method.choice == "weight":
    slot = "weighting"
  else:  # as the second round begins, whose only step is not looked at
    plan = c.PlanConfig(draw="top_k", steps_per_round=steps)
  changes: dict[str, Any] = {slot: method.policy}
  if method.target is not None:
    of_task: dict[str, Any] = {"folder": str(tasks), "rows": 1_000_000} | dict(method.target)
    changes["target"] = c.TargetConfig(**of_task)
  if method.refers:
    changes["reference"] = c.ReferenceConfig(folder=str(reference))
  num_steps = steps + (method.choice in ("pruned", "logit"))
  return dataclasses.replace(
    base,
    num_steps=num_steps,
    sequence_length=SEQUENCE_LENGTH,
    model=None,
    weights=c.WeightsConfig(folder=str(start)),
    optimizer=dataclasses.replace(
      base.optimizer, learning_rate=LEARNING_RATE, schedule="constant", warmup_steps=0
    ),
    plan=plan,
    evaluation=c.EvaluationConfig(split="none"),
    checkpoint=c.CheckpointConfig(every_steps=num_steps, keep=1),
    logging=c.LoggingConfig(every_steps=1, tensorboard=False, example_table=True),
    **changes,
  )


def choose(
  name: str, method: Online, tasks: Sequence[str], base: TrainConfig, staged: Staged,
  folder: Path, offered: int, reference: Path,
) -> list[Chosen]:  # fmt: skip
  """Returns what a method chooses for each task, in runs that continue or have ended before.

  Args:
    name: of the method.
    method: what chooses; without a target it has one run for all tasks.
    tasks: of the target.
    base: of the model's own training.
    staged: the pool.
    folder: of that training; receives the runs.
    offered: rows.
    reference: the run directory of a model of the held-out rows.

  Raises:
    ValueError: if the pool holds fewer rows, or they fill no steps.
  """
  start = exported(folder, base.num_steps // (4 if method.refers else 1))
  targeted, found = method.target is not None, []
  for own in tasks if targeted else [UNTARGETED]:
    workdir, target = folder / "online" / own / name, staged.folder / "targets" / own
    config = run_config(method, base, start, offered, target, reference)
    if (size := runs.read_data(config, str(workdir)).num_examples) < offered:
      raise ValueError(f"{offered} rows cannot be offered, of the pool {size} can be read")
    if command.train(config, str(workdir)).stopped != "finished":
      raise SystemExit("stopped; the same command continues")
    rows = chosen(workdir, method.choice, offered // base.batch_size)
    last = read_metrics(workdir)[-1]
    cost = [last[f"cost/extra_{passes}_rows"] for passes in ("forward", "backward")]
    found += [
      Chosen(name, method.choice, task, base.seed, *rows, *cost)
      for task in ([own] if targeted else tasks)
    ]
  return found


def held_out(base: TrainConfig, staged: Staged) -> TrainConfig:
  """Returns the run of a reference: a model's training, on rows that are not of the pool.

  Raises:
    ValueError: if there are none.
  """
  folder = staged.folder / HELD_OUT
  if not folder.exists():
    raise ValueError(
      "a method with a reference needs rows that are not of the pool: let it be a part, such "
      f"as --rows={staged.num_rows // 2}"
    )
  return dataclasses.replace(base, data=str(folder))


def exported(folder: Path, step: int) -> Path:
  """Returns the model of a run at a step as a folder that others start from."""
  place = folder / "start" / str(step)
  if not place.exists():
    opened = pretrained.open_model(folder, sharding.make_mesh(), step)
    length = int(opened.run["sequence_length"])
    hf.save(place, dataclasses.replace(opened.config, context_length=length), opened.params)
  return place


def chosen(
  workdir: Path, choice: Choice, num_steps: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Returns the lines of the pool that a run chose, and those that it was offered.

  Both are read from the table of examples that the run has written.

  Args:
    workdir: of the run.
    choice: which rows count as chosen.
    num_steps: without candidates, the steps whose rows were offered.
  """
  import pyarrow.parquet as pq

  table = pq.read_table(workdir / example_table.NAME).to_pydict()
  line_N = np.array([int(source.rpartition(":")[2]) - 1 for source in table["source"]])
  column = lambda name: np.array(table[name], np.float64)  # NaN where nothing is known
  offered_N = column("step_first") <= num_steps  # that of a row never seen is NaN
  if choice == "kept":
    offered_N, chosen_N = column("times_offered") > 0, column("times_selected") > 0
  elif choice == "pruned":
    chosen_N = offered_N & (column("times_selected") < column("times_offered"))
  else:
    value_N = column("logit" if choice == "logit" else "weight_sum")
    chosen_N = _best(value_N, offered_N)
  lines = lambda mask_N: tuple(sorted(line_N[mask_N].tolist()))
  return lines(chosen_N), lines(offered_N)


def _best(value_N: np.ndarray, of_N: np.ndarray) -> np.ndarray:
  """Returns bool[N], the tenth of some rows with the highest values, ties to the first."""
  order = np.argsort(-np.where(of_N, value_N, -np.inf), kind="stable")
  best_N = np.zeros(len(value_N), bool)
  best_N[order[: -(-int(of_N.sum()) // ONE_IN)]] = True
  return best_N
