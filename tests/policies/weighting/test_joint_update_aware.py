"""Joint-update-aware weighting: the iteration, its ablations, the edges, the behaviour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec, TargetStats
from jdc.policies.weighting import joint_update_aware

SPEC = RunSpec(90, 1, ("web",), (90,), (1.0,), batch_size=8, num_targets=5)
KEY = jax.random.key(0)


def as_stats(z, target, tokens):
  return ExampleStats(
    embedding=jnp.float32(z),
    num_tokens=jnp.asarray(tokens),
    target=TargetStats(embedding=jnp.float32(target)),
  )


def decide(policy, *args):
  return jax.jit(policy.update)(as_stats(*args), ())[0]


def unit(x):
  norm = np.linalg.norm(x)
  return x / norm if norm > 0 else x * 0


def softmax(x):
  power = np.exp(x - x.max())
  return power / power.sum()


def reference(z, target, tokens, objective, beta, tau, rho, iterations):
  """The docstring's equations with G formed, in float64: weights and residual."""
  rows = [i for i in range(len(z)) if tokens[i] > 0 and np.all(np.isfinite(z[i]))]
  target = [v for v in target if np.all(np.isfinite(v))]
  weights = np.zeros(len(z))
  if not rows:
    return weights, 0.0
  Z = np.array([unit(z[i]) for i in rows])
  u = unit(np.mean(target, axis=0)) if target else np.zeros(Z.shape[1])
  s, G, p = Z @ u, Z @ Z.T, np.full(len(rows), 1 / len(rows))
  step = {
    "joint": lambda p: softmax((s - beta * G @ p) / tau),
    "alignment": lambda p: softmax(s / tau),
    "diversity": lambda p: softmax(-beta * G @ p / tau),
    "uniform": lambda p: np.full(len(rows), 1 / len(rows)),
  }[objective]
  for _ in range(iterations):
    p = (1 - rho) * p + rho * step(p)
  weights[rows] = len(rows) * p
  return weights, np.abs(step(p) - p).sum()


