"""Inner products of the mean gradients of domains, from two half-batches each."""

import jax
import jax.numpy as jnp


def own_blocks(product_Kx2xKx2: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns each domain's products with itself, and which domains were measured.

  A domain is measured where its own products are finite and neither half-batch's gradient is
  zero: a half-batch without target tokens has none.

  Args:
    product_Kx2xKx2: f32[K, 2, K, 2], `domain_gradient_product`.

  Returns:
    f32[K, 2, 2], 0 for a domain that was not measured; bool[K], whether it was measured; and
    bool[K], whether its own products are not finite.

  Example:
    >>> gradient = jnp.array([[[1.0, 0.0], [1.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]]])
    >>> product = jnp.einsum("iad,jbd->iajb", gradient, gradient)
    >>> own, measured, _ = own_blocks(product)
    >>> own[0].tolist(), measured.tolist()
    ([[1.0, 1.0], [1.0, 5.0]], [True, False])
  """
  place_K = jnp.arange(product_Kx2xKx2.shape[0])
  own_Kx2x2 = product_Kx2xKx2[place_K, :, place_K, :]
  finite_K = jnp.all(jnp.isfinite(own_Kx2x2), axis=(1, 2))
  present_K = jnp.all(jnp.diagonal(own_Kx2x2, axis1=1, axis2=2) > 0, axis=1)
  measured_K = finite_K & present_K
  return jnp.where(measured_K[:, None, None], own_Kx2x2, 0.0), measured_K, ~finite_K
