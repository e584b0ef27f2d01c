"""Statistics of the logits of whole rows, of which no matrix is ever built."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdc.models.partition import constrain

FIELDS = frozenset({"logit_nuclear_norm", "logit_projection"})
PROJECTION = (8, 128)  # rows and columns of a projected matrix of logits
SIZE = PROJECTION[0] * PROJECTION[1]

_WORD = 32  # signs in one draw of random bits
_CHUNK = 8192  # tokens of the vocabulary whose signs exist at a time
_HIGHEST = jax.lax.Precision.HIGHEST
_LEFT, _RIGHT = 0, 1


class OutputSummary(NamedTuple):
  """What the statistics read of an output matrix W [D, V]; the same for all rows of a step."""

  factor_DxR: jax.Array  # f32, L with L L' = W W'
  projected_DxQ: jax.Array  # f32[D, 128], W P_right


def summarise(output_DxV: jax.Array, seed: int = 0) -> OutputSummary:
  r"""Returns what `logit_statistics` needs of the output matrix, in one pass over it.

  L is W where it has no more columns than rows, else the Cholesky factor of W W'; where float32
  finds none, it is made of the eigenvectors of W W'.

  Args:
    output_DxV: W, of any floating type; sums are taken in float32.
    seed: of the projection, the same as for the rows.
  """
  output_DxV = constrain(output_DxV, None, None)
  width, vocab_size = output_DxV.shape
  num_whole, rest = divmod(vocab_size, _CHUNK)

  def of_chunk(chunk_DxC: jax.Array, index: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    chunk_DxC = chunk_DxC.astype(jnp.float32)
    sign_CxQ = _right_signs(seed, index)[: chunk_DxC.shape[1]]
    product = lambda x, y: jnp.matmul(x, y, precision=_HIGHEST)
    return product(chunk_DxC, chunk_DxC.T), product(chunk_DxC, sign_CxQ)

  def add(total: tuple, index: jax.Array) -> tuple[tuple, None]:
    chunk_DxC = jax.lax.dynamic_slice_in_dim(output_DxV, index * _CHUNK, _CHUNK, axis=1)
    return jax.tree.map(jnp.add, total, of_chunk(chunk_DxC, index)), None

  total = jnp.zeros((width, width)), jnp.zeros((width, PROJECTION[1]))
  if num_whole:
    total, _ = jax.lax.scan(add, total, jnp.arange(num_whole))
  if rest:
    last = of_chunk(output_DxV[:, num_whole * _CHUNK :], num_whole)
    total = jax.tree.map(jnp.add, total, last)
  gram_DxD, projected_DxQ = total
  few = vocab_size <= width
  factor_DxR = output_DxV.astype(jnp.float32) if few else _factor(gram_DxD)
  return OutputSummary(factor_DxR, projected_DxQ / math.sqrt(PROJECTION[1]))


def logit_statistics(
  summary: OutputSummary,
  hidden_BxTxD: jax.Array,
  mask_BxT: jax.Array,
  wanted: frozenset[str] = FIELDS,
  seed: int = 0,
) -> dict[str, Any]:
  r"""Nuclear norms and random projections of the logits Z = H W of rows.

  H [T, D] holds the hidden states of a row from which a target token is predicted, and zeros
  elsewhere, so that neither padding nor a prompt counts. With L L' = W W',

    logit_nuclear_norm  ||Z||_* = ||H L||_*, the sum of singular values,
    logit_projection    P_left Z P_right = (P_left H) (W P_right),

  the entries of P_left [8, T] and P_right [V, 128] independent signs over sqrt(8) and
  sqrt(128), functions of the seed and of the position or token alone. Over seeds squared
  distances of projections are those of logits in the mean.

  The norm is that of Z but for rounding. H L has the singular values of Z; those of eigenvalues
  of H W W' H' would be lost in rows that repeat themselves, and take as long. In W W', float32
  loses directions of W below about 3e-4 of the largest, whose part in the norm is noise of that
  size. W is taken as it is, also where a model rounds it to the type of its activations.

  Args:
    summary: of the output matrix, with the same seed.
    hidden_BxTxD: hidden states of any floating type.
    mask_BxT: bool, where the target counts.
    wanted: of `FIELDS`.
    seed: of the projection.

  Returns:
    Those of `logit_nuclear_norm` f32[B] and `logit_projection` f32[B, 1024] that are wanted.
    A row with hidden states that are not finite has NaN.

  References:
    The projection stands in for one of random signs, a Fourier transform and a choice of rows
    and columns (Halko, Martinsson and Tropp, 2011, arXiv:0909.4061), which has the same mean
    but needs the logits, or the transform of each column of W.

  Example:
    >>> output, hidden = jnp.array([[3.0, 0.0, 4.0]]), jnp.array([[[2.0], [1.0]]])
    >>> found = logit_statistics(summarise(output), hidden, jnp.array([[True, False]]))
    >>> found["logit_nuclear_norm"].tolist(), found["logit_projection"].shape
    ([10.0], (1, 1024))
  """
  hidden_BxTxD = jnp.where(mask_BxT[:, :, None], hidden_BxTxD.astype(jnp.float32), 0.0)
  found: dict[str, Any] = {}
  if "logit_nuclear_norm" in wanted:
    rotated_BxTxR = jnp.matmul(hidden_BxTxD, summary.factor_DxR, precision=_HIGHEST)
    finite_B = jnp.all(jnp.isfinite(rotated_BxTxR), axis=(1, 2))
    safe_BxTxR = jnp.where(finite_B[:, None, None], rotated_BxTxR, 0.0)
    norm_B = jnp.sum(jnp.linalg.svd(safe_BxTxR, compute_uv=False), axis=-1)
    found["logit_nuclear_norm"] = jnp.where(finite_B, norm_B, jnp.nan)
  if "logit_projection" in wanted:
    sign_TxP = _left_signs(seed, hidden_BxTxD.shape[1])
    left_BxPxD = jnp.einsum("btd,tp->bpd", hidden_BxTxD, sign_TxP, precision=_HIGHEST)
    left_BxPxD /= math.sqrt(PROJECTION[0])
    both_BxPxQ = jnp.matmul(left_BxPxD, summary.projected_DxQ, precision=_HIGHEST)
    found["logit_projection"] = both_BxPxQ.reshape(-1, SIZE)
  return found


def _factor(gram_DxD: jax.Array) -> jax.Array:
  plain_DxD = jnp.linalg.cholesky(gram_DxD)

  def spectral() -> jax.Array:
    value_D, vector_DxD = jnp.linalg.eigh(gram_DxD)
    return vector_DxD * jnp.sqrt(jnp.maximum(value_D, 0.0))

  return jax.lax.cond(jnp.all(jnp.isfinite(plain_DxD)), lambda: plain_DxD, spectral)


def _right_signs(seed: int, chunk: jax.Array | int) -> jax.Array:
  """-1.0 or 1.0 for each token of a chunk of the vocabulary, f32[8192, 128]."""
  key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _RIGHT), chunk)
  words = jax.random.bits(key, (_CHUNK, PROJECTION[1] // _WORD), jnp.uint32)
  return _signs(words).reshape(_CHUNK, PROJECTION[1])


def _left_signs(seed: int, length: int) -> jax.Array:
  """-1.0 or 1.0 for each position, f32[T, 8]; the same for shorter rows."""
  key = jax.random.fold_in(jax.random.key(seed), _LEFT)
  keys = jax.vmap(lambda t: jax.random.fold_in(key, t))(jnp.arange(length))
  words = jax.vmap(lambda key: jax.random.bits(key, (1,), jnp.uint32))(keys)
  return _signs(words).reshape(length, _WORD)[:, : PROJECTION[0]]


def _signs(words: jax.Array) -> jax.Array:
  """-1.0 or 1.0 by each bit, along a new last axis."""
  bits = (words[..., None] >> jnp.arange(_WORD, dtype=jnp.uint32)) & 1
  return 1.0 - 2.0 * bits.astype(jnp.float32)
