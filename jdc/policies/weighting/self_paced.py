"""Self-paced learning: easy examples first, harder ones as training goes on."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, PolicyState, RunSpec
from jdc.policies.weighting import recent
from jdc.policies.weighting.recent import Recent

Rule = Literal["hard", "linear"]


class GrowingState(NamedTuple):
  num_updates: jax.Array  # i32[]


class QuantileState(NamedTuple):
  num_updates: jax.Array  # i32[]
  growth_steps: jax.Array  # i32[], updates from the first quantile to the last
  recent: Recent


class _Pace(NamedTuple):
  """How lambda moves."""

  start: Callable[[RunSpec], PolicyState]
  advance: Callable[..., tuple[jax.Array, PolicyState]]  # (loss_B, usable_B, state)


def self_paced(
  rule: Rule = "hard",
  *,
  threshold: float | None = None,
  growth: float | None = None,
  quantiles: Sequence[float] | None = None,
  growth_steps: int | None = None,
  capacity: int = 1024,
) -> DataPolicy:
  r"""Weights each example by how far its loss is below a threshold that rises.

    hard    w_i = 1[l_i < lambda_t]
    linear  w_i = max(0, 1 - l_i / lambda_t)

  At update t, counted from 0, the threshold is one of

    lambda_t = lambda_0 growth^t
    lambda_t = the q_t-quantile of recent losses, q_t = q_0 + (q_1 - q_0) min(t / S, 1)

  where recent losses are the last `capacity`, those of the batch among them, and a quantile is
  interpolated linearly. There `hard` also keeps a loss equal to lambda, so that q = 1 keeps
  all.

  The weights are absolute, as in the papers: they are in [0, 1], not normalised to mean 1, and
  may all be 0, so the effective learning rate rises with the threshold. The metric
  `mean_weight` is the factor. Rows without target tokens weigh 0, as do losses that are not
  finite, which are counted as `num_nonfinite`; neither enters the recent losses.

  Args:
    rule: the above.
    threshold: lambda_0 > 0, in nats per token.
    growth: at least 1, given with `threshold` and only then.
    quantiles: (q_0, q_1), 0 <= q_0 <= q_1 <= 1. Exactly one of `threshold` and `quantiles` is
      given.
    growth_steps: S, by default the number of steps of the run; only with `quantiles`.
    capacity: number of losses remembered, at least the examples of a batch.

  Returns:
    A step-scope policy, pointwise with `threshold`, that observes `loss` and `num_tokens`; its
    decision holds `weights` f32[B].

  Raises:
    ValueError: if arguments contradict each other or one is out of range; in `init`, if the run
      has no batch size or, with `quantiles`, it is more than `capacity` or neither
      `growth_steps` nor the number of steps is known.

  References:
    Kumar, Packer, Koller, "Self-Paced Learning for Latent Variable Models", 2010 (hard). Jiang
    et al., "Easy Samples First: Self-paced Reranking for Zero-Example Multimedia Search", 2014
    (linear). There lambda grows after every inner optimisation, here in every step.

  Example:
    >>> spec = RunSpec(9, 1, ("web",), (9,), (1.0,), batch_size=3)
    >>> policy = self_paced(threshold=2.0, growth=2.0)
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> stats = ExampleStats(loss=jnp.array([1.0, 3.0, 9.0]), num_tokens=jnp.array([5, 5, 5]))
    >>> for _ in range(3):
    ...   decision, state = policy.update(stats, state)
    ...   print(decision.weights.tolist())
    [1.0, 0.0, 0.0]
    [1.0, 1.0, 0.0]
    [1.0, 1.0, 0.0]
  """
  _check(rule, threshold, growth, quantiles, growth_steps, capacity)
  if quantiles is None:
    assert threshold is not None
    assert growth is not None
    pace = _growing(threshold, growth)
  else:
    first, last = quantiles
    pace = _by_quantile(first, last, growth_steps, capacity)

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, PolicyState]:
    del key  # deterministic
    checks.require((spec.batch_size > 0, f"batch_size must be positive, got {spec.batch_size}"))
    weights_B = jnp.ones(spec.batch_size, jnp.float32)
    metrics = {
      "num_nonfinite": jnp.int32(0),
      "threshold": jnp.float32(threshold or 0.0),
      "mean_weight": jnp.float32(1.0),
    }
    return Decision(weights=weights_B, metrics=metrics), pace.start(spec)

  def update(stats: ExampleStats, state: PolicyState) -> tuple[Decision, PolicyState]:
    loss_B = stats.loss.astype(jnp.float32)
    valid_B = stats.num_tokens > 0
    usable_B = valid_B & jnp.isfinite(loss_B)
    loss_B = jnp.where(usable_B, loss_B, 0.0)
    limit, state = pace.advance(loss_B, usable_B, state)
    if rule == "linear":
      # Losses are not below 0; bounded, so that weights stay finite whatever comes.
      ease_B = jnp.clip(1 - loss_B / jnp.where(limit > 0, limit, 1.0), 0.0, 1.0)
      ease_B = jnp.where(limit > 0, ease_B, 0.0)
    else:
      ease_B = loss_B < limit if quantiles is None else loss_B <= limit
    weights_B = jnp.where(usable_B, ease_B, 0.0).astype(jnp.float32)
    num_usable = jnp.sum(usable_B, dtype=jnp.int32)
    metrics = {
      "num_nonfinite": jnp.sum(valid_B, dtype=jnp.int32) - num_usable,
      "threshold": jnp.minimum(limit, jnp.finfo(jnp.float32).max),
      "mean_weight": jnp.sum(weights_B) / jnp.maximum(num_usable, 1),
    }
    return Decision(weights=weights_B, metrics=metrics), state

  observes = frozenset({"loss", "num_tokens"})
  return DataPolicy(init, update, observes, scope="step", pointwise=quantiles is None)


def _growing(threshold: float, growth: float) -> _Pace:
  rate = math.log(growth)

  def advance(
    loss_B: jax.Array, usable_B: jax.Array, state: GrowingState
  ) -> tuple[jax.Array, GrowingState]:
    del loss_B, usable_B
    limit = jnp.float32(threshold) * jnp.exp(state.num_updates * rate)
    return limit, GrowingState(state.num_updates + 1)

  return _Pace(lambda spec: GrowingState(jnp.int32(0)), advance)


def _by_quantile(first: float, last: float, growth_steps: int | None, capacity: int) -> _Pace:
  def start(spec: RunSpec) -> QuantileState:
    steps = spec.num_steps if growth_steps is None else growth_steps
    checks.require(
      (steps > 0, "growth_steps must be given where the run's number of steps is not known")
    )
    return QuantileState(
      jnp.int32(0), jnp.int32(steps), recent.empty(capacity, spec.batch_size)
    )

  def advance(
    loss_B: jax.Array, usable_B: jax.Array, state: QuantileState
  ) -> tuple[jax.Array, QuantileState]:
    held = recent.insert(state.recent, loss_B, usable_B)
    progress = jnp.minimum(state.num_updates / state.growth_steps, 1.0)
    share = first * (1 - progress) + last * progress
    limit = recent.quantile(held, share.astype(jnp.float32))
    return limit, QuantileState(state.num_updates + 1, state.growth_steps, held)

  return _Pace(start, advance)


def _check(
  rule: object, threshold: float | None, growth: float | None,
  quantiles: Sequence[float] | None, growth_steps: int | None, capacity: int,
) -> None:  # fmt: skip
  by_quantile = quantiles is not None
  checks.require(
    (rule in get_args(Rule), f"rule must be in {get_args(Rule)}, got {rule!r}"),
    (
      by_quantile == (threshold is None),
      "exactly one of threshold and quantiles must be given, got "
      f"threshold={threshold}, quantiles={quantiles}",
    ),
    (
      threshold is None or (checks.is_finite(threshold) and threshold > 0),
      f"threshold must be positive and finite, got {threshold}",
    ),
    (
      (growth is None) == (threshold is None),
      f"growth is given with threshold and only then, got growth={growth}",
    ),
    (
      growth is None or (checks.is_finite(growth) and growth >= 1),
      f"growth must be finite and at least 1, got {growth}",
    ),
    (
      quantiles is None or _are_quantiles(quantiles),
      f"quantiles must be two numbers with 0 <= q_0 <= q_1 <= 1, got {quantiles!r}",
    ),
    (
      growth_steps is None or (by_quantile and checks.is_count(growth_steps, 1)),
      "growth_steps is a whole number >= 1, given only with quantiles, got "
      f"growth_steps={growth_steps}",
    ),
    (
      checks.is_count(capacity, 1),
      f"capacity must be a whole number >= 1, got {capacity}",
    ),
  )


def _are_quantiles(quantiles: object) -> bool:
  if not isinstance(quantiles, tuple | list) or len(quantiles) != 2:
    return False
  if not all(checks.is_number(q) for q in quantiles):
    return False
  first, last = quantiles
  return 0 <= first <= last <= 1
