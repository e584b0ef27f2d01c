"""AdamW with a warm-up, a decay and clipping."""

import math
from typing import Any

import jax
import optax

from jdc.stats.directions import Adam
from jdc.train.config import OptimizerConfig

_SCHEDULES = ("cosine", "linear", "constant")


def make_optimizer(
  config: OptimizerConfig, num_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Returns the optimizer and the learning rate by optimizer step.

  Weight decay applies to every parameter that is not named `scale` or `bias`.

  Raises:
    ValueError: naming every field that is out of range.
  """
  errors = [
    f"optimizer.{name} must be {accepted}, got {getattr(config, name)!r}"
    for name, accepted, right in (
      ("learning_rate", "positive and finite", 0 < config.learning_rate < math.inf),
      ("schedule", f"one of {_SCHEDULES}", config.schedule in _SCHEDULES),
      ("warmup_steps", f"in [0, num_steps={num_steps})", 0 <= config.warmup_steps < num_steps),
      ("final_fraction", "in [0, 1]", 0 <= config.final_fraction <= 1),
      ("b1", "in [0, 1)", 0 <= config.b1 < 1),
      ("b2", "in [0, 1)", 0 <= config.b2 < 1),
      ("epsilon", "positive and finite", 0 < config.epsilon < math.inf),
      ("weight_decay", "0 or more and finite", 0 <= config.weight_decay < math.inf),
      ("clip_norm", "0 or more and finite", 0 <= config.clip_norm < math.inf),
    )
    if not right
  ]
  if errors:
    raise ValueError("; ".join(errors))
  schedule = _schedule(config, num_steps)
  adamw = optax.adamw(
    schedule,
    b1=config.b1,
    b2=config.b2,
    eps=config.epsilon,
    weight_decay=config.weight_decay,
    mask=_decays,
  )
  clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
  return optax.chain(clip, adamw), schedule


def adam_of(config: OptimizerConfig) -> Adam:
  """Returns the constants by which the optimizer turns a gradient into a direction."""
  return Adam(config.b1, config.b2, config.epsilon, config.clip_norm)


def _schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
  peak, decay_steps = config.learning_rate, num_steps - config.warmup_steps
  if config.schedule == "cosine":
    decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=config.final_fraction)
  elif config.schedule == "linear":
    decay = optax.linear_schedule(peak, peak * config.final_fraction, decay_steps)
  else:
    decay = optax.constant_schedule(peak)
  if not config.warmup_steps:
    return decay
  # The first update has a rate above 0.
  warmup = optax.linear_schedule(peak / config.warmup_steps, peak, config.warmup_steps - 1)
  return optax.join_schedules([warmup, decay], [config.warmup_steps])


def _decays(params: Any) -> Any:
  def decays(path: tuple[Any, ...], _: jax.Array) -> bool:
    return getattr(path[-1], "key", None) not in ("scale", "bias")

  return jax.tree_util.tree_map_with_path(decays, params)
