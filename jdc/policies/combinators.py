"""Functions from policy to policy, each named for what it does.

Those that count do so in updates: steps at step scope, rounds at round scope. What a combinator
remembers is kept beside the policy's own state, in a NamedTuple whose field `inner` is that
state. Logits are combined as log-probabilities, so a constant added to all of them is
immaterial.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdc.policies import checks, sampling
from jdc.policies.base import DataPolicy, Decision, ExampleStats, PolicyState, RunSpec


class AfterState(NamedTuple):
  inner: PolicyState
  num_updates: jax.Array  # i32[]
  initial: Decision  # without metrics


class EmaState(NamedTuple):
  inner: PolicyState
  log_probability: jax.Array  # f32[n], the average; -inf where an entry was never eligible


def after(steps: int, policy: DataPolicy) -> DataPolicy:
  """Keeps the initial decision during the first `steps` updates; the state already learns.

  Metrics are those of the policy throughout.

  Args:
    steps: number of updates, at least 0.
    policy: the policy.

  Returns:
    A policy that decides like `policy` from update number `steps` on, counted from 0.

  Raises:
    ValueError: if `steps` is not a whole number of at least 0.

  Example:
    >>> from jdc import policies
    >>> policy = after(1000, policies.mixture.odm(warmup_steps=0))
  """
  checks.require((checks.is_count(steps), f"steps must be a whole number >= 0, got {steps}"))

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, AfterState]:
    decision, inner = policy.init(spec, key)
    return decision, AfterState(inner, jnp.int32(0), decision._replace(metrics=None))

  def update(stats: ExampleStats, state: AfterState) -> tuple[Decision, AfterState]:
    decision, inner = policy.update(stats, state.inner)
    chosen = decision._replace(metrics=None)
    chosen = _where(state.num_updates < steps, state.initial, chosen)
    # Counting stops at `steps`, so that it never overflows.
    num_updates = jnp.minimum(state.num_updates + 1, steps)
    return chosen._replace(metrics=decision.metrics), state._replace(
      inner=inner, num_updates=num_updates
    )

  return around(policy, init, update)


def temperature(tau: float, policy: DataPolicy) -> DataPolicy:
  """Samples from p^(1/tau), normalised, where the policy samples from p.

  Args:
    tau: temperature in [0, inf]. Below 1 sharpens, above 1 flattens; 0 is uniform over the most
      likely entries, inf uniform over all that are eligible.
    policy: a policy that decides logits.

  Returns:
    The policy with tempered logits; all else is left alone.

  Raises:
    ValueError: if `tau` is negative or NaN; in `init`, if the policy decides no logits.

  Example:
    >>> from jdc import policies
    >>> flatter = temperature(2.0, policies.mixture.by_size())
  """
  claim = checks.is_number(tau) and tau >= 0
  checks.require((claim, f"tau must be in [0, inf], got {tau}"))
  return on_logits("temperature", policy, lambda logits: sampling.temper(logits, tau))


def floor(min_prob: float, policy: DataPolicy) -> DataPolicy:
  """Mixes with the uniform distribution so that no eligible entry falls below `min_prob`.

  p_i <- (1 - n m) p_i + m over the n eligible entries (finite logits); the others stay at 0.

  Args:
    min_prob: m in (0, 1/n].
    policy: a policy that decides logits.

  Returns:
    The policy with the lifted probabilities; all else is left alone.

  Raises:
    ValueError: if `min_prob` is not in (0, 1]; in `init`, if the policy decides no logits or
      `min_prob` is more than 1 over their number.

  Example:
    >>> from jdc import policies
    >>> policy = floor(0.01, policies.mixture.odm())
  """
  claim = checks.is_number(min_prob) and 0 < min_prob <= 1
  checks.require((claim, f"min_prob must be in (0, 1], got {min_prob}"))

  def lift(logits: jax.Array) -> jax.Array:
    if min_prob * logits.size > 1:
      raise ValueError(
        f"min_prob must be at most 1 / {logits.size}, the number of logits, got {min_prob}"
      )
    eligible = jnp.isfinite(logits)
    rest = jnp.maximum(1 - jnp.sum(eligible) * min_prob, 0.0)
    probability = jnp.exp(_log_probability(logits))
    return jnp.where(eligible, jnp.log(rest * probability + min_prob), -jnp.inf)

  return on_logits("floor", policy, lift)


def ema(decay: float, policy: DataPolicy) -> DataPolicy:
  """Averages log-probabilities over updates: l <- d l + (1 - d) log p.

  The average starts at the initial decision. An entry that the policy excludes is excluded at
  once while its average waits; one that was never eligible before starts at its first value.

  Args:
    decay: d in [0, 1).
    policy: a policy that decides logits for the domains, or for every row of the pool.

  Returns:
    The policy with averaged logits; all else is left alone.

  Raises:
    ValueError: if `decay` is not in [0, 1); in `init`, if the policy decides no logits, or
      logits of the rows of one sweep or batch, which are other rows the next time.

  Example:
    >>> from jdc import policies
    >>> smooth = ema(0.99, policies.mixture.odm())
  """
  claim = checks.is_number(decay) and 0 <= decay < 1
  checks.require((claim, f"decay must be in [0, 1), got {decay}"))

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, EmaState]:
    decision, inner = policy.init(spec, key)
    logits = logits_of("ema", decision)
    if logits.size not in (spec.num_domains, spec.num_examples):
      raise ValueError(
        f"ema averages logits of the {spec.num_domains} domains or {spec.num_examples} rows of "
        f"the pool, got {logits.size} logits, which name other rows at each update"
      )
    average = _log_probability(logits)
    return decision._replace(logits=average), EmaState(inner, average)

  def update(stats: ExampleStats, state: EmaState) -> tuple[Decision, EmaState]:
    decision, inner = policy.update(stats, state.inner)
    new, old = _log_probability(decision.logits), state.log_probability
    eligible = jnp.isfinite(new)
    known = jnp.where(jnp.isfinite(old), old, new)
    average = jnp.where(eligible, decay * known + (1 - decay) * new, old)
    logits = jnp.where(eligible, average, -jnp.inf)
    return decision._replace(logits=logits), EmaState(inner, average)

  return around(policy, init, update)


def on_logits(
  name: str, policy: DataPolicy, change: Callable[[jax.Array], jax.Array]
) -> DataPolicy:
  """Returns `policy` with `change` applied to the logits of every decision."""

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, PolicyState]:
    decision, state = policy.init(spec, key)
    return decision._replace(logits=change(logits_of(name, decision))), state

  def update(stats: ExampleStats, state: PolicyState) -> tuple[Decision, PolicyState]:
    decision, state = policy.update(stats, state)
    return decision._replace(logits=change(decision.logits)), state

  return policy._replace(init=init, update=update)


def around(policy: DataPolicy, init: Callable, update: Callable) -> DataPolicy:
  """Returns `policy` with a state that holds the policy's own in its field `inner`."""
  score, sweep_ids, observe = policy.score, policy.sweep_ids, policy.observe
  prepare = policy.prepare
  return policy._replace(
    init=init,
    update=update,
    score=score and (lambda stats, state: score(stats, state.inner)),
    sweep_ids=sweep_ids and (lambda state: sweep_ids(state.inner)),
    observe=observe
    and (lambda stats, state: state._replace(inner=observe(stats, state.inner))),
    prepare=prepare
    and (lambda stats, state: state._replace(inner=prepare(stats, state.inner))),
  )


def logits_of(name: str, decision: Decision) -> jax.Array:
  """Returns the logits that the combinator of this name changes; an error if there are none."""
  if decision.logits is None:
    raise ValueError(f"{name} changes logits, but the policy decides none")
  return decision.logits


def _log_probability(logits: jax.Array) -> jax.Array:
  """Returns log softmax(l) over the eligible entries, -inf elsewhere, and never NaN."""
  shifted = sampling.temper(logits, 1.0)
  total = jnp.sum(jnp.exp(shifted))
  return shifted - jnp.log(jnp.where(total > 0, total, 1.0))


def _where(condition: jax.Array, chosen: Any, other: Any) -> Any:
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)
