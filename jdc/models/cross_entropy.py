"""Cross-entropy of a large vocabulary without an array of all logits."""

import jax
import jax.numpy as jnp

from jdc.models.base import BATCH_AXES
from jdc.models.partition import constrain

MAX_LOGITS_PER_ROW = 1 << 22  # 16 MiB of float32


def default_chunk_size(num_positions: int, vocab_size: int) -> int | None:
  """Positions per chunk so that a row has at most 2^22 logits (16 MiB) alive at a time.

  `None`, all positions at once, where T V <= 2^22: below that the recomputation of chunks
  costs more time than the memory is worth.

  Args:
    num_positions: T, of one row.
    vocab_size: V.

  Returns:
    The chunk size in positions, or `None` for the plain form.

  Example:
    >>> default_chunk_size(1024, 256), default_chunk_size(1024, 32_768)
    (None, 128)
  """
  chunk_size = max(1, MAX_LOGITS_PER_ROW // vocab_size)
  return None if chunk_size >= num_positions else chunk_size


def token_cross_entropy(
  hidden_BxTxD: jax.Array,
  output_DxV: jax.Array,
  targets_BxT: jax.Array,
  chunk_size: int | None = None,
) -> jax.Array:
  r"""The negative log-likelihood of each target under softmax(h W).

    loss_bt = log sum_v exp(h_bt . W_v) - h_bt . W_{y_bt}

  With a chunk size, a scan over the positions computes the logits of one chunk at a time, and
  the backward pass computes them again, so that no [B, T, V] array exists in either. Chunks
  are made equal, and the last one is padded with positions whose losses are dropped.

  Args:
    hidden_BxTxD: hidden states in the activations' dtype, in which the product is taken.
    output_DxV: the output matrix, cast to that dtype; logits accumulate in float32, and so do
      the chunks' gradients where the matrix is float32.
    targets_BxT: i32, in [0, V).
    chunk_size: the most positions of a chunk, >= 1; `None` takes all at once.

  Returns:
    f32[B, T], nats.

  Raises:
    ValueError: if the chunk size is not positive.
  """
  if chunk_size is not None and chunk_size < 1:
    raise ValueError(f"chunk_size must be at least 1 position or None, got {chunk_size}")
  batch_size, num_positions, width = hidden_BxTxD.shape
  # Gathered over fsdp once, and not in every chunk.
  output_DxV = constrain(output_DxV, None, "tensor")
  if chunk_size is None or chunk_size >= num_positions:
    return _losses(hidden_BxTxD, output_DxV, targets_BxT)

  num_chunks = -(-num_positions // chunk_size)
  length = -(-num_positions // num_chunks)
  padding = num_chunks * length - num_positions
  hidden_BxTxD = jnp.pad(hidden_BxTxD, ((0, 0), (0, padding), (0, 0)))
  targets_BxT = jnp.pad(targets_BxT, ((0, 0), (0, padding)))
  hidden = hidden_BxTxD.reshape(batch_size, num_chunks, length, width).swapaxes(0, 1)
  targets = targets_BxT.reshape(batch_size, num_chunks, length).swapaxes(0, 1)

  def one_chunk(_: None, chunk: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
    hidden_BxCxD, targets_BxC = chunk
    return None, _losses(hidden_BxCxD, output_DxV, targets_BxC)

  _, losses = jax.lax.scan(
    jax.checkpoint(one_chunk, prevent_cse=False), None, (hidden, targets)
  )
  return losses.swapaxes(0, 1).reshape(batch_size, -1)[:, :num_positions]


def float32_logits(hidden_BxTxD: jax.Array, output_DxV: jax.Array) -> jax.Array:
  """h W in the dtype of h, accumulated and returned in float32, [B, T, V]."""
  logits_BxTxV = jnp.einsum(
    "btd,dv->btv",
    hidden_BxTxD,
    output_DxV.astype(hidden_BxTxD.dtype),
    preferred_element_type=jnp.float32,
  )
  return constrain(logits_BxTxV, BATCH_AXES, None, "tensor")


def _losses(hidden: jax.Array, output_DxV: jax.Array, targets: jax.Array) -> jax.Array:
  logits = float32_logits(hidden, output_DxV)
  # A comparison and not a gather: it stays local to the shards of the vocabulary, and its
  # gradient is no scatter.
  is_target = targets[..., None] == jnp.arange(logits.shape[-1], dtype=targets.dtype)
  target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
  return jax.nn.logsumexp(logits, axis=-1) - target_logit
