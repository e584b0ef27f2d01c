"""Logistic regression on sums of bucket weights, by L-BFGS in JAX."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jdc.prep.quality.features import Features

_SHORTEST = 32  # features to which documents are filled, and powers of two above
_MEMORY = 10  # of L-BFGS, pairs of vectors
_ENTRIES = 1 << 22  # of an array of features

Groups = list[tuple[Any, Any, Any]]  # buckets i32[m, L], 1 / sqrt(F) f32[m], label f32[m]


class Solution(NamedTuple):
  """Weights, and how far they are from the best ones.

  Attributes:
    weight: f32[B].
    bias: added to the sum of weights.
    loss: the objective a document.
    gradient: the largest number of its gradient, in size.
    iterations: of L-BFGS.
  """

  weight: np.ndarray
  bias: float
  loss: float
  gradient: float
  iterations: int


def fit(
  features: Features,
  label: np.ndarray,
  buckets: int,
  *,
  l2: float = 1.0,
  tolerance: float = 1e-4,
  iterations: int = 200,
) -> Solution:
  r"""Finds the w and b that minimise the loss of n documents.

    z_i = b + sum_{f in document i} w_f / sqrt(F_i),
    J = (1 / n) (sum_i log(1 + exp(-y_i z_i)) + (l2 / 2) |w|^2),    y_i = -1 or 1.

  J is strictly convex in w, so that there is one best w* whatever the order of the documents,
  and |w - w*| <= |grad J| n / l2. L-BFGS stops where no partial derivative of J is larger than
  `tolerance` / sqrt(n), or after `iterations`. It runs on the host's processor, whose sums come
  in a fixed order.

  Args:
    features: of the documents, of which each has one or more.
    label: bool[n].
    buckets: B.
    l2: the weight of |w|^2, above 0.
    tolerance: of the gradient.
    iterations: at most.

  References:
    Liu and Nocedal, "On the limited memory BFGS method for large scale optimization", 1989.
  """
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    # Buckets that no document has keep the weight 0, and need no place.
    used, place = np.unique(features.bucket, return_inverse=True)
    features = features._replace(bucket=place.astype(np.int32))
    groups = _grouped(features, label, len(used))
    count = len(label)
    optimizer = optax.lbfgs(memory_size=_MEMORY)
    params = {"weight": jnp.zeros(len(used), jnp.float32), "bias": jnp.float32(0)}
    state = optimizer.init(params)
    largest, done, loss = np.inf, 0, np.inf
    for done in range(iterations + 1):
      value, gradient, size = _gradient(params, state, groups, count, l2)
      loss, largest = float(value), float(size)
      if largest <= tolerance / count**0.5 or done == iterations:
        break
      params, state = _step(params, state, value, gradient, groups, count, l2)
    weight = np.zeros(buckets, np.float32)
    weight[used] = params["weight"]
    return Solution(weight, float(params["bias"]), loss, largest, done)


def _grouped(features: Features, label: np.ndarray, buckets: int) -> Groups:
  """Returns documents by length, filled to a few lengths with a bucket that weighs nothing."""
  size = np.diff(features.starts)
  length = np.maximum(_SHORTEST, 2 ** np.ceil(np.log2(np.maximum(size, 1))).astype(np.int64))
  groups: Groups = []
  for width in np.unique(length).tolist():
    documents = np.flatnonzero(length == width)
    rows = max(1, _ENTRIES // width)
    for begin in range(0, len(documents), rows):
      chosen = documents[begin : begin + rows]
      place = np.arange(width)
      held = place < size[chosen][:, None]
      at = np.minimum(features.starts[chosen][:, None] + place, len(features.bucket) - 1)
      bucket = np.where(held, features.bucket[at], buckets).astype(np.int32)
      scale = 1 / np.sqrt(np.maximum(size[chosen], 1))
      sign = np.where(label[chosen], 1, -1)
      groups.append(
        (jnp.asarray(bucket), jnp.asarray(scale, jnp.float32), jnp.asarray(sign, jnp.float32))
      )
  return groups


def _objective(params: Any, groups: Groups, count: int, l2: float) -> jax.Array:
  filled = jnp.append(params["weight"], 0.0)
  total = l2 / 2 * jnp.sum(params["weight"] ** 2)
  for bucket, scale, sign in groups:
    z = jnp.sum(filled[bucket], axis=1) * scale + params["bias"]
    total += jnp.sum(jax.nn.softplus(-sign * z))
  return total / count


@functools.partial(jax.jit, static_argnames=("count",))
def _gradient(
  params: Any, state: Any, groups: Groups, count: int, l2: float
) -> tuple[jax.Array, Any, jax.Array]:
  """Returns J, its gradient, and the largest number of it; the line search knows both."""
  value_and_grad = optax.value_and_grad_from_state(lambda p: _objective(p, groups, count, l2))
  value, gradient = value_and_grad(params, state=state)
  return value, gradient, optax.tree.norm(gradient, ord=jnp.inf)


@functools.partial(jax.jit, static_argnames=("count",))
def _step(
  params: Any, state: Any, value: Any, gradient: Any, groups: Groups, count: int, l2: float
) -> tuple[Any, Any]:
  optimizer = optax.lbfgs(memory_size=_MEMORY)
  updates, state = optimizer.update(
    gradient, state, params, value=value, grad=gradient,
    value_fn=lambda p: _objective(p, groups, count, l2),
  )  # fmt: skip
  return optax.apply_updates(params, updates), state
