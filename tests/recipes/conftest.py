"""What stands in for training in tests of recipes: losses are a function of the mixture."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from jdc.models.configs import DecoderConfig
from jdc.policies.base import RunSpec
from jdc.recipes.runs import Data
from jdc.train.config import CorpusConfig, TrainConfig
from jdc.train.loop import Result

DATA = Data(
  tokens={"code": 6000, "math": 1000, "web": 3000},
  num_examples=100,
  fingerprints={"code (train)": "a", "math (train)": "b", "web (train)": "c"},
)


class FakeTrain:
  """Trains nothing: returns planted losses and notes which runs it was asked for."""

  def __init__(self, losses: Callable[[np.ndarray], np.ndarray], data: Data = DATA):
    self.losses, self.names = losses, list(data.tokens)
    self.asked: list[tuple[TrainConfig, str]] = []
    self.stop_at: int | None = None  # calls before SIGTERM
    self.change: Mapping[str, Any] = {}  # in what is returned

  def __call__(self, config: TrainConfig, workdir: str) -> Result:
    self.asked.append((config, workdir))
    split = config.evaluation.split
    spec = RunSpec(100, 3, tuple(self.names), (60, 10, 30), (0.6, 0.1, 0.3))
    proportions = np.asarray(config.mixture["proportions"])
    before = self._metrics(split, np.full(len(self.names), 5.0))
    after = self._metrics(split, self.losses(proportions))
    result = {"state": None, "stopped": "finished", "plan": None, "spec": spec}
    result |= {"before": before, "after": after} | self.change
    if self.stop_at is not None and len(self.asked) > self.stop_at:
      result |= {"stopped": "SIGTERM", "after": None}
    return Result(**result)

  @property
  def folders(self) -> list[str]:
    return [workdir.rpartition("/")[2] for _, workdir in self.asked]

  def _metrics(self, split: str, losses_K: np.ndarray) -> dict[str, float]:
    named = zip(self.names, losses_K, strict=True)
    return {f"{split}/{name}/loss": float(loss) for name, loss in named}


@pytest.fixture
def data() -> Data:
  return DATA


@pytest.fixture
def fake_train() -> type[FakeTrain]:
  return FakeTrain


@pytest.fixture
def config() -> TrainConfig:
  return TrainConfig(
    num_steps=10,
    batch_size=8,
    sequence_length=16,
    data="DIR",
    corpus=CorpusConfig(target_fraction=0.1),
    model=DecoderConfig(
      vocab_size=258, width=16, num_layers=1, num_heads=2, num_kv_heads=2, mlp_width=32
    ),
  )
