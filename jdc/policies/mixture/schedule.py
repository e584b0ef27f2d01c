"""Proportions that follow a schedule over the steps."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec
from jdc.policies.mixture.static import fit_problems, in_order, proportion_problems

Interpolation = Literal["constant", "linear", "cosine"]
Proportions = Sequence[float] | Mapping[str, float]


class ScheduleState(NamedTuple):
  proportions_SxK: jax.Array  # f32[S, K], of each stage, sum 1


def schedule(
  stages: Sequence[tuple[int, Proportions]], interpolation: Interpolation = "constant"
) -> DataPolicy:
  r"""Samples domains in proportions given for stages of the run.

  With stages (s_j, p_j), each p_j normalised to sum 1, and x = (s - s_j) / (s_{j+1} - s_j)
  between two starts, s_j <= s < s_{j+1}, the decision of optimizer step s is

    constant  p_j
    linear    (1 - x) p_j + x p_{j+1}
    cosine    (1 - y) p_j + y p_{j+1},    y = (1 - cos(pi x)) / 2

  and the last p from its start on. As of any mixture that decides in steps, the decision of
  step s governs the batch of step s + 1 + `decision_lag`; the batches before the first such
  have p_0. Start stages that many steps earlier where it matters.

  Args:
    stages: pairs of a start, in optimizer steps, and proportions as `static` takes them: one
      per domain in the run's order, or by domain name. The first start is 0, starts increase.
    interpolation: how proportions go from one stage to the next.

  Returns:
    A step-scope policy that observes `step`; its decision holds `logits` f32[K], log
    probabilities.

  Raises:
    ValueError: if starts or proportions are not as said, or the interpolation is unknown; in
      `init`, if there is not exactly one proportion for each domain of the run.

  Example:
    >>> policy = schedule([(0, (1, 0)), (100, {"code": 1, "web": 3})], "linear")
    >>> spec = RunSpec(8, 2, ("code", "web"), (4, 4), proportions=(0.5, 0.5))
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> decision, _ = policy.update(ExampleStats(step=jnp.int32(50)), state)
    >>> [round(p, 3) for p in jnp.exp(decision.logits).tolist()]
    [0.625, 0.375]
  """
  stages = _pairs(stages)
  known = interpolation in get_args(Interpolation)
  checks.raise_all(
    [
      *(
        []
        if known
        else [f"interpolation must be in {get_args(Interpolation)}, got {interpolation!r}"]
      ),
      *_start_problems([start for start, _ in stages]),
      *_of_stages(stages, proportion_problems),
    ]
  )
  starts_S = np.asarray([start for start, _ in stages], np.int32)

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, ScheduleState]:
    del key  # deterministic
    checks.raise_all(_of_stages(stages, lambda given: fit_problems(given, spec)))
    given_SxK = np.stack([in_order(given, spec) for _, given in stages])
    share_SxK = given_SxK / given_SxK.sum(axis=1, keepdims=True)
    state = ScheduleState(jnp.asarray(share_SxK, jnp.float32))
    return Decision(logits=jnp.log(state.proportions_SxK[0])), state

  def update(stats: ExampleStats, state: ScheduleState) -> tuple[Decision, ScheduleState]:
    stage = jnp.maximum(jnp.sum(stats.step >= starts_S) - 1, 0)
    following = jnp.minimum(stage + 1, len(stages) - 1)
    start, end = jnp.asarray(starts_S)[stage], jnp.asarray(starts_S)[following]
    # Differences of whole numbers first: steps of a long run are not exact in float32.
    x = (stats.step - start).astype(jnp.float32) / jnp.maximum(end - start, 1)
    x = jnp.where(following > stage, _eased(x, interpolation), 0.0)
    before_K, after_K = state.proportions_SxK[stage], state.proportions_SxK[following]
    return Decision(logits=jnp.log((1 - x) * before_K + x * after_K)), state

  return DataPolicy(init, update, frozenset({"step"}), scope="step")


def _eased(x: jax.Array, interpolation: Interpolation) -> jax.Array:
  """Returns how much of the next stage is in force at x in [0, 1)."""
  if interpolation == "cosine":
    return jnp.sin(jnp.pi / 2 * x) ** 2  # (1 - cos(pi x)) / 2 without its cancellation
  return x if interpolation == "linear" else jnp.zeros_like(x)


def _pairs(stages: Any) -> tuple[tuple[Any, Any], ...]:
  is_pair = lambda stage: isinstance(stage, Sequence) and len(stage) == 2
  if not (isinstance(stages, Sequence) and stages and all(map(is_pair, stages))):
    raise ValueError(
      f"stages must be a non-empty sequence of (step, proportions), got {stages!r}"
    )
  return tuple((start, given) for start, given in stages)


def _start_problems(starts: list[Any]) -> list[str]:
  if not all(checks.is_count(start) for start in starts):
    return [f"starts of stages must be whole numbers >= 0, got {starts}"]
  if starts[0] != 0 or any(a >= b for a, b in itertools.pairwise(starts)):
    return [f"starts of stages must begin at 0 and increase, got {starts}"]
  return []


def _of_stages(stages: tuple[tuple[Any, Any], ...], problems: Any) -> list[str]:
  return [f"stage {start}: {problem}" for start, given in stages for problem in problems(given)]
