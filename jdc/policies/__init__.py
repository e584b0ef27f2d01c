"""Data policies: pure functions that decide what a model trains on.

Depends on jax and numpy only, so that any training loop can use a policy:

  decision, state = policy.init(spec, key)
  decision, state = policy.update(stats, state)  # under jit, in or beside the training step
"""

from jdc.policies import mixture, ordering, sampling, selection, weighting
from jdc.policies.base import (
  DataPolicy,
  Decision,
  ExampleStats,
  Ordering,
  PolicyState,
  RunSpec,
  TargetStats,
)
from jdc.policies.combinators import after, ema, floor, temperature
from jdc.policies.combine import Policies, combine
from jdc.policies.correcting import importance_corrected
from jdc.policies.holding import every, sweep_due
from jdc.policies.keeping import keep
from jdc.policies.observing import observing
from jdc.policies.stages import schedule

__all__ = [
  "DataPolicy",
  "Decision",
  "ExampleStats",
  "Ordering",
  "Policies",
  "PolicyState",
  "RunSpec",
  "TargetStats",
  "after",
  "combine",
  "ema",
  "every",
  "floor",
  "importance_corrected",
  "keep",
  "mixture",
  "observing",
  "ordering",
  "sampling",
  "schedule",
  "selection",
  "sweep_due",
  "temperature",
  "weighting",
]
