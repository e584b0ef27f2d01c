"""Representatives: the few rows that speak for a cluster."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.selection import groups
from jdc.policies.weighting import directions

Rule = Literal["random", "nearest", "farthest", "mixed"]


def choose_representatives(
  embedding: jax.Array,
  cluster: jax.Array,
  k: int,
  count: int,
  rule: Rule,
  key: jax.Array,
) -> jax.Array:
  """Chooses up to `count` distinct rows of every cluster.

  By the Euclidean distance to the mean of the cluster's rows,

    random    uniformly, without replacement
    nearest   nearest, 2nd nearest, ...
    farthest  farthest, 2nd farthest, ...
    mixed     nearest, farthest, 2nd nearest, 2nd farthest, ...

  Ties go to the lower index.

  Args:
    embedding: f[N, D]; rows that are not finite are passed over, but by the random rule, which
      does not read them.
    cluster: i32[N], 0..k-1; rows of -1 are in no cluster.
    k: number of clusters.
    count: rows of a cluster, at least 1.
    rule: which rows.
    key: of the random rule, the only one that uses it.

  Returns:
    i32[k, count], in the order of choice; -1 where a cluster has no more rows.

  Raises:
    ValueError: if `k`, `count` or `rule` is not one of these.

  Example:
    >>> x = jnp.array([[0.0], [1.0], [4.0], [9.0]])
    >>> cluster = jnp.array([0, 0, 0, 1])
    >>> choose_representatives(x, cluster, 2, 2, "mixed", jax.random.key(0)).tolist()
    [[1, 2], [3, -1]]
  """
  checks.require(
    (checks.is_count(k, 1), f"k must be a whole number >= 1, got {k}"),
    (checks.is_count(count, 1), f"count must be a whole number >= 1, got {count}"),
    (rule in get_args(Rule), f"rule must be in {get_args(Rule)}, got {rule!r}"),
  )
  if rule == "random":
    return draw_representatives(cluster, k, count, key)
  cluster = jnp.where(directions.finite(embedding), cluster, -1)
  x_NxD = groups.centred(embedding, cluster >= 0)
  mean_kxD = groups.means(x_NxD, cluster, k)
  distance_N = jnp.sum((x_NxD - mean_kxD[cluster]) ** 2, axis=-1)
  turn = {"nearest": (1.0,), "farthest": (-1.0,), "mixed": (1.0, -1.0)}[rule]
  return _smallest(distance_N, cluster, k, jnp.array((turn * count)[:count]))


def draw_representatives(cluster: jax.Array, k: int, count: int, key: jax.Array) -> jax.Array:
  """Chooses rows of every cluster as `choose_representatives` does by the random rule."""
  turn_N = jnp.argsort(groups.shuffled(key, cluster >= 0)).astype(jnp.float32)
  return _smallest(turn_N, cluster, k, jnp.ones(count))


def _smallest(value_N: jax.Array, cluster_N: jax.Array, k: int, sign_S: jax.Array) -> jax.Array:
  """Returns i32[k, S]: one after another, of each cluster the rest's smallest sign * value."""
  size = value_N.shape[0]
  index_N, group_N = jnp.arange(size), jnp.where(cluster_N < 0, k, cluster_N)

  # Minima, unlike sums, do not depend on the order in which rows are met.
  def take(free_N: jax.Array, sign: jax.Array) -> tuple[jax.Array, jax.Array]:
    key_N = jnp.where(free_N, sign * value_N, jnp.inf)
    best_k = jax.ops.segment_min(key_N, group_N, k + 1)
    hit_N = free_N & (key_N == best_k[group_N])
    row_k = jax.ops.segment_min(jnp.where(hit_N, index_N, size), group_N, k + 1)[:k]
    row_k = jnp.where(row_k < size, row_k, -1)
    taken = jnp.where(row_k < 0, size, row_k)
    return free_N.at[taken].set(False, mode="drop"), row_k.astype(jnp.int32)

  return jax.lax.scan(take, cluster_N >= 0, sign_S)[1].T
