"""The driver of Skill-It's graph on planted losses: its edges, its resumes, its run."""

import dataclasses
import json

import numpy as np
import pytest

from jdc.policies import mixture
from jdc.recipes import runs, skill_graph
from jdc.train.config import OptimizerConfig, policy

# What a run on skill i takes off the loss 5 of skill j; math hurts web.
DROPS = np.array([[2.0, 1.0, 0.0], [0.5, 4.0, -3.0], [0.0, 0.0, 2.5]])
EDGES = [[1.0, 0.2, 0.0], [0.1, 1.0, 0.0], [0.0, 0.0, 1.0]]


def planted(proportions):
  assert sorted(proportions) == [0.0, 0.0, 1.0]
  return 5.0 - proportions @ DROPS


def test_the_planted_edges_are_learnt(config, data, fake_train, tmp_path):
  train = fake_train(planted)
  graph = skill_graph.learn(config, str(tmp_path), train, 7, data=data)
  np.testing.assert_allclose(graph, EDGES)
  assert train.folders == ["code", "math", "web"]
  assert {asked.num_steps for asked, _ in train.asked} == {7}
  assert {asked.evaluation.split for asked, _ in train.asked} == {"target"}
  written = json.loads((tmp_path / "skill_graph.json").read_text())
  assert written == {
    "domains": ["code", "math", "web"],
    "num_steps": 7,
    "before": [5.0, 5.0, 5.0],
    "after": (5.0 - DROPS).tolist(),
    "adjacency": graph.tolist(),
  }


def test_a_stopped_graph_continues(config, data, fake_train, tmp_path):
  first, second = fake_train(planted), fake_train(planted)
  first.stop_at = 1
  assert skill_graph.learn(config, str(tmp_path), first, 7, data=data) is None
  assert not (tmp_path / "skill_graph.json").exists()
  graph = skill_graph.learn(config, str(tmp_path), second, 7, data=data)
  assert (first.folders, second.folders) == (["code", "math"], ["math", "web"])
  np.testing.assert_allclose(graph, EDGES)
  with pytest.raises(ValueError, match="num_steps: 7 -> 8"):
    skill_graph.learn(config, str(tmp_path), second, 8, data=data)
  assert second.folders == ["math", "web"]


def test_the_warm_up_is_as_long_a_part_of_the_runs(config, data, fake_train, tmp_path):
  train = fake_train(planted)
  config = dataclasses.replace(
    config, num_steps=300, optimizer=OptimizerConfig(warmup_steps=30)
  )
  skill_graph.learn(config, str(tmp_path), train, 30, data=data)
  assert {asked.optimizer.warmup_steps for asked, _ in train.asked} == {3}


def test_a_loss_that_is_not_finite_names_the_skill(config, data, fake_train, tmp_path):
  train = fake_train(lambda p: np.where(p[1] == 1, np.nan, 1.0) * np.ones(3))
  with pytest.raises(FloatingPointError, match=r"proxy math: .* on code, math, web"):
    skill_graph.learn(config, str(tmp_path), train, 7, data=data)


def test_a_single_domain_has_no_graph(config, data, fake_train, tmp_path):
  one = data._replace(tokens={"web": 3000})
  with pytest.raises(ValueError, match="at least 2 domains, got web"):
    skill_graph.learn(config, str(tmp_path), fake_train(planted), 7, data=one)


def test_the_run_proper_has_the_graph(config, data, fake_train, tmp_path, monkeypatch):
  class Train(fake_train):
    def __call__(self, config, workdir):
      if workdir.endswith("target"):
        self.proper = config
        config = runs.on_mixture(config, (1.0, 0.0, 0.0))
      return super().__call__(config, workdir)

  monkeypatch.setattr(runs, "read_data", lambda config, workdir: data)
  train, slot = Train(planted), policy(mixture.skill_it, learning_rate=0.7)
  config = dataclasses.replace(config, mixture=slot)
  outcome = skill_graph.run(config, str(tmp_path), train, 7)
  np.testing.assert_allclose(outcome.adjacency, EDGES)
  assert outcome.target.stopped == "finished"
  proper = train.proper.mixture
  assert proper["factory"] is mixture.skill_it
  assert proper["learning_rate"] == 0.7
  np.testing.assert_allclose(proper["adjacency"], EDGES)
  assert train.proper.evaluation.split == "validation"


def test_a_run_under_another_policy_is_refused(config, fake_train, tmp_path):
  train, graph = fake_train(planted), ((1.0, 0.0), (0.0, 1.0))
  for slot, named in (
    (None, "must be mixture.skill_it"),
    (policy(mixture.odm), "must be mixture.skill_it"),
    (policy(mixture.skill_it, adjacency=graph), "adjacency must be empty"),
  ):
    changed = dataclasses.replace(config, mixture=slot)
    with pytest.raises(ValueError, match=named):
      skill_graph.run(changed, str(tmp_path), train, 7)
  assert not train.asked
