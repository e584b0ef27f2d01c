"""The modules of a decoder: embedding, layers under a scan, final norm."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jdc.models import attention
from jdc.models.attention import Context
from jdc.models.base import BATCH_AXES, Cache
from jdc.models.decoder_config import DecoderConfig
from jdc.models.layers import Build, GatedUnit, Linear, RMSNorm, deviation
from jdc.models.moe import MixtureOfExperts, Routing
from jdc.models.partition import constrain
from jdc.models.rotary import rotate
from jdc.models.taps import under


class Decoder(nnx.Module):
  """Embeds tokens, applies the layers, normalises."""

  def __init__(self, build: Build, *, rngs: nnx.Rngs):
    self.config = config = build.config
    self.embedding = nnx.Embed(
      config.vocab_size,
      config.width,
      dtype=jnp.dtype(config.dtype),
      param_dtype=jnp.dtype(config.parameter_dtype),
      embedding_init=nnx.initializers.normal(deviation(config, residual=False)),
      rngs=rngs,
    )
    # Stacked for the scan of `apply_layers`, each layer with its own key.
    keys = jax.random.split(rngs.params(), config.num_layers)
    self.layers = jax.vmap(lambda key: Layer(build, rngs=nnx.Rngs(key)))(keys)
    self.final_norm = RMSNorm(config, config.width)
    self.output = (
      None
      if config.tie_embeddings
      else Linear(build, "output", config.width, config.vocab_size, rngs=rngs)
    )

  def __call__(
    self,
    tokens_BxT: jax.Array,
    positions_BxT: jax.Array,
    segments_BxT: jax.Array,
    key: jax.Array | None = None,
  ) -> jax.Array:
    """Returns the normalised hidden states of whole rows; `key` draws dropout."""
    return self._whole_rows(tokens_BxT, positions_BxT, segments_BxT, key, None)[0]

  def with_taps(
    self,
    tokens_BxT: jax.Array,
    positions_BxT: jax.Array,
    segments_BxT: jax.Array,
    taps: Any,
    top_layers: int = 0,
  ) -> jax.Array:
    """Returns what a call does; `taps` is a nested dict that says what looks at which map.

    With `top_layers` no gradient goes below these, and taps are of these alone.
    """
    context = attention.packed_context(self.config, positions_BxT, segments_BxT)
    hidden_BxTxD = self._embed(tokens_BxT)
    layers, taps, first = self.layers, under(taps, "layers"), 0
    if top_layers:
      first = self.config.num_layers - top_layers
      below = jax.tree.map(lambda x: jax.lax.stop_gradient(x[:first]), layers)
      layers = jax.tree.map(lambda x: x[first:], layers)
      if first:
        hidden_BxTxD, _ = apply_layers(self.config, below, hidden_BxTxD, context, None, None)
      hidden_BxTxD = jax.lax.stop_gradient(hidden_BxTxD)
    hidden_BxTxD, _ = apply_layers(
      self.config, layers, hidden_BxTxD, context, None, None, None, taps, first
    )
    return self.final_norm(hidden_BxTxD)

  def with_routing(
    self,
    tokens_BxT: jax.Array,
    positions_BxT: jax.Array,
    segments_BxT: jax.Array,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, Routing | None]:
    """Returns what a call does, and where experts, if any, got the tokens; [L, B, E]."""
    real_BxT = segments_BxT > 0 if self.config.num_experts else None
    return self._whole_rows(tokens_BxT, positions_BxT, segments_BxT, key, real_BxT)

  def _whole_rows(
    self,
    tokens_BxT: jax.Array,
    positions_BxT: jax.Array,
    segments_BxT: jax.Array,
    key: jax.Array | None,
    real_BxT: jax.Array | None,
  ) -> tuple[jax.Array, Routing | None]:
    context = attention.packed_context(self.config, positions_BxT, segments_BxT)
    hidden_BxTxD = self._embed(tokens_BxT)
    hidden_BxTxD, (_, routing) = apply_layers(
      self.config, self.layers, hidden_BxTxD, context, key, None, real_BxT
    )
    return self.final_norm(hidden_BxTxD), routing

  def extend(
    self,
    tokens_BxT: jax.Array,
    positions_BxT: jax.Array,
    valid_BxT: jax.Array,
    cache: Cache,
  ) -> tuple[jax.Array, Cache]:
    """Returns the normalised hidden states of the next T tokens of rows, and a longer cache."""
    at = cache.length
    cache = cache._replace(
      positions=jax.lax.dynamic_update_slice_in_dim(cache.positions, positions_BxT, at, axis=1),
      valid=jax.lax.dynamic_update_slice_in_dim(cache.valid, valid_BxT, at, axis=1),
      length=at + tokens_BxT.shape[1],
    )
    context = attention.cached_context(self.config, positions_BxT, cache.positions, cache.valid)
    kept = KeysAndValues(cache.keys, cache.values)
    hidden_BxTxD, (new, _) = apply_layers(
      self.config, self.layers, self._embed(tokens_BxT), context, None, (kept, at)
    )
    assert new is not None
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=at, axis=2)
    cache = cache._replace(keys=put(cache.keys, new.keys), values=put(cache.values, new.values))
    return self.final_norm(hidden_BxTxD), cache

  def output_matrix(self) -> jax.Array:
    """The matrix from the final hidden states to logits, [D, V]."""
    if self.output is None:
      return self.embedding.embedding[...].T
    return self.output.kernel[...]

  def _embed(self, tokens_BxT: jax.Array) -> jax.Array:
    hidden_BxTxD = self.embedding(tokens_BxT)
    if self.config.scale_embeddings:
      hidden_BxTxD *= jnp.asarray(math.sqrt(self.config.width), hidden_BxTxD.dtype)
    return constrain(hidden_BxTxD, BATCH_AXES, None, None)


class KeysAndValues(NamedTuple):
  """Those of some tokens, rotated; stacked by layer outside the scan over layers."""

  keys: jax.Array  # [B, S, M, H]
  values: jax.Array


# The keys and values of a cache, and how many of its slots are filled.
Kept = tuple[KeysAndValues, jax.Array]


class Layer(nnx.Module):
  """Attention and a gated unit, each normalised before and added to the residual stream."""

  def __init__(self, build: Build, *, rngs: nnx.Rngs):
    config = build.config
    self.attention_norm = RMSNorm(config, config.width)
    self.attention = Attention(build, rngs=rngs)
    self.mlp_norm = RMSNorm(config, config.width)
    unit = MixtureOfExperts if config.num_experts else GatedUnit
    self.mlp = unit(build, rngs=rngs)
    self.post_attention_norm = RMSNorm(config, config.width) if config.post_norms else None
    self.post_mlp_norm = RMSNorm(config, config.width) if config.post_norms else None

  def __call__(
    self,
    hidden_BxTxD: jax.Array,
    context: attention.LayerContext,
    key: jax.Array | None,
    kept: Kept | None,
    real_BxT: jax.Array | None,
    taps: Any = None,
  ) -> tuple[jax.Array, KeysAndValues, Routing | None]:
    attended, new = self.attention(
      self.attention_norm(hidden_BxTxD), context, key, kept, under(taps, "attention")
    )
    if self.post_attention_norm is not None:
      attended = self.post_attention_norm(attended)
    hidden_BxTxD += attended
    x, routing = self.mlp_norm(hidden_BxTxD), None
    if real_BxT is None:
      mixed = self.mlp(x, key, under(taps, "mlp"))
    else:
      assert isinstance(self.mlp, MixtureOfExperts)
      mixed, routing = self.mlp.with_routing(x, real_BxT)
    if self.post_mlp_norm is not None:
      mixed = self.post_mlp_norm(mixed)
    return constrain(hidden_BxTxD + mixed, BATCH_AXES, None, None), new, routing


class Attention(nnx.Module):
  """Grouped-query attention with rotary positions."""

  def __init__(self, build: Build, *, rngs: nnx.Rngs):
    config, size = build.config, build.config.features_per_head
    self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
    self.scale, self.norm_each_head = config.attention_scale, config.qk_norm == "head"

    def linear(name: str, num_heads: int) -> Linear:
      return Linear(
        build,
        f"layers/attention/{name}",
        config.width,
        num_heads * size,
        rngs=rngs,
        use_bias=config.attention_bias,
      )

    def norm(num_heads: int) -> RMSNorm | None:
      if config.qk_norm == "none":
        return None
      return RMSNorm(config, size if self.norm_each_head else num_heads * size)

    self.query = linear("query", config.num_heads)
    self.key = linear("key", config.num_kv_heads)
    self.value = linear("value", config.num_kv_heads)
    self.attention_output = Linear(
      build,
      "layers/attention/attention_output",
      config.num_heads * size,
      config.width,
      rngs=rngs,
      residual=True,
    )
    self.query_norm, self.key_norm = norm(config.num_heads), norm(config.num_kv_heads)

  def __call__(
    self,
    x_BxTxD: jax.Array,
    context: attention.LayerContext,
    key: jax.Array | None,
    kept: Kept | None,
    taps: Any = None,
  ) -> tuple[jax.Array, KeysAndValues]:
    query = self.query(x_BxTxD, key, under(taps, "query"))
    q = self._heads(query, self.num_heads, self.query_norm)
    k = self._heads(
      self.key(x_BxTxD, key, under(taps, "key")), self.num_kv_heads, self.key_norm
    )
    v = self._heads(self.value(x_BxTxD, key, under(taps, "value")), self.num_kv_heads, None)
    q, k = rotate(q, context.rotation), rotate(k, context.rotation)
    new = KeysAndValues(k, v)
    if kept is not None:
      put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=kept[1], axis=1)
      k, v = jax.tree.map(put, kept[0], new)
    attended = attention.attend(q, k, v, context, self.scale)
    joined_BxTxF = attended.reshape(*x_BxTxD.shape[:2], -1)
    return self.attention_output(joined_BxTxF, key, under(taps, "attention_output")), new

  def _heads(self, y: jax.Array, num_heads: int, norm: RMSNorm | None) -> jax.Array:
    if norm is not None and not self.norm_each_head:
      y = norm(y)
    y = y.reshape(*y.shape[:2], num_heads, -1)
    if norm is not None and self.norm_each_head:
      y = norm(y)
    return constrain(y, BATCH_AXES, None, "tensor", None)


def apply_layers(
  config: DecoderConfig,
  layers: Layer,
  hidden: jax.Array,
  context: Context,
  key: jax.Array | None,
  cache: Kept | None,
  real_BxT: jax.Array | None = None,
  taps: Any = None,
  first: int = 0,
) -> tuple[jax.Array, tuple[KeysAndValues | None, Routing | None]]:
  """Returns the hidden states, and by layer what goes to the cache and the routing if asked.

  `layers` are all of the decoder's, or some in a row, of which `first` is the place.
  """
  # A scan, and not an nnx.List, keeps tracing and compilation flat in depth and the tree at 12
  # arrays for the optimizer and the checkpoint. On 2 CPU cores, forward and backward: 24 layers
  # trace and compile in 4.2 s against 6.4 s, 4 layers in 2.4 s against 1.5 s; steps take 1.02
  # to 1.2 times those of the list.
  num_layers = jax.tree.leaves(layers)[0].shape[0]
  local = config.local_layers[first : first + num_layers]
  flags = None if len(set(local)) == 1 else jnp.array(local)
  keys = None if key is None else jax.random.split(key, num_layers)
  kept = None if cache is None else cache[0]

  def one_layer(hidden: jax.Array, each: tuple) -> tuple[jax.Array, tuple]:
    layer, flag, key, kept, taps = each
    seen = context.of(local[0] if flag is None else flag)
    cached = None if cache is None else (kept, cache[1])
    hidden, new, routing = layer(hidden, seen, key, cached, real_BxT, taps)
    return hidden, (None if cache is None else new, routing)

  if config.remat == "layer":
    one_layer = jax.checkpoint(one_layer, prevent_cse=False)
  return jax.lax.scan(one_layer, hidden, (layers, flags, keys, kept, taps))


def empty_cache(config: DecoderConfig, batch_size: int, length: int) -> Cache:
  heads, size = config.num_kv_heads, config.features_per_head
  shape = (config.num_layers, batch_size, length, heads, size)

  def zeros() -> jax.Array:
    empty = jnp.zeros(shape, jnp.dtype(config.dtype))
    return constrain(empty, None, BATCH_AXES, None, "tensor", None)

  slots = (batch_size, length)
  return Cache(
    zeros(), zeros(), jnp.zeros(slots, jnp.int32), jnp.zeros(slots, bool), jnp.int32(0)
  )
