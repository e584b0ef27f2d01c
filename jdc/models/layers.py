"""The pieces of a decoder's layer: norms, linear maps with adapters, the gated unit."""

import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jdc.models.base import BATCH_AXES
from jdc.models.decoder_config import DecoderConfig
from jdc.models.lora import LoraConfig, adaptable
from jdc.models.partition import constrain
from jdc.models.taps import tapped, under


class Build(NamedTuple):
  """What the modules of a decoder are made from."""

  config: DecoderConfig
  lora: LoraConfig | None = None


class RMSNorm(nnx.Module):
  """x / sqrt(mean x^2 + epsilon) times (scale + offset), in float32."""

  def __init__(self, config: DecoderConfig, size: int):
    self.epsilon, self.offset = config.norm_epsilon, config.norm_offset
    dtype = jnp.dtype(config.parameter_dtype)
    self.scale = nnx.Param(jnp.full(size, 1.0 - config.norm_offset, dtype))

  def __call__(self, x: jax.Array) -> jax.Array:
    return jax.checkpoint(self._normalise)(x, self.scale[...])

  def _normalise(self, x: jax.Array, scale: jax.Array) -> jax.Array:
    # Computed again in the backward pass, which takes less time than to keep it.
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    normalised = x32 * jax.lax.rsqrt(mean_square + self.epsilon)
    return (normalised * (scale.astype(jnp.float32) + self.offset)).astype(x.dtype)


class Linear(nnx.Module):
  """x W + b, and the low-rank adapter where `build.lora` has one for `path`."""

  def __init__(
    self,
    build: Build,
    path: str,
    in_features: int,
    out_features: int,
    *,
    rngs: nnx.Rngs,
    use_bias: bool = False,
    residual: bool = False,  # it writes to the residual stream
  ):
    config, lora = build.config, build.lora
    dtype = jnp.dtype(config.parameter_dtype)
    initial = nnx.initializers.normal(deviation(config, residual=residual))
    self.dtype = jnp.dtype(config.dtype)
    key = rngs.params()
    self.kernel = nnx.Param(initial(key, (in_features, out_features), dtype))
    self.bias = nnx.Param(jnp.zeros(out_features, dtype)) if use_bias else None
    adapts = lora is not None and lora.adapts(path) and path in adaptable(config)
    self.lora = lora if adapts else None
    self.stream = zlib.crc32(path.encode())  # of its dropout, the same in every process
    if self.lora is not None:
      limit, adapter_dtype = 1 / math.sqrt(in_features), jnp.dtype(self.lora.dtype)
      shape, key = (in_features, self.lora.rank), jax.random.fold_in(key, 1)
      self.lora_a = nnx.Param(jax.random.uniform(key, shape, adapter_dtype, -limit, limit))
      self.lora_b = nnx.Param(jnp.zeros((self.lora.rank, out_features), adapter_dtype))

  def __call__(self, x: jax.Array, key: jax.Array | None = None, taps: Any = None) -> jax.Array:
    """Maps the last axis; `key` draws the adapter's dropout, `None` leaves it out.

    `taps` are those of the kernel and of the adapter's two maps, by name.
    """
    x = x.astype(self.dtype)
    y = tapped(taps, "kernel", x, _product(x, self.kernel[...].astype(self.dtype)))
    if self.lora is not None:
      if key is not None and self.lora.dropout:
        x = _dropout(x, self.lora.dropout, jax.random.fold_in(key, self.stream))
      low = tapped(taps, "lora_a", x, _product(x, self.lora_a[...].astype(self.dtype)))
      high = _product(low, self.lora_b[...].astype(self.dtype))
      y += self.lora.scale * tapped(taps, "lora_b", low, high)
    return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class GatedUnit(nnx.Module):
  """(activation(x G) * x U) D."""

  def __init__(self, build: Build, *, rngs: nnx.Rngs):
    width, mlp_width = build.config.width, build.config.mlp_width
    self.activation = activation(build.config)
    self.gate = Linear(build, "layers/mlp/gate", width, mlp_width, rngs=rngs)
    self.up = Linear(build, "layers/mlp/up", width, mlp_width, rngs=rngs)
    self.down = Linear(build, "layers/mlp/down", mlp_width, width, rngs=rngs, residual=True)

  def __call__(
    self, x_BxTxD: jax.Array, key: jax.Array | None = None, taps: Any = None
  ) -> jax.Array:
    @jax.checkpoint  # keeps its inputs only for the backward pass, as RMSNorm does
    def combined(gate: jax.Array, up: jax.Array) -> jax.Array:
      gated = self.activation(gate) * up
      return self.down(constrain(gated, BATCH_AXES, None, "tensor"), key, under(taps, "down"))

    gate = self.gate(x_BxTxD, key, under(taps, "gate"))
    return combined(gate, self.up(x_BxTxD, key, under(taps, "up")))


def activation(config: DecoderConfig) -> Callable[[jax.Array], jax.Array]:
  """Returns the function of the gate."""
  if config.activation == "silu":
    return jax.nn.silu
  return lambda x: jax.nn.gelu(x, approximate=True)


def deviation(config: DecoderConfig, *, residual: bool) -> float:
  """The initial standard deviation of maps out of the residual stream, or into it."""
  base = config.initializer_scale * math.sqrt(2 / (5 * config.width))
  return base / math.sqrt(2 * config.num_layers) if residual else base


def _product(x: jax.Array, kernel_DxF: jax.Array) -> jax.Array:
  # The rows as one matrix: a gradient that contracts two axes is compiled on CPUs to a copy of
  # its operand in another layout, which takes as long as the product.
  y = x.reshape(-1, x.shape[-1]) @ kernel_DxF
  return y.reshape(*x.shape[:-1], kernel_DxF.shape[-1])


def _dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
  kept = jax.random.bernoulli(key, 1 - rate, x.shape)
  return jnp.where(kept, x / (1 - rate), jnp.zeros((), x.dtype))
