"""Proportions drawn anew every round."""

import functools

import jax
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.mixture import random

SPEC = RunSpec(100, 3, ("a", "b", "c"), (40, 30, 30), (0.5, 0.5, 0.0))


@functools.cache
def compiled(concentration):
  policy = random(concentration)
  step = lambda state, _: policy.update(ExampleStats(), state)[::-1]
  return jax.jit(lambda state: jax.lax.scan(step, state, length=20_000)[1].logits)


def draws(concentration, seed=0, spec=SPEC):
  """The proportions of 20,000 rounds, the initial ones left out."""
  _, state = random(concentration).init(spec, jax.random.key(seed))
  return np.exp(np.float64(compiled(concentration)(state)))


@pytest.mark.parametrize("concentration", [1.0, 0.1])
def test_moments_are_those_of_a_dirichlet(concentration):
  p_NxK = draws(concentration)
  np.testing.assert_allclose(p_NxK.sum(1), 1, rtol=1e-5)
  np.testing.assert_allclose(p_NxK.mean(0), 1 / 3, atol=0.01)
  variance = (1 / 3) * (2 / 3) / (3 * concentration + 1)
  np.testing.assert_allclose(p_NxK.var(0), variance, rtol=0.05)


def test_one_is_uniform_on_the_simplex():
  """The share of a corner {p_0 > x} is (1 - x)^2; normalised uniforms have far less at 0.8."""
  share = np.mean(draws(1.0)[:, 0] > 0.8)
  np.testing.assert_allclose(share, 0.04, atol=0.006)


def test_rounds_and_seeds_differ_and_repeat():
  first, _ = random().init(SPEC, jax.random.key(0))
  p_NxK = draws(1.0)
  shares = [*p_NxK[:100], np.exp(np.float64(first.logits))]
  assert len({tuple(p) for p in shares}) == 101
  np.testing.assert_array_equal(draws(1.0), p_NxK)
  assert not np.any(draws(1.0, seed=1)[:100] == p_NxK[:100])


def test_small_concentrations_and_one_domain_are_finite():
  assert np.all(np.isfinite(np.log(draws(0.1))))
  spec = RunSpec(9, 1, ("web",), (9,), (1.0,))
  np.testing.assert_array_equal(draws(1.0, spec=spec), 1)


def test_is_of_rounds_and_observes_nothing():
  assert random().scope == "round"
  assert random().observes == frozenset()


@pytest.mark.parametrize("concentration", [0, -1.0, np.inf, np.nan, "1"])
def test_rejects(concentration):
  with pytest.raises(ValueError, match="concentration must be positive and finite"):
    random(concentration)
