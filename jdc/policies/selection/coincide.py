"""COINCIDE: rows from clusters that are like others and not dense, each row unlike the last."""

from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec
from jdc.policies.selection import given, groups, mmd
from jdc.policies.selection.embedded import Embedding
from jdc.policies.selection.kmeans import spherical_kmeans
from jdc.policies.weighting import directions


class CoincideState(NamedTuple):
  key: jax.Array  # of the clustering
  decision: Decision  # the same in every round


def coincide(
  count: int,
  clusters: int | None = None,
  tau: float = 1.0,
  embedding: Embedding = "embedding",
  embeddings: str = "",
  max_candidates: int = 200_000,
) -> DataPolicy:
  r"""Selects `count` rows: more from clusters near other ones, fewer from dense ones.

  Once, before the first round, the unit embeddings f of all rows are clustered by spherical
  k-means. With c_i the centre of cluster i, the mean of a cluster's ordered pairs p != q, and
  a density of 1 for a cluster of one row,

    S_i = mean_{j != i} <c_i, c_j>,    D_i = mean_{p, q} exp(-|f_p - f_q|^2),
    P_i = exp(S_i / (tau D_i)) / sum_j exp(S_j / (tau D_j)).

  A cluster gives `count` P_i rows by largest remainder, at most all that it has; what is
  lacking then is shared in the same way by the clusters that have rows left, until none is
  lacking. Inside a cluster rows are picked one after the other, each the one that brings the
  picked rows closest to the cluster by the squared maximum mean discrepancy, see `mmd.pick`.

  Clusters pick in turns, so that each has made the same part of its picks at any time: the
  pick of turn m of a cluster that gives b rows comes at (m + 1/2) / b. With place_i = 0, 1, ...
  the place of row i in that order, its logit is -place_i / count, and -inf where it is not
  picked: `top_k` keeps the order, and other draws are nearly uniform over the rows picked.

  Embeddings of all rows are held on each device, [N, D]. Beside the clustering, densities take
  D products for each pair of rows of one cluster, and a pick D for each row of its cluster.

  Args:
    count: rows to select, at least 1.
    clusters: K, at most the pool's rows; by default ceil(N / 64).
    tau: temperature, positive; the larger, the more alike are the clusters' shares.
    embedding: the field of the model, as it is before the first round.
    embeddings: path of a .npz with the array `pool` [N, D], from any model; then the model
      embeds nothing. Empty: the field above.
    max_candidates: largest N whose embeddings may be held at once.

  Returns:
    A round-scope policy that observes, of the pool alone, the embedding and `example_id`, which
    `prepare` reads, f32[N, D] and i32[N]; nothing where embeddings are given. The decision
    holds `logits` f32[N], the same in every round; before `prepare` 0 for all. Metrics count
    the rows selected, `num_eligible`, those whose embedding is not finite and which are left
    out, `num_nonfinite`, and the clusters that have rows, `num_clusters`. With fewer finite
    rows than `count` all of them are selected.

  Raises:
    ValueError: if an argument is out of range or the file is not as described; in `init`, if
      `count`, or `clusters`, exceeds the rows, these exceed `max_candidates`, the run has no
      embeddings, or the file holds another number of rows than the pool.

  References:
    Lee et al., "Concept-skill Transferability-based Data Selection for Large Vision-Language
    Models", 2024, arXiv 2406.10995, there for concatenated activations of several layers, which
    a file may hold. A vector of norm 0 stays 0, at distance 1 from all others.

  Example:
    >>> spec = RunSpec(4, 1, ("web",), (4,), (1.0,), embedding_size=2)
    >>> policy = coincide(count=2, clusters=2)
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> x = jnp.array([[9.0, 0.0], [9.0, 0.1], [9.0, 0.2], [0.0, 1.0]])
    >>> state = policy.prepare(ExampleStats(example_id=jnp.arange(4), embedding=x), state)
    >>> policy.update(ExampleStats(), state)[0].logits.tolist()  # one each, the middle one
    [-inf, 0.0, -inf, -0.5]
  """
  problems = _argument_problems(count, clusters, tau, embedding, max_candidates)
  held = None
  if not isinstance(embeddings, str):
    problems.append(f"embeddings must be a path, or empty for the model's, got {embeddings!r}")
  elif embeddings:
    try:
      held = given.read_pool(embeddings)
    except ValueError as error:
      problems.append(f"embeddings: {error}")
  checks.raise_all(problems)

  @jax.jit  # once, also where it is called outside jit
  def decide(x_NxD: jax.Array, real_N: jax.Array, key: jax.Array) -> Decision:
    return _decide(x_NxD, real_N, key, count, _number(clusters, x_NxD.shape[0]), tau)

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, CoincideState]:
    size = spec.num_examples
    lacking = [
      (size > 0, f"coincide needs num_examples > 0, got {size}"),
      (size <= max_candidates, f"num_examples {size} is above max_candidates {max_candidates}"),
      (count <= size, f"count {count} must be at most num_examples {size}"),
      (_number(clusters, size) <= size, f"clusters {clusters} must be at most {size} rows"),
    ]
    if held is None:
      width = spec.embedding_size
      lacking += [(width > 0, f"coincide needs embedding_size > 0, got {width}")]
      checks.require(*lacking)
      metrics = {"num_nonfinite": 0, "num_eligible": size, "num_clusters": 0}
      decision = Decision(
        jnp.zeros(size, jnp.float32), metrics={n: jnp.int32(x) for n, x in metrics.items()}
      )
    else:
      message = f"`pool` in {embeddings} must hold num_examples {size} rows, got {len(held)}"
      checks.require(*lacking, (len(held) == size, message))
      decision = decide(jnp.asarray(held), jnp.ones(size, bool), key)
    return decision, CoincideState(key, decision)

  def prepare(stats: ExampleStats, state: CoincideState) -> CoincideState:
    found = decide(getattr(stats, embedding), stats.example_id >= 0, state.key)
    return CoincideState(state.key, found)

  def update(stats: ExampleStats, state: CoincideState) -> tuple[Decision, CoincideState]:
    del stats
    return state.decision, state

  policy = DataPolicy(init, update, frozenset(), scope="round")
  if held is not None:
    return policy
  return policy._replace(prepare=prepare, observes_pool=frozenset({embedding, "example_id"}))


