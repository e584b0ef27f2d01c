"""From packed rows to what a language model reads."""

from typing import Any, NamedTuple

import jax
import numpy as np


class RowInputs(NamedTuple):
  """A batch of rows split into inputs and targets, T positions each."""

  tokens: Any  # i32[B, T], inputs
  targets: Any  # i32[B, T], the token after each input
  positions: Any  # i32[B, T], from 0 in each segment
  segments: Any  # i32[B, T], of the inputs, from 1 on; 0 is padding
  mask: Any  # bool[B, T], True where the target counts


def inputs_and_targets(tokens_BxT1: Any, segments_BxT1: Any) -> RowInputs:
  """Shifts rows by one token; a target counts where it continues its input's segment.

  Works on NumPy arrays and on traced JAX arrays.

  Args:
    tokens_BxT1: i32[B, T + 1].
    segments_BxT1: i32[B, T + 1], 1, 2, ... along a row, a number for each document; negative
      where a token is read but not to be predicted, as in a prompt; 0 is padding.

  Returns:
    The inputs, their targets, positions, segments and the mask of targets that count.

  Raises:
    ValueError: if the shapes differ, or are not rows of at least two tokens.

  Example:
    >>> rows = inputs_and_targets(
    ...   np.array([[5, 6, 7, 8, 9, 0]]), np.array([[1, 1, 1, 2, 2, 0]])
    ... )
    >>> rows.positions.tolist(), rows.mask.astype(int).tolist()
    ([[0, 1, 2, 0, 1]], [[1, 1, 0, 1, 0]])
    >>> prompted = inputs_and_targets(np.array([[5, 6, 7, 8]]), np.array([[-1, -1, 1, 1]]))
    >>> prompted.segments.tolist(), prompted.mask.astype(int).tolist()
    ([[1, 1, 1]], [[0, 1, 1]])
  """
  if tokens_BxT1.shape != segments_BxT1.shape:
    raise ValueError(
      f"tokens {tokens_BxT1.shape} and segments {segments_BxT1.shape} must have one shape"
    )
  if tokens_BxT1.ndim != 2 or tokens_BxT1.shape[1] < 2:
    raise ValueError(f"rows must be [B, T + 1] with T >= 1, got {tokens_BxT1.shape}")
  xp = tokens_BxT1.__array_namespace__()
  predicted_BxT = segments_BxT1[:, 1:] > 0
  segments_BxT1 = xp.abs(segments_BxT1)
  segments_BxT = segments_BxT1[:, :-1]
  first_Bx1 = xp.ones_like(segments_BxT[:, :1], dtype=bool)
  starts_BxT = xp.concat([first_Bx1, segments_BxT[:, 1:] != segments_BxT[:, :-1]], axis=1)
  index_T = xp.arange(segments_BxT.shape[1], dtype=xp.int32)
  start_BxT = _running_maximum(xp.where(starts_BxT, index_T, 0))
  return RowInputs(
    tokens=tokens_BxT1[:, :-1].astype(xp.int32),
    targets=tokens_BxT1[:, 1:].astype(xp.int32),
    positions=(index_T - start_BxT).astype(xp.int32),
    segments=segments_BxT.astype(xp.int32),
    mask=(segments_BxT1[:, 1:] == segments_BxT) & predicted_BxT,
  )


def _running_maximum(x_BxT: Any) -> Any:
  if isinstance(x_BxT, np.ndarray):
    return np.maximum.accumulate(x_BxT, axis=1)
  return jax.lax.cummax(x_BxT, axis=1)
