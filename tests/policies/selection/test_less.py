"""LESS: influence over tasks and rounds, what is not finite, and what it finds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec, TargetStats
from jdc.policies.selection import less

N, C, S, M, R = 20, 14, 3, 8, 5
SPEC = RunSpec(
  N, 1, ("web",), (N,), (1.0,), sweep_size=C, num_targets=M, num_tasks=S, feature_size=R
)
KEY = jax.random.key(0)


@functools.cache
def jitted(**arguments):
  policy = less(**arguments)
  return policy, jax.jit(policy.score), jax.jit(policy.update)


def start(spec=SPEC, **arguments):
  return jitted(**arguments)[0].init(spec, KEY)[1]


def decide(x, target, task, state, ids=None, rate=1.0, age=None, **arguments):
  """One round: a sweep in two chunks, and the decision."""
  _, score, update = jitted(**arguments)
  field = arguments.get("direction", "update_direction")
  told = TargetStats(gradient=jnp.float32(target), task=jnp.asarray(task))
  ids = jnp.arange(len(x)) if ids is None else jnp.asarray(ids)
  halves = np.split(np.float32(x), [len(x) // 2])
  scores = [
    score(ExampleStats(**{field: jnp.asarray(half)}, target=told), state) for half in halves
  ]
  stats = ExampleStats(
    example_id=ids,
    score=jnp.concatenate(scores),
    target=told,
    learning_rate=jnp.float32(rate),
    score_age=jnp.zeros(len(x), jnp.int32) if age is None else jnp.asarray(age),
  )
  return update(stats, state)


def influences(x, target, task, num_tasks=S):
  """[rows, S] in float64; NaN for rows that are not finite and tasks without examples."""
  unit = lambda v: (
    np.float64(v) / np.maximum(np.linalg.norm(np.float64(v), axis=1), 1e-12)[:, None]
  )
  usable = np.isfinite(target).all(axis=1)
  of = lambda k: target[usable & (task == k)]
  rows = np.where(np.isfinite(x).all(axis=1)[:, None], x, np.nan)
  empty = np.full(len(x), np.nan)
  columns = [
    (unit(rows) @ unit(of(k)).T).mean(axis=1) if len(of(k)) else empty for k in range(num_tasks)
  ]
  return np.stack(columns, axis=1)


def aggregated(influence, target, task, rule):
  """The docstring's rule for all tasks that have examples; -inf where there is no number."""
  size = np.bincount(task[np.isfinite(target).all(axis=1)], minlength=influence.shape[1])
  has = size > 0
  if not has.any():
    return np.full(len(influence), -np.inf)
  if rule == "submax":
    result = influence[:, has].max(axis=1)
  else:
    result = influence[:, has] @ size[has] / size.sum()
  return np.where(np.isnan(result), -np.inf, result)


def sample(rng):
  x, target = rng.normal(size=(C, R)), rng.normal(size=(M, R))
  x[rng.random(C) < 0.1] = 0
  x[rng.random(C) < 0.1, 1] = np.nan
  target[rng.random(M) < 0.1] = 0
  target[rng.random(M) < 0.2, 2] = np.inf
  ids = np.where(rng.random(C) < 0.1, -1, rng.permutation(N)[:C])
  return np.float32(x), np.float32(target), rng.integers(0, S, M), ids


@pytest.mark.parametrize("aggregate", ["submax", "mean"])
@pytest.mark.parametrize("direction", ["update_direction", "gradient"])
def test_agrees_with_the_rule(direction, aggregate):
  arguments = {"direction": direction, "aggregate": aggregate}
  for seed in range(60):
    x, target, task, ids = sample(np.random.default_rng(seed))
    decision, _ = decide(x, target, task, start(**arguments), ids, **arguments)
    expected = aggregated(influences(x, target, task), target, task, aggregate)
    expected[ids < 0] = -np.inf
    np.testing.assert_allclose(decision.logits, expected, rtol=0, atol=1e-5)
    assert decision.metrics == {
      "num_eligible": np.sum(np.isfinite(expected)),
      "num_nonfinite": np.sum((ids >= 0) & ~np.isfinite(expected)),
      "num_nonfinite_targets": np.sum(~np.isfinite(target).all(axis=1)),
    }


