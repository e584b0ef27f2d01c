"""Selection by loss: one of three bands of loss is sampled more."""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from jdc.policies import checks, sampling
from jdc.policies.base import DataPolicy, Decision, ExampleStats, PolicyState, RunSpec
from jdc.policies.selection.quantiles import quantiles

Focus = Literal["low", "medium", "high"]


def loss(
  focus: Focus = "high",
  focus_weight: float = 5.0,
  temperature: float = 1.0,
  low: float = 0.33,
  high: float = 0.66,
) -> DataPolicy:
  """Samples examples of one band of loss `focus_weight` times as often as the others.

  With q1 and q2 the `low` and `high` quantiles (linear interpolation) of the finite losses of
  the rows swept, a row is low if l <= q1, medium if q1 < l <= q2, high if l > q2, and

    p_i ~ w_i^(1/T),    w_i = focus_weight in the band in focus, else 1.

  Equal losses are all low. A row whose loss is not finite is never sampled.

  Args:
    focus: the band in focus.
    focus_weight: w > 0.
    temperature: T in [0, inf]; 0 samples only the most likely band, inf all rows alike.
    low: q1 as a share, in [0, 1].
    high: q2 as a share, in [0, 1], above `low`.

  Returns:
    A round-scope policy that observes `loss` and `example_id`. `score` returns f32[b], the loss
    of each row of a chunk; `update` reads `score` f32[C] and `example_id` i32[C], -1 for
    padding. Its decision holds `logits` f32[C], before the first sweep 0 for all; metrics count
    the rows sampled from, `num_eligible`, and those whose loss is not finite, `num_nonfinite`.

  Raises:
    ValueError: if an argument is unknown or out of range; in `init`, if the run sweeps no rows.

  References:
    The rule of the loss selector of DataFlex, there without a paper. Here rows whose loss is
    not finite are excluded at every temperature.

  Example:
    >>> spec = RunSpec(4, 1, ("web",), (4,), proportions=(1.0,), sweep_size=4)
    >>> policy = loss()
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> swept = ExampleStats(
    ...   example_id=jnp.array([0, 1, 2, -1]), score=jnp.array([1.0, 2.0, 3.0, 0.0])
    ... )
    >>> decision, _ = policy.update(swept, state)
    >>> [round(p, 3) for p in jax.nn.softmax(decision.logits).tolist()]
    [0.143, 0.143, 0.714, 0.0]
  """
  in_unit = lambda share: checks.is_number(share) and 0 <= share <= 1
  checks.require(
    (focus in get_args(Focus), f"focus must be in {get_args(Focus)}, got {focus!r}"),
    (
      checks.is_finite(focus_weight) and focus_weight > 0,
      f"focus_weight must be positive and finite, got {focus_weight}",
    ),
    (
      checks.is_number(temperature) and temperature >= 0,
      f"temperature must be in [0, inf], got {temperature}",
    ),
    (in_unit(low), f"low must be in [0, 1], got {low}"),
    (in_unit(high), f"high must be in [0, 1], got {high}"),
    (
      not (in_unit(low) and in_unit(high)) or low < high,
      f"low {low} must be below high {high}",
    ),
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, PolicyState]:
    del key  # deterministic
    if spec.sweep_size <= 0:
      raise ValueError(f"selection by loss needs sweep_size > 0, got {spec.sweep_size}")
    metrics = {"num_nonfinite": jnp.int32(0), "num_eligible": jnp.int32(spec.sweep_size)}
    return Decision(logits=jnp.zeros(spec.sweep_size, jnp.float32), metrics=metrics), ()

  def score(stats: ExampleStats, state: PolicyState) -> jax.Array:
    del state
    return stats.loss.astype(jnp.float32)

  def update(stats: ExampleStats, state: PolicyState) -> tuple[Decision, PolicyState]:
    loss_C = stats.score.astype(jnp.float32)
    real_C = stats.example_id >= 0
    eligible_C = real_C & jnp.isfinite(loss_C)
    q1, q2 = quantiles(loss_C, eligible_C, (low, high))
    band_C = jnp.where(loss_C <= q1, 0, jnp.where(loss_C <= q2, 1, 2))
    focused_C = band_C == get_args(Focus).index(focus)
    weight_C = jnp.where(focused_C, math.log(focus_weight), 0.0)
    logits_C = sampling.temper(jnp.where(eligible_C, weight_C, -jnp.inf), temperature)
    num_eligible = jnp.sum(eligible_C, dtype=jnp.int32)
    num_nonfinite = jnp.sum(real_C, dtype=jnp.int32) - num_eligible
    metrics = {"num_nonfinite": num_nonfinite, "num_eligible": num_eligible}
    return Decision(logits=logits_C, metrics=metrics), state

  observes = frozenset({"loss", "example_id"})
  return DataPolicy(init, update, observes, scope="round", score=score)
