"""From packed rows to what a language model reads."""

from typing import NamedTuple

import numpy as np


class RowInputs(NamedTuple):
  """A batch of rows split into inputs and targets, T positions each."""

  tokens: np.ndarray  # i32[B, T], inputs
  targets: np.ndarray  # i32[B, T], the token after each input
  positions: np.ndarray  # i32[B, T], from 0 in each segment
  segments: np.ndarray  # i32[B, T], of the inputs; 0 is padding
  mask: np.ndarray  # bool[B, T], True where the target counts


def inputs_and_targets(tokens_BxT1: np.ndarray, segments_BxT1: np.ndarray) -> RowInputs:
  """Shifts rows by one token; a target counts where it continues its input's segment.

  Args:
    tokens_BxT1: i32[B, T + 1].
    segments_BxT1: i32[B, T + 1], equal within a document and different in neighbouring ones;
      0 is padding.

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
  """
  if tokens_BxT1.shape != segments_BxT1.shape:
    raise ValueError(
      f"tokens {tokens_BxT1.shape} and segments {segments_BxT1.shape} must have one shape"
    )
  if tokens_BxT1.ndim != 2 or tokens_BxT1.shape[1] < 2:
    raise ValueError(f"rows must be [B, T + 1] with T >= 1, got {tokens_BxT1.shape}")
  segments_BxT = segments_BxT1[:, :-1]
  starts_BxT = np.ones(segments_BxT.shape, bool)
  starts_BxT[:, 1:] = segments_BxT[:, 1:] != segments_BxT[:, :-1]
  index_T = np.arange(segments_BxT.shape[1], dtype=np.int32)
  start_BxT = np.maximum.accumulate(np.where(starts_BxT, index_T, 0), axis=1)
  return RowInputs(
    tokens=np.asarray(tokens_BxT1[:, :-1], np.int32),
    targets=np.asarray(tokens_BxT1[:, 1:], np.int32),
    positions=np.asarray(index_T - start_BxT, np.int32),
    segments=np.asarray(segments_BxT, np.int32),
    mask=(segments_BxT1[:, 1:] == segments_BxT) & (segments_BxT != 0),
  )
