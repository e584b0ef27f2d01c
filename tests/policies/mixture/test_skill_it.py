"""Skill-It: the equations, the edges, the behaviour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.mixture.skill_it import adjacency_from_losses, skill_it

K = 4
SPEC = RunSpec(100, K, ("a", "b", "c", "d"), (25,) * K, (0.1, 0.2, 0.3, 0.4))
KEY = jax.random.key(0)
CHAIN = [[1, 0.5, 0, 0], [0, 1, 0.5, 0], [0, 0, 1, 0.5], [0, 0, 0, 1]]


def as_stats(loss_K):
  return ExampleStats(domain_target_loss=jnp.float32(loss_K))


def reference(rounds, A, eta, window, divide):
  """The docstring's equations in float64."""
  history, first = [], np.zeros(K)
  for loss_K in rounds:
    previous = history[-1] if history else np.ones(K)
    known = np.isfinite(loss_K)
    first = np.where(known & (first == 0), loss_K, first)
    scaled = loss_K / np.where(first == 0, 1, first) if divide else loss_K
    history.append(np.where(known, scaled, previous))
  total = np.ones(K) if len(rounds) == 1 else np.sum(history[-window:], axis=0)
  score = eta * np.asarray(A) @ total
  return score - score.max() - np.log(np.exp(score - score.max()).sum())


@pytest.mark.parametrize("divide", [False, True])
@pytest.mark.parametrize(("eta", "window"), [(0.5, 3), (0.2, 1), (0.8, 4)])
def test_agrees_with_the_equations(divide, eta, window):
  for seed in range(5):
    rng = np.random.default_rng(seed)
    A = rng.uniform(0, 1, (K, K)) * (rng.random((K, K)) < 0.6)
    rounds = rng.gamma(4.0, 0.7, (8, K))
    rounds[rng.random((8, K)) < 0.15] = np.nan
    policy = skill_it(A, eta, window, divide)
    first, state = policy.init(SPEC, KEY)
    for number in range(1, 9):
      decision, state = policy.update(as_stats(rounds[number - 1]), state)
      expected = reference(list(rounds[:number]), A, eta, window, divide)
      scale = max(1, np.abs(expected).max())
      np.testing.assert_allclose(decision.logits, expected, rtol=1e-5, atol=1e-5 * scale)
      missing = np.isnan(rounds[number - 1]).sum()
      assert decision.metrics["num_nonfinite"] == missing
      if number == 1:
        np.testing.assert_array_equal(decision.logits, first.logits)


def test_entropy_is_that_of_the_proportions():
  policy = skill_it(CHAIN)
  decision, _ = policy.init(SPEC, KEY)
  p = np.exp(np.float64(decision.logits))
  np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)
  np.testing.assert_allclose(decision.metrics["entropy"], -(p * np.log(p)).sum(), rtol=1e-6)


def test_does_not_multiply_the_previous_proportions():
  """With a window of one round, equal losses give equal proportions, whatever came before."""
  policy = skill_it(CHAIN, window=1)
  update, (_, state) = jax.jit(policy.update), policy.init(SPEC, KEY)
  decisions = []
  for loss_K in ([1.0] * K, [3.0, 1.0, 2.0, 0.5], [9.0, 0.0, 0.0, 0.0], [3.0, 1.0, 2.0, 0.5]):
    decision, state = update(as_stats(loss_K), state)
    decisions.append(decision.logits)
  np.testing.assert_array_equal(decisions[1], decisions[3])
  assert np.any(decisions[2] != decisions[3])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_takes_the_previous_loss_for_one_that_is_not_usable(bad):
  policy = skill_it(np.full((K, K), 1e3), learning_rate=1e-3)
  _, state = policy.init(SPEC, KEY)
  _, state = policy.update(as_stats([1.0, bad, 3.0, 4.0]), state)
  assert state.last_K.tolist() == [1.0, 1.0, 3.0, 4.0]  # before any, 1
  decision, state = policy.update(as_stats([bad] * K), state)
  assert decision.metrics["num_nonfinite"] == K
  assert state.losses_WxK[-2:].tolist() == [[1.0, 1.0, 3.0, 4.0]] * 2
  assert np.all(np.isfinite(decision.logits))


