"""Quantiles agree with those of NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies.selection.quantiles import quantiles


@pytest.mark.parametrize("size", [1, 2, 101, 4096, 300_001])
def test_quantiles_are_those_of_numpy(size):
  rng = np.random.default_rng(size)
  values = rng.normal(size=size + 50).astype(np.float32)
  eligible = rng.permutation(size + 50) < size
  shares = (0.0, 0.1, 0.33, 0.5, 0.66, 1 / 3, 0.999, 1.0)
  expected = np.quantile(values[eligible].astype(np.float64), shares)
  spacing = np.ptp(values) / size * 0.01 + 1e-6
  actual = quantiles(jnp.asarray(values), jnp.asarray(eligible), shares)
  np.testing.assert_allclose(actual, expected, rtol=0, atol=spacing)
