"""Embeddings of examples: hidden states pooled over the tokens that are read."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp


def mean_embedding(
  hidden_BxTxD: jax.Array, segments_BxT: jax.Array, max_segments: int | None = None
) -> jax.Array:
  r"""Returns the mean hidden state of each example's n tokens, (1 / n) sum_l h_l.

  All tokens that are read count, those of a prompt included.

  Args:
    hidden_BxTxD: hidden states of any floating type; sums are taken in float32.
    segments_BxT: i32[B, T], the example of each position, from 1 on; 0 is padding.
    max_segments: S, the most examples of a row; `None` where the row is the example, whatever
      documents it holds.

  Returns:
    f32[B, D], or f32[B, S, D]; zeros for examples without tokens.

  Example:
    >>> hidden, segments = jnp.array([[[2.0], [4.0], [9.0]]]), jnp.array([[1, 1, 2]])
    >>> mean_embedding(hidden, segments).tolist()
    [[5.0]]
    >>> mean_embedding(hidden, segments, max_segments=3).tolist()
    [[[3.0], [9.0], [0.0]]]
  """
  is_in_BxTxS = _membership(segments_BxT, max_segments)
  weight_BxTxS = is_in_BxTxS / jnp.maximum(_length(is_in_BxTxS), 1)
  return _weighted_sum(hidden_BxTxD, weight_BxTxS, max_segments)


def position_weighted_embedding(
  hidden_BxTxD: jax.Array, segments_BxT: jax.Array, max_segments: int | None = None
) -> jax.Array:
  r"""Returns sum_l (l / sum_m m) h_l, l = 1..n counting the example's own tokens.

  Later tokens, which have seen more of the example, weigh more. Arguments and result are those
  of `mean_embedding`.

  References:
    Muennighoff, "SGPT: GPT Sentence Embeddings for Semantic Search", 2022, arXiv:2202.08904.

  Example:
    >>> hidden, segments = jnp.array([[[3.0], [6.0], [9.0]]]), jnp.array([[1, 1, 2]])
    >>> position_weighted_embedding(hidden, segments, max_segments=2).tolist()
    [[[5.0], [9.0]]]
  """
  is_in_BxTxS = _membership(segments_BxT, max_segments)
  place_BxTxS = jnp.where(is_in_BxTxS, jnp.cumsum(is_in_BxTxS, axis=1), 0)
  total_Bx1xS = jnp.sum(place_BxTxS, axis=1, keepdims=True)
  return _weighted_sum(hidden_BxTxD, place_BxTxS / jnp.maximum(total_Bx1xS, 1), max_segments)


def last_token_embedding(
  hidden_BxTxD: jax.Array, segments_BxT: jax.Array, max_segments: int | None = None
) -> jax.Array:
  """Returns the hidden state h_n of each example's last token.

  Arguments and result are those of `mean_embedding`.

  Example:
    >>> hidden, segments = jnp.array([[[3.0], [6.0], [9.0]]]), jnp.array([[1, 1, 0]])
    >>> last_token_embedding(hidden, segments).tolist()
    [[6.0]]
  """
  is_in_BxTxS = _membership(segments_BxT, max_segments)
  is_last = jnp.cumsum(is_in_BxTxS, axis=1) == _length(is_in_BxTxS)
  weight_BxTxS = (is_in_BxTxS & is_last).astype(jnp.float32)
  return _weighted_sum(hidden_BxTxD, weight_BxTxS, max_segments)


# By the field of `ExampleStats` and `TargetStats` that they fill.
POOLINGS: Mapping[str, Callable[..., jax.Array]] = {
  "embedding": mean_embedding,
  "position_weighted_embedding": position_weighted_embedding,
  "last_token_embedding": last_token_embedding,
}


def _membership(segments_BxT: jax.Array, max_segments: int | None) -> jax.Array:
  """Whether a position is of an example, bool[B, T, S]; S is 1 where the row is the example."""
  if max_segments is None:
    return (segments_BxT > 0)[:, :, None]
  return segments_BxT[:, :, None] == jnp.arange(1, max_segments + 1)


def _length(is_in_BxTxS: jax.Array) -> Any:
  return jnp.sum(is_in_BxTxS, axis=1, keepdims=True)


def _weighted_sum(
  hidden_BxTxD: jax.Array, weight_BxTxS: jax.Array, max_segments: int | None
) -> jax.Array:
  # A product of matrices and no [B, T, S, D] array. Accelerators round the factors of float32
  # products unless told not to, and weights have more digits than bfloat16.
  pooled_BxSxD = jnp.einsum(
    "btd,bts->bsd",
    hidden_BxTxD.astype(jnp.float32),
    weight_BxTxS.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )
  return pooled_BxSxD[:, 0] if max_segments is None else pooled_BxSxD
