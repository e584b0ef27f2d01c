"""Directions of embeddings at any scale."""

import jax
import jax.numpy as jnp
import numpy as np

from jdc.policies.weighting import directions


def test_unit_vectors_at_any_scale():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(14, 6))
  scales = 10.0 ** np.array([-36, -30, -20, -13, -12, -6, -1, 0, 1, 6, 12, 13, 30, 37])
  actual = jax.jit(directions.unit)(jnp.float32(x * scales[:, None]))
  expected = x / np.linalg.norm(x, axis=1, keepdims=True)
  np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_what_has_no_direction_is_0():
  x = [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], [3e38, 3e38]]
  unit = jax.jit(directions.unit)(jnp.float32(x))
  np.testing.assert_allclose(unit, [[0, 0], [0, 0], [0, 0], [0.5**0.5] * 2], rtol=1e-6)
  assert directions.finite(jnp.float32(x)).tolist() == [True, False, False, True]


def test_moderate_keeps_proportions_along_an_axis_or_all():
  x = jnp.float32([[1e30, -1e29], [2.0, 0.5]])
  whole, rows = directions.moderate(x), directions.moderate(x, axis=-1)
  np.testing.assert_array_equal(whole * 2.0**80, x)
  np.testing.assert_array_equal(rows, x * jnp.float32([[2.0**-80], [1.0]]))
