"""Tests of the chunked cross-entropy: its values, its gradients, its memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.models.cross_entropy import default_chunk_size, token_cross_entropy


def inputs(batch_size=3, num_positions=13, width=8, vocab_size=37, scale=3.0, seed=0):
  rng = np.random.default_rng(seed)
  hidden = rng.normal(size=(batch_size, num_positions, width)) * scale
  output = rng.normal(size=(width, vocab_size))
  targets = rng.integers(0, vocab_size, (batch_size, num_positions))
  return np.float32(hidden), np.float32(output), np.int32(targets)


def reference(hidden, output, targets):
  """-log softmax(h W)[y], token by token, in float64."""
  losses = np.zeros(targets.shape)
  for b, t in np.ndindex(*targets.shape):
    logits = hidden[b, t].astype(np.float64) @ output.astype(np.float64)
    top = logits.max()
    losses[b, t] = np.log(np.exp(logits - top).sum()) + top - logits[targets[b, t]]
  return losses


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 5, 12, 13, 100])
def test_agrees_with_the_equation(chunk_size):
  hidden, output, targets = inputs()
  losses = jax.jit(token_cross_entropy, static_argnums=3)(hidden, output, targets, chunk_size)
  assert losses.dtype == jnp.float32
  np.testing.assert_allclose(losses, reference(hidden, output, targets), rtol=1e-5, atol=1e-5)


def test_large_logits_stay_finite():
  hidden, output, targets = inputs(scale=1e4)
  for chunk_size in (None, 4):
    losses = token_cross_entropy(hidden, output, targets, chunk_size)
    np.testing.assert_allclose(losses, reference(hidden, output, targets), rtol=1e-5, atol=0.1)


@pytest.mark.parametrize("chunk_size", [1, 4, 5])
def test_gradients_equal_the_plain_form(chunk_size):
  hidden, output, targets = inputs()
  weights = np.random.default_rng(1).gamma(1.0, size=targets.shape)

  def gradients(chunk_size):
    def loss(hidden, output):
      return jnp.sum(weights * token_cross_entropy(hidden, output, targets, chunk_size))

    return jax.jit(jax.grad(loss, argnums=(0, 1)))(hidden, output)

  for plain, chunked in zip(gradients(None), gradients(chunk_size), strict=True):
    np.testing.assert_allclose(chunked, plain, rtol=1e-5, atol=1e-5)


def test_bfloat16_logits_accumulate_in_float32():
  hidden, output, targets = inputs(width=512, scale=0.2)
  low, high = jnp.asarray(hidden, jnp.bfloat16), np.float32(jnp.asarray(hidden, jnp.bfloat16))
  rounded = np.float32(jnp.asarray(output, jnp.bfloat16))
  expected = reference(high, rounded, targets)
  for chunk_size in (None, 4):
    losses = token_cross_entropy(low, jnp.asarray(output), jnp.asarray(targets), chunk_size)
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_gradient_of_the_matrix_accumulates_in_float32():
  hidden, output, targets = inputs(batch_size=1, num_positions=512, scale=1.0)
  low = jnp.asarray(hidden, jnp.bfloat16)

  def gradient(chunk_size):
    loss = lambda output: jnp.sum(token_cross_entropy(low, output, targets, chunk_size))
    return jax.jit(jax.grad(loss))(output)

  # One chunk of the plain form rounds its gradient to bfloat16 once. With 512 chunks, sums
  # kept in bfloat16 would lose most of their digits.
  error = np.abs(gradient(1) - gradient(None)).max() / np.abs(gradient(None)).max()
  assert error < 0.01


def test_holds_only_a_chunk_of_logits():
  batch_size, num_positions, vocab_size = 4, 256, 4096
  shapes = [
    jax.ShapeDtypeStruct((batch_size, num_positions, 16), jnp.float32),
    jax.ShapeDtypeStruct((16, vocab_size), jnp.float32),
    jax.ShapeDtypeStruct((batch_size, num_positions), jnp.int32),
  ]

  def temporary_bytes(chunk_size):
    def loss(hidden, output, targets):
      return jnp.sum(token_cross_entropy(hidden, output, targets, chunk_size))

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  all_logits = batch_size * num_positions * vocab_size * 4
  assert temporary_bytes(None) >= all_logits
  assert temporary_bytes(16) < all_logits / 4


def test_default_chunk_size_bounds_the_logits_of_a_row():
  for num_positions in (1, 128, 1000, 8192):
    for vocab_size in (2, 256, 50_257, 262_144, 10_000_000):
      chunk_size = default_chunk_size(num_positions, vocab_size)
      if chunk_size is None:
        assert num_positions * vocab_size <= 2**22 or num_positions == 1
      else:
        assert 1 <= chunk_size < num_positions
        assert chunk_size * vocab_size <= 2**22 or chunk_size == 1


def test_rejects_a_chunk_of_no_positions():
  with pytest.raises(ValueError, match="chunk_size must be at least 1"):
    token_cross_entropy(*inputs(), chunk_size=0)