def recurrent(rounds, rule):
  """The docstring's mean over rounds, from all of them; the logits of the last."""
  shares, history = [], []
  for x, target, task, ids, rate, age in rounds:
    influence = np.full((N, S), np.nan)
    fresh = (ids >= 0) & (age == 0)
    influence[ids[fresh]] = influences(x, target, task)[fresh]
    history.append(influence)
    shares.append(rate)
  history, shares = np.stack(history), np.array(shares)
  mean = np.full((N, S), np.nan)
  for row in range(N):
    for k in range(S):
      told = np.flatnonzero(np.isfinite(history[:, row, k]))
      if told.size and shares[told].sum() > 0:
        mean[row, k] = shares[told] @ history[told, row, k] / shares[told].sum()
      elif told.size:
        mean[row, k] = history[told[-1], row, k]
  x, target, task, ids, _, _ = rounds[-1]
  now = aggregated(influences(x, target, task), target, task, rule)
  logits = aggregated(mean[ids], target, task, rule)
  return np.where((ids >= 0) & np.isfinite(now), logits, -np.inf)


@pytest.mark.parametrize("aggregate", ["submax", "mean"])
def test_sums_checkpoints_by_learning_rate(aggregate):
  arguments = {"checkpoints": "sum", "aggregate": aggregate}
  for seed in range(15):
    rng, state, rounds = np.random.default_rng((seed, 7)), start(**arguments), []
    task = np.arange(M) % S
    for rate in (0.0, 0.0, 1e-5, 3e-3, 1e-3, 0.0):
      x, target, _, ids = sample(rng)
      target = np.where(np.isfinite(target), target, 0)  # every task says something
      age = np.zeros(C, int)
      rounds.append((x, target, task, ids, rate, age))
      decision, state = decide(x, target, task, state, ids, rate, **arguments)
      np.testing.assert_allclose(
        decision.logits, recurrent(rounds, aggregate), rtol=0, atol=1e-5
      )


def test_a_score_kept_from_an_earlier_round_is_summed_once():
  rng, task = np.random.default_rng(0), np.arange(M) % S
  x, target = rng.normal(size=(3, C, R)), rng.normal(size=(M, R))
  age, ids = np.where(np.arange(C) < 5, 10, 0), np.arange(C)
  x[1] = np.where(age[:, None] > 0, x[0], x[1])
  state, rounds = start(checkpoints="sum"), []
  for rows, rate, ages in zip(x, (1.0, 3.0, 1.0), (0 * age, age, 0 * age), strict=True):
    decision, state = decide(rows, target, task, state, None, rate, ages, checkpoints="sum")
    rounds.append((rows, target, task, ids, rate, ages))
    np.testing.assert_allclose(decision.logits, recurrent(rounds, "submax"), atol=1e-5)
  first, _, last = (influences(rows, target, task) for rows in x)
  expected = ((first + last) / 2).max(axis=1)
  np.testing.assert_allclose(decision.logits[:5], expected[:5], atol=1e-5)


def test_a_task_without_finite_targets_keeps_its_mean():
  rng, task = np.random.default_rng(1), np.arange(M) % S
  x, target = rng.normal(size=(3, C, R)), rng.normal(size=(M, R))
  spoilt = np.where(task[:, None] == 1, np.nan, target)
  state = start(checkpoints="sum")
  _, state = decide(x[0], target, task, state, checkpoints="sum")
  decision, state = decide(x[1], spoilt, task, state, checkpoints="sum")
  i0, i1, i2 = (influences(rows, target, task) for rows in x)
  expected = (i0 + i1)[:, [0, 2]].max(axis=1) / 2
  np.testing.assert_allclose(decision.logits, expected, atol=1e-5)
  assert decision.metrics["num_nonfinite_targets"] == np.sum(task == 1)
  assert decision.metrics["num_eligible"] == C
  decision, state = decide(x[2], target, task, state, checkpoints="sum")
  i1[:, 1] = i0[:, 1]  # the round counts, and says what was known
  np.testing.assert_allclose(decision.logits, (i0 + i1 + i2).max(axis=1) / 3, atol=1e-5)