def shares(
  centre_kxD: jax.Array, density_k: jax.Array, size_k: jax.Array, tau: float
) -> jax.Array:
  """Returns log P, f32[k], up to a constant: S_i / (tau D_i), -inf for an empty cluster.

  Args:
    centre_kxD: unit centres, or 0.
    density_k: D.
    size_k: rows of each cluster.
    tau: temperature.
  """
  occupied_k = size_k > 0
  centre_kxD = jnp.where(occupied_k[:, None], centre_kxD, 0.0)
  total_D = jnp.sum(centre_kxD, axis=0)
  others = jnp.maximum(jnp.sum(occupied_k) - 1, 1)
  likeness_k = (directions.dot(centre_kxD, total_D) - jnp.sum(centre_kxD**2, axis=1)) / others
  scale = min(1 / tau, 1e30)  # finite in float32, whatever tau
  return jnp.where(occupied_k, likeness_k / density_k * scale, -jnp.inf)


def budgets(log_share_k: jax.Array, size_k: jax.Array, count: int) -> jax.Array:
  """Returns i32[k], rows of each cluster: in proportion, at most its size.

  Largest remainders of exp(log_share), ties to the lower index; what the sizes cut off is
  shared in the same way by the clusters that have rows left. They sum to `count`, or to all
  rows where these are fewer.

  Example:
    >>> budgets(jnp.log(jnp.array([0.8, 0.1, 0.1])), jnp.array([2, 3, 9]), 6).tolist()
    [2, 3, 1]
  """
  total = jnp.minimum(count, jnp.sum(size_k)).astype(jnp.int32)

  def lacking(take_k: jax.Array) -> jax.Array:
    return jnp.sum(take_k) < total

  def share(take_k: jax.Array) -> jax.Array:
    room_k, missing = take_k < size_k, total - jnp.sum(take_k)
    p_k = jax.nn.softmax(jnp.where(room_k, log_share_k, -jnp.inf))
    quota_k = p_k * missing
    # Below, so that rounding does not give out too many; a whole quota is a remainder of 1.
    whole_k = jnp.floor(quota_k * (1 - 1e-6)).astype(jnp.int32)
    unit = 1e-6 * missing  # remainders that differ by rounding only are equal
    rest_k = jnp.where(room_k, jnp.round((quota_k - whole_k) / unit), -1.0)
    rank_k = jnp.argsort(jnp.argsort(-rest_k, stable=True), stable=True)
    whole_k += room_k & (rank_k < missing - jnp.sum(whole_k))
    return jnp.minimum(take_k + whole_k, size_k)

  return jax.lax.while_loop(lacking, share, jnp.zeros_like(size_k))


