"""Skill-It's graph: what training on each skill alone does to the losses of all."""

import dataclasses
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jdc.policies import mixture
from jdc.policies.mixture.skill_it import adjacency_from_losses
from jdc.recipes import runs
from jdc.recipes.runs import Data, Train
from jdc.train.config import TrainConfig, policy
from jdc.train.loop import Result

_LOG = logging.getLogger("jdc")


class Outcome(NamedTuple):
  """What the runs gave."""

  adjacency: np.ndarray | None  # f64[K, K]; `None` after a signal to stop before it
  target: Result | None  # `None` after such a signal


def run(config: TrainConfig, workdir: str, train: Train, num_steps: int) -> Outcome:
  """Learns the graph, then trains under `mixture.skill_it` with it.

  Args:
    config: of the run proper; its mixture is `mixture.skill_it`, whose `adjacency` is set here.
      The runs on one skill are as large.
    workdir: a local folder; each run has a folder of its own in it.
    train: trains one run, or continues it.
    num_steps: h, of the run on each skill.

  Raises:
    ValueError: if the config is not Skill-It's; further as `learn`.
    FloatingPointError: as `learn`.
  """
  chosen = {} if config.mixture is None else dict(config.mixture)
  if chosen.get("factory") is not mixture.skill_it:
    raise ValueError("the mixture must be mixture.skill_it")
  if chosen.get("adjacency") is not None:
    raise ValueError(f"mixture.adjacency must be empty, it is learnt: {chosen['adjacency']}")
  adjacency = learn(config, workdir, train, num_steps)
  if adjacency is None:
    return Outcome(None, None)
  graph = tuple(map(tuple, adjacency.tolist()))
  arguments = {name: chosen[name] for name in chosen if name != "factory"}
  slot = policy(mixture.skill_it, **arguments | {"adjacency": graph})
  proper = dataclasses.replace(config, mixture=slot)
  return Outcome(adjacency, train(proper, f"{workdir}/target"))


def learn(
  config: TrainConfig,
  workdir: str,
  train: Train,
  num_steps: int,
  *,
  data: Data | None = None,
) -> np.ndarray | None:
  """Returns what training on each skill alone does to the losses of all.

  A skill is a domain. A run on each of them, from the same parameters, is evaluated on the
  target split before and after; `mixture.adjacency_from_losses` is the rule. Each run has a
  folder in `workdir/proxies` and continues from its newest checkpoint; one whose losses are in
  `proxies.json` is not trained again. Writes `skill_graph.json`.

  Args:
    config: of the runs; their mixture, steps and evaluated split are set here. Its warm-up is
      shortened, or lengthened, with the steps.
    workdir: a local folder.
    train: trains one run.
    num_steps: h, of each run.
    data: of all runs; default: what the config names.

  Returns:
    A, f64[K, K], from the skill trained on to the skill measured; `None` after a signal to
    stop.

  Raises:
    ValueError: if there are fewer than two domains; if `proxies.json` is of other settings.
    FloatingPointError: naming a run whose loss is not finite.

  References:
    Chen et al., "Skill-it! A Data-Driven Skills Framework for Understanding and Training
    Language Models", 2023, arXiv 2307.14430.
  """
  if data is None:
    data = runs.read_data(config, workdir)
  names = list(data.tokens)
  if len(names) < 2:
    raise ValueError(f"a graph of skills needs at least 2 domains, got {', '.join(names)}")
  alone = dict(zip(names, np.eye(len(names)).tolist(), strict=True))
  found = runs.losses(_of_steps(config, num_steps), alone, data, workdir, train)
  if found is None:
    return None
  before_K = found.before.mean(axis=0)  # equal in all runs, but for rounding on other devices
  adjacency_KxK = adjacency_from_losses(before_K, found.after)
  for name, helped in zip(names, adjacency_KxK, strict=True):
    shown = ", ".join(f"{other} {a:.3f}" for other, a in zip(names, helped, strict=True))
    _LOG.info("%s helps: %s", name, shown)
  content = {
    "domains": names,
    "num_steps": num_steps,
    "before": before_K.tolist(),
    "after": found.after.tolist(),
    "adjacency": adjacency_KxK.tolist(),
  }
  runs.write_json(Path(workdir) / "skill_graph.json", content)
  return adjacency_KxK


def _of_steps(config: TrainConfig, num_steps: int) -> TrainConfig:
  warmup_steps = config.optimizer.warmup_steps * num_steps // config.num_steps
  optimizer = dataclasses.replace(config.optimizer, warmup_steps=warmup_steps)
  return dataclasses.replace(config, num_steps=num_steps, optimizer=optimizer)
