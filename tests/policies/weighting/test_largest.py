"""The largest entries: how many exactly, and which."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies.weighting.largest import is_fraction, largest, num_kept


def reference(values, eligible, num):
  rows = [i for i in range(len(values)) if eligible[i]]
  rows.sort(key=lambda i: (-float(values[i]), i))
  return [i in rows[:num] for i in range(len(values))]


def test_agrees_with_a_stable_sort():
  choose, rng = jax.jit(largest), np.random.default_rng(0)
  for trial in range(60):
    values = rng.normal(size=24) * 10.0 ** rng.integers(-30, 30)
    if trial % 2:
      values = np.round(rng.normal(size=24))  # ties, and zeros of both signs
    values = np.float32(values)
    eligible, num = rng.random(24) < 0.7, int(rng.integers(0, 26))
    actual = choose(values, eligible, num)
    assert actual.tolist() == reference(values, eligible, num)
    assert actual.sum() == min(num, eligible.sum())


def test_extremes_in_order():
  values = jnp.float32([-3e38, 0.0, -0.0, 3e38, -1e-30, np.nan])
  eligible = jnp.array([True] * 5 + [False])
  seen = [largest(values, eligible, jnp.int32(n)).tolist() for n in range(6)]
  order = [3, 1, 2, 4, 0]
  assert seen == [[i in order[:n] for i in range(6)] for n in range(6)]


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.6, 0.65, 1 / 3, 0.7, 0.9999, 1e-4, 1, 1.0])
def test_counts_are_exact(fraction):
  count = np.array([0, 1, 2, 3, 10, 30, 999, 1000, 12345, 2**24 + 1, 2**31 - 1])
  exact = Fraction(fraction).limit_denominator(10_000)
  expected = [-(-exact.numerator * int(n) // exact.denominator) for n in count]
  assert jax.vmap(lambda n: num_kept(fraction, n))(jnp.int32(count)).tolist() == expected


def test_accepts_fractions_only():
  assert all(map(is_fraction, [1e-4, 0.5, 1.0, 1]))
  assert not any(map(is_fraction, [0, 0.0, 9e-5, 1.1, -0.5, np.nan, True, None, "0.5"]))
