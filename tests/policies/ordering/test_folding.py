"""Folding and zigzag: the sheet's slices, sweeps over the whole range."""

import itertools

import jax
import numpy as np
import pytest

from jdc.policies.ordering import folding, zigzag

KEY = jax.random.key(0)


def reference(s, layers, alternating):
  sweeps = [s[layer::layers] for layer in range(layers)]
  turned = [x[::-1] if alternating and i % 2 else x for i, x in enumerate(sweeps)]
  return list(itertools.chain(*turned))


@pytest.mark.parametrize("factory", [folding, zigzag])
@pytest.mark.parametrize(
  ("layers", "descending"), [(1, False), (2, True), (5, False), (70, True)]
)
def test_is_the_slices_of_the_sorted_rows(factory, layers, descending, random_scores, by_rank):
  order = jax.jit(jax.vmap(factory(layers, descending).order, in_axes=(0, None)))
  for score, rows in zip(random_scores, order(random_scores, KEY).tolist(), strict=True):
    s, padding = by_rank(score, descending)
    assert rows == reference(s, layers, factory is zigzag) + padding


def test_every_sweep_of_a_folding_spans_the_range():
  score = np.random.default_rng(0).random(100).astype(np.float32)
  rows = np.asarray(jax.jit(folding(5).order)(score, KEY))
  for sweep in score[rows].reshape(5, 20):
    assert (np.diff(sweep) > 0).all()
    assert np.ptp(sweep) > 0.9 * np.ptp(score)


def test_a_zigzag_never_jumps():
  score = np.random.default_rng(0).permutation(100).astype(np.float32)
  jumps = {
    factory: np.abs(np.diff(score[np.asarray(jax.jit(factory(5).order)(score, KEY))])).max()
    for factory in (folding, zigzag)
  }
  assert jumps[zigzag] <= 2 * 5 - 1
  assert jumps[folding] > 90


@pytest.mark.parametrize("factory", [folding, zigzag])
def test_rejects(factory):
  for layers in (0, -1, 2.0, True):
    with pytest.raises(ValueError, match="layers must be a whole number of at least 1, got"):
      factory(layers)
  with pytest.raises(ValueError, match=r"layers.*unknown fields.*descending"):
    factory(0, descending=1, observes=frozenset({"perplexity"}))
  assert factory(observes=frozenset()).observes == frozenset()
  assert factory().observes == frozenset({"loss"})
