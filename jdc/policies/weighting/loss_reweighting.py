"""Loss reweighting: the loss of an example decides how much it counts."""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec

Strategy = Literal["uniform", "linupper", "quadratic", "extremes", "upper", "code_uniform"]


class LossReweightingState(NamedTuple):
  num_updates: jax.Array  # i32[]


def loss_reweighting(
  strategy: Strategy = "linupper",
  temperature: float | Sequence[tuple[int, float]] = 1.0,
  burn_in_steps: int = 1000,
  delta: float = 1.0,
) -> DataPolicy:
  r"""Weights each example by softmax(f(h) / r) over the batch, h its loss scaled to [-d, d].

  With l the mean losses of the rows that have target tokens and a finite loss, B' their number,

    h_i = d (2 l_i - max l - min l) / max(max l - min l, 1e-6),
    w_i = B' softmax(f(h) / r)_i,

    uniform       f = 0                      every example alike
    linupper      f = min(h + d, d)          low losses count less, above the middle alike
    quadratic     f = 1 - h^2 / d^2          losses in the middle count most
    extremes      f = |h|                    losses at both ends count most
    upper         f = (h + d) / 2            the higher the loss, the more
    code_uniform  f = h                      what the published snippet calls uniform

  Their mean is 1, so equal losses weigh 1 each. All other rows weigh 0; those with target
  tokens are counted as `num_nonfinite`. Through the burn-in r is infinite, so that these rows
  weigh 1; then r is `temperature`.

  Args:
    strategy: f.
    temperature: r in (0, inf], or stages (update, r): from that update on, counted from 0, that
      r is in force; the first stage starts at 0 and starts increase.
    burn_in_steps: number of first updates without reweighting.
    delta: d > 0, the range of h.

  Returns:
    A step-scope policy that observes `loss` and `num_tokens`; its decision holds `weights`
    f32[B].

  Raises:
    ValueError: if an argument is unknown or out of range; in `init`, if the run has no batch
      size, or the burn-in is as long as the whole run.

  References:
    Sow et al., "Dynamic Loss-Based Sample Reweighting for Improved Large Language Model
    Pretraining", 2025, arXiv 2502.06733; "quadratic" is `mid` in the authors' repository. The
    paper lowers r from a high value to its target; the repository's burn-in of 1000 steps and
    constant r are the defaults here. Weights are normalised over the batch of an optimizer
    step.

  Example:
    >>> policy = loss_reweighting("upper", burn_in_steps=0)
    >>> spec = RunSpec(9, 1, ("web",), (9,), proportions=(1.0,), batch_size=3)
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> stats = ExampleStats(loss=jnp.array([1.0, 3.0, 9.0]), num_tokens=jnp.array([5, 5, 0]))
    >>> decision, _ = policy.update(stats, state)
    >>> [round(w, 3) for w in decision.weights.tolist()]
    [0.538, 1.462, 0.0]
  """
  stages = _stages(temperature)
  checks.require(
    (
      strategy in get_args(Strategy),
      f"strategy must be in {get_args(Strategy)}, got {strategy!r}",
    ),
    *_temperature_claims(stages, temperature),
    (
      checks.is_count(burn_in_steps),
      f"burn_in_steps must be a whole number >= 0, got {burn_in_steps}",
    ),
    (
      checks.is_finite(delta) and delta > 0,
      f"delta must be positive and finite, got {delta}",
    ),
  )
  importance = _importance(strategy, delta)
  starts, values = zip(*stages or [], strict=True)
  starts_S, values_S = np.asarray(starts, np.int32), np.asarray(values, np.float32)

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, LossReweightingState]:
    del key  # deterministic
    whole_run = 0 < spec.num_steps <= burn_in_steps
    checks.require(
      (spec.batch_size > 0, f"batch_size must be positive, got {spec.batch_size}"),
      (
        not whole_run,
        f"burn_in_steps {burn_in_steps} covers all {spec.num_steps} steps of the run",
      ),
    )
    ones_B = jnp.ones(spec.batch_size, jnp.float32)
    metrics = _metrics(ones_B, jnp.int32(0), jnp.float32(jnp.inf))
    return Decision(weights=ones_B, metrics=metrics), LossReweightingState(jnp.int32(0))

  def update(
    stats: ExampleStats, state: LossReweightingState
  ) -> tuple[Decision, LossReweightingState]:
    stage = jnp.sum(state.num_updates >= starts_S) - 1
    r = jnp.where(state.num_updates < burn_in_steps, jnp.inf, jnp.asarray(values_S)[stage])
    loss_B = stats.loss.astype(jnp.float32)
    valid_B = stats.num_tokens > 0
    usable_B = valid_B & jnp.isfinite(loss_B)
    h_B = _scaled(loss_B, usable_B, delta)
    weights_B = normalized(importance(h_B) / r, usable_B)
    num_nonfinite = jnp.sum(valid_B & ~usable_B, dtype=jnp.int32)
    decision = Decision(weights=weights_B, metrics=_metrics(weights_B, num_nonfinite, r))
    return decision, LossReweightingState(state.num_updates + 1)

  return DataPolicy(init, update, frozenset({"loss", "num_tokens"}), scope="step")


