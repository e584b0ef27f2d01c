"""Embeddings: agreement with loops over examples, packed or not, and where padding lies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.stats import embeddings
from jdc.train import sharding

B, T, D, S = 8, 13, 5, 4


def random_rows(seed):
  """Hidden states and packed rows; some segments are missing, some rows are padding."""
  rng = np.random.default_rng(seed)
  segments = np.zeros((B, T), np.int32)
  for row in range(1, B):
    filled = rng.integers(1, T + 1)
    segments[row, :filled] = np.sort(rng.choice(S, filled)) + 1
  return rng.normal(size=(B, T, D)).astype(np.float32), segments


def reference(name, hidden_nxD):
  """The docstrings' equations in float64, for the tokens of one example."""
  n = len(hidden_nxD)
  if n == 0:
    return np.zeros(D)
  if name == "last_token_embedding":
    return hidden_nxD[-1]
  weights = np.ones(n) if name == "embedding" else np.arange(1, n + 1)
  return sum(w * h for w, h in zip(weights, hidden_nxD.astype(np.float64), strict=True)) / sum(
    weights.tolist()
  )


@pytest.mark.parametrize("name", embeddings.POOLINGS)
def test_agrees_with_the_equations(name):
  packed = jax.jit(lambda h, s: embeddings.POOLINGS[name](h, s, S))
  rows = jax.jit(embeddings.POOLINGS[name])
  for seed in range(10):
    hidden, segments = random_rows(seed)
    expected = [
      [reference(name, hidden[b][segments[b] == s + 1]) for s in range(S)] for b in range(B)
    ]
    found = packed(hidden, segments)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    expected = [reference(name, hidden[b][segments[b] > 0]) for b in range(B)]
    np.testing.assert_allclose(rows(hidden, segments), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", embeddings.POOLINGS)
def test_padding_and_the_place_in_a_row_do_not_matter(name):
  pool = embeddings.POOLINGS[name]
  hidden, _ = random_rows(0)
  first, second, space = hidden[:2, :3], hidden[:2, 3:8], hidden[:2, 8:10]
  together = jnp.concatenate([second, space, first], axis=1)
  segments = jnp.array([[2] * 5 + [0] * 2 + [1] * 3] * 2)
  alone = [pool(x, jnp.ones(x.shape[:2], jnp.int32)) for x in (first, second)]
  np.testing.assert_allclose(pool(together, segments, 2), np.stack(alone, axis=1), atol=1e-6)


@pytest.mark.parametrize("name", embeddings.POOLINGS)
def test_sums_are_of_float32(name):
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(1, 1, (1, 1000, 3)), jnp.bfloat16)
  found = embeddings.POOLINGS[name](hidden, jnp.ones((1, 1000), jnp.int32))
  expected = reference(name, np.asarray(hidden, np.float64)[0])
  np.testing.assert_allclose(found[0], expected, rtol=2e-6)


def test_shards_of_the_batch_pool_their_own_rows():
  hidden, segments = random_rows(3)
  batches = sharding.batch_sharding(sharding.make_mesh())
  placed = jax.device_put((hidden, segments), batches)
  for pool in embeddings.POOLINGS.values():
    found = jax.jit(lambda h, s, pool=pool: pool(h, s, S))(*placed)
    np.testing.assert_allclose(found, pool(hidden, segments, S), atol=1e-6)
