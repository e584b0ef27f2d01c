"""A mixture of experts in place of the gated unit."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jdc.models.base import BATCH_AXES
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
    logits_BxTxE = self.router(x_BxTxD).astype(jnp.float32)
    weight_BxTxk, expert_BxTxk = jax.lax.top_k(jax.nn.softmax(logits_BxTxE), self.num_chosen)
    if self.normalise:
      weight_BxTxk /= jnp.sum(weight_BxTxk, axis=-1, keepdims=True)
    kernels = tuple(x.kernel[...].astype(x.dtype) for x in (self.gate, self.up, self.down))
    return _on_shards(self._mixed, kernels, x_BxTxD, weight_BxTxk, expert_BxTxk)

  def _mixed(
    self,
    kernels: tuple[jax.Array, ...],
    x_BxTxD: jax.Array,
    weight_BxTxk: jax.Array,
    expert_BxTxk: jax.Array,
  ) -> jax.Array:
    gate, up, down = kernels
    x_MxD = x_BxTxD.reshape(-1, x_BxTxD.shape[-1]).astype(gate.dtype)
    expert_N = expert_BxTxk.reshape(-1)
    order = jnp.argsort(expert_N, stable=True)
    back = jnp.argsort(order)
    counts_E = jnp.bincount(expert_N, length=self.num_experts)
    # Repeated first and permuted then: the gradient of a permutation adds nothing up.
    sorted_NxD = jnp.repeat(x_MxD, self.num_chosen, axis=0)[order]
    gated = self.activation(jax.lax.ragged_dot(sorted_NxD, gate, counts_E))
    gated *= jax.lax.ragged_dot(sorted_NxD, up, counts_E)
    y_NxD = jax.lax.ragged_dot(gated, down, counts_E)[back]
    y_BxTxkxD = y_NxD.reshape(*expert_BxTxk.shape, -1)
    return jnp.einsum("btkd,btk->btd", y_BxTxkxD, weight_BxTxk.astype(y_NxD.dtype))


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


def _on_shards(
  function: Callable[..., jax.Array], kernels: Any, x_BxTxD: jax.Array, *rest: jax.Array
) -> jax.Array:
  """Calls `function(kernels, x, ...)` on the rows of each shard of the batch.

  The compiler cannot split a product whose rows are sorted by expert: every device would
  compute those of all.
  """
  mesh = jax.sharding.get_abstract_mesh()
  split = set(BATCH_AXES) <= set(mesh.auto_axes)
  if not split or x_BxTxD.shape[0] % math.prod(mesh.shape[axis] for axis in BATCH_AXES):
    return function(kernels, x_BxTxD, *rest)
  rows = jax.P(BATCH_AXES)
  return jax.shard_map(
    function,
    in_specs=(jax.P(), rows, *(rows for _ in rest)),
    out_specs=rows,
    axis_names=set(BATCH_AXES),
  )(kernels, x_BxTxD, *rest)
