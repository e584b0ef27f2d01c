"""Whitening of projected gradients, matrix by matrix, by their own second moments."""

import math

import jax
import jax.numpy as jnp


def whitening(features_CxR: jax.Array, num_blocks: int, damping: float) -> jax.Array:
  r"""Returns what makes the features of each matrix uncorrelated, f32[S, R / S, R / S].

  With f_b the part of a feature that one matrix gives,

    C_b = mean_c f_bc f_bc^T,   W_b = (C_b + damping * mean(diag C_b) I)^{-1/2},

  the symmetric root, so that inner products of whitened features are <f, C^{-1} f'>: those of
  influence functions, with the second moments of projected gradients for the Hessian. Rows with
  a number that is not finite do not count. A block of zeros alone gets W_b = 0.

  Args:
    features_CxR: plain ones, of a sample of the pool.
    num_blocks: S, which divides R.
    damping: positive; larger ones change less.

  Raises:
    ValueError: if R is not a multiple of S, or damping is not positive and finite.

  References:
    Choe et al., 2024, arXiv:2405.13954.

  Example:
    >>> features = jnp.array([[2.0, 0.0, 1.0], [0.0, 0.2, 1.0], [2.0, 0.0, 1.0]])
    >>> found = whitening(features[:, :2], num_blocks=2, damping=0.5)
    >>> [round(x, 3) for x in found[:, 0, 0].tolist()]
    [0.5, 7.071]
  """
  _, size = features_CxR.shape
  problems = []
  if num_blocks < 1 or size % num_blocks:
    problems.append(f"num_blocks must divide the {size} features, got {num_blocks}")
  if not 0 < damping < math.inf:
    problems.append(f"damping must be positive and finite, got {damping}")
  if problems:
    raise ValueError("; ".join(problems))
  finite_C = jnp.all(jnp.isfinite(features_CxR), axis=1)
  blocks = _blocks(jnp.where(finite_C[:, None], features_CxR, 0), num_blocks)
  sums_SxQxQ = _dot("csp,csq->spq", blocks, blocks)
  moments_SxQxQ = sums_SxQxQ / jnp.maximum(jnp.sum(finite_C), 1)
  mean_S = jnp.trace(moments_SxQxQ, axis1=1, axis2=2)[:, None] / blocks.shape[2]
  values_SxQ, vectors_SxQxQ = jnp.linalg.eigh(moments_SxQxQ)
  # Rounding leaves eigenvalues of 0 a little negative.
  damped_SxQ = jnp.maximum(values_SxQ, 0) + damping * mean_S
  root_SxQ = jnp.where(mean_S > 0, jax.lax.rsqrt(jnp.where(mean_S > 0, damped_SxQ, 1)), 0)
  return _dot("spq,srq->spr", vectors_SxQxQ * root_SxQ[:, None], vectors_SxQxQ)


def whiten(features_BxR: jax.Array, whitening_SxQxQ: jax.Array) -> jax.Array:
  """Returns features f32[B, R] multiplied by what `whitening` returned, block by block."""
  blocks = _blocks(features_BxR, len(whitening_SxQxQ))
  return _dot("bsp,spq->bsq", blocks, whitening_SxQxQ).reshape(features_BxR.shape)


def _blocks(features_BxR: jax.Array, num_blocks: int) -> jax.Array:
  return features_BxR.astype(jnp.float32).reshape(len(features_BxR), num_blocks, -1)


def _dot(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
  # Accelerators round float32 factors unless told not to.
  return jnp.einsum(equation, x, y, precision=jax.lax.Precision.HIGHEST)
