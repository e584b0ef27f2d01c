"""Adam's direction for one gradient: what a step on a single example would do."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

DIRECTIONS = ("optimizer", "paper", "official", "dataflex")


class Adam(NamedTuple):
  """The settings of the optimizer."""

  b1: float
  b2: float
  epsilon: float
  clip_norm: float = 0.0  # of the gradient, before it meets the moments; 0: none


class Moments(NamedTuple):
  """What Adam remembers; trees of the shapes of the parameters."""

  mu: Any  # running mean of gradients
  nu: Any  # of their squares
  count: jax.Array  # type: ignore[assignment]  # i32[], updates already applied


def moments_of(opt_state: optax.OptState) -> Moments:
  """Returns the moments in the state of an optimizer, wherever they lie in it.

  Raises:
    ValueError: if there is no Adam in it, or more than one.

  Example:
    >>> optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    >>> int(moments_of(optimizer.init({"kernel": jnp.ones(2)})).count)
    0
  """
  is_adam = lambda node: isinstance(node, optax.ScaleByAdamState)
  found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(x)]
  if len(found) != 1:
    raise ValueError(
      "the direction of an update needs an optimizer with one `optax.scale_by_adam`, as in "
      f"`optax.adamw`; its state holds {len(found)} of them"
    )
  (state,) = found
  return Moments(state.mu, state.nu, state.count)


def adam_direction(form: str, adam: Adam, gradient: Any, moments: Moments) -> Any:
  r"""Returns the direction of the step that Adam would take on this gradient.

  With g the gradient, m and v the moments, t = `count` + 1, and all operations elementwise,

    m1 = b1 m + (1 - b1) g,   v1 = b2 v + (1 - b2) g^2,

    optimizer  m1 / (1 - b1^t) / (sqrt(v1 / (1 - b2^t)) + eps),  g clipped first,
    paper      m1 / (1 - b1^t) / sqrt(v1 / (1 - b2^t) + eps),
    official   m1 / sqrt(v1 + eps),
    dataflex   m1 / (sqrt(v1) + eps).

  The first is the update of `optax.adamw` divided by minus the learning rate, without weight
  decay; clipped means g <- g c / |g| where |g| >= c = `clip_norm` > 0. The others are what the
  paper on LESS states, what its code computes, and what DataFlex does.

  Args:
    form: one of `DIRECTIONS`.
    adam: b1, b2, eps and c.
    gradient: a tree of the parameters that matter; |g| is its norm, so that clipping is the
      optimizer's where it holds all that are trained.
    moments: of the same tree, of the batches before.

  Returns:
    The same tree, float32.

  Raises:
    ValueError: if the form is not known.

  References:
    Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2014, arXiv:1412.6980.
    Xia et al., "LESS: Selecting Influential Data for Targeted Instruction Tuning", 2024,
      arXiv:2402.04333.

  Example:
    >>> zeros = {"kernel": jnp.zeros(2)}
    >>> start = Moments(zeros, zeros, jnp.int32(0))
    >>> first = adam_direction(
    ...   "optimizer", Adam(0.9, 0.999, 1e-8), {"kernel": jnp.array([3.0, -0.1])}, start
    ... )
    >>> first["kernel"].round(3).tolist()
    [1.0, -1.0]
  """
  if form not in DIRECTIONS:
    raise ValueError(f"features.direction must be one of {DIRECTIONS}, got {form!r}")
  gradient = jax.tree.map(lambda g: g.astype(jnp.float32), gradient)
  if form == "optimizer" and adam.clip_norm:
    gradient = _clipped(gradient, adam.clip_norm)
  unbiased = form in ("optimizer", "paper")
  updates = jnp.asarray(moments.count, jnp.float32) + 1
  bias1, bias2 = ((1 - b**updates if unbiased else 1.0) for b in (adam.b1, adam.b2))

  def of_leaf(g: jax.Array, mu: jax.Array, nu: jax.Array) -> jax.Array:
    mu, nu = mu.astype(jnp.float32), nu.astype(jnp.float32)
    mean = (adam.b1 * mu + (1 - adam.b1) * g) / bias1
    square = (adam.b2 * nu + (1 - adam.b2) * jnp.square(g)) / bias2
    if form in ("paper", "official"):
      return mean / jnp.sqrt(square + adam.epsilon)
    return mean / (jnp.sqrt(square) + adam.epsilon)

  return jax.tree.map(of_leaf, gradient, moments.mu, moments.nu)


def _clipped(gradient: Any, limit: float) -> Any:
  squares = [jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient)]
  norm = jnp.sqrt(sum(squares, start=jnp.float32(0)))
  return jax.tree.map(lambda g: jnp.where(norm < limit, g, g / norm * limit), gradient)
