"""Statistics of logits: agreement with explicit logits in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.stats import logits
from jdc.stats.logits import logit_statistics, summarise

B, T = 5, 12


def draw(seed, width, vocab_size, length=T):
  rng = np.random.default_rng(seed)
  hidden = np.float32(rng.normal(size=(B, length, width)) + rng.normal(size=width))
  mask = rng.random((B, length)) < 0.7
  mask[0], mask[1] = False, True
  hidden[2, 1:] = hidden[2, 0]  # a row that repeats itself has one singular value
  return hidden, mask, np.float32(rng.normal(size=(width, vocab_size)))


def explicit(hidden, mask, output):
  return (np.float64(hidden) * mask[:, :, None]) @ np.float64(output)


@pytest.fixture(scope="module")
def compute():
  return jax.jit(lambda hidden, mask, output: logit_statistics(summarise(output), hidden, mask))


@pytest.mark.parametrize(
  ("width", "vocab_size"), [(8, 40), (20, 9000), (16, 2 * 8192)], ids=["wide", "odd", "whole"]
)
def test_the_norm_is_that_of_explicit_logits(compute, width, vocab_size):
  for seed in range(6):
    rows = draw(seed, width, vocab_size)
    found = compute(*rows)["logit_nuclear_norm"]
    expected = np.linalg.svd(explicit(*rows), compute_uv=False).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found[0] == 0


def test_the_norm_of_fewer_tokens_than_dimensions(compute):
  """Then W W' has no Cholesky factor."""
  for seed in range(6):
    rows = draw(seed, 20, 7)
    found = compute(*rows)["logit_nuclear_norm"]
    expected = np.linalg.svd(explicit(*rows), compute_uv=False).sum(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_norm_under_an_output_matrix_of_low_rank(compute):
  """More tokens than dimensions, most of which it does not use."""
  for seed in range(6):
    hidden, mask, _ = draw(seed, 20, 40)
    rng = np.random.default_rng(seed)
    output = np.float32(rng.normal(size=(20, 3)) @ rng.normal(size=(3, 40)))
    found = compute(hidden, mask, output)["logit_nuclear_norm"]
    expected = np.linalg.svd(explicit(hidden, mask, output), compute_uv=False).sum(axis=1)
    # Of the 17 directions that are not there, each may be 3e-4 of the largest.
    np.testing.assert_allclose(found, expected, rtol=5e-3)


@pytest.mark.parametrize("vocab_size", [40, 9000])
def test_the_projection_is_the_bilinear_form(compute, vocab_size):
  left_TxP = np.float64(logits._left_signs(0, T)) / np.sqrt(8)
  chunks = [logits._right_signs(0, index) for index in range(2)]
  right_VxQ = np.float64(np.concatenate(chunks))[:vocab_size] / np.sqrt(128)
  assert set(np.unique(right_VxQ * np.sqrt(128)).round(6)) == {-1, 1}
  for seed in range(4):
    rows = draw(seed, 8, vocab_size)
    expected = np.einsum("tp,btv,vq->bpq", left_TxP, explicit(*rows), right_VxQ)
    found = compute(*rows)["logit_projection"].reshape(B, 8, 128)
    scale = np.linalg.norm(expected, axis=(1, 2), keepdims=True) + 1e-30
    np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=1e-5)


def test_squared_distances_are_those_of_logits_in_the_mean():
  hidden, mask, output = draw(0, 6, 30)
  mask[:] = True
  one = jax.jit(
    lambda seed: logit_statistics(
      summarise(output, seed), hidden, mask, frozenset({"logit_projection"}), seed
    )["logit_projection"]
  )
  found = np.stack([one(seed) for seed in range(300)])
  logits_BxTxV = explicit(hidden, mask, output)
  for i, j in ((0, 1), (2, 3)):
    expected = np.sum((logits_BxTxV[i] - logits_BxTxV[j]) ** 2)
    ratio = np.sum((found[:, i] - found[:, j]) ** 2, axis=1) / expected
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / np.sqrt(300)
    assert ratio.std() < 1


def test_signs_do_not_depend_on_the_length_of_rows():
  assert np.array_equal(logits._left_signs(3, 40)[:T], logits._left_signs(3, T))
  assert not np.array_equal(logits._left_signs(4, T), logits._left_signs(3, T))


def test_what_is_not_finite_stays_in_its_row(compute):
  hidden, mask, output = draw(1, 8, 40)
  expected = compute(hidden, mask, output)
  broken = hidden.copy()
  broken[1, 3] = np.nan
  broken[3, ~mask[3]] = np.nan  # where no target counts
  found = compute(broken, mask, output)
  for name, value in found.items():
    assert np.all(np.isnan(value[1])), name
    np.testing.assert_array_equal(np.delete(value, 1, 0), np.delete(expected[name], 1, 0))


@pytest.mark.parametrize("tied", [False, True])
def test_hidden_states_times_the_matrix_of_a_decoder_are_its_logits(tied):
  config = DecoderConfig(
    vocab_size=24, width=8, num_layers=1, num_heads=2, num_kv_heads=2, mlp_width=8,
    tie_embeddings=tied,
  )  # fmt: skip
  model = decoder(config)
  params = model.init(jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (2, 6), 0, 24)
  place, ones = jnp.arange(6) + 0 * tokens, jnp.ones_like(tokens)
  hidden = model.outputs(params, tokens, tokens, place, ones).hidden
  found = hidden @ model.output_matrix(params)
  np.testing.assert_allclose(found, model.logits(params, tokens, place, ones), atol=1e-5)
