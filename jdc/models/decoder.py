"""A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU."""

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jdc.models import cross_entropy
from jdc.models.base import BATCH_AXES, LanguageModel, Params
from jdc.models.configs import DecoderConfig
from jdc.models.partition import check_partition, constrain, partition_specs


class Context(NamedTuple):
  """What every layer reads beside its input."""

  cos_BxTx1xH: jax.Array  # f32, H half the features of a head
  sin_BxTx1xH: jax.Array
  mask_Bx1xTxT: jax.Array  # bool, query by key; True where attention may look


def decoder(
  config: DecoderConfig, loss_chunk: int | Literal["auto"] | None = "auto"
) -> LanguageModel:
  """A decoder as pure functions over a nested dict of parameters.

  For each layer, with N the RMSNorm, h <- h + Attention(N(h)), then h <- h + SwiGLU(N(h));
  logits are N(h) W. The linear maps have no biases. Matrices start normal with standard
  deviation sqrt(2 / (5 width)), and 1 / sqrt(2 L) times that where they write to the residual
  stream.

  Args:
    config: the architecture and its precision.
    loss_chunk: positions whose logits exist at a time in `token_losses`; `None` for all;
      "auto" as `cross_entropy.default_chunk_size` says.

  Returns:
    The model. Parameters of the layers are stacked on a leading axis of length L.

  Raises:
    ValueError: if `loss_chunk` is none of these.

  References:
    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.
    Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021,
      arXiv:2104.09864; here feature i is paired with i + H and not with its neighbour.
    Ainslie et al., "GQA: Training Generalized Multi-Query Transformer Models from Multi-Head
      Checkpoints", 2023, arXiv:2305.13245.
    Nguyen and Salazar, "Transformers without Tears", 2019, arXiv:1910.05895, for the standard
      deviation; the factor 1 / sqrt(2 L) is that of GPT-2.
    Shazeer, "GLU Variants Improve Transformer", 2020, arXiv:2002.05202.

  Example:
    >>> config = DecoderConfig(
    ...   vocab_size=256, width=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=64
    ... )
    >>> model = decoder(config)
    >>> params = model.init(jax.random.key(0))
    >>> params["layers"]["attention"]["query"]["kernel"].shape
    (2, 32, 32)
    >>> tokens = jnp.arange(8, dtype=jnp.int32)[None]
    >>> model.token_losses(params, tokens, tokens, tokens, jnp.ones_like(tokens)).shape
    (1, 8)
  """
  if (
    loss_chunk != "auto"
    and loss_chunk is not None
    and not (isinstance(loss_chunk, int) and loss_chunk >= 1)
  ):
    raise ValueError(
      f'loss_chunk must be "auto", None or at least 1 position, got {loss_chunk!r}'
    )
  graphdef, _ = nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))

  def init(key: jax.Array) -> Params:
    return nnx.to_pure_dict(nnx.state(Decoder(config, rngs=nnx.Rngs(key)), nnx.Param))

  def hidden(
    params: Params, tokens: jax.Array, positions: jax.Array, segments: jax.Array
  ) -> jax.Array:
    return nnx.merge(graphdef, params)(tokens, positions, segments)

  def token_losses(
    params: Params,
    tokens: jax.Array,
    targets: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
  ) -> jax.Array:
    model = nnx.merge(graphdef, params)
    chunk = loss_chunk
    if chunk == "auto":
      chunk = cross_entropy.default_chunk_size(tokens.shape[1], config.vocab_size)
    hidden_BxTxD = model(tokens, positions, segments)
    return cross_entropy.token_cross_entropy(
      hidden_BxTxD, model.output_matrix(), targets, chunk
    )

  def logits(
    params: Params, tokens: jax.Array, positions: jax.Array, segments: jax.Array
  ) -> jax.Array:
    model = nnx.merge(graphdef, params)
    hidden_BxTxD = model(tokens, positions, segments)
    return cross_entropy.float32_logits(hidden_BxTxD, model.output_matrix())

  return LanguageModel(
    init=init,
    hidden=hidden,
    token_losses=token_losses,
    logits=logits,
    partition_specs=partition_specs,
    vocab_size=config.vocab_size,
    check_partition=functools.partial(check_partition, config),
  )


class Decoder(nnx.Module):
  """Embeds tokens, applies the layers, normalises."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    self.config = config
    initial, _ = _initializers(config)
    self.embedding = nnx.Embed(
      config.vocab_size,
      config.width,
      dtype=jnp.dtype(config.dtype),
      param_dtype=jnp.dtype(config.parameter_dtype),
      embedding_init=initial,
      rngs=rngs,
    )
    # Stacked for the scan of `_apply_layers`, each layer with its own key.
    keys = jax.random.split(rngs.params(), config.num_layers)
    self.layers = jax.vmap(lambda key: Layer(config, rngs=nnx.Rngs(key)))(keys)
    self.final_norm = RMSNorm(config)
    self.output = (
      None
      if config.tie_embeddings
      else _linear(config, config.width, config.vocab_size, initial, rngs)
    )

  def __call__(
    self, tokens_BxT: jax.Array, positions_BxT: jax.Array, segments_BxT: jax.Array
  ) -> jax.Array:
    context = _context(self.config, positions_BxT, segments_BxT)
    hidden_BxTxD = constrain(self.embedding(tokens_BxT), BATCH_AXES, None, None)
    return self.final_norm(_apply_layers(self.layers, hidden_BxTxD, context, self.config.remat))

  def output_matrix(self) -> jax.Array:
    """The matrix from the final hidden states to logits, [D, V]."""
    if self.output is None:
      return self.embedding.embedding[...].T
    return self.output.kernel[...]


class Layer(nnx.Module):
  """Attention and SwiGLU, each normalised before and added to the residual stream."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    self.attention_norm = RMSNorm(config)
    self.attention = Attention(config, rngs=rngs)
    self.mlp_norm = RMSNorm(config)
    self.mlp = SwiGLU(config, rngs=rngs)

  def __call__(self, hidden_BxTxD: jax.Array, context: Context) -> jax.Array:
    hidden_BxTxD += self.attention(self.attention_norm(hidden_BxTxD), context)
    hidden_BxTxD += self.mlp(self.mlp_norm(hidden_BxTxD))
    return constrain(hidden_BxTxD, BATCH_AXES, None, None)