def test_follows_the_graph_to_the_skill_whose_loss_is_high():
  """In a chain a -> b -> c -> d, the last is high: its prerequisite c is raised with it."""
  decision, state = skill_it(CHAIN).init(SPEC, KEY)
  for _ in range(4):
    decision, state = skill_it(CHAIN).update(as_stats([0.1, 0.1, 0.1, 3.0]), state)
  p = np.exp(decision.logits)
  assert np.argsort(p)[::-1][:2].tolist() == [3, 2]
  assert p[2] > 5 * p[1]
  unlinked = skill_it(np.eye(K))
  alone, _ = unlinked.update(as_stats([0.1, 0.1, 0.1, 3.0]), state)
  assert np.exp(alone.logits[2]) < p[2]


def simulate(policy, prerequisite, num_rounds=40):
  """Skill j is learnt at a rate in proportion to its share and how far its prerequisite is."""
  decision, state = policy.init(SPEC, KEY)
  skill_K = np.zeros(K)
  for _ in range(num_rounds):
    decision, state = policy.update(as_stats(3 * (1 - skill_K)), state)
    ready_K = np.where(prerequisite < 0, 1.0, skill_K[prerequisite])
    skill_K = skill_K + 0.2 * np.exp(decision.logits) * ready_K * (1 - skill_K)
  return skill_K


def test_learns_a_chain_of_skills_better_than_fixed_proportions():
  prerequisite = np.array([-1, 0, 1, 2])
  fixed = simulate(skill_it(np.zeros((K, K))), prerequisite)
  guided = simulate(skill_it(CHAIN, learning_rate=0.3), prerequisite)
  assert guided.mean() > fixed.mean() + 0.01


def test_the_graph_from_losses():
  rng = np.random.default_rng(0)
  before_K, after_KxK = rng.uniform(1, 4, K), rng.uniform(0.5, 4, (K, K))
  graph = adjacency_from_losses(before_K.tolist(), after_KxK.tolist())
  for i in range(K):
    for j in range(K):
      drop = max(0.0, (before_K[j] - after_KxK[i, j]) / before_K[j])
      assert graph[i, j] == pytest.approx(1.0 if i == j else drop, rel=1e-12)
  assert np.any(graph == 0)
  skill_it(graph).init(SPEC, KEY)


@pytest.mark.parametrize(
  ("before", "after", "match"),
  [
    ([1.0, 2.0], [[1.0, 2.0]], "after must be 2 x 2"),
    ([1.0, 0.0], [[1.0, 2.0]] * 2, "before must be finite and positive; at skills .1."),
    ([1.0, 2.0], [[1.0, np.nan]] * 2, "after must be finite"),
  ],
)
def test_the_graph_rejects(before, after, match):
  with pytest.raises(ValueError, match=match):
    adjacency_from_losses(before, after)


@pytest.mark.parametrize(
  ("spec", "match"),
  [
    (RunSpec(10, 1, ("a",), (10,), (1.0,)), "at least 2 domains.*adjacency must be 1 x 1"),
    (RunSpec(10, 2, ("a", "b"), (5, 5), (0.5, 0.5)), "adjacency must be 2 x 2"),
  ],
)
def test_the_run_must_fit(spec, match):
  with pytest.raises(ValueError, match=match):
    skill_it(CHAIN).init(spec, KEY)


@pytest.mark.parametrize(
  ("argument", "match"),
  [
    ({"adjacency": None}, r"adjacency must be given.*jdc\.recipes\.skill_graph"),
    ({"adjacency": [[1, 2], [3]]}, "adjacency must be K rows"),
    ({"adjacency": [[1, 2]]}, "adjacency must be K rows"),
    ({"adjacency": [[1, -0.1], [0, 1]]}, "adjacency must be in"),
    ({"adjacency": [[1, np.nan], [0, 1]]}, "adjacency must be in"),
    ({"learning_rate": 0.0}, "learning_rate"),
    ({"learning_rate": np.inf}, "learning_rate"),
    ({"window": 0}, "window"),
    ({"window": 2.0}, "window"),
    ({"normalise": 1}, "normalise"),
    ({"adjacency": None, "learning_rate": -1}, "adjacency.*learning_rate"),
  ],
)
def test_rejects(argument, match):
  with pytest.raises(ValueError, match=match):
    skill_it(**{"adjacency": CHAIN, **argument})
