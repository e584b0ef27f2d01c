"""Sweeps: which rows they visit, and that chunks give what the whole would."""

import jax
import numpy as np
import pytest

from jdc.data import loader
from jdc.stats import pool as pool_lib
from jdc.train import sharding

SIZES = (50, 3, 200)


class Rows:
  """A table whose tokens tell the row."""

  def __init__(self, first, size):
    self.first, self.size = first, size

  def __len__(self):
    return self.size

  def rows(self, ids):
    tokens = np.repeat((self.first + np.asarray(ids))[:, None], 5, axis=1).astype(np.int32)
    return tokens, np.ones_like(tokens)


@pytest.fixture
def pool():
  starts = np.cumsum([0, *SIZES])
  return loader.Pool([Rows(s, n) for s, n in zip(starts[:-1], SIZES, strict=True)], 4)


def test_the_whole_pool_is_swept_by_default():
  for sweep_rows in (0, sum(SIZES), 10**6):
    ids = pool_lib.candidates(SIZES, sweep_rows, seed=0, round_=0)
    np.testing.assert_array_equal(ids, np.arange(sum(SIZES)))


def test_a_sample_has_a_row_of_every_domain_and_changes_with_the_round():
  starts = np.cumsum([0, *SIZES])
  samples = [pool_lib.candidates(SIZES, 20, seed=1, round_=r) for r in range(200)]
  for ids in samples:
    assert len(ids) == len(set(ids)) == 20
    assert (np.diff(ids) > 0).all()
    assert (np.histogram(ids, starts)[0] > 0).all()
  assert len({tuple(ids) for ids in samples}) == 200
  np.testing.assert_array_equal(samples[3], pool_lib.candidates(SIZES, 20, seed=1, round_=3))
  # Apart from one row of each domain the sample follows the sizes.
  counts = np.histogram(np.concatenate(samples), starts)[0] / 200
  expected = 1 + 17 * (np.asarray(SIZES) - 1) / (sum(SIZES) - 3)
  np.testing.assert_allclose(counts, expected, atol=0.4)


def test_a_sample_smaller_than_the_domains_is_refused():
  with pytest.raises(ValueError, match="sweep_rows=2 must be at least 3"):
    pool_lib.candidates(SIZES, 2, seed=0, round_=0)


@pytest.mark.parametrize("batch_size", [8, 16, 256])
def test_chunks_give_what_each_row_gives(pool, batch_size):
  batches = sharding.batch_sharding(sharding.make_mesh())
  score = jax.jit(
    lambda scale, offset, batch: {
      "a": scale * batch.tokens[:, 0] + offset,
      "b": batch.domain[:, None] * np.ones(3),
    }
  )
  ids = np.array([0, 7, 49, 50, 52, 53, 252, -1, 3, -1, 200], np.int32)
  found = pool_lib.sweep(score, 2.0, 0.5, pool, ids, batch_size, batches).scores
  real = ids >= 0
  np.testing.assert_allclose(found["a"][real], 2.0 * ids[real] + 0.5)
  expected = np.searchsorted([50, 53], ids[real], side="right")
  np.testing.assert_array_equal(found["b"][real], expected[:, None] * np.ones((1, 3)))
  assert score._cache_size() == 1