def _decide(
  x_NxD: jax.Array, real_N: jax.Array, key: jax.Array, count: int, k: int, tau: float
) -> Decision:
  finite_N = directions.finite(x_NxD)
  unit_NxD, usable_N = directions.unit(x_NxD), real_N & finite_N
  cluster_N = spherical_kmeans(unit_NxD, usable_N, k, key)
  rows = mmd.grouped(unit_NxD, cluster_N, k)
  sum_P, size_k = mmd.kernel_sums(rows), rows.size_k
  centre_kxD = directions.unit(groups.sums(unit_NxD, cluster_N, k))
  take_k = budgets(shares(centre_kxD, mmd.density(rows, sum_P), size_k, tau), size_k, count)
  turn_N = mmd.pick(rows, sum_P, take_k)
  metrics = {
    "num_nonfinite": jnp.sum(real_N & ~finite_N, dtype=jnp.int32),
    "num_eligible": jnp.sum(turn_N >= 0, dtype=jnp.int32),
    "num_clusters": jnp.sum(size_k > 0, dtype=jnp.int32),
  }
  return Decision(_in_turns(turn_N, cluster_N, take_k) / count, metrics=metrics)


def _in_turns(turn_N: jax.Array, cluster_N: jax.Array, take_k: jax.Array) -> jax.Array:
  """Returns f32[N], less the place of each row that is picked, -inf for the others."""
  picked_N, part_N = turn_N >= 0, (turn_N + 0.5) / jnp.maximum(take_k[cluster_N], 1)
  order_N = jnp.lexsort((cluster_N, jnp.where(picked_N, part_N, jnp.inf)))
  place_N = jnp.zeros_like(order_N).at[order_N].set(jnp.arange(order_N.shape[0]))
  return jnp.where(picked_N, (-place_N).astype(jnp.float32), -jnp.inf)


def _number(clusters: int | None, num_rows: int) -> int:
  return -(-num_rows // 64) if clusters is None else clusters


def _argument_problems(
  count: int, clusters: int | None, tau: float, embedding: str, max_candidates: int
) -> list[str]:
  claims = (
    (checks.is_count(count, 1), f"count must be a whole number >= 1, got {count}"),
    (
      clusters is None or checks.is_count(clusters, 1),
      f"clusters must be None or a whole number >= 1, got {clusters}",
    ),
    (checks.is_finite(tau) and tau > 0, f"tau must be positive and finite, got {tau}"),
    (
      embedding in get_args(Embedding),
      f"embedding must be in {get_args(Embedding)}, got {embedding!r}",
    ),
    (
      checks.is_count(max_candidates, 1),
      f"max_candidates must be a whole number >= 1, got {max_candidates}",
    ),
  )
  return [message for holds, message in claims if not holds]
