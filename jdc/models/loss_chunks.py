"""Losses of positions in chunks of logits, with what else is wanted of the same logits."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdc.models.partition import constrain


class Chunks(NamedTuple):
  """How positions are split, and what is told of each."""

  length: int  # at most so many in a chunk
  keep_logits: bool = False  # for the backward pass, where it would compute them again
  skip: bool = False  # chunks without targets; those with targets come first
  errors: bool = False  # whether the norms of error vectors are told


class Losses(NamedTuple):
  """What is told of each position; 0 where its target is negative."""

  losses_P: jax.Array  # f32
  errors_P: jax.Array | None  # f32, constants for the gradient


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Differentiated:
  """Which inputs need a gradient."""

  output: bool
  hidden: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def token_losses(
  chunks: Chunks, output_DxV: jax.Array, hidden_PxD: jax.Array, targets_P: jax.Array
) -> Losses:
  """Returns the loss of each position."""
  return _scan_losses(chunks, output_DxV, hidden_PxD, targets_P).told


def forward_mode_losses(
  chunks: Chunks, output_DxV: jax.Array, hidden_PxD: jax.Array, targets_P: jax.Array
) -> Losses:
  """As `token_losses`, with derivatives in forward mode."""
  return _scan_losses(chunks, output_DxV, hidden_PxD, targets_P).told


def _token_losses_forward(chunks: Chunks, output: Any, hidden: Any, targets: Any) -> Any:
  values = output.value, hidden.value, targets.value
  wanted = _Differentiated(output.perturbed, hidden.perturbed)
  if not wanted.output:
    ones_P = jnp.ones(targets.value.shape, jnp.float32)
    told, _, gradient_PxD = _scan_gradients(chunks, wanted, *values, ones_P)
    return told, (wanted, gradient_PxD)
  found = _scan_losses(chunks, *values, chunks.keep_logits)
  return found.told, (wanted, (*values, found.logsumexp_P, found.logits))


def _token_losses_backward(chunks: Chunks, residuals: Any, cotangents: Losses) -> Any:
  wanted, kept = residuals
  weights_P: Any = cotangents.losses_P
  if isinstance(weights_P, jax.custom_derivatives.SymbolicZero):
    return None, None, None
  if not wanted.output:
    return None, None if kept is None else (kept * weights_P[:, None]).astype(kept.dtype), None
  output_DxV, hidden_PxD, targets_P, logsumexp_P, logits = kept
  matrix = output_DxV.astype(hidden_PxD.dtype)

  def one_chunk(gradient_DxV: Any, chunk: tuple[Any, ...]) -> tuple[Any, Any]:
    targets_N, hidden_NxD, logsumexp_N, weights_N, logits_NxV = chunk
    if logits_NxV is None:
      logits_NxV = _logits(hidden_NxD, matrix)
    gradient_DxV, gradient_NxD = _add_gradients(
      gradient_DxV, wanted, matrix, hidden_NxD, logits_NxV, targets_N, logsumexp_N, weights_N
    )
    return gradient_DxV, (gradient_NxD, None)

  start = jnp.zeros(output_DxV.shape, jnp.float32)
  arrays = targets_P, hidden_PxD, logsumexp_P, weights_P
  output_gradient, hidden_gradient, _ = _scan_chunks(
    one_chunk, start, chunks, *arrays, by_chunk=logits
  )
  return output_gradient.astype(output_DxV.dtype), hidden_gradient, None


token_losses.defvjp(_token_losses_forward, _token_losses_backward, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def weighted_sum(
  chunks: Chunks,
  output_DxV: jax.Array,
  hidden_PxD: jax.Array,
  targets_P: jax.Array,
  weights_P: jax.Array,
) -> tuple[jax.Array, Losses]:
  """Returns the weighted sum of the losses, f32[], and the losses."""
  told = _scan_losses(chunks, output_DxV, hidden_PxD, targets_P).told
  return jnp.sum(told.losses_P * weights_P), told


def _weighted_sum_forward(
  chunks: Chunks, output: Any, hidden: Any, targets: Any, weights: Any
) -> Any:
  wanted = _Differentiated(output.perturbed, hidden.perturbed)
  values = output.value, hidden.value, targets.value, weights.value
  told, *gradients = _scan_gradients(chunks, wanted, *values)
  return (jnp.sum(told.losses_P * weights.value), told), tuple(gradients)


def _weighted_sum_backward(chunks: Chunks, gradients: Any, cotangents: Any) -> Any:
  del chunks
  scale, _ = cotangents
  if isinstance(scale, jax.custom_derivatives.SymbolicZero):
    return None, None, None, None
  scaled = jax.tree.map(lambda gradient: (gradient * scale).astype(gradient.dtype), gradients)
  return *scaled, None, None


weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward, symbolic_zeros=True)


def told_of(
  logits: jax.Array, targets: jax.Array, errors: bool = False
) -> tuple[Losses, jax.Array]:
  """Returns what is told of positions with these logits, and the logsumexp."""
  logsumexp = jax.nn.logsumexp(logits, axis=-1)
  is_target = _is_target(logits, targets)
  target_logit = jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1)
  losses = jnp.where(targets >= 0, logsumexp - target_logit, 0.0)
  if not errors:
    return Losses(losses, None), logsumexp
  fixed, fixed_sum = jax.lax.stop_gradient((logits, logsumexp))
  # A sum of squares: in |p|^2 - 2 p_y + 1 all digits of a small error would cancel.
  error = jnp.exp(fixed - fixed_sum[..., None]) - is_target
  norms = jnp.sqrt(jnp.sum(jnp.square(error), axis=-1))
  return Losses(losses, jnp.where(targets >= 0, norms, 0.0)), logsumexp


class _Found(NamedTuple):
  told: Losses
  logsumexp_P: jax.Array  # f32, of the logits
  logits: jax.Array | None  # f32[chunks, N, V], if they are to be kept


def _scan_losses(
  chunks: Chunks,
  output_DxV: jax.Array,
  hidden_PxD: jax.Array,
  targets_P: jax.Array,
  keep: bool = False,
) -> _Found:
  matrix = output_DxV.astype(hidden_PxD.dtype)

  def one_chunk(_: None, chunk: tuple[Any, ...]) -> tuple[None, Any]:
    targets_N, hidden_NxD, _ = chunk
    logits_NxV = _logits(hidden_NxD, matrix)
    told, logsumexp_N = told_of(logits_NxV, targets_N, chunks.errors)
    return None, ((told, logsumexp_N), logits_NxV if keep else None)

  _, (told, logsumexp_P), logits = _scan_chunks(one_chunk, None, chunks, targets_P, hidden_PxD)
  return _Found(told, logsumexp_P, logits)


def _scan_gradients(
  chunks: Chunks,
  wanted: _Differentiated,
  output_DxV: jax.Array,
  hidden_PxD: jax.Array,
  targets_P: jax.Array,
  weights_P: jax.Array,
) -> tuple[Losses, jax.Array | None, jax.Array | None]:
  """The losses, and the wanted gradients of their weighted sum."""
  matrix = output_DxV.astype(hidden_PxD.dtype)

  def one_chunk(gradient_DxV: Any, chunk: tuple[Any, ...]) -> tuple[Any, Any]:
    targets_N, hidden_NxD, weights_N, _ = chunk
    logits_NxV = _logits(hidden_NxD, matrix)
    told, logsumexp_N = told_of(logits_NxV, targets_N, chunks.errors)
    gradient_DxV, gradient_NxD = _add_gradients(
      gradient_DxV, wanted, matrix, hidden_NxD, logits_NxV, targets_N, logsumexp_N, weights_N
    )
    return gradient_DxV, ((told, gradient_NxD), None)

  start = jnp.zeros(output_DxV.shape, jnp.float32) if wanted.output else None
  output_gradient, (told, hidden_gradient), _ = _scan_chunks(
    one_chunk, start, chunks, targets_P, hidden_PxD, weights_P
  )
  if output_gradient is not None:
    output_gradient = output_gradient.astype(output_DxV.dtype)
  return told, output_gradient, hidden_gradient


def _scan_chunks(
  one_chunk: Callable[[Any, Any], tuple[Any, Any]],
  start: Any,
  chunks: Chunks,
  targets_P: jax.Array,
  *arrays: jax.Array,
  by_chunk: Any = None,
) -> tuple[Any, Any, Any]:
  """Scans equal chunks of at most `chunks.length` positions, the last padded.

  `one_chunk` maps a carry and (targets, *arrays, by_chunk) of a chunk to a carry and a pair:
  what there is for each position, and what stays by chunk. Chunks without targets, where they
  are skipped, leave the carry and give zeros.

  Returns:
    The last carry, the former by position [P, ...], and the latter [chunks, ...].
  """
  num_positions = targets_P.shape[0]
  num_chunks = -(-num_positions // chunks.length)
  length = -(-num_positions // num_chunks)
  padding = num_chunks * length - num_positions
  order_P = jnp.argsort(targets_P < 0) if chunks.skip else None

  def split(x: jax.Array) -> jax.Array:
    x = x if order_P is None else jnp.take(x, order_P, axis=0, mode="clip")
    # No target, where these are targets.
    value = -1 if jnp.issubdtype(x.dtype, jnp.integer) else 0
    x = jnp.pad(x, ((0, padding), *[(0, 0)] * (x.ndim - 1)), constant_values=value)
    return x.reshape(num_chunks, length, *x.shape[1:])

  def join(x: jax.Array) -> jax.Array:
    x = x.reshape(-1, *x.shape[2:])[:num_positions]
    if order_P is None:
      return x
    return jnp.take(x, jnp.argsort(order_P), axis=0, mode="clip")

  def unless_skipped(carry: Any, chunk: Any) -> tuple[Any, Any]:
    _, shapes = jax.eval_shape(one_chunk, carry, chunk)
    skipped = lambda carry, _: (
      carry,
      jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
    )
    return jax.lax.cond(jnp.any(chunk[0] >= 0), one_chunk, skipped, carry, chunk)

  # Checkpointed for the derivative of a gradient, which would keep the logits of all chunks,
  # and the matrix for each.
  end, (by_position, kept) = jax.lax.scan(
    jax.checkpoint(unless_skipped if chunks.skip else one_chunk),
    start,
    (*map(split, (targets_P, *arrays)), by_chunk),
  )
  return end, jax.tree.map(join, by_position), kept


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
  weights_N = jnp.where(targets_N >= 0, weights_N, 0)
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


def _is_target(logits: jax.Array, targets: jax.Array) -> jax.Array:
  # A comparison and not a gather: it stays local to the shards of the vocabulary, and its
  # gradient is no scatter.
  return targets[..., None] == jnp.arange(logits.shape[-1], dtype=targets.dtype)
