"""Cluster-LESS: a few rows speak for the influence of their whole cluster."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jdc.policies import checks
from jdc.policies.base import DataPolicy, Decision, ExampleStats, RunSpec
from jdc.policies.selection.clustering import CLUSTERINGS, Clustering
from jdc.policies.selection.influence import Direction, num_nonfinite, task_influence
from jdc.policies.selection.representatives import (
  Rule,
  choose_representatives,
  draw_representatives,
)
from jdc.policies.weighting import directions

Embedding = Literal["embedding", "position_weighted_embedding", "last_token_embedding"]

# Unit vectors that cancel in exact arithmetic leave a mean of about the rounding error, whose
# direction means nothing.
_CANCELLED = 1e-6


class ClusterLessState(NamedTuple):
  key: jax.Array  # of the representatives of the random rule
  cluster_N: jax.Array  # i32[N], -1 for rows in no cluster
  representative_kxS: jax.Array  # i32[k, S], rows of the pool; -1 where a cluster has fewer


def cluster_less(
  clusters: int | None = None,
  clustering: Clustering = "kmeans",
  representatives: Rule = "mixed",
  count: int = 3,
  embedding: Embedding = "embedding",
  direction: Direction = "update_direction",
  max_candidates: int = 200_000,
) -> DataPolicy:
  r"""Scores a whole cluster of rows by the influence of a few of them on the target set.

  Once, before the first round, the unit embeddings of all rows are clustered. In every round,
  with u_i the unit projected direction of a representative i of cluster j, and v_m the unit
  projected gradients of the target examples,

    c_j = unit(mean_i u_i),    score_j = mean_m <c_j, v_m>,

  and every row has the score of its cluster. A cluster whose representatives cancel (a mean
  shorter than 1e-6) has c_j = 0 and score 0, and is counted as `num_undirected`. A zero vector
  has no direction: its u_i or v_m is 0.

  Rows whose embedding is not finite are in no cluster and are never sampled. Nor is a
  representative whose direction is not finite, which has no say in its cluster's score. Target
  examples whose gradient is not finite are left out of the mean and counted as
  `num_nonfinite_targets`; without any other, no row has a score.

  Args:
    clusters: k, at most the pool's rows; by default ceil(N / 64).
    clustering: how rows are clustered, see `jdc.policies.selection.clustering`.
    representatives: which rows they are, see `choose_representatives`. They are chosen once,
      but "random" draws others every round.
    count: representatives S of a cluster; all its rows where it has fewer.
    embedding: the field that is clustered.
    direction: the field that is compared to the target's gradients.
    max_candidates: largest N whose embeddings may be held at once.

  Returns:
    A round-scope policy that observes `direction`, `target` (gradients) and `example_id`, and
    of the pool `embedding` and `example_id`, which `prepare` reads, f32[N, D] and i32[N].
    `sweep_ids` names k S rows, -1 for none; `score` returns their directions f32[b, R]. The
    decision holds `logits` f32[N], the scores, in [-1, 1]; before the first sweep 0 for all.
    Metrics count the rows that are sampled from, `num_eligible`, the others,
    `num_nonfinite`, and the two above.

  Raises:
    ValueError: if an argument is unknown or out of range; in `init`, if the pool is larger
      than `max_candidates` or smaller than `clusters`, or the run has no target set, features
      or embeddings.

  References:
    The rule is DataFlex's (2026), there without a paper; there a cluster that is empty is
    re-seeded with random rows. The directions are those of Xia et al., "LESS: Selecting
    Influential Data for Targeted Instruction Tuning", 2024, arXiv 2402.04333.

  Example:
    >>> from jdc.policies import TargetStats
    >>> spec = RunSpec(
    ...   4, 1, ("web",), (4,), (1.0,), num_targets=1, feature_size=2, embedding_size=2
    ... )
    >>> policy = cluster_less(clusters=2, count=1, direction="gradient")
    >>> _, state = policy.init(spec, jax.random.key(0))
    >>> x = jnp.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.0, 2.0]])
    >>> state = policy.prepare(ExampleStats(example_id=jnp.arange(4), embedding=x), state)
    >>> swept = ExampleStats(
    ...   example_id=policy.sweep_ids(state),
    ...   score=x[policy.sweep_ids(state)],
    ...   target=TargetStats(gradient=jnp.array([[5.0, 0.0]])),
    ... )
    >>> decision, _ = policy.update(swept, state)
    >>> [round(s, 1) for s in decision.logits.tolist()]
    [1.0, 1.0, 0.0, 0.0]
  """
  checks.require(
    (
      clusters is None or checks.is_count(clusters, 1),
      f"clusters must be None or a whole number >= 1, got {clusters}",
    ),
    _one_of("clustering", clustering, get_args(Clustering)),
    _one_of("representatives", representatives, get_args(Rule)),
    (checks.is_count(count, 1), f"count must be a whole number >= 1, got {count}"),
    _one_of("embedding", embedding, get_args(Embedding)),
    _one_of("direction", direction, get_args(Direction)),
    (
      checks.is_count(max_candidates, 1),
      f"max_candidates must be a whole number >= 1, got {max_candidates}",
    ),
  )

  def init(spec: RunSpec, key: jax.Array) -> tuple[Decision, ClusterLessState]:
    size = spec.num_examples
    k = -(-size // 64) if clusters is None else clusters
    _check(spec, k, max_candidates)
    state = ClusterLessState(
      key, jnp.full(size, -1, jnp.int32), jnp.full((k, count), -1, jnp.int32)
    )
    metrics = {
      "num_nonfinite": jnp.int32(0),
      "num_eligible": jnp.int32(size),
      "num_nonfinite_targets": jnp.int32(0),
      "num_undirected": jnp.int32(0),
    }
    return Decision(logits=jnp.zeros(size, jnp.float32), metrics=metrics), state

  def prepare(stats: ExampleStats, state: ClusterLessState) -> ClusterLessState:
    k = state.representative_kxS.shape[0]
    key, of_clusters, of_rows = jax.random.split(state.key, 3)
    embedding_NxD = getattr(stats, embedding)
    valid_N = (stats.example_id >= 0) & directions.finite(embedding_NxD)
    unit_NxD = directions.unit(embedding_NxD)
    cluster_N = CLUSTERINGS[clustering](unit_NxD, valid_N, k, of_clusters)
    chosen_kxS = choose_representatives(unit_NxD, cluster_N, k, count, representatives, of_rows)
    return ClusterLessState(key, cluster_N, chosen_kxS)

  def sweep_ids(state: ClusterLessState) -> jax.Array:
    return state.representative_kxS.reshape(-1)

  def score(stats: ExampleStats, state: ClusterLessState) -> jax.Array:
    del state
    return getattr(stats, direction).astype(jnp.float32)

  def update(stats: ExampleStats, state: ClusterLessState) -> tuple[Decision, ClusterLessState]:
    assert stats.target is not None
    centre_kxR, spoilt_N = _centres(stats, state)
    target_MxR = stats.target.gradient
    one_task_M = jnp.zeros(target_MxR.shape[0], jnp.int32)
    score_N = task_influence(centre_kxR, target_MxR, one_task_M, 1)[state.cluster_N, 0]
    eligible_N = (state.cluster_N >= 0) & ~spoilt_N & jnp.isfinite(score_N)
    num_eligible = jnp.sum(eligible_N, dtype=jnp.int32)
    occupied_k = state.representative_kxS[:, 0] >= 0
    metrics = {
      "num_nonfinite": eligible_N.shape[0] - num_eligible,
      "num_eligible": num_eligible,
      "num_nonfinite_targets": num_nonfinite(target_MxR),
      "num_undirected": jnp.sum(
        occupied_k & jnp.all(centre_kxR == 0, axis=-1), dtype=jnp.int32
      ),
    }
    return Decision(jnp.where(eligible_N, score_N, -jnp.inf), metrics=metrics), redraw(state)

  def redraw(state: ClusterLessState) -> ClusterLessState:
    if representatives != "random":
      return state
    k = state.representative_kxS.shape[0]
    key, of_rows = jax.random.split(state.key)
    drawn_kxS = draw_representatives(state.cluster_N, k, count, of_rows)
    return ClusterLessState(key, state.cluster_N, drawn_kxS)

  return DataPolicy(
    init,
    update,
    frozenset({direction, "target", "example_id"}),
    scope="round",
    score=score,
    sweep_ids=sweep_ids,
    prepare=prepare,
    observes_pool=frozenset({embedding, "example_id"}),
  )


def _one_of(name: str, value: object, accepted: tuple[str, ...]) -> tuple[bool, str]:
  return value in accepted, f"{name} must be in {accepted}, got {value!r}"


def _check(spec: RunSpec, k: int, max_candidates: int) -> None:
  size = spec.num_examples
  needed = {n: getattr(spec, n) for n in ("num_targets", "feature_size", "embedding_size")}
  checks.require(
    (size > 0, f"cluster_less needs num_examples > 0, got {size}"),
    (size <= max_candidates, f"num_examples {size} is above max_candidates {max_candidates}"),
    (k <= size or size <= 0, f"clusters {k} must be at most num_examples {size}"),
    *((value > 0, f"cluster_less needs {n} > 0, got {value}") for n, value in needed.items()),
  )


def _centres(stats: ExampleStats, state: ClusterLessState) -> tuple[jax.Array, jax.Array]:
  """Returns the mean directions of clusters, f32[k, R], and bool[N], which rows have none."""
  size, id_kxS = state.cluster_N.shape[0], state.representative_kxS
  row_C = jnp.where(stats.example_id >= 0, stats.example_id, size)
  # Gathered, so that each sum has a fixed order, whatever that of the sweep.
  place_N = jnp.full(size, -1).at[row_C].set(jnp.arange(row_C.shape[0]), mode="drop")
  place_kxS = jnp.where(id_kxS >= 0, place_N[id_kxS], -1)
  unit_CxR, finite_C = directions.unit(stats.score), directions.finite(stats.score)
  unit_kxSxR = jnp.where(place_kxS[..., None] >= 0, unit_CxR[place_kxS], 0.0)
  mean_kxR = jnp.mean(unit_kxSxR, axis=1)
  length_k = jnp.sqrt(jnp.sum(mean_kxR**2, axis=-1))
  centre_kxR = jnp.where(length_k[:, None] > _CANCELLED, mean_kxR, 0.0)
  return centre_kxR, jnp.zeros(size, bool).at[row_C].set(~finite_C, mode="drop")
