"""Cluster-LESS: the scores in float64, what is swept, the edges, and the aligned cluster."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec, TargetStats
from jdc.policies.selection import cluster_less
from jdc.policies.selection.representatives import choose_representatives

N, D, R, M, K, S = 60, 4, 5, 6, 6, 3
SIZES = {"num_targets": M, "feature_size": R, "embedding_size": D}
SPEC = RunSpec(N, 1, ("web",), (N,), (1.0,), **SIZES)
KEY = jax.random.key(0)


class Round:
  """A policy with what the trainer does around it, compiled once."""

  def __init__(self, **arguments):
    self.policy = cluster_less(**{"clusters": K, "count": S} | arguments)
    self.prepare, self.update = jax.jit(self.policy.prepare), jax.jit(self.policy.update)

  def prepared(self, embedding, key=KEY):
    state = self.policy.init(SPEC, key)[1]
    x = jnp.asarray(embedding, jnp.float32)
    return self.prepare(ExampleStats(example_id=jnp.arange(N), embedding=x), state)

  def decide(self, state, direction_NxR, target_MxR):
    ids = self.policy.sweep_ids(state)
    direction = jnp.asarray(direction_NxR, jnp.float32)[ids]  # -1 reads some row or other
    chunk = ExampleStats(example_id=ids, update_direction=direction)
    target = TargetStats(gradient=jnp.asarray(target_MxR, jnp.float32))
    swept = ExampleStats(example_id=ids, score=self.policy.score(chunk, state), target=target)
    return self.update(swept, state)


MIXED = Round()
RANDOM = Round(representatives="random", clustering="random_partition")
FARTHEST = Round(clusters=D, clustering="farthest_first")


def unit(x):
  norm = np.linalg.norm(x)
  return x / norm if norm > 0 else x


def finite(x):
  return np.isfinite(x).all()


def reference(cluster_N, chosen_kxS, direction_NxR, target_MxR):
  """The docstring's equations, one row at a time, in float64."""
  direction, target = direction_NxR.astype(np.float64), target_MxR.astype(np.float64)
  v = [unit(g) for g in target if finite(g)]
  logits, undirected = np.full(N, -np.inf), 0
  for j, rows in enumerate(chosen_kxS):
    u = [unit(direction[i]) for i in rows if i >= 0 and finite(direction[i])]
    centre = unit(np.mean(u, axis=0)) if u else np.zeros(R)
    undirected += bool(rows[0] >= 0 and not centre.any())
    for i in np.flatnonzero(cluster_N == j):
      spoilt = i in rows and not finite(direction[i])
      if v and not spoilt:
        logits[i] = np.mean([centre @ each for each in v])
  return logits, undirected


@pytest.mark.parametrize("running", [MIXED, RANDOM], ids=["mixed", "random"])
def test_agrees_with_the_equations(running):
  for seed in range(12):
    rng = np.random.default_rng(seed)
    embedding = rng.normal(size=(N, D)) + 1
    embedding[rng.random(N) < 0.1] = np.nan
    state = running.prepared(embedding, jax.random.key(seed))
    for _ in range(3):
      scale = 10.0 ** rng.integers(-6, 6, (N, 1))
      direction = (rng.normal(size=(N, R)) * scale).astype(np.float32)
      direction[rng.random(N) < 0.2] = rng.choice([0.0, np.nan, np.inf])
      target = (rng.normal(size=(M, R)) * 10.0 ** rng.integers(-6, 6, (M, 1))).astype(
        np.float32
      )
      target[rng.random(M) < 0.2] = rng.choice([0.0, np.nan])
      target[0] = 1.0
      cluster, chosen = map(np.asarray, (state.cluster_N, state.representative_kxS))
      logits, undirected = reference(cluster, chosen, direction, target)
      decision, state = running.decide(state, direction, target)
      np.testing.assert_allclose(decision.logits, logits, rtol=1e-5, atol=1e-5)
      assert decision.metrics == {
        "num_nonfinite": np.sum(np.isneginf(logits)),
        "num_eligible": np.sum(np.isfinite(logits)),
        "num_nonfinite_targets": np.sum(~np.isfinite(target).all(axis=1)),
        "num_undirected": undirected,
      }


