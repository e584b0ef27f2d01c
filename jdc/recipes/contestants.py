"""Policies of a comparison that need other runs before their own.

Each function takes the config of the run that is compared, a folder for the runs before it and
what trains one, and returns the config of the run proper. The runs before it are evaluated on
the target split, as validation is what the comparison is scored on.
"""

import dataclasses

from jdc.policies import mixture
from jdc.recipes import doremi as doremi_lib
from jdc.recipes import runs, skill_graph
from jdc.recipes.runs import Train
from jdc.train.config import TrainConfig, policy


class Stopped(Exception):
  """A run before the one that is compared was told to stop."""


def doremi(config: TrainConfig, workdir: str, train: Train) -> TrainConfig:
  """The mean weights of a proxy as large and as long as the run, against a reference likewise.

  The reference is trained on the config's own mixture.
  """
  before = runs.on_target(config)
  proxy = dataclasses.replace(before, mixture=policy(mixture.doremi))
  weights = doremi_lib.domain_weights(before, proxy, workdir, train)
  if weights is None:
    raise Stopped
  return doremi_lib.with_weights(config, weights)


def skill_it(config: TrainConfig, workdir: str, train: Train) -> TrainConfig:
  """Skill-It on a graph learnt by runs on each domain alone, each a tenth of the run."""
  num_steps = max(1, config.num_steps // 10)
  adjacency = skill_graph.learn(config, workdir, train, num_steps)
  if adjacency is None:
    raise Stopped
  graph = tuple(map(tuple, adjacency.tolist()))
  return dataclasses.replace(config, mixture=policy(mixture.skill_it, adjacency=graph))
