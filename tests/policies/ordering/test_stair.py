"""Stair and saw: sorted but for the transitions, which are folded."""

import itertools
from fractions import Fraction

import jax
import numpy as np
import pytest

from jdc.policies.ordering import saw, sorting, stair

KEY = jax.random.key(0)
CASES = [(2, 0.2, 2), (2, 0.24, 3), (3, 0.16, 2), (10, 0.045, 5)]


def transitions(n, parts, radius):
  """Ranks of each transition; of two that overlap, the later begins where the other ends."""
  width, end = round(n * Fraction(repr(radius))), 0
  for j in range(1, parts):
    split = round(Fraction(n * j, parts))
    yield range(max(split - width, end), end := split + width)


def reference(s, parts, radius, layers, alternating):
  order = list(s)
  for ranks in transitions(len(s), parts, radius):
    assert 0 <= ranks.start <= ranks.stop <= len(s)
    sweeps = [list(ranks)[layer::layers] for layer in range(layers)]
    folded = [x[::-1] if alternating and i % 2 else x for i, x in enumerate(sweeps)]
    order[ranks.start : ranks.stop] = [s[rank] for rank in itertools.chain(*folded)]
  return order


@pytest.mark.parametrize("factory", [stair, saw])
@pytest.mark.parametrize(("parts", "radius", "layers"), CASES)
def test_folds_around_the_splits(factory, parts, radius, layers, random_scores, by_rank):
  descending = layers % 2 == 1
  order = factory(parts, radius, layers, descending).order
  order = jax.jit(jax.vmap(order, in_axes=(0, None)))
  for score, rows in zip(random_scores, order(random_scores, KEY).tolist(), strict=True):
    s, padding = by_rank(score, descending)
    assert rows == reference(s, parts, radius, layers, factory is saw) + padding


@pytest.mark.parametrize("factory", [stair, saw])
def test_sorts_by_default(factory, random_scores):
  order, plain = (jax.jit(jax.vmap(x.order, in_axes=(0, None))) for x in (factory(), sorting()))
  np.testing.assert_array_equal(order(random_scores, KEY), plain(random_scores, KEY))


@pytest.mark.parametrize("factory", [stair, saw])
def test_keeps_the_trend_and_revisits_at_the_transitions(factory):
  score = np.arange(1000, dtype=np.float32)
  found = score[np.asarray(jax.jit(factory(4, 0.05, 2).order)(score, KEY))]
  falls = np.flatnonzero(np.diff(found) < 0)
  splits = np.array([250, 500, 750])
  assert {int(np.abs(splits - at).argmin()) for at in falls} == {0, 1, 2}
  assert all(np.abs(splits - at).min() <= 50 for at in falls)
  assert np.abs(found - score).max() <= 100
  # A stair goes back at once, a saw step by step.
  assert len(falls) == (3 if factory is stair else 3 * 49)


@pytest.mark.parametrize("factory", [stair, saw])
@pytest.mark.parametrize(
  ("argument", "message"),
  [
    ({"radius": 0.25}, r"radius must be below 1 / \(2 parts\) = 0.25, got 0.25"),
    ({"parts": 3, "radius": 1 / 6}, r"radius must be below 1 / \(2 parts\)"),
    ({"radius": -0.1}, "radius must be finite and 0 or more, got -0.1"),
    ({"radius": np.nan}, "radius must be finite"),
    ({"parts": 1}, "parts must be a whole number of at least 2, got 1"),
    ({"parts": 2.0, "radius": np.inf, "layers": 0, "descending": None},
     "parts.*radius.*layers.*descending"),
  ],
)  # fmt: skip
def test_rejects(factory, argument, message):
  with pytest.raises(ValueError, match=message):
    factory(**argument)
