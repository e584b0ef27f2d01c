"""Cross-entropy of a large vocabulary without an array of all logits."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jdc.models.base import BATCH_AXES
from jdc.models.partition import constrain

ChunkSize = int | Literal["auto"] | None

MAX_LOGITS = 1 << 26  # 256 MiB of float32


def default_chunk_size(num_positions: int, vocab_size: int) -> int | None:
  """Positions per chunk so that a device has at most 2^26 logits (256 MiB) at a time.

  No smaller than memory asks: each chunk reads and writes the gradient of the output matrix.

  Args:
    num_positions: B T, of one device.
    vocab_size: V.

  Returns:
    The chunk size in positions, or `None` for all at once.

  Example:
    >>> default_chunk_size(8192, 4096), default_chunk_size(8192, 131_072)
    (None, 512)
  """
  chunk_size = max(1, MAX_LOGITS // vocab_size)
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
  own hidden state, which a weight only scales.
  A chunk holds positions of any rows, on a mesh those of each device. Chunks are made equal,
  and the last one is padded with positions whose losses are dropped.

  Args:
    hidden_BxTxD: hidden states in the activations' dtype, in which all products are taken.
    output_DxV: the output matrix, cast to that dtype. Logits accumulate in float32; so does,
      over chunks, the gradient of the matrix.
    targets_BxT: i32, in [0, V).
    chunk_size: the most positions of a chunk on each device, >= 1; `None` takes all at once;
      "auto" as `default_chunk_size` says. A chunked loss has reverse-mode derivatives only.
    forward_mode: a chunked loss has forward-mode derivatives instead, a chunk at a time; in
      reverse mode it would keep all logits.

  Returns:
    f32[B, T], nats.

  Raises:
    ValueError: if the chunk size is not positive.
  """
  num_shards, length = _chunks(hidden_BxTxD, output_DxV, chunk_size)
  # Gathered over fsdp once, and not in every chunk.
  output_DxV = constrain(output_DxV, None, "tensor")
  if length is None:
    logits_BxTxV = float32_logits(hidden_BxTxD, output_DxV)
    return jax.nn.logsumexp(logits_BxTxV, axis=-1) - _target_logit(logits_BxTxV, targets_BxT)
  losses: Callable[..., jax.Array] = functools.partial(_token_losses, length)
  if forward_mode:
    losses = lambda *arrays: _scan_losses(length, *arrays)[0]
  losses_BxT = _on_shards(losses, num_shards, output_DxV, hidden_BxTxD, targets_BxT)
  return losses_BxT.reshape(targets_BxT.shape)


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
    targets_BxT: i32, in [0, V).
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
  num_shards, length = _chunks(hidden_BxTxD, output_DxV, chunk_size)
  length = length or math.prod(targets_BxT.shape) // num_shards
  loss_sum = functools.partial(_weighted_sum, length)
  weights_BxT = jax.lax.stop_gradient(weights_BxT.astype(jnp.float32))
  loss, losses = _on_shards(
    loss_sum,
    num_shards,
    constrain(output_DxV, None, "tensor"),
    hidden_BxTxD,
    targets_BxT,
    weights_BxT,
  )
  return jnp.sum(loss), jax.lax.stop_gradient(losses).reshape(targets_BxT.shape)


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


def _chunks(
  hidden_BxTxD: jax.Array, output_DxV: jax.Array, chunk_size: ChunkSize
) -> tuple[int, int | None]:
  """The parts into which the mesh splits the batch, and the chunk size or `None` for one."""
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
  local = batch_size * num_positions // num_shards
  if chunk_size == "auto":
    chunk_size = default_chunk_size(local, output_DxV.shape[1])
  return num_shards, None if chunk_size is None or chunk_size >= local else chunk_size


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


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Differentiated:
  """Which inputs need a gradient."""

  output: bool
  hidden: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_losses(
  length: int, output_DxV: jax.Array, hidden_PxD: jax.Array, targets_P: jax.Array
) -> jax.Array:
  return _scan_losses(length, output_DxV, hidden_PxD, targets_P)[0]


def _token_losses_forward(length: int, output: Any, hidden: Any, targets: Any) -> Any:
  values = output.value, hidden.value, targets.value
  wanted = _Differentiated(output.perturbed, hidden.perturbed)
  if not wanted.output:
    ones_P = jnp.ones(targets.value.shape, jnp.float32)
    losses_P, _, gradient_PxD = _scan_gradients(length, wanted, *values, ones_P)
    return losses_P, (wanted, gradient_PxD)
  losses_P, logsumexp_P = _scan_losses(length, *values)
  return losses_P, (wanted, (*values, logsumexp_P))


