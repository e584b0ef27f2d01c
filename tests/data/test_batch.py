"""Tests of the split of rows into inputs and targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.data.batch import inputs_and_targets


def random_rows(num_rows=40, length=12, seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, 9, (num_rows, length), dtype=np.int32)
  segments = np.cumsum(rng.random((num_rows, length)) < 0.3, axis=1, dtype=np.int32) + 1
  segments[np.arange(length) >= rng.integers(0, length + 3, (num_rows, 1))] = 0
  return tokens, segments


def reference(tokens, segments):
  positions = np.zeros((len(tokens), tokens.shape[1] - 1), int)
  mask = np.zeros(positions.shape, bool)
  for b, t in np.ndindex(*positions.shape):
    if t > 0 and segments[b, t] == segments[b, t - 1]:
      positions[b, t] = positions[b, t - 1] + 1
    mask[b, t] = segments[b, t] == segments[b, t + 1] != 0
  return tokens[:, :-1], tokens[:, 1:], positions, segments[:, :-1], mask


@pytest.mark.parametrize("split", [inputs_and_targets, jax.jit(inputs_and_targets)])
def test_agrees_with_a_loop(split):
  rows = random_rows()
  for expected, actual in zip(reference(*rows), split(*rows), strict=True):
    np.testing.assert_array_equal(actual, expected)
    assert actual.dtype in (np.int32, bool)


def test_narrow_integers_are_widened():
  tokens, segments = random_rows()
  rows = inputs_and_targets(tokens.astype(np.uint8), segments.astype(np.uint8))
  assert [field.dtype for field in rows] == [np.int32] * 4 + [np.dtype(bool)]


@pytest.mark.parametrize(
  ("tokens_shape", "segments_shape"), [((2, 5), (2, 4)), ((2, 1), (2, 1)), ((5,), (5,))]
)
def test_rejects_shapes_that_are_not_rows(tokens_shape, segments_shape):
  with pytest.raises(ValueError, match=r"shape|rows"):
    inputs_and_targets(jnp.zeros(tokens_shape, int), jnp.zeros(segments_shape, int))
