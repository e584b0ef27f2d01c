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
import numpy as np

from jdc.policies import checks, sampling
from jdc.policies.base import DataPolicy, Decision, ExampleStats, PolicyState, RunSpec


class AfterState(NamedTuple):
  inner: PolicyState
  num_updates: jax.Array  # i32[]
  initial: Decision  # without metrics


class KeepState(NamedTuple):
  inner: PolicyState
  end_K: jax.Array  # i32[K], the row after the last one of each domain


class EmaState(NamedTuple):
  inner: PolicyState
  log_probability: jax.Array  # f32[n], the average; -inf where an entry was never eligible


class CorrectedState(NamedTuple):
  inner: PolicyState
  base_K: jax.Array  # f32[K], base probability of each row of domain k


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
  return _on_logits("temperature", policy, lambda logits: sampling.temper(logits, tau))


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

  return _on_logits("floor", policy, lift)


def keep(fraction: float, policy: DataPolicy, by_domain: bool = False) -> DataPolicy:
  """Samples alike from the entries with the highest logits, and never from the others.

  Of n eligible entries (finite logits) ceil(fraction n) are kept, up to one in a million, ties
  to the lower index; their logits become 0, those of the others -inf. Where stages of a run
  select in different ways, as a random warm-up before an influence, each keeps its own share.

  Args:
    fraction: share that is kept, in (0, 1].
    policy: a policy that decides logits.
    by_domain: keeps this share of each domain's rows, so that no mixture draws of a domain that
      has none left; of a policy that decides about rows of the pool.

  Returns:
    The policy with the changed logits; all else is left alone. By domain it observes
    `example_id` too.

  Raises:
    ValueError: if `fraction` is not in (0, 1]; in `init`, if the policy decides no logits.

  Example:
    >>> from jdc import policies
    >>> policy = keep(0.05, policies.selection.loss())
  """
  claim = checks.is_number(fraction) and 0 < fraction <= 1
  checks.require((claim, f"fraction must be in (0, 1], got {fraction}"))

  def best(logits: jax.Array, group: jax.Array | None = None, num_groups: int = 1) -> jax.Array:
    if group is None:
      group = jnp.zeros(logits.shape, jnp.int32)
    order = jnp.lexsort((-logits, group))  # in a group, what is not eligible comes last
    start = jnp.searchsorted(group[order], jnp.arange(num_groups))
    rank = jnp.arange(logits.size) - start[group[order]]
    rank = jnp.zeros(logits.shape, jnp.int32).at[order].set(rank.astype(jnp.int32))
    eligible = jnp.isfinite(logits)
    num_eligible = jax.ops.segment_sum(eligible.astype(jnp.float32), group, num_groups)
    count = jnp.ceil(fraction * num_eligible * (1 - 1e-6))
    return jnp.where(eligible & (rank < count[group]), 0.0, -jnp.inf)

  if not by_domain:
    return _on_logits("keep", policy, best)

  def of_each_domain(logits: jax.Array, ids: jax.Array, end_K: jax.Array) -> jax.Array:
    domain = jnp.searchsorted(end_K, jnp.maximum(ids, 0), side="right")
    return best(logits, domain, end_K.size)

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, KeepState]:
    decision, inner = policy.init(spec, key)
    logits, size = _logits("keep", decision), spec.num_examples
    end_K = jnp.cumsum(jnp.array(spec.domain_sizes, jnp.int32))
    if logits.size == size:  # those of a sample name no rows yet
      logits = of_each_domain(logits, jnp.arange(size), end_K)
    return decision._replace(logits=logits), KeepState(inner, end_K)

  def update(stats: ExampleStats, state: KeepState) -> tuple[Decision, KeepState]:
    decision, inner = policy.update(stats, state.inner)
    ids = stats.example_id
    if policy.sweep_ids is not None or decision.logits.size != ids.size:  # of all rows
      ids = jnp.arange(decision.logits.size)
    logits = of_each_domain(decision.logits, ids, state.end_K)
    return decision._replace(logits=logits), state._replace(inner=inner)

  kept = around(policy, init, update)
  return kept._replace(observes=kept.observes | {"example_id"})


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
    logits = _logits("ema", decision)
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


