"""Scaling laws of single domains, L(n) = exp(e) + exp(a) n^-alpha, fitted inside jit.

Laws are f32[3] = (a, e, alpha). The objective over points (log n_p, log L_p), p = 1..P, is that
of Jiang et al. 2024, arXiv 2410.11820,

  sum_p huber(log L_p - log L(n_p)) + max(alpha - 0.8, 0) + max(0.001 - alpha, 0)
    + max(0.5 - e, 0) + max(a - 6.5, 0),    huber(r) = r^2 / 2 up to |r| = 1e-3, then linear.

It is minimised from the best starts of their grid. Its kinks and its curved valley stop BFGS in
float32 at the first line search, so steps here are those of Levenberg and Marquardt, in other
coordinates: the law's logarithm at the last point, how far it falls from the first to the last
point, and alpha. The kinks are rounded, ever less from step to step.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jdc.policies.mixture import learning_curves
from jdc.policies.mixture.learning_curves import LearningCurves

MAX_POINTS = 256  # of a fit: neighbours among smoothed points tell little more
MIN_POINTS = 4  # one more than a law has parameters
_DOMAINS_AT_ONCE = 64  # bounds the memory of fits
HUBER = 1e-3
NUM_STEPS = 60
_ROUNDING = (0.1, 0.92)  # of kinks: at the first step, and what is left of it a step
_GRID_SHAPE = (8, 8, 8)


def start_grid() -> np.ndarray:
  """Returns the laws from which fits start: f32[512, 3], alpha varying fastest."""
  axes = np.arange(-2, 6), np.arange(-2, 2, 0.5), np.arange(8) / 10
  grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
  return grid.reshape(-1, 3).astype(np.float32)


def log_law(law: jax.Array, log_count: jax.Array) -> jax.Array:
  """Returns log L(n) at any number of log n.

  Example:
    >>> law = jnp.array([jnp.log(2.0), 0.0, 0.5])
    >>> jnp.exp(log_law(law, jnp.log(jnp.array([1.0, 4.0])))).tolist()
    [3.0, 2.0]
  """
  a, e, alpha = law
  return jnp.logaddexp(a - alpha * log_count, e)


def objective(
  law: jax.Array, log_count: jax.Array, log_loss: jax.Array, used: jax.Array
) -> jax.Array:
  """Returns the objective above over the points that are used.

  Args:
    law: f32[3], (a, e, alpha).
    log_count: f32[P], log n.
    log_loss: f32[P].
    used: bool[P]; where it is False the others may be anything.

  Returns:
    f32[].
  """
  residual_P = jnp.where(used, log_loss - log_law(law, log_count), 0.0)
  return HUBER * jnp.sum(_rounded(residual_P, HUBER)) + jnp.sum(jnp.maximum(_excess(law), 0.0))


def refit(
  curves: LearningCurves,
  law_Kx3: jax.Array,
  fitted_K: jax.Array,
  ignore_steps: jax.Array,
  cubics: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Fits a law to the smoothed curve of each domain.

  At most 256 points are fitted, evenly spaced over the run so far. A domain that was seen for
  less than a window, has fewer than four points to fit or a fit that is not finite keeps its
  law.

  Args:
    curves: with at least one step recorded.
    law_Kx3: the laws so far.
    fitted_K: bool[K], which domains have one.
    ignore_steps: i32[], first steps that are not fitted.
    cubics: f32[W, W], from `local_cubics`.

  Returns:
    The new laws, and which domains have one.
  """
  stride, capacity = curves.stride, curves.loss_KxH.shape[1]
  num_points = (curves.num_steps - 1) // stride + 1
  size = min(MAX_POINTS, capacity)
  places_P = jnp.arange(size) * ((num_points - 1) // size + 1)
  recent_P = (places_P < num_points) & (places_P * stride >= ignore_steps)
  places_P = jnp.minimum(places_P, num_points - 1)

  def fit_one(domain: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
    loss_H, count_H, first_step, law, fitted = domain
    first = (first_step - 1) // stride + 1
    loss_P = learning_curves.smooth(loss_H, places_P, first, num_points, cubics)
    used_P = recent_P & (places_P >= first) & (loss_P > 0) & jnp.isfinite(loss_P)
    used_P &= num_points - first >= cubics.shape[0]
    log_count_P = jnp.log(jnp.maximum(count_H[places_P], 1.0))
    new, value = fit(log_count_P, jnp.log(jnp.where(used_P, loss_P, 1.0)), used_P)
    accepted = jnp.isfinite(value) & jnp.all(jnp.isfinite(new))
    accepted &= jnp.sum(used_P) >= MIN_POINTS
    return jnp.where(accepted, new, law), fitted | accepted

  count_KxH = jnp.broadcast_to(curves.count_JxH, curves.loss_KxH.shape)
  each = (curves.loss_KxH, count_KxH, curves.first_K, law_Kx3, fitted_K)
  return jax.lax.map(fit_one, each, batch_size=_DOMAINS_AT_ONCE)


def fit(
  log_count: jax.Array, log_loss: jax.Array, used: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Fits one law; works under vmap.

  For each of the eight alpha of the grid, the best start is improved in a fixed number of
  steps, of which those that raise the objective are not taken; the best of the eight is kept.

  Args:
    log_count: f32[P], log n, finite.
    log_loss: f32[P].
    used: bool[P], the points to fit.

  Returns:
    The law f32[3] and the objective f32[], which is not finite if nothing could be fitted.
  """
  grid_Gx3 = jnp.asarray(start_grid())
  reach = lambda law: objective(law, log_count, log_loss, used)
  # One a of the grid at a time, as every step allocates the memory that a fit would take.
  value_G = jax.lax.map(jax.vmap(reach), grid_Gx3.reshape(_GRID_SHAPE[0], -1, 3)).reshape(-1)
  value_G = _finite_or_inf(value_G)
  num_alphas = _GRID_SHAPE[2]
  best_S = jnp.argmin(value_G.reshape(-1, num_alphas), axis=0)
  starts_Sx3 = grid_Gx3[best_S * num_alphas + jnp.arange(num_alphas)]
  law_Sx3 = jax.vmap(lambda law: _improve(law, log_count, log_loss, used))(starts_Sx3)
  # The starts as well: the coordinates of the steps cannot express a law that does not fall.
  law_Cx3 = jnp.concatenate([law_Sx3, starts_Sx3])
  value_C = _finite_or_inf(jax.vmap(reach)(law_Cx3))
  best = jnp.argmin(value_C)
  return law_Cx3[best], value_C[best]


def _improve(
  law: jax.Array, log_count: jax.Array, log_loss: jax.Array, used: jax.Array
) -> jax.Array:
  last = jnp.max(jnp.where(used, log_count, -jnp.inf))
  span = last - jnp.min(jnp.where(used, log_count, jnp.inf))
  before_P = jnp.where(used, log_count - last, 0.0)

  def to_law(place_3: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns a as if the last point had n = 1, e and alpha."""
    level, log_fall, alpha = place_3
    share = jnp.expm1(jnp.exp(log_fall)) / jnp.expm1(alpha * span)  # reducible, at the last
    return level + jnp.log(share), level + jnp.log1p(-share), alpha

  def terms(place_3: jax.Array) -> tuple[jax.Array, jax.Array]:
    shifted, e, alpha = to_law(place_3)
    residual_P = log_loss - jnp.logaddexp(shifted - alpha * before_P, e)
    excess_4 = _excess(jnp.stack([shifted + alpha * last, e, alpha]))
    return jnp.where(used, residual_P, 0.0), excess_4

  def value(place_3: jax.Array, rounding: jax.Array) -> jax.Array:
    residual_P, excess_4 = terms(place_3)
    hinges_4 = 0.5 * (excess_4 + _rounded(excess_4, rounding))
    fitted = jnp.sum(_rounded(residual_P, jnp.maximum(rounding, HUBER)))
    return HUBER * fitted + jnp.sum(hinges_4)

  def step(number: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple:
    place_3, damping = carry
    rounding = _ROUNDING[0] * _ROUNDING[1] ** number.astype(jnp.float32)
    (residual_P, excess_4), (slope_Px3, slope_4x3) = (
      terms(place_3),
      jax.jacfwd(terms)(place_3),
    )
    weight_P = HUBER / jnp.maximum(jnp.abs(residual_P), jnp.maximum(rounding, HUBER))
    pull_4 = 0.5 / jnp.maximum(jnp.abs(excess_4), rounding)
    gradient_3 = _dot(slope_Px3.T, weight_P * residual_P)
    gradient_3 += _dot(slope_4x3.T, 0.5 + pull_4 * excess_4)
    # A hinge that is well kept has no curvature, or it would hold the steps back.
    bend_4 = jnp.where(excess_4 > -rounding, pull_4, 0.0)
    curvature_3x3 = _dot(slope_Px3.T * weight_P, slope_Px3)
    curvature_3x3 += _dot(slope_4x3.T * bend_4, slope_4x3)
    damped_3x3 = curvature_3x3 + jnp.diag(damping * jnp.diag(curvature_3x3) + 1e-12)
    moved_3 = place_3 - _solve(damped_3x3, gradient_3)
    better = value(moved_3, rounding) < value(place_3, rounding)
    damping = jnp.where(better, jnp.maximum(damping / 4, 1e-7), jnp.minimum(damping * 4, 1e4))
    return jnp.where(better, moved_3, place_3), damping

  alpha = jnp.maximum(law[2], 0.01)  # at 0 the law does not fall
  law = law.at[2].set(alpha)
  level = log_law(law, last)
  fall = log_law(law, last - span) - level
  place_3 = jnp.stack([level, jnp.log(jnp.maximum(fall, 1e-5)), alpha])
  place_3, _ = jax.lax.fori_loop(0, NUM_STEPS, step, (place_3, jnp.float32(0.01)))
  shifted, e, alpha = to_law(place_3)
  return jnp.stack([shifted + alpha * last, e, alpha])


def _solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
  """Returns the solution for a symmetric positive definite matrix of three rows."""
  (p, q, r), (_, s, t), (_, _, u) = matrix  # eliminated in order, which needs no pivots
  s, t, u = s - q * q / p, t - q * r / p, u - r * r / p
  y, z = right[1] - right[0] * q / p, right[2] - right[0] * r / p
  third = (z - y * t / s) / (u - t * t / s)
  second = (y - t * third) / s
  return jnp.stack([(right[0] - q * second - r * third) / p, second, third])


def _excess(law: jax.Array) -> jax.Array:
  """Returns by how much each of the four bounds is exceeded; negative where it is kept."""
  a, e, alpha = law
  return jnp.stack([alpha - 0.8, 0.001 - alpha, 0.5 - e, a - 6.5])


def _rounded(x: jax.Array, width: jax.Array | float) -> jax.Array:
  """Returns |x| - width / 2 beyond the width, and the parabola that joins it within."""
  size = jnp.abs(x)
  return jnp.where(size > width, size - 0.5 * width, 0.5 * x * x / width)


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def _finite_or_inf(x: jax.Array) -> jax.Array:
  return jnp.where(jnp.isfinite(x), x, jnp.inf)
