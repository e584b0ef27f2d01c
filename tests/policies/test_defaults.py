"""Where a paper gives a value it is the default."""

import inspect

import pytest

from jdc.policies import mixture, ordering, selection, weighting
from jdc.policies.mixture import regmix

PUBLISHED = {
  mixture.doremi: {"learning_rate": 1.0, "smoothing": 1e-3, "sampling": "uniform"},
  mixture.odm: {"reward": "moving_average", "smoothing": 0.9},
  mixture.dynamic_moe: {
    "distance": "l2", "learning_rate": 10.0, "smoothing": 0.05, "every_steps": 100,
  },
  mixture.doge: {"objective": "universal", "rule": "paper", "mu": 0.05},
  mixture.skill_it: {"window": 3, "normalise": False},
  mixture.aioli: {"learning_rate": 0.2, "share": 0.625, "ema": None},
  mixture.ado: {"count": "all"},
  mixture.pike: {"rule": "update", "tau": None},
  mixture.group_dro: {"learning_rate": 0.01, "size_adjustment": 0.0},
  mixture.random: {"concentration": 1.0},
  regmix.best_mixture: {"num_simulated": 100_000, "num_best": 128},
  selection.delta_loss: {"window": 0.2, "steepness": 10.0, "outside": 0.025},
  selection.greats: {"products": "ghost", "self_term": False},
  selection.icons: {"direction": "update_direction"},
  selection.less: {
    "direction": "update_direction", "aggregate": "submax", "checkpoints": "current",
  },
  selection.near: {"neighbours": 1000},
  selection.tsds: {
    "alpha": 0.5, "c": 5.0, "sigma": 0.75, "neighbours": 5000, "kde_neighbours": 1000,
  },
  weighting.loss_reweighting: {
    "strategy": "linupper", "temperature": 1.0, "burn_in_steps": 1000, "delta": 1.0,
  },
  weighting.adapt: {"temperature": 1.0, "embedding": "position_weighted_embedding"},
  weighting.joint_update_aware: {
    "objective": "joint", "beta": 0.1, "temperature": 0.05, "damping": 1.0, "iterations": 5,
  },
  weighting.group_dro: {"learning_rate": 0.01, "size_adjustment": 0.0},
  weighting.focal: {"gamma": 2.0},
  weighting.rho1: {"fraction": 0.6},
  weighting.self_paced: {"rule": "hard"},
  weighting.selective_backprop: {"corrected": False, "capacity": 1024},
  ordering.folding: {"layers": 5, "descending": False},
  ordering.zigzag: {"layers": 5, "descending": False},
  ordering.segment: {
    "first_percent": 10, "last_percent": 10, "first_tail": "low", "last_tail": "high",
  },
  ordering.stair: {"parts": 2, "radius": 0.0, "layers": 2},
  ordering.saw: {"parts": 2, "radius": 0.0, "layers": 2},
}  # fmt: skip


@pytest.mark.parametrize("factory", PUBLISHED, ids=lambda f: f"{f.__module__}.{f.__name__}")
def test_defaults_are_the_published_values(factory):
  parameters = inspect.signature(factory).parameters
  expected = PUBLISHED[factory]
  assert {name: parameters[name].default for name in expected} == expected


def test_the_mixtures_of_regmix_are_drawn_as_published():
  space = regmix.PAPER
  assert (space.temperature, space.min_strength, space.max_strength) == (0.5, 0.1, 5.0)
  assert (space.max_epochs, space.minimum) == (15, 2e-4)


def test_what_the_paper_tunes_has_no_default():
  for name in ("zeta1", "zeta2"):
    assert inspect.signature(mixture.pike).parameters[name].default is inspect.Parameter.empty
