"""Selection by the norm of a statistic of each row: one measure, averaged over rounds."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec
from jdc.policies.selection import running_mean
from jdc.policies.selection.running_mean import RunningMean

Checkpoints = Literal["current", "mean"]


class NormState(NamedTuple):
  running: RunningMean | None  # for `mean`


def by_norm(name: str, field: str, checkpoints: Checkpoints) -> DataPolicy:
  """Prefers rows with a large `field` of `ExampleStats`, f32[B].

  Args:
    name: of the policy, in its errors.
    field: the norm.
    checkpoints: as `el2n` says.

  Returns:
    The policy that `el2n` describes.

  Raises:
    ValueError: if `checkpoints` is unknown; in `init`, if the run sweeps no rows.
  """
  known = get_args(Checkpoints)
  checks.require((checkpoints in known, f"checkpoints must be in {known}, got {checkpoints!r}"))

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, NormState]:
    del key  # deterministic
    if spec.sweep_size <= 0:
      raise ValueError(f"{name} needs sweep_size > 0, got {spec.sweep_size}")
    metrics = {"num_nonfinite": jnp.int32(0), "num_eligible": jnp.int32(spec.sweep_size)}
    running = running_mean.empty(spec.num_examples) if checkpoints == "mean" else None
    logits_C = jnp.zeros(spec.sweep_size, jnp.float32)
    return Decision(logits=logits_C, metrics=metrics), NormState(running)

  def score(stats: ExampleStats, state: NormState) -> jax.Array:
    del state
    return getattr(stats, field).astype(jnp.float32)

  def update(stats: ExampleStats, state: NormState) -> tuple[Decision, NormState]:
    score_C, real_C = stats.score.astype(jnp.float32), stats.example_id >= 0
    eligible_C = real_C & jnp.isfinite(score_C)
    if state.running is not None:
      told_Cx1 = jnp.where(jnp.isfinite(score_C), score_C, jnp.nan)[:, None]
      ids = stats.example_id
      running = running_mean.add(state.running, ids, stats.score_age, told_Cx1)
      state, score_C = NormState(running), running.mean_NxS[ids, 0]
      eligible_C &= jnp.isfinite(score_C)
    num_eligible = jnp.sum(eligible_C, dtype=jnp.int32)
    num_nonfinite = jnp.sum(real_C, dtype=jnp.int32) - num_eligible
    metrics = {"num_nonfinite": num_nonfinite, "num_eligible": num_eligible}
    return Decision(jnp.where(eligible_C, score_C, -jnp.inf), metrics=metrics), state

  observes = {field, "example_id"} | ({"score_age"} if checkpoints == "mean" else set())
  return DataPolicy(init, update, frozenset(observes), scope="round", score=score)
