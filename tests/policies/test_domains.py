"""Means and weights of domains, where float32 ends."""

import jax.numpy as jnp
import numpy as np

from jdc.policies import ExampleStats, domains

KNOWN = jnp.array([True, True, True])


def test_means_of_large_values_do_not_overflow():
  stats = ExampleStats(domain=jnp.array([0, 0, 1]), num_tokens=jnp.array([5, 7, 9]))
  batch = domains.domain_means(jnp.float32([3e38, 3e38, -3e38]), stats, 3)
  np.testing.assert_allclose(batch.mean_K, [3e38, -3e38, 0], rtol=1e-6)
  assert batch.present_K.tolist() == [True, True, False]
  assert batch.tokens_K.tolist() == [12, 9, 0]


def test_examples_that_are_not_finite_are_left_out_and_counted_and_padding_is_not():
  stats = ExampleStats(domain=jnp.array([0, 0, 1, 0]), num_tokens=jnp.array([1, 2, 3, 0]))
  batch = domains.domain_means(jnp.float32([np.nan, 4, np.inf, np.nan]), stats, 2)
  np.testing.assert_array_equal(batch.mean_K, [4, 0])
  assert batch.usable_B.tolist() == [False, True, False, False]
  assert batch.num_nonfinite == 2


def test_a_small_weight_without_mixing_is_not_lost():
  log_weight = jnp.float32([0, -500, -jnp.inf])
  np.testing.assert_array_equal(domains.mix_with_uniform(log_weight, 0.0), log_weight)
  raised = domains.raise_weights(log_weight, jnp.float32([0, 500, 500]), KNOWN)
  np.testing.assert_allclose(np.exp(raised), [0.5, 0.5, 0], atol=1e-6)


def test_gains_of_any_size_leave_a_distribution():
  log_weight = jnp.log(jnp.full(3, 1 / 3))
  for gain in ([3e38, -3e38, 0], [3e38, 3e38, 3e38], [-3e38, -3e38, 3e38], [np.inf, 0, 0]):
    for known in (KNOWN, jnp.array([True, False, True]), ~KNOWN):
      raised = domains.raise_weights(log_weight, jnp.float32(gain), known)
      np.testing.assert_allclose(np.exp(raised).sum(), 1, rtol=1e-6)
  np.testing.assert_allclose(raised, log_weight)  # of the last: none is known
