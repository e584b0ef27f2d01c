"""The transport of TSDS: how the mass of the target examples is spread over the pool."""

import jax
import jax.numpy as jnp

from jdc.policies.neighbours import Neighbours


def transport(found: Neighbours, density_C: jax.Array, alpha: float, c: float) -> jax.Array:
  r"""Spreads mass 1/M of each of M queries over its neighbours, near ones first.

  With distances d_jk ascending, rows n_jk, densities rho_jk = density[n_jk], k < K, and

    c_jk = sum_{l<=k} 1/rho_jl,    cost_jk = d_{j,k+1} c_jk - sum_{l<=k} d_jl / rho_jl,

  the events (c_jk, k, j), k <= K-2, are taken in ascending order. Each sets s = c_jk and
  cost_j = cost_jk; if then alpha / c sum_j cost_j >= (1 - alpha) M the walk stops, else
  last_j = k, at first 0. Then, before p is normalised,

    p[n_jk] += 1 / (M s rho_jk), k <= last_j,
    p[n_{j,last_j+1}] += max(1/M - used_j, 0),    used_j = c_{j,last_j} / (M s).

  Since cost_jk - cost_{j,k-1} = (d_{j,k+1} - d_jk) c_jk >= 0, the sum of costs is a cumulative
  sum over the events in order, in which nothing cancels. Without any event, K = 1, a query
  puts its mass on its nearest row.

  Args:
    found: neighbours; queries without any are not among the M.
    density_C: f32[C], positive at neighbours.
    alpha: in [0, 1].
    c: positive.

  Returns:
    p f32[C], of sum 1; all 0 where no query has a neighbour.

  Example:
    >>> found = Neighbours(jnp.array([[0.0, 0.1, 9.0]]), jnp.array([[2, 0, 1]]))
    >>> transport(found, jnp.ones(4), alpha=0.5, c=5.0).tolist()
    [0.5, 0.0, 0.5, 0.0]
  """
  distance_MxK, index_MxK = found
  num_ranks = index_MxK.shape[1]
  valid_MxK = index_MxK >= 0
  inverse_MxK = jnp.where(valid_MxK, 1 / density_C[jnp.maximum(index_MxK, 0)], 0.0)
  # A parallel sum may fall by rounding; events of a query must come in order.
  reach_MxK = jax.lax.cummax(jnp.cumsum(inverse_MxK, axis=1), axis=1)

  is_event_MxE = valid_MxK[:, 1:]
  reach_MxE = jnp.where(is_event_MxE, reach_MxK[:, :-1], jnp.inf)
  gap_MxE = jnp.where(is_event_MxE, jnp.diff(distance_MxK), 0.0)
  increase_MxE = jnp.where(is_event_MxE, gap_MxE * reach_MxK[:, :-1], 0.0)
  num_queries = jnp.maximum(jnp.sum(valid_MxK[:, 0]), 1)
  s = _stop(reach_MxE, increase_MxE / num_queries, alpha, c)

  # At the event that stops the walk, its row gets 1 / (M s rho) whether that event counts as
  # one of the sum or the row is given the rest. The same holds for events tied with it.
  taken_Mx1 = jnp.sum(is_event_MxE & (reach_MxE <= s), axis=1, keepdims=True)
  last_Mx1 = jnp.maximum(taken_Mx1 - 1, 0)
  rank_K = jnp.arange(num_ranks)
  used_Mx1 = jnp.take_along_axis(reach_MxK, last_Mx1, axis=1) / s
  is_rest_MxK = rank_K == jnp.where(_has(valid_MxK, last_Mx1 + 1), last_Mx1 + 1, 0)
  mass_MxK = jnp.where(rank_K <= last_Mx1, inverse_MxK / s, 0.0)
  mass_MxK += jnp.where(is_rest_MxK, jnp.maximum(1 - used_Mx1, 0.0), 0.0)

  mass_C = sum_by_index(jnp.where(valid_MxK, mass_MxK, 0.0), index_MxK, density_C.shape[0])
  total = jnp.sum(mass_C)
  return mass_C / jnp.where(total > 0, total, 1.0)


def _stop(
  reach_MxE: jax.Array, mean_increase_MxE: jax.Array, alpha: float, c: float
) -> jax.Array:
  """Returns s, c_jk of the first event whose cost is too high, else of the last, else inf."""
  if reach_MxE.size == 0:
    return jnp.float32(jnp.inf)
  reach_e, increase_e = jax.lax.sort((reach_MxE.ravel(), mean_increase_MxE.ravel()), num_keys=1)
  is_event_e = reach_e < jnp.inf
  too_high_e = is_event_e & (alpha * jnp.cumsum(increase_e) >= (1 - alpha) * c)
  last = jnp.maximum(jnp.sum(is_event_e) - 1, 0)
  return reach_e[jnp.where(jnp.any(too_high_e), jnp.argmax(too_high_e), last)]


def _has(valid_MxK: jax.Array, rank_Mx1: jax.Array) -> jax.Array:
  """Whether there is a neighbour of a rank, which may be K."""
  padded = jnp.pad(valid_MxK, ((0, 0), (0, 1)))
  return jnp.take_along_axis(padded, rank_Mx1, axis=1)


def sum_by_index(values: jax.Array, index: jax.Array, size: int) -> jax.Array:
  """Returns the sum of the values of each index, in the same order of summation on every run.

  Args:
    values: f32[...].
    index: i32[...], below `size`; values of negative ones are left out.
    size: n.

  Returns:
    f32[n].

  Example:
    >>> sum_by_index(jnp.array([1.0, 2.0, 4.0]), jnp.array([1, 0, 1]), 3).tolist()
    [2.0, 5.0, 0.0]
  """
  index_e, value_e = jax.lax.sort((index.ravel(), values.ravel()), num_keys=1)
  starts_e = jnp.diff(index_e, prepend=index_e[:1] - 1) != 0

  def add(left: tuple, right: tuple) -> tuple:
    total = jnp.where(right[0], right[1], left[1] + right[1])
    return left[0] | right[0], total

  _, total_e = jax.lax.associative_scan(add, (starts_e, value_e))
  ends_e = jnp.diff(index_e, append=index_e[-1:] + 1) != 0
  place_e = jnp.where(ends_e & (index_e >= 0), index_e, size)
  return jnp.zeros(size, jnp.float32).at[place_e].set(total_e, mode="drop")
