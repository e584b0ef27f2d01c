"""The losses seen last, and where a loss stands among them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdc.policies import checks


class Recent(NamedTuple):
  """A ring buffer of losses; the first `size` places hold some, the others 0."""

  losses_n: jax.Array  # f32[n], nats per token
  size: jax.Array  # i32[], at most n
  position: jax.Array  # i32[], the place of the next loss


def empty(capacity: int, batch_size: int) -> Recent:
  """Returns room for the last `capacity` losses.

  Raises:
    ValueError: if the run has no batch size, or a batch does not fit.
  """
  checks.require(
    (batch_size > 0, f"batch_size must be positive, got {batch_size}"),
    (
      capacity >= batch_size,
      f"capacity must hold a batch of {batch_size} examples, got {capacity}",
    ),
  )
  return Recent(jnp.zeros(capacity, jnp.float32), jnp.int32(0), jnp.int32(0))


def insert(recent: Recent, loss_B: jax.Array, usable_B: jax.Array) -> Recent:
  """Appends the usable losses, in order; the oldest make room.

  Args:
    recent: of n losses.
    loss_B: f32[B], B <= n, finite where usable.
    usable_B: bool[B].
  """
  (capacity,) = recent.losses_n.shape
  rank_B = jnp.cumsum(usable_B, dtype=jnp.int32) - 1
  # A place outside the buffer drops what is not usable.
  place_B = jnp.where(usable_B, (recent.position + rank_B) % capacity, capacity)
  num_new = jnp.sum(usable_B, dtype=jnp.int32)
  return Recent(
    losses_n=recent.losses_n.at[place_B].set(loss_B, mode="drop"),
    size=jnp.minimum(recent.size + num_new, capacity),
    position=(recent.position + num_new) % capacity,
  )


def mid_rank(recent: Recent, loss_B: jax.Array) -> jax.Array:
  """Returns the share of recent losses below each loss, equal ones counted by half.

  Args:
    recent: the losses.
    loss_B: f32[B], finite.

  Returns:
    f32[B] in [0, 1], at least 1 / (2 size) for a loss that is among them.

  Example:
    >>> recent = insert(empty(4, 4), jnp.array([2.0, 1.0, 2.0, 3.0]), jnp.ones(4, bool))
    >>> mid_rank(recent, jnp.array([1.0, 2.0])).tolist()
    [0.125, 0.5]
  """
  ordered = _ordered(recent)
  below_B = jnp.searchsorted(ordered, loss_B, side="left")
  up_to_B = jnp.searchsorted(ordered, loss_B, side="right")
  total = 2 * jnp.maximum(recent.size, 1)
  return (below_B + up_to_B).astype(jnp.float32) / total.astype(jnp.float32)


def quantile(recent: Recent, share: jax.Array) -> jax.Array:
  """Returns the quantile of the recent losses by linear interpolation; inf where none are.

  Args:
    recent: the losses.
    share: f32[], in [0, 1]; 1 is the highest.

  Example:
    >>> recent = insert(empty(4, 3), jnp.array([2.0, 1.0, 4.0]), jnp.ones(3, bool))
    >>> quantile(recent, jnp.float32(0.75)).item()
    3.0
  """
  ordered = _ordered(recent)
  last = jnp.maximum(recent.size - 1, 0)
  position = share * last.astype(jnp.float32)
  start = jnp.minimum(jnp.floor(position).astype(jnp.int32), last)
  below, above = ordered[start], ordered[jnp.minimum(start + 1, last)]
  fraction = position - start.astype(jnp.float32)
  # Where both are infinite their difference is NaN; products of large ones cannot overflow.
  between = below + (fraction * above - fraction * below)
  return jnp.where(below == above, below, between)


def _ordered(recent: Recent) -> jax.Array:
  is_held_n = jnp.arange(recent.losses_n.shape[0]) < recent.size
  return jnp.sort(jnp.where(is_held_n, recent.losses_n, jnp.inf))
