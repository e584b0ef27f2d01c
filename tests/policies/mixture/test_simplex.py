"""The quadratic programme over proportions, against all supports tried in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jdc.policies.mixture import simplex

minimise = jax.jit(simplex.minimise)


def brute_force(linear, curvature):
  """Solves for every support and takes the best feasible one; curvatures are positive."""
  best, best_w = np.inf, None
  for size in range(1, len(linear) + 1):
    for support in map(list, itertools.combinations(range(len(linear)), size)):
      lam, kappa = linear[support], curvature[support]
      nu = (1 + np.sum(lam / kappa)) / np.sum(1 / kappa)
      w = np.zeros(len(linear))
      w[support] = (nu - lam) / kappa
      value = w @ linear + w**2 @ curvature / 2
      if np.all(w >= -1e-12) and value < best:
        best, best_w = value, w
  return best_w


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_agrees_with_brute_force(spread):
  rng = np.random.default_rng(0)
  for _ in range(50):
    linear = np.float32(spread * rng.normal(size=5))
    curvature = np.float32(rng.gamma(1.0, 1.0, 5) + 0.01)
    w = minimise(linear, curvature, np.ones(5, bool))
    expected = brute_force(np.float64(linear), np.float64(curvature))
    # An error in lambda moves w by that over the curvature.
    tolerance = 1e-6 * max(1.0, np.abs(linear).max()) / curvature.min()
    np.testing.assert_allclose(w, expected, atol=max(1e-6, tolerance))
    np.testing.assert_allclose(w.sum(), 1, rtol=1e-6)
    assert np.all(w >= 0)


def test_agrees_with_a_general_solver():
  linear, curvature = np.array([-1.0, -0.2, 0.4, -0.9]), np.array([2.0, 0.5, 1.0, 3.0])
  solution = scipy.optimize.minimize(
    lambda w: w @ linear + w**2 @ curvature / 2,
    np.full(4, 0.25),
    jac=lambda w: linear + curvature * w,
    bounds=[(0, 1)] * 4,
    constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
    method="SLSQP",
    options={"ftol": 1e-12},
  )
  w = minimise(np.float32(linear), np.float32(curvature), np.ones(4, bool))
  np.testing.assert_allclose(w, solution.x, atol=1e-5)


@pytest.mark.parametrize(
  ("linear", "curvature", "expected"),
  [
    ([-1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [1, 0, 0]),  # a corner
    ([-1.0, -1.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0]),  # a tie without curvature
    ([0.0, -0.5, -0.25], [0.0, 1.0, 1.0], [0.25, 0.5, 0.25]),  # the flat one takes the rest
    ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]),
    ([3e38, -3e38, 0.0], [3e38, 1e-30, 3e38], [0, 1, 0]),
    ([1e30, 1e30, 1e30], [1e30, 1e30, 2e30], [0.4, 0.4, 0.2]),
  ],
)
def test_flat_directions_and_large_numbers(linear, curvature, expected):
  w = minimise(jnp.float32(linear), jnp.float32(curvature), np.ones(3, bool))
  np.testing.assert_allclose(w, expected, atol=1e-5)


def test_divides_among_the_usable():
  linear, curvature = jnp.array([np.nan, -1.0, -0.5]), jnp.array([np.inf, 1.0, 1.0])
  assert minimise(linear, curvature, np.array([False, True, True])).tolist() == [0, 0.75, 0.25]
  assert minimise(linear, curvature, np.zeros(3, bool)).tolist() == [0, 0, 0]
