"""Mixtures that do not change: given proportions, and proportions by size."""

import jax
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.mixture import by_size, static

SPEC = RunSpec(100, 3, ("code", "web", "books"), (20, 80, 0), (0.5, 0.25, 0.25))
KEY = jax.random.key(0)


def shares(policy, spec=SPEC):
  """Checks that no update changes the decision, and returns its shares."""
  first, state = policy.init(spec, KEY)
  later, _ = policy.update(ExampleStats(), state)
  np.testing.assert_array_equal(later.logits, first.logits)
  return np.exp(np.asarray(first.logits))


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    (None, [0.5, 0.25, 0.25]),
    ((3, 1, 0), [0.75, 0.25, 0]),
    (np.array([0.2, 0.2, 0.4]), [0.25, 0.25, 0.5]),
    ({"books": 2, "web": 1, "code": 1}, [0.25, 0.25, 0.5]),
  ],
)
def test_static_is_the_normalised_proportions(given, expected):
  np.testing.assert_allclose(shares(static(given)), expected, rtol=1e-6)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ((1, -1, 1), r"at least 0, got \{1: -1\}"),
    ((1, np.nan, np.inf), r"got \{1: nan, 2: inf\}"),
    ((0, 0, 0), "positive sum"),
    ((), "positive sum"),
    ({"code": 1, "web": "x"}, "web"),
  ],
)
def test_static_rejects_at_construction(given, message):
  with pytest.raises(ValueError, match=message):
    static(given)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ((1, 1), "one for each of .* got 2"),
    ({"cod": 1, "web": 1}, r"unknown domains \['cod'\].*known.*missing.*'books', 'code'"),
  ],
)
def test_static_rejects_what_does_not_fit_the_run(given, message):
  with pytest.raises(ValueError, match=message):
    static(given).init(SPEC, KEY)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.3])
def test_by_size_is_a_power_of_size(temperature):
  power = np.array([20.0, 80.0]) ** (1 / temperature)
  expected = [*(power / power.sum()), 0]
  np.testing.assert_allclose(shares(by_size(temperature)), expected, rtol=1e-5)


def test_by_size_at_its_ends():
  np.testing.assert_allclose(shares(by_size(np.inf)), [0.5, 0.5, 0], rtol=1e-6)
  np.testing.assert_allclose(shares(by_size(0)), [0, 1, 0], rtol=1e-6)


@pytest.mark.parametrize("temperature", [-1, np.nan, "1"])
def test_by_size_rejects(temperature):
  with pytest.raises(ValueError, match="temperature"):
    by_size(temperature)
  with pytest.raises(ValueError, match="domain_sizes"):
    by_size().init(SPEC._replace(domain_sizes=(0, 0, 0)), KEY)