class RMSNorm(nnx.Module):
  """x / sqrt(mean x^2 + epsilon) times a learned scale, in float32."""

  def __init__(self, config: DecoderConfig):
    self.epsilon = config.norm_epsilon
    self.scale = nnx.Param(jnp.ones(config.width, jnp.dtype(config.parameter_dtype)))

  def __call__(self, x: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    normalised = x32 * jax.lax.rsqrt(mean_square + self.epsilon)
    return (normalised * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Attention(nnx.Module):
  """Grouped-query attention with rotary positions."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    size = config.features_per_head
    self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
    initial, residual = _initializers(config)
    width = config.width
    self.query = _linear(config, width, config.num_heads * size, initial, rngs)
    self.key = _linear(config, width, config.num_kv_heads * size, initial, rngs)
    self.value = _linear(config, width, config.num_kv_heads * size, initial, rngs)
    self.attention_output = _linear(config, config.num_heads * size, width, residual, rngs)

  def __call__(self, x_BxTxD: jax.Array, context: Context) -> jax.Array:
    batch_size, num_positions, _ = x_BxTxD.shape

    def heads(linear: nnx.Linear, num_heads: int) -> jax.Array:
      y = linear(x_BxTxD).reshape(batch_size, num_positions, num_heads, -1)
      return constrain(y, BATCH_AXES, None, "tensor", None)

    attended = jax.nn.dot_product_attention(
      _rotate(heads(self.query, self.num_heads), context),
      _rotate(heads(self.key, self.num_kv_heads), context),
      heads(self.value, self.num_kv_heads),
      mask=context.mask_Bx1xTxT,
    )
    return self.attention_output(attended.reshape(batch_size, num_positions, -1))


class SwiGLU(nnx.Module):
  """(silu(x G) * x U) D."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    initial, residual = _initializers(config)
    self.gate = _linear(config, config.width, config.mlp_width, initial, rngs)
    self.up = _linear(config, config.width, config.mlp_width, initial, rngs)
    self.down = _linear(config, config.mlp_width, config.width, residual, rngs)

  def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
    gated = jax.nn.silu(self.gate(x_BxTxD)) * self.up(x_BxTxD)
    return self.down(constrain(gated, BATCH_AXES, None, "tensor"))


def _apply_layers(layers: Layer, hidden: jax.Array, context: Context, remat: str) -> jax.Array:
  # A scan, and not an nnx.List, keeps tracing and compilation flat in depth and the tree at 12
  # arrays for the optimizer and the checkpoint. On 2 CPU cores, forward and backward: 24 layers
  # trace and compile in 4.2 s against 6.4 s, 4 layers in 2.4 s against 1.5 s; steps take 1.02
  # to 1.2 times those of the list. What differs between layers, such as a window, can be
  # scanned beside the parameters; a slice of them can be scanned alone.
  def one_layer(hidden: jax.Array, layer: Layer) -> tuple[jax.Array, None]:
    return layer(hidden, context), None

  if remat == "layer":
    one_layer = jax.checkpoint(one_layer, prevent_cse=False)
  return jax.lax.scan(one_layer, hidden, layers)[0]


def _context(config: DecoderConfig, positions: jax.Array, segments: jax.Array) -> Context:
  half = config.features_per_head // 2
  frequency_H = config.rope_base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle_BxTx1xH = positions[:, :, None, None].astype(jnp.float32) * frequency_H
  num_positions = segments.shape[1]
  # Padding is a segment like any other, since a softmax over nothing is undefined.
  same_segment = segments[:, None, :, None] == segments[:, None, None, :]
  causal_TxT = jnp.tril(jnp.ones((num_positions, num_positions), bool))
  return Context(jnp.cos(angle_BxTx1xH), jnp.sin(angle_BxTx1xH), same_segment & causal_TxT)


def _rotate(x_BxTxNxH: jax.Array, context: Context) -> jax.Array:
  """Turns the pair of features (i, i + H / 2) by its angle, in float32."""
  a, b = jnp.split(x_BxTxNxH.astype(jnp.float32), 2, axis=-1)
  cos, sin = context.cos_BxTx1xH, context.sin_BxTx1xH
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BxTxNxH.dtype)


def _initializers(
  config: DecoderConfig,
) -> tuple[nnx.initializers.Initializer, nnx.initializers.Initializer]:
  """For maps out of the residual stream, and for those that write to it."""
  deviation = config.initializer_scale * math.sqrt(2 / (5 * config.width))
  residual_deviation = deviation / math.sqrt(2 * config.num_layers)
  return nnx.initializers.normal(deviation), nnx.initializers.normal(residual_deviation)


def _linear(
  config: DecoderConfig,
  in_features: int,
  out_features: int,
  initializer: nnx.initializers.Initializer,
  rngs: nnx.Rngs,
) -> nnx.Linear:
  return nnx.Linear(
    in_features,
    out_features,
    use_bias=False,
    dtype=jnp.dtype(config.dtype),
    param_dtype=jnp.dtype(config.parameter_dtype),
    kernel_init=initializer,
    rngs=rngs,
  )