def _token_losses_backward(length: int, residuals: Any, weights_P: Any) -> Any:
  wanted, kept = residuals
  if isinstance(weights_P, jax.custom_derivatives.SymbolicZero):
    return None, None, None
  if not wanted.output:
    return None, None if kept is None else (kept * weights_P[:, None]).astype(kept.dtype), None
  output_DxV, hidden_PxD, targets_P, logsumexp_P = kept
  matrix = output_DxV.astype(hidden_PxD.dtype)

  def one_chunk(gradient_DxV: Any, chunk: tuple[jax.Array, ...]) -> tuple[Any, Any]:
    hidden_NxD, targets_N, logsumexp_N, weights_N = chunk
    logits_NxV = _logits(hidden_NxD, matrix)
    return _add_gradients(
      gradient_DxV, wanted, matrix, hidden_NxD, logits_NxV, targets_N, logsumexp_N, weights_N
    )

  start = jnp.zeros(output_DxV.shape, jnp.float32)
  # Checkpointed for the derivative of a gradient, which would keep the logits of all chunks.
  output_gradient, hidden_gradient = _scan_chunks(
    jax.checkpoint(one_chunk), start, length, hidden_PxD, targets_P, logsumexp_P, weights_P
  )
  return output_gradient.astype(output_DxV.dtype), hidden_gradient, None


