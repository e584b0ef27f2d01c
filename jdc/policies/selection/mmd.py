"""Densities of clusters, and the members that stand for them by kernel distances.

The kernel is k(p, q) = exp(-|x_p - x_q|^2). Rows of a cluster are brought next to each other,
so that only blocks of rows which share a cluster meet: no [N, N] array exists.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdc.policies.selection import groups
from jdc.policies.weighting import directions

_BLOCK = 256  # rows


class Grouped(NamedTuple):
  """Rows in the order of their cluster and then their index; P of them with the padding."""

  x_PxD: jax.Array
  cluster_P: jax.Array  # i32, k for rows in no cluster
  row_N: jax.Array  # i32, the row that each of the first N was
  begin_k: jax.Array  # i32, where a cluster begins; P for k itself
  end_k: jax.Array  # i32, where it ends; 0 for k itself

  @property
  def size_k(self) -> jax.Array:
    return jnp.maximum(self.end_k - self.begin_k, 0)[:-1]


def grouped(x: jax.Array, cluster: jax.Array, k: int) -> Grouped:
  """Returns the rows f32[N, D] by their cluster i32[N], 0..k-1; -1 is none."""
  num_rows = x.shape[0]
  padding = -num_rows % _BLOCK
  z_N = jnp.where(cluster < 0, k, cluster).astype(jnp.int32)
  row_N = jnp.argsort(z_N, stable=True).astype(jnp.int32)
  end_k = jnp.cumsum(groups.sizes(cluster, k), dtype=jnp.int32)
  begin_k = jnp.concatenate([jnp.zeros(1, jnp.int32), end_k[:-1]])
  return Grouped(
    jnp.pad(x[row_N], ((0, padding), (0, 0))),
    jnp.pad(z_N[row_N], (0, padding), constant_values=k),
    row_N,
    jnp.append(begin_k, jnp.int32(num_rows + padding)),
    jnp.append(end_k, jnp.int32(0)),
  )


def kernel_sums(rows: Grouped) -> jax.Array:
  """Returns f32[P], sum of k(p, q) over the other rows q of p's cluster; 0 in no cluster.

  It takes about D products for each pair of rows of one cluster.
  """

  def of_block(begin: jax.Array) -> jax.Array:
    x_bxD, z_b = _block(rows.x_PxD, begin), _block(rows.cluster_P, begin)
    place_b = begin + jnp.arange(_BLOCK)
    first, last = jnp.min(rows.begin_k[z_b]), jnp.max(rows.end_k[z_b])

    def add(block: jax.Array, sum_b: jax.Array) -> jax.Array:
      other = block * _BLOCK
      kernel_bxc = _kernel(x_bxD, _block(rows.x_PxD, other))
      place_c = other + jnp.arange(_BLOCK)
      pair_bxc = z_b[:, None] == _block(rows.cluster_P, other)
      pair_bxc &= place_b[:, None] != place_c
      return sum_b + jnp.sum(jnp.where(pair_bxc, kernel_bxc, 0.0), axis=1)

    sum_b = jax.lax.fori_loop(*_blocks(first, last), add, jnp.zeros(_BLOCK, jnp.float32))
    return jnp.where(z_b < rows.begin_k.shape[0] - 1, sum_b, 0.0)

  return jax.lax.map(of_block, jnp.arange(0, rows.cluster_P.shape[0], _BLOCK)).reshape(-1)


def density(rows: Grouped, sum_P: jax.Array) -> jax.Array:
  """Returns f32[k], the mean kernel of the ordered pairs of a cluster; 1 without a pair."""
  size_k = rows.size_k
  z_P = rows.cluster_P
  total_k = jax.ops.segment_sum(sum_P, z_P, size_k.shape[0] + 1, indices_are_sorted=True)[:-1]
  size_k = size_k.astype(jnp.float32)
  pairs_k = size_k * (size_k - 1)
  return jnp.where(pairs_k > 0, total_k / jnp.maximum(pairs_k, 1.0), 1.0)


def pick(rows: Grouped, sum_P: jax.Array, take_k: jax.Array) -> jax.Array:
  r"""Returns the turn in which a row is picked for its cluster, i32[N]; -1 if it is not.

  From a cluster C of n rows, turn m = 0, 1, ... takes the row s that minimises the squared
  distance of means in the kernel's space, A being the mean of the kernel over pairs,

    A(S + s, S + s) - 2 A(C, S + s)    or, what orders rows alike,
    sum_{q in S} k(q, s) - (m + 1) / n sum_{q in C} k(q, s),

  S the rows picked before; ties go to the lower index. A turn takes D products for each row of
  its cluster.

  Args:
    rows: the clusters.
    sum_P: `kernel_sums(rows)`.
    take_k: i32, rows to pick from each, at most its size.

  Example:
    >>> rows = grouped(jnp.array([[0.0], [0.1], [-0.1], [3.0]]), jnp.zeros(4, jnp.int32), 1)
    >>> pick(rows, kernel_sums(rows), jnp.array([2])).tolist()
    [0, -1, -1, 1]
  """
  size_k, before_k = rows.size_k, jnp.cumsum(take_k) - take_k
  mean_P = (1.0 + sum_P) / jnp.maximum(jnp.append(size_k, 0)[rows.cluster_P], 1)

  def take(
    count: jax.Array, found: tuple[jax.Array, jax.Array, jax.Array]
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    turn_P, near_P, last = found
    z = jnp.searchsorted(jnp.cumsum(take_k), count, side="right")
    turn = count - before_k[z]
    last_D, follows = rows.x_PxD[last], turn > 0

    def scan(
      block: jax.Array, seen: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
      near_P, least, best = seen
      begin = block * _BLOCK
      kernel_b = _kernel(_block(rows.x_PxD, begin), last_D[None])[:, 0]
      near_b = _block(near_P, begin)
      own_b = _block(rows.cluster_P, begin) == z
      near_b = jnp.where(own_b & follows, near_b + kernel_b, near_b)
      free_b = own_b & (_block(turn_P, begin) < 0)
      value_b = near_b - (turn + 1) * _block(mean_P, begin)
      value_b = jnp.where(free_b, value_b, jnp.inf)
      at = jnp.argmin(value_b)
      better = value_b[at] < least
      best = jnp.where(better, begin + at, best).astype(jnp.int32)
      least = jnp.where(better, value_b[at], least)
      return jax.lax.dynamic_update_slice(near_P, near_b, (begin,)), least, best

    around = _blocks(rows.begin_k[z], rows.end_k[z])
    start = near_P, jnp.float32(jnp.inf), jnp.int32(0)
    near_P, _, best = jax.lax.fori_loop(*around, scan, start)
    return turn_P.at[best].set(turn.astype(jnp.int32)), near_P, best

  none_P = jnp.full(rows.cluster_P.shape, -1, jnp.int32)
  start = none_P, jnp.zeros_like(mean_P), jnp.int32(0)
  turn_P = jax.lax.fori_loop(0, jnp.sum(take_k), take, start)[0]
  num_rows = rows.row_N.shape[0]
  return jnp.zeros(num_rows, jnp.int32).at[rows.row_N].set(turn_P[:num_rows])


def _blocks(begin: jax.Array, end: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the first and past the last of the blocks that hold the rows [begin, end)."""
  return begin // _BLOCK, -(-end // _BLOCK)


def _block(x: jax.Array, begin: jax.Array) -> jax.Array:
  return jax.lax.dynamic_slice_in_dim(x, begin, _BLOCK)


def _kernel(a_bxD: jax.Array, b_cxD: jax.Array) -> jax.Array:
  square_bxc = jnp.sum(a_bxD**2, axis=-1)[:, None] + jnp.sum(b_cxD**2, axis=-1)
  return jnp.exp(-jnp.maximum(square_bxc - 2 * directions.dot(a_bxD, b_cxD.T), 0.0))
