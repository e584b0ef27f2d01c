"""Window shuffle: random inside each window, the trend kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ordering
from jdc.policies.ordering import sorting, window_shuffle

KEY = jax.random.key(0)


@pytest.mark.parametrize(
  ("window", "inner"),
  [(1, sorting()), (2, sorting(True)), (7, ordering.zigzag(3)), (100, ordering.saw(3, 0.1))],
)
def test_every_window_holds_the_rows_of_the_inner_order(window, inner, random_scores):
  keys = jax.random.split(KEY, len(random_scores))
  found, inner_rows = (
    jax.jit(jax.vmap(x.order))(random_scores, keys).tolist()
    for x in (window_shuffle(window, inner), inner)
  )
  for score, rows, expected in zip(random_scores, found, inner_rows, strict=True):
    n = int(np.sum(score != np.inf))
    for start in range(0, n, window):
      end = min(start + window, n)
      assert sorted(rows[start:end]) == sorted(expected[start:end])
    assert rows[n:] == expected[n:]


def test_the_trend_stays():
  score = np.random.default_rng(0).random(1024).astype(np.float32)
  inner = np.asarray(sorting().order(score, KEY))
  place = np.argsort(inner)  # of each row
  correlations = []
  for window in (4, 32, 256, 1024):
    rows = np.asarray(jax.jit(window_shuffle(window, sorting()).order)(score, KEY))
    assert np.abs(place[rows] - np.arange(1024)).max() < window
    correlations.append(np.corrcoef(place[rows], np.arange(1024))[0, 1])  # of ranks
    assert (rows != inner).mean() > 0.5
  # Of windows that are a share f of the rows: 1 - f^2.
  np.testing.assert_allclose(correlations, [1, 1, 1 - 1 / 16, 0], atol=0.1)


def test_every_place_of_a_window_is_as_likely_and_depends_on_the_key():
  order = jax.jit(jax.vmap(window_shuffle(4, sorting()).order, in_axes=(None, 0)))
  rows = np.asarray(order(jnp.arange(8.0), jax.random.split(KEY, 4000)))
  for start in (0, 4):
    counts = [np.bincount(rows[:, start + i] - start, minlength=4) for i in range(4)]
    np.testing.assert_allclose(np.array(counts) / 4000, 0.25, atol=0.04)
  # Windows are shuffled independently of each other.
  assert np.abs(np.corrcoef(rows[:, 0], rows[:, 4])[0, 1]) < 0.06


def test_the_inner_ordering_and_the_windows_are_shuffled_apart():
  inner = ordering.segment(50, 50)
  order = jax.jit(window_shuffle(2, inner).order)
  assert window_shuffle(2, inner).observes == inner.observes
  assert {tuple(order(jnp.arange(4.0), jax.random.key(i)).tolist()) for i in range(40)} == {
    (*first, *last) for first in ((0, 1), (1, 0)) for last in ((2, 3), (3, 2))
  }


def test_rejects():
  for window in (0, -1, 2.0, True):
    with pytest.raises(ValueError, match="window must be a whole number of at least 1, got"):
      window_shuffle(window, sorting())
  with pytest.raises(
    ValueError, match=r"window.*ordering must be an Ordering.*call the factory"
  ):
    window_shuffle(0, sorting)
  with pytest.raises(ValueError, match=r"ordering\.observes has unknown fields"):
    window_shuffle(2, sorting()._replace(observes=frozenset({"perplexity"})))
