"""The losses of domains over a run of any length, in an array of fixed size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NEVER = np.iinfo(np.int32).max
_CUBIC = 3


class LearningCurves(NamedTuple):
  """H points a domain, one for every `stride` steps, the first of them at step 0."""

  loss_KxH: jax.Array  # f32[K, H], nats per token; 0 before a domain was seen
  count_JxH: jax.Array  # f32[1, H] or f32[K, H], examples until then
  stride: jax.Array  # i32[], steps from point to point
  num_steps: jax.Array  # i32[], recorded so far
  first_K: jax.Array  # i32[K], step at which a domain was first seen


def start(num_domains: int, num_counts: int, capacity: int) -> LearningCurves:
  """Returns curves without points; `num_counts` is K, or 1 for a count that all share."""
  return LearningCurves(
    loss_KxH=jnp.zeros((num_domains, capacity), jnp.float32),
    count_JxH=jnp.zeros((num_counts, capacity), jnp.float32),
    stride=jnp.int32(1),
    num_steps=jnp.int32(0),
    first_K=jnp.full(num_domains, NEVER, jnp.int32),
  )


def record(
  curves: LearningCurves, loss_K: jax.Array, count_J: jax.Array, seen_K: jax.Array
) -> LearningCurves:
  """Adds a step; full curves first lose every second point, and the stride doubles.

  Args:
    curves: of even capacity.
    loss_K: f32[K], the last known loss of each domain.
    count_J: [J], examples so far, this step's included.
    seen_K: bool[K], which domains were ever seen.
  """
  capacity = curves.loss_KxH.shape[1]
  step = curves.num_steps

  full = step // curves.stride == capacity
  points = curves.loss_KxH, curves.count_JxH
  loss_KxH, count_JxH = jax.lax.cond(full, _thin, _keep, points)
  stride = jnp.where(full, 2 * curves.stride, curves.stride)
  due, place = step % stride == 0, step // stride
  put = lambda points, new: points.at[:, place].set(jnp.where(due, new, points[:, place]))
  return LearningCurves(
    loss_KxH=put(loss_KxH, loss_K),
    count_JxH=put(count_JxH, count_J.astype(jnp.float32)),
    stride=stride,
    num_steps=step + 1,
    first_K=jnp.where(seen_K & (curves.first_K == NEVER), step, curves.first_K),
  )


def _thin(points: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
  return tuple(jnp.pad(x[:, ::2], ((0, 0), (0, x.shape[1] // 2))) for x in points)


def _keep(points: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
  return points


def local_cubics(window: int) -> np.ndarray:
  """Returns f64[W, W]: row i maps W points to the value at point i of their cubic fit.

  Args:
    window: W, odd and greater than 3.
  """
  position_W = np.linspace(-1, 1, window)
  basis, _ = np.linalg.qr(np.vander(position_W, _CUBIC + 1))
  return basis @ basis.T


def smooth(
  values: jax.Array, places: jax.Array, first: jax.Array, last: jax.Array, cubics: jax.Array
) -> jax.Array:
  """Returns the values smoothed by Savitzky and Golay's filter at some places.

  The value of the least-squares cubic over the window around a place; near the ends, of the
  cubic over the first or last window.

  Args:
    values: f32[H], of which those from `first` until before `last` are points; at least W.
    places: i32[P], between first and last - 1.
    first: i32[].
    last: i32[].
    cubics: f32[W, W], from `local_cubics`.

  Returns:
    f32[P].

  Example:
    >>> cubes = jnp.arange(9.0) ** 3
    >>> smooth(cubes, jnp.array([0, 4, 8]), 0, 9, jnp.asarray(local_cubics(5))).round().tolist()
    [0.0, 64.0, 512.0]
  """
  window = cubics.shape[0]
  begin_P = jnp.clip(places - window // 2, first, jnp.maximum(last - window, first))
  window_PxW = values[begin_P[:, None] + jnp.arange(window)]
  return jnp.sum(cubics[places - begin_P] * window_PxW, axis=1)
