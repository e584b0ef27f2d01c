"""The ring buffer of losses against a list."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies.weighting import recent

CAPACITY, BATCH = 7, 5


def batches(seed, num):
  rng = np.random.default_rng(seed)
  for _ in range(num):
    yield np.float32(rng.integers(0, 6, BATCH) / 2), rng.random(BATCH) < 0.7


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_a_list(seed):
  insert, rank = jax.jit(recent.insert), jax.jit(recent.mid_rank)
  quantile = jax.jit(recent.quantile)
  buffer, seen = recent.empty(CAPACITY, BATCH), []
  for loss_B, usable_B in batches(seed, 12):
    buffer = insert(buffer, loss_B, usable_B)
    seen = (seen + loss_B[usable_B].tolist())[-CAPACITY:]
    assert buffer.size == len(seen)
    if not seen:
      continue
    held = np.array(seen)
    assert sorted(buffer.losses_n[: len(seen)].tolist()) == sorted(seen)
    expected = [np.mean(held < x) + np.mean(held == x) / 2 for x in loss_B]
    np.testing.assert_allclose(rank(buffer, loss_B), expected, atol=1e-6)
    for share in (0.0, 0.31, 0.5, 1.0):
      actual = quantile(buffer, jnp.float32(share))
      np.testing.assert_allclose(actual, np.quantile(held, share), rtol=1e-5, atol=1e-6)


def test_empty():
  buffer = recent.empty(CAPACITY, BATCH)
  assert recent.quantile(buffer, jnp.float32(0.5)) == np.inf
  assert recent.mid_rank(buffer, jnp.zeros(2)).tolist() == [0.0, 0.0]


def test_a_quantile_of_equal_or_large_losses_is_one_of_them():
  full = jnp.ones(3, bool)
  for value in (2.3, 3e38):
    buffer = recent.insert(recent.empty(3, 3), jnp.full(3, value), full)
    assert recent.quantile(buffer, jnp.float32(0.3)) == jnp.float32(value)
  spread = recent.insert(recent.empty(3, 3), jnp.float32([-3e38, 3e38, 3e38]), full)
  assert recent.quantile(spread, jnp.float32(0.25)) == 0


def test_a_batch_must_fit():
  with pytest.raises(ValueError, match="capacity must hold a batch of 5 examples, got 4"):
    recent.empty(4, 5)
  with pytest.raises(ValueError, match="batch_size"):
    recent.empty(4, 0)
