"""Whitened features have the inner products that the damped inverse of their moments gives."""

import jax
import numpy as np
import pytest

from jdc.stats.kron import whiten, whitening

BLOCKS, SIZE, C = 3, 4, 50


def features(seed, num_rows=C):
  rng = np.random.default_rng(seed)
  mixed = rng.normal(size=(BLOCKS, SIZE, SIZE))
  found = np.einsum("csp,spq->csq", rng.normal(size=(num_rows, BLOCKS, SIZE)), mixed)
  return (found * rng.lognormal(0, 1, (BLOCKS, 1))).reshape(num_rows, -1).astype(np.float32)


def expected(features_CxR, damping):
  """Matrices in float64."""
  blocks = np.asarray(features_CxR, np.float64).reshape(len(features_CxR), BLOCKS, SIZE)
  found = []
  for block in np.moveaxis(blocks, 1, 0):
    moments = block.T @ block / len(block)
    values, vectors = np.linalg.eigh(
      moments + damping * np.trace(moments) / SIZE * np.eye(SIZE)
    )
    found.append(vectors @ np.diag(values**-0.5) @ vectors.T)
  return np.stack(found)


@pytest.mark.parametrize("damping", [0.03, 1.0])
def test_agrees_with_the_inverse_of_the_moments(damping):
  compute = jax.jit(whitening, static_argnums=(1, 2))
  for seed in range(20):
    sample, others = features(seed), features(100 + seed, 5)
    found, right = compute(sample, BLOCKS, damping), expected(sample, damping)
    for block, matrix in zip(found, right, strict=True):
      np.testing.assert_allclose(block, matrix, rtol=0, atol=1e-5 * np.abs(matrix).max())
    white = np.asarray(whiten(others, found), np.float64)
    blocks = others.astype(np.float64).reshape(5, BLOCKS, SIZE)
    products = np.einsum("isp,spq,sqr,jsr->ij", blocks, right, right, blocks)
    np.testing.assert_allclose(white @ white.T, products, rtol=0, atol=1e-5 * products.max())


def test_rows_that_are_not_finite_do_not_count():
  sample = features(0)
  sample[[3, 7], [0, 5]] = np.nan, np.inf
  right = expected(np.delete(sample, [3, 7], axis=0), 0.1)
  np.testing.assert_allclose(
    whitening(sample, BLOCKS, 0.1), right, rtol=0, atol=1e-5 * right.max()
  )


def test_blocks_of_zeros_and_fewer_rows_than_features():
  sample = features(0, num_rows=2)
  sample[:, SIZE : 2 * SIZE] = 0
  found = np.asarray(whitening(sample, BLOCKS, 0.1))
  assert np.all(found[1] == 0)
  sample[:, SIZE : 2 * SIZE] = 1  # any, so that the reference has an inverse
  right = expected(sample, 0.1)
  for b in (0, 2):
    np.testing.assert_allclose(found[b], right[b], rtol=0, atol=1e-5 * right[b].max())


def test_errors_list_every_problem():
  with pytest.raises(ValueError, match=r"divide the 12 features, got 5; damping .* got 0"):
    whitening(features(0), 5, 0)
