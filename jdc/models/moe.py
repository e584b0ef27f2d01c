"""A mixture of experts in place of the gated unit, and how evenly it shares the tokens."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jdc.models.base import BATCH_AXES, MESH_AXES
from jdc.models.layers import Build, Linear, activation, deviation


class Routing(NamedTuple):
  """Where a layer sends the real tokens of each row; layers are stacked on a leading axis."""

  load_BxE: jax.Array  # f32, pairs of a token and one of its choices
  probability_BxE: jax.Array  # f32, sums of the router's probabilities


def balance_loss(routing: Routing, experts_per_token: int) -> jax.Array:
  r"""How far the experts are from sharing the tokens evenly, a mean over layers.

    f_e = pairs sent to e / all pairs, P_e = mean over tokens of p_e,
    loss = mean_l E sum_e f_e P_e

  It is 1 where the router's probabilities are uniform, and E / k where the same k experts get
  all tokens and all probability. Tokens are those of the whole batch, over all devices, without
  padding.

  Args:
    routing: of L layers, [L, B, E].
    experts_per_token: the choices of a token.

  Returns:
    f32[]; 0 for a batch of padding. Of the two factors only P has a gradient.

  References:
    Fedus, Zoph and Shazeer, "Switch Transformers: Scaling to Trillion Parameter Models with
      Simple and Efficient Sparsity", 2021, arXiv:2101.03961, equations 4 to 6; here f counts
      the k choices of a token, as shares of all.

  Example:
    >>> even = Routing(jnp.full((1, 2, 4), 3.0), jnp.full((1, 2, 4), 1.5))
    >>> float(balance_loss(even, experts_per_token=2))
    1.0
  """
  load_LxE, probability_LxE = (jnp.sum(x, axis=-2) for x in routing)
  load_LxE = jax.lax.stop_gradient(load_LxE)
  pairs_Lx1 = jnp.maximum(jnp.sum(load_LxE, axis=-1, keepdims=True), 1.0)
  mean_LxE = probability_LxE * experts_per_token / pairs_Lx1
  each_L = load_LxE.shape[-1] * jnp.sum(load_LxE / pairs_Lx1 * mean_LxE, axis=-1)
  return jnp.mean(each_L)


class MixtureOfExperts(nnx.Module):
  r"""Sends every token to its k experts; none is dropped.

    p = softmax(x R) in float32, over all E experts; S the k largest;
    w_e = p_e, or p_e / sum_{S} p with `normalise_experts`;
    y = sum_{e in S} w_e expert_e(x), each expert a gated unit

  Tokens are sorted by expert, so that the work is that of k experts a token. On a mesh, devices
  along `expert` hold different experts: each gathers the tokens of the others, multiplies those
  of its own experts, and gives back the sums. Its sorted rows are those of all these devices,
  since nothing bounds how many of them one expert gets.

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

  def __call__(
    self, x_BxTxD: jax.Array, key: jax.Array | None = None, taps: Any = None
  ) -> jax.Array:
    del key, taps  # experts have no adapters, and are not tapped
    return self._apply(x_BxTxD)[0]

  def with_routing(self, x_BxTxD: jax.Array, real_BxT: jax.Array) -> tuple[jax.Array, Routing]:
    """Returns what a call does, and where the tokens went that are `real`."""
    y_BxTxD, probability_BxTxE, expert_BxTxk = self._apply(x_BxTxD)
    real_BxTx1 = real_BxT[:, :, None]
    chosen_BxTxkxE = expert_BxTxk[..., None] == jnp.arange(self.num_experts)
    load_BxE = jnp.sum(chosen_BxTxkxE & real_BxTx1[..., None], axis=(1, 2), dtype=jnp.float32)
    probability_BxE = jnp.sum(jnp.where(real_BxTx1, probability_BxTxE, 0.0), axis=1)
    return y_BxTxD, Routing(load_BxE, probability_BxE)

  def _apply(self, x_BxTxD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the sum of the experts, the router's probabilities and its choices."""
    probability_BxTxE = jax.nn.softmax(self.router(x_BxTxD).astype(jnp.float32))
    weight_BxTxk, expert_BxTxk = jax.lax.top_k(probability_BxTxE, self.num_chosen)
    if self.normalise:
      weight_BxTxk /= jnp.sum(weight_BxTxk, axis=-1, keepdims=True)
    kernels = tuple(x.kernel[...].astype(x.dtype) for x in (self.gate, self.up, self.down))
    y_BxTxD = _on_shards(self._mixed, kernels, x_BxTxD, weight_BxTxk, expert_BxTxk)
    return y_BxTxD, probability_BxTxE, expert_BxTxk

  def _mixed(
    self,
    kernels: tuple[jax.Array, ...],
    x_BxTxD: jax.Array,
    weight_BxTxk: jax.Array,
    expert_BxTxk: jax.Array,
  ) -> jax.Array:
    """The sum over the experts whose kernels these are; their count stands for all others."""
    gate, up, down = kernels
    num_experts = gate.shape[0]
    x_MxD = x_BxTxD.reshape(-1, x_BxTxD.shape[-1]).astype(gate.dtype)
    expert_N = expert_BxTxk.reshape(-1)
    order = jnp.argsort(expert_N, stable=True)
    back = jnp.argsort(order)
    counts_E = jnp.bincount(expert_N, length=num_experts)
    # Repeated first and permuted then: the gradient of a permutation adds nothing up.
    sorted_NxD = jnp.repeat(x_MxD, self.num_chosen, axis=0)[order]
    if num_experts < self.num_experts:
      # What a product holds beyond the groups is not defined, nor is its gradient.
      mine_Nx1 = (expert_N < num_experts)[:, None]
      sorted_NxD = jnp.where(mine_Nx1[order], sorted_NxD, 0)
    gated = self.activation(jax.lax.ragged_dot(sorted_NxD, gate, counts_E))
    gated *= jax.lax.ragged_dot(sorted_NxD, up, counts_E)
    y_NxD = jax.lax.ragged_dot(gated, down, counts_E)[back]
    if num_experts < self.num_experts:
      y_NxD = jnp.where(mine_Nx1, y_NxD, 0)
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
  function: Callable[..., jax.Array],
  kernels: tuple[jax.Array, ...],
  x_BxTxD: jax.Array,
  weight_BxTxk: jax.Array,
  expert_BxTxk: jax.Array,
) -> jax.Array:
  """Calls `function` on the rows of each shard of the batch and the experts of each device.

  The compiler cannot split a product whose rows are sorted by expert: every device would
  compute those of all. Nothing is left to it over `tensor` either, since XLA fails on CPUs to
  reduce bfloat16 over some axes where it splits over others.
  """
  mesh = jax.sharding.get_abstract_mesh()
  split = set(MESH_AXES) <= set(mesh.auto_axes)
  if not split or x_BxTxD.shape[0] % math.prod(mesh.shape[axis] for axis in BATCH_AXES):
    return function(kernels, x_BxTxD, weight_BxTxk, expert_BxTxk)
  parts, size = mesh.shape["expert"], mesh.shape["tensor"]
  tensor = "tensor" if size > 1 and kernels[0].shape[-1] % size == 0 else None

  def on_device(
    kernels: tuple[jax.Array, ...], x: jax.Array, weight: jax.Array, expert: jax.Array
  ) -> jax.Array:
    if parts > 1:
      x, weight, expert = (
        jax.lax.all_gather(rows, "expert", tiled=True) for rows in (x, weight, expert)
      )
      num_mine = kernels[0].shape[0]
      expert -= num_mine * jax.lax.axis_index("expert")
      expert = jnp.where((expert >= 0) & (expert < num_mine), expert, num_mine)
    y = function(kernels, x, weight, expert)
    if parts > 1:
      y = jax.lax.psum_scatter(y, "expert", scatter_dimension=0, tiled=True)
    return y if tensor is None else jax.lax.psum(y, tensor)

  rows, into, back = (
    jax.P(BATCH_AXES),
    jax.P("expert", None, tensor),
    jax.P("expert", tensor, None),
  )
  return jax.shard_map(
    on_device,
    in_specs=((into, into, back), rows, rows, rows),
    out_specs=rows,
    axis_names=set(MESH_AXES),
  )(kernels, x_BxTxD, weight_BxTxk, expert_BxTxk)
