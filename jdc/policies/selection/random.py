"""A random subset of the pool, redrawn every round."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec


class RandomState(NamedTuple):
  key: jax.Array
  eligible_N: jax.Array  # bool[N], the subset in force
  domain_N: jax.Array | None  # i32[N], where it is drawn by domain


def random(fraction: float = 1.0, by_domain: bool = False) -> DataPolicy:
  """Keeps round(fraction N) rows of the pool, every subset of that size equally likely.

  The control for selections that look at the data: same number of rows, no statistics.

  Args:
    fraction: share of the pool's N rows to keep, in (0, 1].
    by_domain: keeps ceil(fraction n), up to one in a million, of the n rows of each domain, so
      that none is without.

  Returns:
    A round-scope policy that observes nothing; its decision holds `logits` f32[N], 0 for the
    rows kept and -inf for the others. The subset is drawn in `init` and again in every update.

  Raises:
    ValueError: if `fraction` is not in (0, 1]; in `init`, if it keeps no row.

  Example:
    >>> spec = RunSpec(8, 1, ("web",), (8,), proportions=(1.0,))
    >>> decision, _ = random(fraction=0.25).init(spec, jax.random.key(0))
    >>> int(jnp.isfinite(decision.logits).sum())
    2
  """
  claim = checks.is_number(fraction) and 0 < fraction <= 1
  checks.require((claim, f"fraction must be in (0, 1], got {fraction}"))

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, RandomState]:
    if by_domain:
      sizes = np.array(spec.domain_sizes)
      kept = np.ceil(fraction * sizes * (1 - 1e-6))
      place_N = np.concatenate([np.arange(size) for size in sizes])
      domain_N = np.repeat(np.arange(len(sizes)), sizes)
      eligible_N = jnp.asarray(place_N < kept[domain_N])
      return _draw(key, eligible_N, jnp.asarray(domain_N, jnp.int32))
    num_kept = round(fraction * spec.num_examples)
    if num_kept == 0:
      raise ValueError(f"fraction {fraction} of {spec.num_examples} rows keeps none")
    return _draw(key, jnp.arange(spec.num_examples) < num_kept, None)

  def update(stats: ExampleStats, state: RandomState) -> tuple[Decision, RandomState]:
    del stats
    return _draw(*state)

  return DataPolicy(init, update, frozenset(), scope="round")


def _draw(
  key: jax.Array, eligible_N: jax.Array, domain_N: jax.Array | None
) -> tuple[Decision, RandomState]:
  """Permutes who is eligible: a uniformly random subset of the same size."""
  key, draw = jax.random.split(key)
  if domain_N is None:
    eligible_N = jax.random.permutation(draw, eligible_N)
  else:  # rows are sorted by domain, and stay in theirs
    eligible_N = eligible_N[jnp.lexsort((jax.random.bits(draw, domain_N.shape), domain_N))]
  logits_N = jnp.where(eligible_N, 0.0, -jnp.inf).astype(jnp.float32)
  return Decision(logits=logits_N), RandomState(key, eligible_N, domain_N)