def test_clusters_directions_of_embeddings_once():
  """Lengths count for nothing; rows that are not finite are in no cluster."""
  rng = np.random.default_rng(0)
  embedding = rng.normal(size=(N, D))
  embedding[3], embedding[8, 1] = np.nan, np.inf
  state = MIXED.prepared(embedding)
  cluster = np.asarray(state.cluster_N)
  assert set(cluster) == {-1, *range(K)}
  assert np.flatnonzero(cluster == -1).tolist() == [3, 8]
  scaled = MIXED.prepared(embedding * 2.0 ** rng.integers(-9, 9, (N, 1)))
  np.testing.assert_array_equal(scaled.cluster_N, cluster)
  unit_NxD = jnp.array([unit(x) if finite(x) else x for x in embedding], jnp.float32)
  expected = choose_representatives(unit_NxD, cluster, K, S, "mixed", KEY)
  np.testing.assert_array_equal(state.representative_kxS, expected)
  for _ in range(2):
    _, after = MIXED.decide(state, rng.normal(size=(N, R)), rng.normal(size=(M, R)))
    np.testing.assert_array_equal(after.representative_kxS, expected)


def test_padded_rows_of_the_pool_are_in_no_cluster():
  ids = jnp.where(jnp.arange(N) < 50, jnp.arange(N), -1)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(N, D)), jnp.float32)
  state = MIXED.policy.init(SPEC, KEY)[1]
  state = MIXED.prepare(ExampleStats(example_id=ids, embedding=x), state)
  np.testing.assert_array_equal(np.asarray(state.cluster_N) < 0, np.arange(N) >= 50)


def test_random_representatives_change_every_round_and_speak_for_their_own_sweep():
  rng, seen = np.random.default_rng(0), []
  state = RANDOM.prepared(rng.normal(size=(N, D)))
  for _ in range(4):
    swept = np.asarray(state.representative_kxS)
    seen.append(swept.tolist())
    direction, target = rng.normal(size=(N, R)), rng.normal(size=(M, R))
    expected, _ = reference(np.asarray(state.cluster_N), swept, direction, target)
    decision, state = RANDOM.decide(state, direction, target)
    np.testing.assert_allclose(decision.logits, expected, rtol=1e-5, atol=1e-5)
  assert len({str(rows) for rows in seen}) == 4


def test_small_clusters_are_swept_whole():
  """-1 pads the sweep; a single row speaks for itself."""
  embedding = np.repeat(np.eye(D), [1, 2, 5, 52], axis=0)
  state = FARTHEST.prepared(embedding)
  ids = np.asarray(FARTHEST.policy.sweep_ids(state))
  assert ids.shape == (D * S,)
  assert np.sum(ids < 0) == 3
  direction, target = np.random.default_rng(0).normal(size=(2, N, R))
  decision, _ = FARTHEST.decide(state, direction, target[:M])
  expected = np.mean([unit(direction[0]) @ unit(g) for g in target[:M]])
  np.testing.assert_allclose(decision.logits[0], expected, rtol=1e-5)


