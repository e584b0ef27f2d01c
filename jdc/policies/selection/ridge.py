"""Ridge regression in closed form, its strength chosen by leave-one-out errors."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdc.policies.weighting import directions

# Strengths among which leave-one-out errors choose, the largest first.
STRENGTHS = tuple(10.0 ** (2 - k / 2) for k in range(9))


class Ridge(NamedTuple):
  """A linear model of x f32[D]: <(x - mean) / scale, coefficients> + intercept."""

  mean_D: jax.Array
  scale: jax.Array  # f32[], keeps products in range
  coefficient_D: jax.Array
  intercept: jax.Array  # f32[]
  strength: jax.Array  # f32[], that was used
  error: jax.Array  # f32[], root mean squared leave-one-out error


def fit(
  x_PxD: jax.Array, y_P: jax.Array, usable_P: jax.Array, strength: float | None = None
) -> Ridge:
  r"""Fits y to x by least squares with a penalty.

  Over the n rows that are usable, x' and y' being those less their means,

    beta = argmin |y' - X' beta|^2 + lambda |beta|^2,    lambda = strength tr(X' X'^T) / n,

  so that a strength does not depend on the units of x or on n. With K = X' X'^T,
  A = K (K + lambda)^-1 and e = y' - A y', the error at row i of a model fitted without it, the
  same lambda and a mean of its own, is

    e_i / (1 - 1/n - A_ii).

  Args:
    x_PxD: f32; rows that are not usable may hold anything.
    y_P: f32.
    usable_P: bool. Without any the model is not a number; with one it is a constant.
    strength: > 0; `None` takes that of `STRENGTHS` with the least mean squared leave-one-out
      error, the larger one of equals.

  Returns:
    The model.

  References:
    Golub, Heath and Wahba, "Generalized cross-validation as a method for choosing a good ridge
    parameter", 1979, doi:10.1080/00401706.1979.10489751.

  Example:
    >>> x, y = jnp.array([[0.0], [1.0], [2.0], [3.0]]), jnp.array([1.0, 3.0, 5.0, 7.0])
    >>> model = fit(x, y, jnp.ones(4, bool), strength=1e-6)
    >>> predict(model, jnp.array([[10.0]])).round(2).tolist()
    [21.0]
  """
  count = jnp.sum(usable_P, dtype=jnp.float32)
  x_PxD = jnp.where(usable_P[:, None], x_PxD.astype(jnp.float32), 0.0)
  y_P = jnp.where(usable_P, y_P.astype(jnp.float32), 0.0)
  scale = jnp.max(jnp.abs(x_PxD), initial=0.0)
  scale = jnp.where(scale > 0, scale, 1.0)
  mean_D = jnp.sum(x_PxD / count, axis=0)
  intercept = jnp.sum(y_P / count)
  x_PxD = jnp.where(usable_P[:, None], (x_PxD - mean_D) / scale, 0.0)
  y_P = jnp.where(usable_P, y_P - intercept, 0.0)
  # Of x itself: eigenvalues of K have lost what is below 1e-7 of the largest.
  left_PxS, value_S, right_SxD = jnp.linalg.svd(x_PxD, full_matrices=False)
  mean = jnp.sum(value_S**2) / count
  mean = jnp.where(mean > 0, mean, 1.0)
  rotated_S = directions.dot(left_PxS.T, y_P)
  outside_P = y_P - directions.dot(left_PxS, rotated_S)
  free_P = 1 - 1 / count - jnp.sum(left_PxS**2, axis=1)

  def errors(strength: jax.Array) -> jax.Array:
    lost_S = strength * mean / (value_S**2 + strength * mean)
    residual_P = directions.dot(left_PxS, lost_S * rotated_S) + outside_P
    rest_P = directions.dot(left_PxS**2, lost_S) + free_P
    rest_P = jnp.where(rest_P > 0, rest_P, 1.0)  # of a single row nothing is left
    return jnp.sqrt(jnp.sum(jnp.where(usable_P, residual_P / rest_P, 0.0) ** 2 / count))

  tried = jnp.asarray(STRENGTHS if strength is None else (strength,), jnp.float32)
  error = jax.vmap(errors)(tried)
  best = jnp.argmin(error)
  shrunk_S = value_S / (value_S**2 + tried[best] * mean) * rotated_S
  coefficient_D = directions.dot(right_SxD.T, shrunk_S)
  return Ridge(mean_D, scale, coefficient_D, intercept, tried[best], error[best])


def predict(model: Ridge, x_CxD: jax.Array) -> jax.Array:
  """Returns the predictions of a model, f32[C]."""
  x_CxD = (x_CxD.astype(jnp.float32) - model.mean_D) / model.scale
  return directions.dot(x_CxD, model.coefficient_D) + model.intercept
