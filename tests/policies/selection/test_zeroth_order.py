"""Zeroth-order selection: its rule, what is left out, and what its expectation prefers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec, TargetStats
from jdc.policies.selection import less, zeroth_order

C, M, R = 30, 12, 6
SPEC = RunSpec(
  50, 1, ("web",), (50,), (1.0,), sweep_size=C, num_targets=M, num_tasks=2, feature_size=R
)
KEY = jax.random.key(0)
POLICY = zeroth_order()
SCORE, UPDATE = jax.jit(POLICY.score), jax.jit(POLICY.update)


def decide(policy, x, target, ids=None):
  score, update = (SCORE, UPDATE) if policy is POLICY else (policy.score, policy.update)
  _, state = policy.init(SPEC, KEY)
  told = TargetStats(gradient=jnp.float32(target), task=jnp.arange(len(target)) % 2)
  found = score(ExampleStats(gradient=jnp.float32(x), target=told), state)
  ids = jnp.arange(len(x)) if ids is None else jnp.asarray(ids)
  return update(ExampleStats(example_id=ids, score=found, target=told), state)[0]


def sample(seed):
  rng = np.random.default_rng(seed)
  x, target = rng.normal(size=(C, R)), rng.normal(size=(M, R)) * 3
  x[rng.random(C) < 0.1, 1] = np.nan
  x[rng.random(C) < 0.1] = 0
  target[rng.random(M) < 0.2, 2] = np.inf
  ids = np.where(rng.random(C) < 0.1, -1, rng.permutation(50)[:C])
  return np.float32(x), np.float32(target), ids


def test_agrees_with_the_rule():
  for seed in range(60):
    x, target, ids = sample(seed)
    finite = np.isfinite(target).all(axis=1)
    eligible = np.isfinite(x).all(axis=1) & (ids >= 0)
    expected = np.full(C, -np.inf)
    for i in np.flatnonzero(eligible):
      products = [np.dot(np.float64(x[i]), np.float64(y)) for y in target[finite]]
      expected[i] = np.mean(products)
    decision = decide(POLICY, x, target, ids)
    scale = np.abs(expected[eligible]).max()
    np.testing.assert_allclose(decision.logits, expected, rtol=0, atol=1e-5 * scale)
    assert decision.metrics == {
      "num_eligible": eligible.sum(),
      "num_nonfinite": ((ids >= 0) & ~eligible).sum(),
      "num_nonfinite_targets": (~finite).sum(),
    }


def test_without_a_finite_target_no_row_is_drawn():
  decision = decide(POLICY, np.ones((C, R)), np.full((M, R), np.nan))
  assert np.all(np.isneginf(decision.logits))
  assert (decision.metrics["num_eligible"], decision.metrics["num_nonfinite"]) == (0, C)


def test_differences_along_directions_lead_to_the_rule():
  """On losses |A_i theta - b_i|^2 / 2, against differences with a small step."""
  rng = np.random.default_rng(0)
  maps, shifts = rng.normal(size=(C + M, 3, 5)), rng.normal(size=(C + M, 3))
  theta, xi_RxP, step = rng.normal(size=5), rng.normal(size=(R, 5)), 1e-4
  losses = lambda theta: 0.5 * np.sum((maps @ theta - shifts) ** 2, axis=1)
  differences = np.stack(
    [(losses(theta + step * xi) - losses(theta - step * xi)) / (2 * step) for xi in xi_RxP], 1
  )
  gradients = np.einsum("npq,np->nq", maps, maps @ theta - shifts)
  features = gradients @ xi_RxP.T / np.sqrt(R)  # as the provider gives them
  logits = decide(POLICY, features[:C], features[C:]).logits
  expected = (differences[:C] @ differences[C:].T).mean(axis=1) / R
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_large_gradients_count_for_more_than_in_less():
  x, target = np.zeros((C, R)), np.zeros((M, R))
  target[:, 0] = 1
  x[:, 0], x[3, 0], x[3, 1] = 1, 5, 5  # row 3 points less to the target, but moves it further
  assert np.argmax(decide(POLICY, x, target).logits) == 3
  assert np.argmax(decide(less("gradient"), x, target).logits) != 3


@pytest.mark.parametrize("field", ["sweep_size", "num_targets", "num_tasks", "feature_size"])
def test_refuses_a_run_without_what_it_needs(field):
  with pytest.raises(ValueError, match=f"zeroth_order needs {field} > 0, got 0"):
    POLICY.init(SPEC._replace(**{field: 0}), KEY)