def test_empty_clusters_are_not_swept():
  state = FARTHEST.prepared(np.repeat(np.eye(2, D), N // 2, axis=0))
  ids = np.asarray(FARTHEST.policy.sweep_ids(state)).reshape(D, S)
  np.testing.assert_array_equal(ids[2:], -1)
  decision, _ = FARTHEST.decide(state, np.ones((N, R)), np.ones((M, R)))
  np.testing.assert_allclose(decision.logits, np.ones(N), rtol=1e-6)
  assert decision.metrics["num_undirected"] == 0


@pytest.mark.parametrize("turn", [180, 120])
def test_cancelling_representatives_score_nothing(turn):
  """Neither opposite directions nor three at equal angles leave a direction of rounding."""
  state = MIXED.prepared(np.random.default_rng(0).normal(size=(N, D)))
  chosen, direction = np.asarray(state.representative_kxS), np.ones((N, R))
  cluster = next(j for j in range(K) if chosen[j].min() >= 0)
  for n, i in enumerate(chosen[cluster]):
    angle = np.deg2rad(turn * n + 20)
    plane = np.array([np.cos(angle), np.sin(angle)]) if n < 360 / turn else np.zeros(2)
    direction[i] = 10.0**n * np.pad(plane, (1, R - 3))
  decision, _ = MIXED.decide(state, direction, np.ones((M, R)))
  own = np.asarray(state.cluster_N) == cluster
  np.testing.assert_array_equal(decision.logits[own], 0.0)
  np.testing.assert_allclose(decision.logits[~own], 1.0, rtol=1e-6)
  assert decision.metrics["num_undirected"] == 1


def test_without_finite_targets_no_row_has_a_score():
  state = MIXED.prepared(np.random.default_rng(0).normal(size=(N, D)))
  decision, _ = MIXED.decide(state, np.ones((N, R)), np.full((M, R), np.nan))
  assert np.all(np.isneginf(decision.logits))
  assert decision.metrics["num_eligible"] == 0
  assert decision.metrics["num_nonfinite_targets"] == M


def test_the_order_of_the_sweep_is_of_no_account():
  """To the last bit: sums follow the clusters, not the chunks."""
  rng = np.random.default_rng(0)
  state = MIXED.prepared(rng.normal(size=(N, D)))
  direction, target = rng.normal(size=(N, R)), rng.normal(size=(M, R))
  expected, _ = MIXED.decide(state, direction, target)
  ids = rng.permutation(np.asarray(MIXED.policy.sweep_ids(state)))
  swept = ExampleStats(
    example_id=jnp.asarray(ids),
    score=jnp.asarray(direction, jnp.float32)[ids],
    target=TargetStats(gradient=jnp.asarray(target, jnp.float32)),
  )
  np.testing.assert_array_equal(MIXED.update(swept, state)[0].logits, expected.logits)


@pytest.mark.parametrize("running", [MIXED, FARTHEST], ids=["kmeans", "farthest_first"])
def test_ranks_the_cluster_that_is_aligned_with_the_target_first(running):
  """Rows of a kind have like embeddings and like gradients; few of them are swept."""
  for seed in range(5):
    rng = np.random.default_rng(seed)
    kind = rng.permutation(np.arange(N) % 3)
    embedding = np.eye(3, D)[kind] + 0.1 * rng.normal(size=(N, D))
    direction = np.eye(3, R)[kind] + 0.2 * rng.normal(size=(N, R))
    target = 7 * np.eye(3, R)[np.full(M, 1)] + rng.normal(size=(M, R))
    state = running.prepared(embedding, jax.random.key(seed))
    decision, _ = running.decide(state, direction, target)
    assert set(kind[np.argsort(-decision.logits)[: N // 3]]) == {1}
    assert np.unique(decision.logits).size <= K


@pytest.mark.parametrize(
  ("field", "direction"),
  [("position_weighted_embedding", "gradient"), ("last_token_embedding", "update_direction")],
)
def test_reads_the_fields_named(field, direction):
  policy = cluster_less(K, "random_partition", "random", embedding=field, direction=direction)
  assert policy.observes == {direction, "target", "example_id"}
  assert policy.observes_pool == {field, "example_id"}
  x = jnp.ones((N, D)).at[7].set(jnp.nan)
  pool = ExampleStats(**{"example_id": jnp.arange(N), field: x})
  _, state = policy.init(SPEC, KEY)
  state = jax.jit(policy.prepare)(pool, state)
  np.testing.assert_array_equal(np.asarray(state.cluster_N) < 0, np.arange(N) == 7)
  np.testing.assert_array_equal(policy.score(ExampleStats(**{direction: x}), state), x)


def test_starts_with_all_rows_alike():
  policy = cluster_less()
  decision, state = policy.init(SPEC._replace(num_examples=129), KEY)
  np.testing.assert_array_equal(decision.logits, np.zeros(129))
  assert state.representative_kxS.shape == (3, 3)  # ceil(129 / 64)
  assert decision.metrics["num_eligible"] == 129


@pytest.mark.parametrize(
  "argument",
  [
    {"clusters": 0},
    {"clusters": 2.5},
    {"clustering": "dbscan"},
    {"representatives": "nearby"},
    {"count": 0},
    {"embedding": "hidden"},
    {"direction": "loss"},
    {"max_candidates": 0},
  ],
)
def test_rejects(argument):
  with pytest.raises(ValueError, match=next(iter(argument))):
    cluster_less(**argument)


def test_rejects_what_does_not_fit_the_run_all_at_once():
  with pytest.raises(ValueError, match=f"num_examples {N} is above max_candidates 59"):
    cluster_less(max_candidates=59).init(SPEC, KEY)
  bare = SPEC._replace(num_targets=0, feature_size=0, embedding_size=0)
  message = "clusters 61 must.*num_targets > 0.*feature_size > 0.*embedding_size > 0"
  with pytest.raises(ValueError, match=message):
    cluster_less(61).init(bare, KEY)
