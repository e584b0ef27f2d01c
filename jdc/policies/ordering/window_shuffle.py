"""Window shuffle: what an ordering puts in order, shuffled over short distances."""

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import Ordering
from jdc.policies.combine import ordering_score_problems
from jdc.policies.ordering import ranking


def window_shuffle(window: int, ordering: Ordering) -> Ordering:
  """Shuffles inside consecutive windows of what an ordering returns.

  With o the order of the n rows, and windows of w rows,

    order = shuffle(o[0:w]) + shuffle(o[w:2w]) + ...

  so that a batch mixes rows of some range of scores while the trend over the round stays: no
  row moves by w places or more. The last window may be shorter.

  Args:
    window: w, rows; 1 leaves the order alone.
    ordering: any ordering; it must put padding last.

  Returns:
    An ordering by the same score. Padding, whose score is +inf, comes last.

  Raises:
    ValueError: if `window` is no whole number of at least 1, or `ordering` is no `Ordering`.

  References:
    JIT, jittering, in Dai et al., "Demystifying Data Organization for Enhanced LLM Training",
    2026, arXiv 2605.30334.

  Example:
    >>> from jdc.policies.ordering import sorting
    >>> order = window_shuffle(2, sorting()).order
    >>> rows = order(jnp.array([4.0, 1.0, 3.0, 2.0, jnp.inf]), jax.random.key(0)).tolist()
    >>> sorted(rows[:2]), sorted(rows[2:4]), rows[4]
    ([1, 3], [0, 2], 4)
  """
  problems = []
  if not checks.is_count(window, 1):
    problems.append(f"window must be a whole number of at least 1, got {window!r}")
  if not isinstance(ordering, Ordering):
    hint = "; call the factory" if callable(ordering) else ""
    problems.append(f"ordering must be an Ordering, got {ordering!r}{hint}")
  else:
    problems += ordering_score_problems("ordering.observes", ordering.observes)
  checks.raise_all(problems)

  def order(score: jax.Array, key: jax.Array) -> jax.Array:
    inner_key, window_key = jax.random.split(key)
    rows = ordering.order(score, inner_key)
    num_real = jnp.sum(score.astype(jnp.float32) != jnp.inf, dtype=jnp.int32)
    position = jnp.arange(rows.shape[0], dtype=jnp.int32)
    shuffled = ranking.random_in_parts(
      jnp.where(position < num_real, position // window, rows.shape[0]), window_key
    )
    return ranking.among_real(rows, num_real, shuffled)

  return Ordering(ordering.observes, order)
