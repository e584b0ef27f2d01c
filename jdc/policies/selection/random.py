"""A random subset of the pool, redrawn every round."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec


class RandomState(NamedTuple):
  key: jax.Array
  eligible_N: jax.Array  # bool[N], the subset in force


def random(fraction: float = 1.0) -> DataPolicy:
  """Keeps round(fraction N) rows of the pool, every subset of that size equally likely.

  The control for selections that look at the data: same number of rows, no statistics.

  Args:
    fraction: share of the pool's N rows to keep, in (0, 1].

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
    num_kept = round(fraction * spec.num_examples)
    if num_kept == 0:
      raise ValueError(f"fraction {fraction} of {spec.num_examples} rows keeps none")
    return _draw(key, jnp.arange(spec.num_examples) < num_kept)

  def update(stats: ExampleStats, state: RandomState) -> tuple[Decision, RandomState]:
    del stats
    return _draw(state.key, state.eligible_N)

  return DataPolicy(init, update, frozenset(), scope="round")


def _draw(key: jax.Array, eligible_N: jax.Array) -> tuple[Decision, RandomState]:
  """Permutes who is eligible: a uniformly random subset of the same size."""
  key, draw = jax.random.split(key)
  eligible_N = jax.random.permutation(draw, eligible_N)
  logits_N = jnp.where(eligible_N, 0.0, -jnp.inf).astype(jnp.float32)
  return Decision(logits=logits_N), RandomState(key, eligible_N)
