"""The random subset: its size, its law, its redrawing."""

import jax
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.selection import random

SPEC = RunSpec(10, 1, ("web",), (10,), (1.0,))


def rounds(fraction, seed, num):
  policy = random(fraction)
  decision, state = policy.init(SPEC, jax.random.key(seed))
  for _ in range(num):
    yield np.asarray(decision.logits)
    decision, state = policy.update(ExampleStats(), state)


@pytest.mark.parametrize(("fraction", "expected"), [(1.0, 10), (0.3, 3), (0.34, 3), (0.06, 1)])
def test_keeps_the_fraction_in_every_round(fraction, expected):
  for logits_N in rounds(fraction, 0, 4):
    assert np.sum(logits_N == 0) == expected
    assert np.sum(logits_N == -np.inf) == 10 - expected


def test_every_subset_is_as_likely():
  """Pairs of rows kept together, over rounds: 3 of 10 keeps each pair with 1 / 15."""
  kept = np.stack(list(rounds(0.3, 1, 1500))) == 0
  together = (kept[:, :, None] & kept[:, None, :]).mean(0)
  expected = np.where(np.eye(10), 0.3, 1 / 15)
  assert np.all(np.abs(together - expected) < 4.5 * np.sqrt(expected / 1500))


def test_keeps_a_share_of_each_domain():
  sizes = (4, 1, 5)
  spec = SPEC._replace(num_domains=3, domain_names=("a", "b", "c"), domain_sizes=sizes)
  policy, seen = random(0.4, by_domain=True), []
  decision, state = policy.init(spec, jax.random.key(0))
  for _ in range(600):
    seen.append(np.asarray(decision.logits) == 0)
    decision, state = jax.jit(policy.update)(ExampleStats(), state)
  kept = np.stack(seen)
  for rows, count in ((slice(0, 4), 2), (slice(4, 5), 1), (slice(5, 10), 2)):
    np.testing.assert_array_equal(kept[:, rows].sum(axis=1), count)
    share = count / kept[:, rows].shape[1]
    bound = 4.5 * np.sqrt(share * (1 - share) / 600)
    assert np.all(np.abs(kept[:, rows].mean(axis=0) - share) <= bound)


def test_depends_on_the_key_alone():
  one, same, other = (np.stack(list(rounds(0.5, seed, 5))) for seed in (0, 0, 1))
  np.testing.assert_array_equal(one, same)
  assert np.any(one != other)
  assert len({tuple(row) for row in one}) > 1


@pytest.mark.parametrize("fraction", [0.0, 1.1, np.nan, -0.5])
def test_rejects(fraction):
  with pytest.raises(ValueError, match="fraction"):
    random(fraction)
  with pytest.raises(ValueError, match="keeps none"):
    random(0.01).init(SPEC, jax.random.key(0))