def test_no_finite_target_leaves_no_row():
  for aggregate in ("submax", "mean"):
    for checkpoints in ("current", "sum"):
      arguments = {"aggregate": aggregate, "checkpoints": checkpoints}
      target, task = np.full((M, R), np.nan), np.arange(M) % S
      decision, _ = decide(np.ones((C, R)), target, task, start(**arguments), **arguments)
      assert np.all(np.isneginf(decision.logits))
      assert decision.metrics == {
        "num_eligible": 0, "num_nonfinite": C, "num_nonfinite_targets": M,
      }  # fmt: skip


def test_does_not_depend_on_the_lengths_of_vectors():
  rng = np.random.default_rng(2)
  x, target, task = rng.normal(size=(C, R)), rng.normal(size=(M, R)), np.arange(M) % S
  one, _ = decide(x, target, task, start())
  x, target = x * 10.0 ** rng.integers(-9, 9, (C, 1)), target * rng.gamma(1.0, 1.0, (M, 1))
  other, _ = decide(x, target, task, start())
  np.testing.assert_allclose(other.logits, one.logits, atol=1e-5)


def regression(rng):
  """Rows of three subjects, of which a target set is about the first two, 28 to 2."""
  d = 12
  truth = rng.normal(size=d)
  of = lambda k: np.arange(d) // 4 == k
  make = lambda k: rng.normal(size=d) * of(k)
  subject = np.arange(60) % 3
  rows = np.stack([truth * of(k) + 0.5 * make(k) for k in subject])
  # A mistake in the label turns the step around.
  wrong = rng.random(60) < 0.3
  labels = np.where(wrong, -1, 1) * (rows @ truth)
  tasks = np.array([0] * 28 + [1] * 2)
  # Target examples of one task agree on a direction.
  targets = np.stack([truth * of(k) + 0.1 * make(k) for k in tasks])
  gradient = lambda x, y: -y[:, None] * x  # of (x theta - y)^2 / 2 at theta = 0
  return gradient(rows, labels), gradient(targets, targets @ truth), tasks, subject, wrong


def test_finds_what_helps_the_target_and_a_task_that_the_mean_drowns():
  spec = RunSpec(60, 1, ("web",), (60,), (1.0,), sweep_size=60)
  spec = spec._replace(num_targets=30, num_tasks=2, feature_size=12)
  found = {"submax": 0, "mean": 0}  # rows of the small task among the first ten, of 5 pools
  for seed in range(5):
    x, target, task, subject, wrong = regression(np.random.default_rng(seed))
    for aggregate in found:
      arguments = {"aggregate": aggregate, "direction": "gradient"}
      decision, _ = decide(x, target, task, start(spec, **arguments), **arguments)
      order = np.argsort(-np.asarray(decision.logits), stable=True)
      found[aggregate] += np.sum(subject[order[:10]] == 1)
      if aggregate == "submax":
        helpful = np.flatnonzero(~wrong & (subject < 2))
        np.testing.assert_array_equal(np.sort(order[: helpful.size]), helpful)
  assert found["submax"] >= 15
  assert found["mean"] <= 3


@pytest.mark.parametrize(
  "argument",
  [{"direction": "embedding"}, {"aggregate": "max"}, {"checkpoints": "all"}],
)
def test_rejects(argument):
  with pytest.raises(ValueError, match=f"^{next(iter(argument))} must be in"):
    less(**argument)


def test_lists_all_that_is_wrong():
  with pytest.raises(ValueError, match=r"direction .*aggregate .*checkpoints "):
    less("x", "y", "z")
  with pytest.raises(ValueError, match=r"sweep_size .*num_targets .*num_tasks .*feature_size "):
    less().init(RunSpec(9, 1, ("web",), (9,), (1.0,)), KEY)


def test_observes_what_it_reads():
  assert less().observes == {"update_direction", "target", "example_id"}
  summed = less("gradient", checkpoints="sum").observes
  assert summed == {"gradient", "target", "example_id", "learning_rate", "score_age"}
