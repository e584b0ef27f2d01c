"""What a run consists of."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import optax

from jdc.data.pack import Domain
from jdc.models.base import LanguageModel
from jdc.policies.combine import Policies
from jdc.stats.directions import Adam
from jdc.train import state as state_lib
from jdc.train.config import RunConfig
from jdc.train.responses import Responses


class Run(NamedTuple):
  """What a run consists of."""

  model: LanguageModel  # the network as pure functions
  optimizer: optax.GradientTransformation  # of the gradient of the weighted loss
  learning_rate: optax.Schedule  # the one inside the optimizer, for policies and logs
  policies: Policies  # what decides about the data; `combine()` for nothing
  domains: Mapping[str, Domain]  # packed rows
  config: RunConfig  # sizes, the plan, and when to log, evaluate and save
  # The whole config as flat JSON, kept in the checkpoint: a resume with another one is an
  # error. Default: `config`.
  config_json: Mapping[str, Any] | None = None
  scores: np.ndarray | None = None  # f32[N], of all rows in order, for an ordering by them
  weights: state_lib.Weights | None = None  # what the parameters start from; else drawn
  trainable: Callable[[str], bool] | None = None  # by path; default: all parameters
  reference: state_lib.Reference | None = None  # whose losses policies compare with
  # The target set of policies, a table a task; default: the target split of the domains.
  tasks: Mapping[str, Any] | None = None
  # The constants of the optimizer, for policies that observe its directions; `None` where it
  # is not Adam.
  adam: Adam | None = None
  responses: Responses | None = None  # how those to the target's prompts are rewarded
