"""A share of the entries with the highest logits, and no others."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, PolicyState, RunSpec
from jdc.policies.combinators import around, logits_of, on_logits


class KeepState(NamedTuple):
  inner: PolicyState
  end_K: jax.Array  # i32[K], the row after the last one of each domain


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
    return on_logits("keep", policy, best)

  def of_each_domain(logits: jax.Array, ids: jax.Array, end_K: jax.Array) -> jax.Array:
    domain = jnp.searchsorted(end_K, jnp.maximum(ids, 0), side="right")
    return best(logits, domain, end_K.size)

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, KeepState]:
    decision, inner = policy.init(spec, key)
    logits, size = logits_of("keep", decision), spec.num_examples
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