@pytest.mark.parametrize("objective", ["joint", "alignment", "diversity", "uniform"])
@pytest.mark.parametrize(
  ("beta", "tau", "rho", "iterations"),
  [(0.1, 0.05, 1.0, 5), (2.0, 0.3, 0.4, 3)],
)
def test_agrees_with_the_equations(objective, beta, tau, rho, iterations):
  policy = joint_update_aware(objective, beta, tau, rho, iterations)
  update = jax.jit(policy.update)
  for seed in range(8):
    rng = np.random.default_rng(seed)
    z, target = np.float32(rng.normal(size=(8, 6)) * 5), np.float32(rng.normal(size=(5, 6)))
    z[0] = 0.0
    z[rng.random(8) < 0.2, 1] = np.nan
    target[rng.random(5) < 0.2, 3] = -np.inf
    tokens = rng.integers(0, 4, 8)
    decision, _ = update(as_stats(z, target, tokens), ())
    expected, residual = reference(
      np.float64(z), np.float64(target), tokens, objective, beta, tau, rho, iterations
    )
    np.testing.assert_allclose(decision.weights, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(decision.metrics["residual"], residual, atol=1e-5)
    lost = np.sum(~np.isfinite(z).all(1) & (tokens > 0))
    assert decision.metrics["num_nonfinite"] == lost
    assert decision.metrics["num_nonfinite_targets"] == np.sum(~np.isfinite(target).all(1))


def test_defaults_are_those_of_the_sheet():
  rng = np.random.default_rng(9)
  z, target = rng.normal(size=(8, 6)), rng.normal(size=(5, 6))
  actual = decide(joint_update_aware(), z, target, [2] * 8).weights
  given = decide(joint_update_aware("joint", 0.1, 0.05, 1.0, 5), z, target, [2] * 8).weights
  np.testing.assert_array_equal(actual, given)


def test_approaches_the_maximum():
  """Of the concave objective on the simplex: no feasible direction improves on it."""
  rng, beta, tau = np.random.default_rng(3), 1.0, 0.2
  z, target = rng.normal(size=(8, 6)), rng.normal(size=(5, 6))
  policy = joint_update_aware(beta=beta, temperature=tau, damping=0.5, iterations=60)
  decision = decide(policy, z, target, [2] * 8)
  Z, u = np.array([unit(x) for x in z]), unit(target.mean(axis=0))
  p = np.float64(decision.weights) / 8
  slope = Z @ u - beta * Z @ Z.T @ p - tau * (np.log(p) + 1)
  np.testing.assert_allclose(slope, slope.mean(), atol=1e-5)
  assert decision.metrics["residual"] < 1e-5


def test_a_large_beta_shows_in_the_residual():
  z = np.random.default_rng(4).normal(size=(8, 3))
  tame = decide(joint_update_aware(), z, [[1.0, 0, 0]], [1] * 8)
  wild = decide(joint_update_aware(beta=50.0), z, [[1.0, 0, 0]], [1] * 8)
  assert wild.metrics["residual"] > 0.5 > 0.01 > tame.metrics["residual"]


@pytest.mark.parametrize("rho", [1.0, 0.3])
def test_equal_weights_are_exactly_one(rho):
  policy = joint_update_aware("uniform", damping=rho)
  update, rng = jax.jit(policy.update), np.random.default_rng(5)
  z = rng.normal(size=(64, 3))
  for rows in range(1, 65):
    tokens = np.int32(np.arange(64) < rows)
    decision, _ = update(as_stats(z, z[:2], tokens), ())
    np.testing.assert_array_equal(decision.weights, tokens)


def test_copies_weigh_alike():
  same = np.ones((8, 4))
  weights = decide(joint_update_aware(), same, same[:2], [3] * 8).weights
  np.testing.assert_allclose(weights, np.ones(8), rtol=1e-6)


def test_edges():
  alone = decide(joint_update_aware(), [[1.0, 2.0], [3.0, 4.0]], [[1.0, 1.0]], [5, 0])
  assert alone.weights.tolist() == [1.0, 0.0]
  nothing = decide(joint_update_aware(), [[np.nan, 2.0], [3.0, 4.0]], [[1.0, 1.0]], [5, 0])
  assert nothing.weights.tolist() == [0.0, 0.0]
  assert nothing.metrics["residual"] == 0
  huge = decide(joint_update_aware(), [[3e38, 0.0], [0.0, 1.0]], [[3e38, 0.0]] * 9, [1, 1])
  usual = decide(joint_update_aware(), [[2.0, 0.0], [0.0, 1.0]], [[2.0, 0.0]], [1, 1])
  np.testing.assert_allclose(huge.weights, usual.weights, atol=1e-6)
  no_target = decide(joint_update_aware(), [[2.0, 0.0], [0.0, 1.0]], [[np.nan, 0.0]], [1, 1])
  assert no_target.weights.tolist() == [1.0, 1.0]


def test_prefers_aligned_examples_that_are_not_redundant():
  """Six copies and one lone example, alike in alignment; one that is not aligned."""
  copy, lone, other = [1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 1.0]
  z, target = [copy] * 6 + [lone, other], [[1.0, 0.0, 0.0]]
  joint, alignment, diversity = (
    np.asarray(decide(joint_update_aware(name), z, target, [4] * 8).weights)
    for name in ("joint", "alignment", "diversity")
  )
  assert joint[6] > 2 * joint[0] > 100 * joint[7]
  np.testing.assert_allclose(alignment[6], alignment[0], rtol=1e-4)
  assert alignment[0] > 100 * alignment[7]
  np.testing.assert_allclose(diversity[6], diversity[7], rtol=1e-4)
  assert diversity[6] > 2 * diversity[0]
  for weights in (joint, alignment, diversity):
    np.testing.assert_allclose(weights.mean(), 1, rtol=1e-6)


@pytest.mark.parametrize(
  "argument",
  [
    {"objective": "both"},
    {"beta": -0.1},
    {"beta": np.inf},
    {"temperature": 0.0},
    {"temperature": np.inf},
    {"damping": 0.0},
    {"damping": 1.5},
    {"iterations": 0},
    {"iterations": 2.0},
  ],
)
def test_rejects(argument):
  with pytest.raises(ValueError, match=next(iter(argument))):
    joint_update_aware(**argument)


def test_rejects_all_at_once():
  with pytest.raises(ValueError, match=r"objective.*beta.*temperature.*damping.*iterations"):
    joint_update_aware("all", -1.0, -1.0, -1.0, -1)
  with pytest.raises(ValueError, match=r"batch_size.*num_targets"):
    joint_update_aware().init(SPEC._replace(batch_size=0, num_targets=0), KEY)
