"""Proportions by stages of the run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.mixture import schedule

SPEC = RunSpec(100, 3, ("a", "b", "c"), (40, 30, 30), (0.2, 0.3, 0.5))
KEY = jax.random.key(0)
STAGES = [(0, (2, 1, 1)), (10, {"c": 3, "a": 0, "b": 1}), (50, np.array([1.0, 1.0, 1.0]))]
SHARES = [[0.5, 0.25, 0.25], [0, 0.25, 0.75], [1 / 3] * 3]


def expected(step, interpolation):
  starts = [0, 10, 50]
  j = max(i for i in range(3) if starts[i] <= step)
  if j == 2 or interpolation == "constant":
    return np.array(SHARES[j])
  x = (step - starts[j]) / (starts[j + 1] - starts[j])
  x = x if interpolation == "linear" else (1 - np.cos(np.pi * x)) / 2
  return (1 - x) * np.array(SHARES[j]) + x * np.array(SHARES[j + 1])


@pytest.mark.parametrize("interpolation", ["constant", "linear", "cosine"])
def test_is_the_proportions_of_the_step(interpolation):
  policy = schedule(STAGES, interpolation)
  update = jax.jit(policy.update)
  first, state = policy.init(SPEC, KEY)
  np.testing.assert_allclose(np.exp(first.logits), SHARES[0], rtol=1e-6)
  for step in [0, 1, 5, 9, 10, 11, 30, 49, 50, 51, 10**9]:
    decision, state = update(ExampleStats(step=jnp.int32(step)), state)
    p = np.exp(decision.logits)
    np.testing.assert_allclose(p, expected(step, interpolation), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-6)
  assert policy.observes == {"step"}


def test_a_proportion_of_zero_is_never():
  decision, _ = schedule([(0, {"a": 1, "b": 0, "c": 1})]).init(SPEC, KEY)
  assert np.isneginf(decision.logits[1])


def test_is_exact_late_in_a_long_run():
  """Beyond 2^24 a step is not a float32."""
  start = 2**30 + 1
  policy = schedule([(0, (1, 1, 1)), (start, (1, 0, 0)), (start + 4, (0, 1, 0))], "linear")
  _, state = policy.init(SPEC, KEY)
  decision, _ = policy.update(ExampleStats(step=jnp.int32(start + 1)), state)
  np.testing.assert_allclose(np.exp(decision.logits), [0.75, 0.25, 0], rtol=1e-6)


def test_one_domain():
  spec = RunSpec(9, 1, ("web",), (9,), (1.0,))
  policy = schedule([(0, (1,)), (4, (7,))], "cosine")
  decision, _ = policy.update(ExampleStats(step=jnp.int32(2)), policy.init(spec, KEY)[1])
  np.testing.assert_allclose(decision.logits, [0], atol=1e-6)


@pytest.mark.parametrize(
  ("stages", "message"),
  [
    ([], "non-empty sequence"),
    (5, "non-empty sequence"),
    ([(0, (1, 1, 1)), 7], "non-empty sequence"),
    ([(1, (1, 1, 1))], "begin at 0 and increase, got \\[1\\]"),
    ([(0, (1, 1, 1)), (5, (1, 1, 1)), (5, (1, 1, 1))], "increase, got \\[0, 5, 5\\]"),
    ([(0, (1, 1, 1)), (2.5, (1, 1, 1))], "whole numbers >= 0"),
    ([(0, (1, -1, 1)), (5, (0, 0, 0))], "stage 0: .*got {1: -1}; stage 5: .*positive sum"),
    ([(0, 5)], "stage 0: proportions must be numbers by domain, got 5"),
    ([(1, (1, 1, 1)), (5, (0, 0, 0))], "begin at 0.*stage 5: .*positive sum"),
  ],
)
def test_rejects_stages(stages, message):
  with pytest.raises(ValueError, match=message):
    schedule(stages)


def test_rejects_an_unknown_interpolation():
  with pytest.raises(ValueError, match=r"interpolation must be in.*got 'cubic'; stage 0"):
    schedule([(0, (0, 0))], "cubic")


def test_rejects_what_does_not_fit_the_run():
  policy = schedule([(0, (1, 1)), (3, {"a": 1, "b": 1, "x": 1})])
  message = r"stage 0: .*got 2 of them; stage 3: unknown domains \['x'\].*missing.*\['c'\]"
  with pytest.raises(ValueError, match=message):
    policy.init(SPEC, KEY)