_token_losses.defvjp(_token_losses_forward, _token_losses_backward, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_sum(
  length: int,
  output_DxV: jax.Array,
  hidden_PxD: jax.Array,
  targets_P: jax.Array,
  weights_P: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  losses_P, _ = _scan_losses(length, output_DxV, hidden_PxD, targets_P)
  return jnp.sum(losses_P * weights_P), losses_P


def _weighted_sum_forward(
  length: int, output: Any, hidden: Any, targets: Any, weights: Any
) -> Any:
  wanted = _Differentiated(output.perturbed, hidden.perturbed)
  values = output.value, hidden.value, targets.value, weights.value
  losses_P, *gradients = _scan_gradients(length, wanted, *values)
  return (jnp.sum(losses_P * weights.value), losses_P), tuple(gradients)


def _weighted_sum_backward(length: int, gradients: Any, cotangents: Any) -> Any:
  del length
  scale, _ = cotangents
  if isinstance(scale, jax.custom_derivatives.SymbolicZero):
    return None, None, None, None
  scaled = jax.tree.map(lambda gradient: (gradient * scale).astype(gradient.dtype), gradients)
  return *scaled, None, None


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward, symbolic_zeros=True)


def _scan_losses(
  length: int, output_DxV: jax.Array, hidden_PxD: jax.Array, targets_P: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The losses and the logsumexp of the logits, f32[P]."""
  matrix = output_DxV.astype(hidden_PxD.dtype)

  def one_chunk(_: None, chunk: tuple[jax.Array, ...]) -> tuple[None, Any]:
    hidden_NxD, targets_N = chunk
    logits_NxV = _logits(hidden_NxD, matrix)
    logsumexp_N = jax.nn.logsumexp(logits_NxV, axis=-1)
    return None, (logsumexp_N - _target_logit(logits_NxV, targets_N), logsumexp_N)

  return _scan_chunks(one_chunk, None, length, hidden_PxD, targets_P)[1]


def _scan_gradients(
  length: int,
  wanted: _Differentiated,
  output_DxV: jax.Array,
  hidden_PxD: jax.Array,
  targets_P: jax.Array,
  weights_P: jax.Array,
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
  """The losses, f32[P], and the wanted gradients of their weighted sum."""
  matrix = output_DxV.astype(hidden_PxD.dtype)

  def one_chunk(gradient_DxV: Any, chunk: tuple[jax.Array, ...]) -> tuple[Any, Any]:
    hidden_NxD, targets_N, weights_N = chunk
    logits_NxV = _logits(hidden_NxD, matrix)
    logsumexp_N = jax.nn.logsumexp(logits_NxV, axis=-1)
    losses_N = logsumexp_N - _target_logit(logits_NxV, targets_N)
    gradient_DxV, gradient_NxD = _add_gradients(
      gradient_DxV, wanted, matrix, hidden_NxD, logits_NxV, targets_N, logsumexp_N, weights_N
    )
    return gradient_DxV, (losses_N, gradient_NxD)

  start = jnp.zeros(output_DxV.shape, jnp.float32) if wanted.output else None
  output_gradient, (losses_P, hidden_gradient) = _scan_chunks(
    jax.checkpoint(one_chunk), start, length, hidden_PxD, targets_P, weights_P
  )
  if output_gradient is not None:
    output_gradient = output_gradient.astype(output_DxV.dtype)
  return losses_P, output_gradient, hidden_gradient


def _scan_chunks(
  one_chunk: Callable[[Any, Any], tuple[Any, Any]], start: Any, length: int, *arrays: jax.Array
) -> tuple[Any, Any]:
  """Scans equal chunks of at most `length` positions, the last padded with zeros."""
  num_positions = arrays[0].shape[0]
  num_chunks = -(-num_positions // length)
  length = -(-num_positions // num_chunks)
  padding = num_chunks * length - num_positions

  def split(x: jax.Array) -> jax.Array:
    x = jnp.pad(x, ((0, padding), *[(0, 0)] * (x.ndim - 1)))
    return x.reshape(num_chunks, length, *x.shape[1:])

  end, outputs = jax.lax.scan(one_chunk, start, tuple(map(split, arrays)))
  join = lambda x: x.reshape(-1, *x.shape[2:])[:num_positions]
  return end, jax.tree.map(join, outputs)


def _add_gradients(
  gradient_DxV: jax.Array | None,
  wanted: _Differentiated,
  matrix_DxV: jax.Array,
  hidden_NxD: jax.Array,
  logits_NxV: jax.Array,
  targets_N: jax.Array,
  logsumexp_N: jax.Array,
  weights_N: jax.Array,
) -> tuple[jax.Array | None, jax.Array | None]:
  """Adds a chunk's gradient of the output matrix; returns it and that of the hidden states."""
  probabilities = jnp.exp(logits_NxV - logsumexp_N[:, None])
  by_logit_NxV = weights_N[:, None] * (probabilities - _is_target(logits_NxV, targets_N))
  by_logit_NxV = by_logit_NxV.astype(hidden_NxD.dtype)
  gradient_NxD = None
  if wanted.hidden:
    # With the matrix on the left: on the right, bfloat16 on a CPU would keep it transposed.
    gradient_NxD = _product("dv,nv->dn", matrix_DxV, by_logit_NxV).T.astype(hidden_NxD.dtype)
  if gradient_DxV is not None:
    gradient_DxV = _add_product(gradient_DxV, hidden_NxD, by_logit_NxV)
  return gradient_DxV, gradient_NxD


def _add_product(total_DxV: jax.Array, left_NxD: jax.Array, right_NxV: jax.Array) -> jax.Array:
  """total + left^T right, a block of rows at a time.

  Where the compiler does not add in place, a block bounds the product's memory to half of the
  chunk's logits.
  """
  length, width = left_NxD.shape
  rows = max(length // 2, 128)

  def one_block(start: Any, rows: int, total_DxV: jax.Array) -> jax.Array:
    left = jax.lax.dynamic_slice_in_dim(left_NxD, start, rows, axis=1)
    old = jax.lax.dynamic_slice_in_dim(total_DxV, start, rows, axis=0)
    new = old + _product("nd,nv->dv", left, right_NxV)
    return jax.lax.dynamic_update_slice_in_dim(total_DxV, new, start, axis=0)

  if width <= rows:
    return total_DxV + _product("nd,nv->dv", left_NxD, right_NxV)
  num_blocks, rest = divmod(width, rows)
  total_DxV = jax.lax.fori_loop(
    0, num_blocks, lambda i, total: one_block(i * rows, rows, total), total_DxV
  )
  return one_block(num_blocks * rows, rest, total_DxV) if rest else total_DxV


def _logits(hidden_NxD: jax.Array, output_DxV: jax.Array) -> jax.Array:
  return constrain(_product("nd,dv->nv", hidden_NxD, output_DxV), None, "tensor")


def _product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
  return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)


def _target_logit(logits: jax.Array, targets: jax.Array) -> jax.Array:
  return jnp.sum(jnp.where(_is_target(logits, targets), logits, 0.0), axis=-1)


def _is_target(logits: jax.Array, targets: jax.Array) -> jax.Array:
  # A comparison and not a gather: it stays local to the shards of the vocabulary, and its
  # gradient is no scatter.
  return targets[..., None] == jnp.arange(logits.shape[-1], dtype=targets.dtype)
