"""ICONS: votes, the order of rows with equal votes, and which rows it prefers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec, TargetStats
from jdc.policies.selection import icons

C, S, M, R = 30, 4, 12, 6
SPEC = RunSpec(
  50, 1, ("web",), (50,), (1.0,), sweep_size=C, num_targets=M, num_tasks=S, feature_size=R
)
KEY = jax.random.key(0)
SHARES = (0.05, 0.25, 0.3, 0.5, 1.0)
POLICIES = {share: icons(share, "gradient") for share in SHARES}
UPDATES = {share: jax.jit(policy.update) for share, policy in POLICIES.items()}
SCORE = jax.jit(POLICIES[0.3].score)


def decide(share, x, target, task, ids=None, spec=SPEC):
  _, state = POLICIES[share].init(spec, KEY)
  told = TargetStats(gradient=jnp.float32(target), task=jnp.asarray(task))
  score = SCORE(ExampleStats(gradient=jnp.float32(x), target=told), state)
  ids = jnp.arange(len(x)) if ids is None else jnp.asarray(ids)
  stats = ExampleStats(example_id=ids, score=score, target=told)
  return UPDATES[share](stats, state)[0]


def reference(share, x, target, task, ids):
  """Votes and mean influence in float64, -1 votes for rows that cannot be drawn; the margin."""
  unit = lambda v: (
    np.float64(v) / np.maximum(np.linalg.norm(np.float64(v), axis=1), 1e-12)[:, None]
  )
  eligible = np.isfinite(x).all(axis=1) & (ids >= 0)
  usable = np.isfinite(target).all(axis=1)
  influence, votes, margin = [], np.zeros(len(x), int), np.inf
  for k in range(S):
    of_task = target[usable & (task == k)]
    if len(of_task) == 0:
      continue
    mean = (unit(np.where(eligible[:, None], x, 0)) @ unit(of_task).T).mean(axis=1)
    threshold = np.quantile(mean[eligible], 1 - share)
    votes += mean >= threshold
    away = np.abs(mean[eligible] - threshold)
    margin = min(margin, away[away > 1e-12].min(initial=np.inf))
    influence.append(mean)
  mean = np.mean(influence, axis=0)
  return np.where(eligible, votes, -1), mean, margin


def sample(seed):
  rng = np.random.default_rng(seed)
  x, target = rng.normal(size=(C, R)), rng.normal(size=(M, R))
  x[rng.random(C) < 0.1, 1] = np.nan
  target[rng.random(M) < 0.2, 2] = np.inf
  target[rng.random(M) < 0.1] = 0
  ids = np.where(rng.random(C) < 0.1, -1, rng.permutation(50)[:C])
  return np.float32(x), np.float32(target), rng.integers(0, S, M), ids


@pytest.mark.parametrize("share", SHARES)
def test_agrees_with_the_rule(share):
  compared = 0
  for seed in range(60):
    x, target, task, ids = sample(seed)
    votes, mean, margin = reference(share, x, target, task, ids)
    decision = decide(share, x, target, task, ids)
    eligible = votes >= 0
    assert decision.metrics == {
      "num_eligible": np.sum(eligible),
      "num_nonfinite": np.sum((ids >= 0) & ~eligible),
      "num_nonfinite_targets": np.sum(~np.isfinite(target).all(axis=1)),
    }
    np.testing.assert_array_equal(np.isfinite(decision.logits), eligible)
    if margin > 1e-4:
      compared += 1
      expected = np.where(eligible, votes + (1 + mean) / 4, -np.inf)
      np.testing.assert_allclose(decision.logits, expected, rtol=0, atol=1e-5)
  assert compared > 20


def test_rows_with_equal_votes_are_ordered_by_mean_influence_then_by_index():
  target, task = np.eye(2), np.arange(2)
  spec = SPEC._replace(num_tasks=2, num_targets=2, feature_size=2)
  x = np.array([[1, 0.1], [1, 0.4], [1, 0.1], [0.4, 1], [-1, -1], [-1, -0.5], [1, 1], [-2, 0]])
  logits = decide(0.5, x, target, task, spec=spec).logits
  _, first = jax.lax.top_k(logits, 8)
  # Rows 0 and 2 are alike, and at the threshold of the second task. Row 3 has one vote.
  assert first.tolist() == [6, 1, 0, 2, 3, 7, 5, 4]


def test_an_additional_vote_counts_more_than_any_influence():
  for seed in range(20):
    x, target, task, ids = sample(seed)
    votes, _, margin = reference(0.3, x, target, task, ids)
    if margin > 1e-4:
      logits = np.asarray(decide(0.3, x, target, task, ids).logits)
      np.testing.assert_array_equal(np.floor(logits[votes >= 0]), votes[votes >= 0])


def test_with_a_share_of_one_every_task_votes_for_all():
  x, target, task, _ = sample(0)
  target, task = np.nan_to_num(target, posinf=0.0), np.arange(M) % S
  logits = decide(1.0, np.nan_to_num(x), target, task).logits
  assert np.all(np.floor(logits) == S)


def test_zero_rows_count_as_of_no_influence():
  x, target = np.ones((C, R)), np.ones((M, R))
  x[:10], x[20:] = 0, -1
  logits = decide(0.5, x, target, np.arange(M) % S).logits
  expected = np.repeat([S + 1 / 4, S + 1 / 2, 0.0], 10)
  np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_no_finite_target_leaves_no_row():
  decision = decide(0.3, np.ones((C, R)), np.full((M, R), np.nan), np.arange(M) % S)
  assert np.all(np.isneginf(decision.logits))
  assert decision.metrics == {
    "num_eligible": 0, "num_nonfinite": C, "num_nonfinite_targets": M,
  }  # fmt: skip


def test_no_finite_row_leaves_no_row():
  decision = decide(0.3, np.full((C, R), np.inf), np.ones((M, R)), np.arange(M) % S)
  assert np.all(np.isneginf(decision.logits))
  assert decision.metrics["num_nonfinite"] == C


def test_prefers_rows_that_help_several_tasks():
  """Specialists lie along one task's direction, generalists between several."""
  rng = np.random.default_rng(0)
  target = np.eye(R)[np.arange(M) % S] + 0.05 * rng.normal(size=(M, R))
  helped = rng.permutation([0] * 10 + [1] * 12 + [2] * 4 + [3] * 4)
  x = np.zeros((C, R))
  for count in (1, 2, 3):
    for i, row in enumerate(np.flatnonzero(helped == count)):
      x[row, (i + np.arange(count)) % S] = 1
  x[helped == 0, S] = 1
  x = (x + 0.05 * rng.normal(size=x.shape)) * rng.gamma(1.0, 1.0, (C, 1))
  logits = decide(0.25, x, target, np.arange(M) % S).logits
  order = np.argsort(-np.asarray(logits), stable=True)
  np.testing.assert_array_equal(helped[order], np.sort(helped)[::-1])


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, np.nan, True, "half"])
def test_rejects_shares(share):
  with pytest.raises(ValueError, match=r"^share must be in \(0, 1\]"):
    icons(share)


def test_lists_all_that_is_wrong():
  with pytest.raises(ValueError, match=r"share .*direction "):
    icons(2.0, "embedding")
  with pytest.raises(ValueError, match=r"sweep_size .*num_targets .*num_tasks .*feature_size "):
    icons(0.1).init(RunSpec(9, 1, ("web",), (9,), (1.0,)), KEY)