def importance_corrected(policy: DataPolicy) -> DataPolicy:
  """Weights each example by p_base / p_drawn, so that the loss estimates the base mixture's.

  p_base is the row's probability under the base proportions, uniform inside its domain; p_drawn
  is its `sampling_probability`. Weights that the policy decides itself are multiplied. A row
  that is padding, or whose probability is not a positive number, gets weight 0; the latter is
  counted in the metric `num_without_probability`.

  Args:
    policy: a step-scope policy: a mixture, or the weighting of a run whose rows are drawn by
      other slots. To correct a selection, put
      `importance_corrected(loss_reweighting("uniform"))` into the weighting slot.

  Returns:
    The policy, with weights f32[batch_size].

  Raises:
    ValueError: if the policy has round scope; in `init`, if rows are drawn by `top_k`, which
      gives some of them probability 0, or if the policy sees more candidates than are trained.

  Example:
    >>> from jdc import policies
    >>> policy = importance_corrected(policies.mixture.odm())
    >>> sorted(policy.observes - policies.mixture.odm().observes)
    ['example_id', 'sampling_probability']
  """
  checks.require(
    (
      policy.scope == "step",
      "importance_corrected takes a step-scope policy, which sees the rows drawn, got scope "
      f"{policy.scope!r}; correct a selection by a policy in the weighting slot",
    )
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, CorrectedState]:
    decision, inner = policy.init(spec, key)
    checks.require(
      (spec.draw != "top_k", "importance_corrected cannot correct draw='top_k'"),
      (spec.batch_size > 0, f"batch_size must be positive, got {spec.batch_size}"),
      (
        decision.logits is None or spec.num_candidates in (0, spec.batch_size),
        f"importance_corrected needs the trained rows, but the policy sees "
        f"{spec.num_candidates} candidates; put it into the weighting slot",
      ),
    )
    sizes_K = np.maximum(np.asarray(spec.domain_sizes, np.float64), 1)
    base_K = jnp.asarray(np.asarray(spec.proportions) / sizes_K, jnp.float32)
    weights_B = decision.weights
    if weights_B is None:
      weights_B = jnp.ones(spec.batch_size, jnp.float32)
    return _corrected(decision, weights_B, jnp.int32(0)), CorrectedState(inner, base_K)

  def update(stats: ExampleStats, state: CorrectedState) -> tuple[Decision, CorrectedState]:
    decision, inner = policy.update(stats, state.inner)
    drawn_B = stats.sampling_probability.astype(jnp.float32)
    possible_B = jnp.isfinite(drawn_B) & (drawn_B > 0)
    weights_B = state.base_K[stats.domain] / jnp.where(possible_B, drawn_B, 1.0)
    if decision.weights is not None:
      weights_B *= decision.weights
    real_B = stats.example_id >= 0
    usable_B = real_B & possible_B & jnp.isfinite(weights_B)
    missing = jnp.sum(real_B & ~usable_B, dtype=jnp.int32)
    decision = _corrected(decision, jnp.where(usable_B, weights_B, 0.0), missing)
    return decision, state._replace(inner=inner)

  observes = policy.observes | {"sampling_probability", "domain", "example_id"}
  return around(policy, init, update)._replace(observes=observes)


def _corrected(decision: Decision, weights_B: jax.Array, missing: jax.Array) -> Decision:
  metrics = {**(decision.metrics or {}), "num_without_probability": missing}
  return decision._replace(weights=weights_B, metrics=metrics)


def _on_logits(
  name: str, policy: DataPolicy, change: Callable[[jax.Array], jax.Array]
) -> DataPolicy:
  """Returns `policy` with `change` applied to the logits of every decision."""

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, PolicyState]:
    decision, state = policy.init(spec, key)
    return decision._replace(logits=change(_logits(name, decision))), state

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


def _logits(name: str, decision: Decision) -> jax.Array:
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
