"""A mixture of experts in place of the gated unit."""

import jax
import jax.numpy as jnp
from flax import nnx

from jdc.models.layers import Build, Linear, activation, deviation


class MixtureOfExperts(nnx.Module):
  r"""Sends every token to its k experts; none is dropped.

    p = softmax(x R) in float32, over all E experts; S the k largest;
    w_e = p_e, or p_e / sum_{S} p with `normalise_experts`;
    y = sum_{e in S} w_e expert_e(x), each expert a gated unit

  Tokens are sorted by expert, so that the work is that of k experts a token.

  References:
    Jiang et al., "Mixtral of Experts", 2024, arXiv:2401.04088.
    Muennighoff et al., "OLMoE: Open Mixture-of-Experts Language Models", 2024,
      arXiv:2409.02060.
  """

  def __init__(self, build: Build, *, rngs: nnx.Rngs):
    config = build.config
    self.num_experts, self.num_chosen = config.num_experts, config.experts_per_token
    self.normalise = config.normalise_experts
    self.activation = activation(config)
    width, mlp_width = config.width, config.mlp_width
    self.router = Linear(build, "layers/mlp/router", width, config.num_experts, rngs=rngs)
    self.gate = Experts(build, width, mlp_width, rngs=rngs)
    self.up = Experts(build, width, mlp_width, rngs=rngs)
    self.down = Experts(build, mlp_width, width, rngs=rngs, residual=True)

  def __call__(self, x_BxTxD: jax.Array, key: jax.Array | None = None) -> jax.Array:
    del key  # experts have no adapters
    x_MxD = x_BxTxD.reshape(-1, x_BxTxD.shape[-1])
    probability_MxE = jax.nn.softmax(self.router(x_MxD).astype(jnp.float32), axis=-1)
    weight_Mxk, expert_Mxk = jax.lax.top_k(probability_MxE, self.num_chosen)
    if self.normalise:
      weight_Mxk /= jnp.sum(weight_Mxk, axis=-1, keepdims=True)
    order = jnp.argsort(expert_Mxk.reshape(-1), stable=True)
    back = jnp.argsort(order)
    counts_E = jnp.bincount(expert_Mxk.reshape(-1), length=self.num_experts)
    # Repeated first and permuted then: the gradient of a permutation adds nothing up.
    sorted_NxD = jnp.repeat(x_MxD, self.num_chosen, axis=0)[order]
    gated = self.activation(self.gate(sorted_NxD, counts_E)) * self.up(sorted_NxD, counts_E)
    y_MxkxD = self.down(gated, counts_E)[back].reshape(*expert_Mxk.shape, -1)
    y_MxD = jnp.einsum("mkd,mk->md", y_MxkxD, weight_Mxk.astype(y_MxkxD.dtype))
    return y_MxD.reshape(x_BxTxD.shape)


class Experts(nnx.Module):
  """One linear map for each expert, [E, in, out]."""

  def __init__(
    self,
    build: Build,
    in_features: int,
    out_features: int,
    *,
    rngs: nnx.Rngs,
    residual: bool = False,
  ):
    config = build.config
    initial = nnx.initializers.normal(deviation(config, residual=residual))
    shape = (config.num_experts, in_features, out_features)
    dtype = jnp.dtype(config.parameter_dtype)
    self.dtype = jnp.dtype(config.dtype)
    self.kernel = nnx.Param(initial(rngs.params(), shape, dtype))

  def __call__(self, sorted_NxD: jax.Array, counts_E: jax.Array) -> jax.Array:
    kernel = self.kernel[...].astype(self.dtype)
    return jax.lax.ragged_dot(sorted_NxD.astype(self.dtype), kernel, counts_E)
