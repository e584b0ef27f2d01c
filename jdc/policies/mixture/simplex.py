"""A separable quadratic programme over proportions, solved in closed form."""

import jax
import jax.numpy as jnp


def minimise(linear: jax.Array, curvature: jax.Array, usable: jax.Array) -> jax.Array:
  r"""Returns the w >= 0 with sum 1 that minimises sum_k w_k lambda_k + w_k^2 kappa_k / 2.

  With a multiplier nu, w_k = max(0, (nu - lambda_k) / kappa_k). Their sum rises with nu, so
  w_k > 0 just where it is below 1 at nu = lambda_k; among those domains

    w_k = (1 - sum_j (lambda_k - lambda_j) / kappa_j) / (kappa_k sum_j 1 / kappa_j).

  A curvature below 1e-6 of the largest |lambda| or kappa counts as that much, since float32
  does not tell it from 0; domains without curvature and with the same lambda thus share alike.

  Args:
    linear: lambda, f32[K], finite where usable.
    curvature: kappa >= 0, f32[K], likewise.
    usable: bool[K], the domains that w is divided among.

  Returns:
    f32[K], 0 where not usable; all 0 if no domain is.

  References:
    Equation 9 of Li et al., "PiKE", 2025, arXiv 2502.06244.

  Example:
    >>> linear, curvature = jnp.array([-1.0, -0.5, 3.0]), jnp.array([1.0, 1.0, 1.0])
    >>> minimise(linear, curvature, jnp.ones(3, bool)).tolist()
    [0.75, 0.25, 0.0]
  """
  lambda_K = jnp.where(usable, linear, 0.0)
  kappa_K = jnp.where(usable, curvature, 0.0)
  scale = jnp.max(jnp.maximum(jnp.abs(lambda_K), kappa_K))
  scale = jnp.where(scale > 0, scale, 1.0)
  lambda_K = lambda_K / scale
  inverse_K = jnp.where(usable, 1 / jnp.maximum(kappa_K / scale, 1e-6), 0.0)

  gap_KxK = lambda_K[:, None] - lambda_K
  active_K = usable & (jnp.sum(jnp.maximum(gap_KxK, 0.0) * inverse_K, axis=1) < 1)
  inverse_K = jnp.where(active_K, inverse_K, 0.0)
  w_K = inverse_K * jnp.maximum(1 - jnp.sum(gap_KxK * inverse_K, axis=1), 0.0)
  return w_K / jnp.where(jnp.any(usable), jnp.sum(w_K), 1.0)
