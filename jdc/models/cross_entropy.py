"""Cross-entropy of a large vocabulary without an array of all logits."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jdc.models import loss_chunks
from jdc.models.base import BATCH_AXES
from jdc.models.loss_chunks import Chunks, Losses
from jdc.models.partition import constrain

ChunkSize = int | Literal["auto"] | None

MAX_LOGITS = 1 << 26  # of a chunk; 256 MiB of float32
# On a CPU what is computed of a chunk of logits should find them in its cache: with 16 MiB of
# them, losses of 4,096 positions and their gradients take 0.65 of the time of a single chunk.
_CACHED_LOGITS = 1 << 22
_MIN_CACHED_POSITIONS = 256  # fewer make products slower, and write the gradient more often


def default_chunk_size(num_positions: int, vocab_size: int, backend: str) -> int | None:
  """Positions per chunk so that a device has at most 2^26 logits (256 MiB) at a time.

  Under a vmap, so many of each entry.

  No smaller than memory asks, since each chunk reads and writes the gradient of the output
  matrix; but on CPUs so that 2^22 logits (16 MiB), or 256 positions, stay in the cache.

  Args:
    num_positions: B T, of one device.
    vocab_size: V.
    backend: the platform, as `jax.default_backend()` names it.

  Returns:
    The chunk size in positions, or `None` for all at once.

  Example:
    >>> default_chunk_size(8192, 4096, "gpu"), default_chunk_size(8192, 131_072, "gpu")
    (None, 512)
    >>> default_chunk_size(8192, 4096, "cpu"), default_chunk_size(8192, 131_072, "cpu")
    (1024, 256)
  """
  chunk_size = max(1, MAX_LOGITS // vocab_size)
  if backend == "cpu":
    chunk_size = min(chunk_size, max(_MIN_CACHED_POSITIONS, _CACHED_LOGITS // vocab_size))
  return None if chunk_size >= num_positions else chunk_size


def token_cross_entropy(
  hidden_BxTxD: jax.Array,
  output_DxV: jax.Array,
  targets_BxT: jax.Array,
  chunk_size: ChunkSize = None,
  forward_mode: bool = False,
) -> jax.Array:
  r"""The negative log-likelihood of each target under softmax(h W).

    loss_bt = log sum_v exp(h_bt . W_v) - h_bt . W_{y_bt}

  With a chunk size, a scan computes the logits of one chunk at a time and keeps their
  logsumexp; the backward pass computes them again, so that no [B, T, V] array exists in either.
  Where the output matrix is frozen it need not: the scan keeps the gradient of each loss by its
  own hidden state, which a weight only scales. Chunks that "auto" makes for a cache keep their
  logits.
  A chunk holds positions of any rows, on a mesh those of each device. Chunks are made equal,
  and the last one is padded with positions whose losses are dropped. On a CPU without
  a mesh, or with one of a single device, positions with targets come first, and chunks without
  any are skipped.

  Args:
    hidden_BxTxD: hidden states in the activations' dtype, in which all products are taken.
    output_DxV: the output matrix, cast to that dtype. Logits accumulate in float32; so does,
      over chunks, the gradient of the matrix.
    targets_BxT: i32, in [0, V), or negative where no loss is asked for.
    chunk_size: the most positions of a chunk on each device, >= 1; `None` takes all at once;
      "auto" as `default_chunk_size` says. A chunked loss has reverse-mode derivatives only.
    forward_mode: a chunked loss has forward-mode derivatives instead, a chunk at a time; in
      reverse mode it would keep all logits.

  Returns:
    f32[B, T], nats, 0 where the target is negative.

  Raises:
    ValueError: if the chunk size is not positive.
  """
  arrays = hidden_BxTxD, output_DxV, targets_BxT
  return _token_losses(*arrays, chunk_size, forward_mode=forward_mode).losses_P


def token_losses_and_errors(
  hidden_BxTxD: jax.Array,
  output_DxV: jax.Array,
  targets_BxT: jax.Array,
  chunk_size: ChunkSize = None,
) -> tuple[jax.Array, jax.Array]:
  r"""The losses of `token_cross_entropy`, and the norms of their gradients by the logits.

    error_bt = |softmax(h_bt W) - onehot(y_bt)|_2
             = sqrt(sum_v p_v^2 - 2 p_y + 1),    p = softmax(h_bt W), y = y_bt

  of the same chunks of logits.

  Args:
    hidden_BxTxD: as in `token_cross_entropy`.
    output_DxV: as there.
    targets_BxT: as there.
    chunk_size: as there.

  Returns:
    The losses, f32[B, T], nats, and the errors, f32[B, T], in [0, sqrt(2)], constants for the
    gradient; both 0 where the target is negative.

  Raises:
    ValueError: if the chunk size is not positive.

  Example:
    >>> hidden, output = jnp.ones((1, 2, 3)), jnp.zeros((3, 4))
    >>> losses, errors = token_losses_and_errors(hidden, output, jnp.array([[0, -1]]))
    >>> [round(x, 4) for x in errors[0].tolist()]
    [0.866, 0.0]
  """
  told = _token_losses(hidden_BxTxD, output_DxV, targets_BxT, chunk_size, errors=True)
  assert told.errors_P is not None
  return told.losses_P, told.errors_P


def weighted_cross_entropy(
  hidden_BxTxD: jax.Array,
  output_DxV: jax.Array,
  targets_BxT: jax.Array,
  weights_BxT: jax.Array,
  chunk_size: ChunkSize = "auto",
) -> tuple[jax.Array, jax.Array]:
  r"""The weighted sum of the losses of `token_cross_entropy`, for weights known before them.

    loss = sum_bt w_bt (log sum_v exp(h_bt . W_v) - h_bt . W_{y_bt})

  Where this is differentiated, the forward pass turns the logits of each chunk into their
  gradient, w (softmax(h W) - onehot(y)), at once, and that into those of h and W; the backward
  pass scales them. No logits are computed twice, and none are kept. What is not differentiated,
  such as a frozen output matrix, gets neither a gradient nor memory for one.

  Args:
    hidden_BxTxD: hidden states in the activations' dtype, in which all products are taken; the
      gradients of logits are rounded to it.
    output_DxV: the output matrix, cast to that dtype. Logits accumulate in float32; so does,
      over chunks, the gradient of the matrix.
    targets_BxT: i32, in [0, V), or negative where the loss is 0.
    weights_BxT: f32, of any sign; constants for the gradient.
    chunk_size: as in `token_cross_entropy`, but `None` is a single chunk.

  Returns:
    f32[], the sum, and f32[B, T], the losses, nats. The losses are constants for the gradient;
    the sum has reverse-mode derivatives only.

  Raises:
    ValueError: if the chunk size is not positive.

  References:
    Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training", 2024,
      arXiv:2410.10989, for gradients in the forward pass; here without a kernel, with weights,
      and over shards.

  Example:
    >>> hidden, output = jnp.ones((1, 2, 3)), jnp.zeros((3, 4))
    >>> targets, weights = jnp.array([[0, 3]]), jnp.array([[1.0, 0.5]])
    >>> loss, losses = weighted_cross_entropy(hidden, output, targets, weights)
    >>> round(float(loss), 4), losses.shape
    (2.0794, (1, 2))
  """
  arrays = hidden_BxTxD, output_DxV, targets_BxT, weights_BxT
  loss, told = _weighted_losses(*arrays, chunk_size)
  return loss, told.losses_P


def weighted_losses_and_errors(
  hidden_BxTxD: jax.Array,
  output_DxV: jax.Array,
  targets_BxT: jax.Array,
  weights_BxT: jax.Array,
  chunk_size: ChunkSize = "auto",
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """As `weighted_cross_entropy`, with the errors of `token_losses_and_errors` behind."""
  arrays = hidden_BxTxD, output_DxV, targets_BxT, weights_BxT
  loss, told = _weighted_losses(*arrays, chunk_size, errors=True)
  assert told.errors_P is not None
  return loss, told.losses_P, told.errors_P


def float32_logits(hidden_BxTxD: jax.Array, output_DxV: jax.Array) -> jax.Array:
  """h W in the dtype of h, accumulated and returned in float32, [B, T, V]."""
  # As one matrix of rows, since the gradient by W is compiled to a copy of that of the logits
  # on CPUs otherwise.
  logits = jnp.einsum(
    "pd,dv->pv",
    hidden_BxTxD.reshape(-1, hidden_BxTxD.shape[-1]),
    output_DxV.astype(hidden_BxTxD.dtype),
    preferred_element_type=jnp.float32,
  )
  logits_BxTxV = logits.reshape(*hidden_BxTxD.shape[:2], output_DxV.shape[1])
  return constrain(logits_BxTxV, BATCH_AXES, None, "tensor")


def _token_losses(
  hidden_BxTxD: jax.Array,
  output_DxV: jax.Array,
  targets_BxT: jax.Array,
  chunk_size: ChunkSize,
  *,
  forward_mode: bool = False,
  errors: bool = False,
) -> Losses:
  """Losses and errors, [B, T] each."""
  num_shards, chunks = _chunks(hidden_BxTxD, output_DxV, chunk_size)
  # Gathered over fsdp once, and not in every chunk.
  output_DxV = constrain(output_DxV, None, "tensor")
  if chunks is None:
    logits_BxTxV = float32_logits(hidden_BxTxD, output_DxV)
    return loss_chunks.told_of(logits_BxTxV, targets_BxT, errors)[0]
  function = loss_chunks.forward_mode_losses if forward_mode else loss_chunks.token_losses
  losses = functools.partial(function, chunks._replace(errors=errors))
  told = _on_shards(losses, num_shards, output_DxV, hidden_BxTxD, targets_BxT)
  return jax.tree.map(lambda x: x.reshape(targets_BxT.shape), told)


def _weighted_losses(
  hidden_BxTxD: jax.Array,
  output_DxV: jax.Array,
  targets_BxT: jax.Array,
  weights_BxT: jax.Array,
  chunk_size: ChunkSize,
  *,
  errors: bool = False,
) -> tuple[jax.Array, Losses]:
  """The weighted sum, f32[], and losses and errors, [B, T] each."""
  num_shards, chunks = _chunks(hidden_BxTxD, output_DxV, chunk_size)
  chunks = chunks or Chunks(math.prod(targets_BxT.shape) // num_shards)
  loss_sum = functools.partial(loss_chunks.weighted_sum, chunks._replace(errors=errors))
  weights_BxT = jax.lax.stop_gradient(weights_BxT.astype(jnp.float32))
  loss, told = _on_shards(
    loss_sum,
    num_shards,
    constrain(output_DxV, None, "tensor"),
    hidden_BxTxD,
    targets_BxT,
    weights_BxT,
  )
  constant = lambda x: jax.lax.stop_gradient(x).reshape(targets_BxT.shape)
  return jnp.sum(loss), jax.tree.map(constant, told)


def _chunks(
  hidden_BxTxD: jax.Array, output_DxV: jax.Array, chunk_size: ChunkSize
) -> tuple[int, Chunks | None]:
  """The parts into which the mesh splits the batch, and their chunks or `None` for one."""
  if chunk_size != "auto" and chunk_size is not None and chunk_size < 1:
    raise ValueError(
      f'chunk_size must be "auto", None or at least 1 position, got {chunk_size}'
    )
  batch_size, num_positions, _ = hidden_BxTxD.shape
  mesh = jax.sharding.get_abstract_mesh()
  split = set(BATCH_AXES) <= set(mesh.auto_axes)
  num_shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES) if split else 1
  if batch_size % num_shards:
    num_shards = 1
  local, vocab_size = batch_size * num_positions // num_shards, output_DxV.shape[1]
  keep_logits = chunk_size == "auto" and local * vocab_size <= MAX_LOGITS
  if chunk_size == "auto":
    chunk_size = default_chunk_size(local, vocab_size, jax.default_backend())
  if chunk_size is None or chunk_size >= local:
    return num_shards, None
  # Tried on CPUs only; and an explicit mesh does not gather over its axes by itself.
  whole = math.prod(mesh.shape.values()) == 1 and jax.default_backend() == "cpu"
  return num_shards, Chunks(chunk_size, keep_logits, skip=whole)


def _on_shards(
  function: Callable[..., Any], num_shards: int, output_DxV: jax.Array, *arrays: jax.Array
) -> Any:
  """Calls `function(output, *arrays)` on the positions, [P, ...], of each shard of the batch.

  The gradients of the output matrix of the shards are summed once, after their last chunk, and
  not over the mesh in every chunk.
  """
  if num_shards == 1:
    return function(output_DxV, *(x.reshape(-1, *x.shape[2:]) for x in arrays))
  sharded = [
    constrain(x.reshape(num_shards, -1, *x.shape[2:]), BATCH_AXES, *[None] * (x.ndim - 1))
    for x in arrays
  ]
  in_axes = (None, *[0] * len(arrays))
  return jax.vmap(function, in_axes, spmd_axis_name=BATCH_AXES)(output_DxV, *sharded)
