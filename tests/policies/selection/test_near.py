"""NEAR: the walk over the neighbours, where embeddings come from, the edges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec, TargetStats
from jdc.policies.selection import near
from jdc.policies.selection.near import walk

KEY = jax.random.key(0)
M, C, D = 5, 40, 6
SPEC = RunSpec(
  C, 1, ("web",), (C,), (1.0,), sweep_size=C, num_targets=M, embedding_size=D
)  # fmt: skip


@functools.cache
def decider(count, neighbours, embedding="embedding"):
  """Returns (pool, target, ids) -> decision, through `score`, compiled once."""
  policy = near(count, neighbours, embedding)
  _, state = policy.init(SPEC, KEY)

  @jax.jit
  def update(pool, target, ids):
    score = policy.score(ExampleStats(**{embedding: pool}), state)
    of_target = TargetStats(**{embedding: target})
    stats = ExampleStats(example_id=ids, score=score, target=of_target)
    return policy.update(stats, state)[0]

  return lambda pool, target, ids=None: update(
    np.float32(pool), np.float32(target), np.int32(np.arange(C) if ids is None else ids)
  )


def reference(pool, target, real, count, neighbours):
  """The rows in the order of a plain walk, and the smallest gap between distances it read."""
  usable = np.isfinite(pool).all(1) & real
  unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
  pool_unit = unit(np.where(usable[:, None], pool, 0).astype(np.float64))
  target = unit(target[np.isfinite(target).all(1)].astype(np.float64))
  distance = np.linalg.norm(target[:, None] - pool_unit, axis=-1)
  distance[:, ~usable] = np.inf
  order = np.argsort(distance, axis=1, kind="stable")
  num = min(neighbours, usable.sum())
  selected = []
  for rank in range(num):
    for row in order[:, rank]:
      if row not in selected and len(selected) < count:
        selected.append(row)
  ordered = np.sort(distance[:, usable], axis=1)
  return selected, np.min(np.diff(ordered)[:, :num], initial=np.inf)


def selected_by(decision):
  """The rows that top_k keeps, in its order."""
  values, rows = jax.lax.top_k(decision.logits, decision.logits.size)
  return rows[values > -jnp.inf].tolist()


@pytest.mark.parametrize(("count", "neighbours"), [(15, 2), (15, 1000), (C, 3)])
def test_agrees_with_a_plain_walk(count, neighbours):
  decide, compared = decider(count, neighbours), 0
  for seed in range(40):
    rng = np.random.default_rng(seed)
    pool, target = rng.normal(size=(C, D)), rng.normal(size=(M, D)) * rng.uniform(0.1, 9)
    pool[rng.random(C) < 0.1, 2] = rng.choice([np.nan, np.inf])
    target[rng.random(M) < 0.2, 0] = np.nan
    target[0] = 1.0
    ids = np.where(rng.random(C) < 0.1, -1, np.arange(C))
    expected, margin = reference(pool, target, ids >= 0, count, neighbours)
    decision = decide(pool, target, ids)
    nonfinite = ~np.isfinite(pool).all(1) & (ids >= 0)
    assert {name: int(value) for name, value in decision.metrics.items()} == {
      "num_nonfinite": nonfinite.sum(),
      "num_nonfinite_targets": np.sum(~np.isfinite(target).all(1)),
      "num_eligible": np.isfinite(decision.logits).sum(),
      "num_neighbours": min(neighbours, C),
    }
    if margin > 1e-4:
      assert selected_by(decision) == expected
      places = np.arange(len(expected)) / count
      np.testing.assert_allclose(decision.logits[jnp.array(expected)], -places, rtol=1e-6)
      compared += 1
  assert compared >= 10


def planted(seed, shift=0.0):
  """A pool of noise with three close rows for each target, at known places, nearest first."""
  rng = np.random.default_rng(seed)
  target = np.eye(M, D) + shift
  pool, rows = -np.abs(rng.normal(size=(C, D))), rng.permutation(C)[: 3 * M].reshape(3, M)
  for rank in range(3):
    noise = rng.normal(size=(M, D))
    noise -= np.sum(noise * target, axis=1, keepdims=True) * target / np.sum(target**2, 1)[0]
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    pool[rows[rank]] = target + 0.05 * (rank + 1) * noise
  return pool, target, rows


def test_finds_the_planted_neighbours_of_every_target_and_follows_the_embeddings():
  decide, seen = decider(15, 1000), []
  for seed in range(5):
    pool, target, rows = planted(seed)
    seen.append(selected_by(decide(pool, target)))
    assert seen[-1] == rows.ravel().tolist()  # rank by rank, targets in order
  assert len({tuple(rows) for rows in seen}) == 5


def test_fewer_rows_than_asked_for_are_all_selected():
  decision = decider(15, 2)(*planted(0)[:2])
  assert decision.metrics["num_eligible"] == 2 * M
  same = np.ones((M, D))  # all targets reach the same rows
  decision = decider(15, 2)(planted(0)[0], same)
  assert decision.metrics["num_eligible"] == 2


def test_ties_go_to_the_lower_row_and_the_earlier_target():
  decide = decider(15, 1000)
  assert selected_by(decide(np.ones((C, D)), np.ones((M, D)))) == list(range(15))
  pool = -np.ones((C, D))
  pool[7], pool[3] = np.eye(D)[0], np.eye(D)[1]
  assert selected_by(decide(pool, np.eye(D)[:M]))[:2] == [7, 3]


def test_nothing_to_compare_leaves_no_row():
  decide = decider(15, 1000)
  pool, target, _ = planted(0)
  for decision in (
    decide(pool, np.full((M, D), np.nan)),
    decide(np.full((C, D), np.inf), target),
    decide(pool, target, np.full(C, -1)),
  ):
    assert np.all(decision.logits == -np.inf)
    assert decision.metrics["num_eligible"] == 0


def test_an_embedding_of_norm_zero_is_at_distance_one():
  pool, target = -np.ones((C, D)), np.ones((M, D))
  pool[5], pool[9] = 0.0, [1, -1, 1, -1, 1, 1.0]
  assert selected_by(decider(15, 1000)(pool, target))[:2] == [5, 9]


def test_walk_ignores_the_queries_without_neighbours():
  logits = jax.jit(walk, static_argnums=(1, 2))(jnp.array([[-1, -1], [2, 0], [2, -1]]), 4, 3)
  np.testing.assert_allclose(logits, [-1 / 3, -np.inf, 0, -np.inf])


def test_reads_the_embedding_that_it_is_told():
  pool, target, _ = planted(1)
  name = "last_token_embedding"
  policy = near(15, embedding=name)
  assert policy.observes == {name, "example_id", "target"}
  expected = decider(15, 1000)(pool, target)
  np.testing.assert_array_equal(
    decider(15, 1000, embedding=name)(pool, target).logits, expected.logits
  )


def test_given_embeddings_decide_as_those_of_a_sweep(tmp_path):
  pool, target, _ = planted(1)
  pool[4, 0] = np.nan
  np.savez(tmp_path / "given.npz", pool=pool, target=target)
  policy = near(15, embeddings=str(tmp_path / "given.npz"))
  assert policy.score is None
  assert policy.observes == frozenset()
  expected = decider(15, 1000)(pool, target)
  # The run needs neither a sweep nor a target set.
  decision, state = policy.init(RunSpec(C, 1, ("web",), (C,), (1.0,)), KEY)
  for given in (decision, jax.jit(policy.update)(ExampleStats(), state)[0]):
    np.testing.assert_array_equal(given.logits, expected.logits)
    assert given.metrics == expected.metrics
  assert decision.metrics["num_nonfinite"] == 1


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"count": 0}, "count"),
    ({"count": 2.0}, "count"),
    ({"neighbours": True}, "neighbours"),
    ({"embedding": "gradient"}, "embedding"),
    ({"max_candidates": 0}, "max_candidates"),
    ({"embeddings": None}, "embeddings"),
    ({"embeddings": "nowhere.npz", "count": -1}, r"count.*; embeddings: nowhere.npz"),
  ],
)
def test_rejects(arguments, message):
  with pytest.raises(ValueError, match=message):
    near(**{"count": 3, **arguments})


@pytest.mark.parametrize(
  ("changed", "arguments", "message"),
  [
    ({"sweep_size": 0, "num_targets": 0}, {}, "sweep_size > 0, got 0.*num_targets > 0, got 0"),
    ({"embedding_size": 0}, {}, "embedding_size"),
    ({}, {"count": C + 1}, f"count {C + 1}"),
    ({}, {"max_candidates": C - 1}, f"max_candidates {C - 1}"),
    ({"num_targets": 2**27}, {}, "lower neighbours"),
  ],
)
def test_refuses_runs_that_do_not_fit(changed, arguments, message):
  with pytest.raises(ValueError, match=message):
    near(**{"count": 3, **arguments}).init(SPEC._replace(**changed), KEY)


def test_refuses_files_that_do_not_fit(tmp_path):
  path = tmp_path / "given.npz"
  good = {"pool": np.ones((C, D)), "target": np.ones((M, D))}
  for arrays, message in (
    ({"pool": good["pool"], "queries": good["target"]}, r"no \['target'\].*'queries'"),
    ({**good, "target": np.ones((M, D + 1))}, f"one width, got .{D}, {D + 1}"),
    ({**good, "target": np.ones(D)}, r"target is float64 \[6\]"),
    ({**good, "pool": np.array([["a"]])}, "pool is <U1"),
    ({**good, "target": np.ones((0, D))}, r"target is float64 \[0, 6\]"),
    ({**good, "target": np.array([[None]])}, "no readable .npz"),
  ):
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
      near(3, embeddings=str(path))
  path.write_bytes(b"PK\x03\x04 not an archive")
  with pytest.raises(ValueError, match=r"no readable .npz"):
    near(3, embeddings=str(path))
  np.save(tmp_path / "one.npy", np.ones(3))
  with pytest.raises(ValueError, match="one array"):
    near(3, embeddings=str(tmp_path / "one.npy"))
  np.savez(path, **good)
  with pytest.raises(ValueError, match=f"num_examples {C + 1} rows, got {C}"):
    near(3, embeddings=str(path)).init(SPEC._replace(num_examples=C + 1), KEY)
  with pytest.raises(ValueError, match=f"count {C + 5}"):
    near(C + 5, embeddings=str(path)).init(SPEC, KEY)
  with pytest.raises(ValueError, match="max_candidates 3"):
    near(3, embeddings=str(path), max_candidates=3).init(SPEC, KEY)