def _scaled(loss_B: jax.Array, usable_B: jax.Array, delta: float) -> jax.Array:
  """Returns h in [-delta, delta], 0 for rows that are not usable."""
  # Half losses, because the difference of two large ones would overflow.
  half_B = jnp.where(usable_B, loss_B / 2, 0.0)
  lowest = jnp.min(jnp.where(usable_B, half_B, jnp.inf), initial=jnp.inf)
  highest = jnp.max(jnp.where(usable_B, half_B, -jnp.inf), initial=-jnp.inf)
  spread = jnp.maximum(highest - lowest, 5e-7)
  h_B = delta * (((half_B - lowest) - (highest - half_B)) / spread)
  return jnp.where(usable_B, h_B, 0.0)


def normalized(logits_B: jax.Array, usable_B: jax.Array) -> jax.Array:
  """Returns B' softmax(logits) over the B' usable rows, exactly 1 where all are alike; else 0.

  Args:
    logits_B: f32[B], finite where usable.
    usable_B: bool[B].
  """
  highest = jnp.max(jnp.where(usable_B, logits_B, -jnp.inf), initial=-jnp.inf)
  power_B = jnp.where(usable_B, jnp.exp(jnp.where(usable_B, logits_B - highest, 0.0)), 0.0)
  total = jnp.sum(power_B)
  # A quotient of two numbers; shares times B' would be a little off 1 for some B'.
  return power_B * (jnp.sum(usable_B) / jnp.where(total > 0, total, 1.0))


def _importance(strategy: Strategy, delta: float) -> Callable[[jax.Array], jax.Array]:
  """Returns f."""
  rules: dict[str, Callable[[jax.Array], jax.Array]] = {
    "uniform": jnp.zeros_like,
    "linupper": lambda h: jnp.minimum(h + delta, delta),
    "quadratic": lambda h: 1 - (h / delta) ** 2,
    "extremes": jnp.abs,
    "upper": lambda h: (h + delta) / 2,
    "code_uniform": lambda h: h,
  }
  return rules[strategy]


def _metrics(weights_B: jax.Array, num_nonfinite: jax.Array, r: jax.Array) -> dict:
  total, squares = jnp.sum(weights_B), jnp.sum(weights_B**2)
  return {
    "num_nonfinite": num_nonfinite,
    # 1 / r is 0 through the burn-in, where r itself is not a number to plot.
    "inverse_temperature": 1 / r,
    "effective_size": total**2 / jnp.where(squares > 0, squares, 1.0),
  }


def _stages(temperature: float | Sequence[tuple[int, float]]) -> list[tuple[int, float]] | None:
  """Returns the stages, `None` where `temperature` is neither a number nor pairs."""
  if isinstance(temperature, int | float):
    return [(0, temperature)]
  if not isinstance(temperature, Sequence):
    return None
  if not all(isinstance(stage, Sequence) and len(stage) == 2 for stage in temperature):
    return None
  return [(start, r) for start, r in temperature]


def _temperature_claims(
  stages: list[tuple[int, float]] | None, temperature: object
) -> list[tuple[bool, str]]:
  if stages is None:
    return [(False, f"temperature must be a number or pairs (update, r), got {temperature!r}")]
  starts = [start for start, _ in stages]
  ordered = (
    starts[:1] == [0]
    and all(checks.is_count(start) for start in starts)
    and all(a < b for a, b in itertools.pairwise(starts))
  )
  bad = [r for _, r in stages if not (checks.is_number(r) and r > 0)]
  return [
    (not bad, f"temperature must be in (0, inf], got {bad}"),
    (
      ordered,
      "stages of temperature must start at 0 and increase in whole numbers, got "
      f"{temperature!r}",
    ),
  ]
