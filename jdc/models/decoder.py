"""A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, gated units.

One implementation serves the published families; `DecoderConfig` says what differs.
"""

import dataclasses
import functools
from typing import Literal

import jax
from flax import nnx

from jdc.models import attention, cross_entropy, subsets
from jdc.models.base import Cache, LanguageModel, Outputs, Params
from jdc.models.decoder_config import DecoderConfig
from jdc.models.layers import Build
from jdc.models.lora import LoraConfig, adaptable, check_targets
from jdc.models.moe import balance_loss
from jdc.models.partition import check_partition, partition_specs
from jdc.models.taps import LinearMap, Taps, nested
from jdc.models.transformer import Decoder, empty_cache


def decoder(
  config: DecoderConfig,
  loss_chunk: int | Literal["auto"] | None = "auto",
  lora: LoraConfig | None = None,
) -> LanguageModel:
  """A decoder as pure functions over a nested dict of parameters.

  For each layer, with N the RMSNorm, h <- h + Attention(N(h)), then h <- h + MLP(N(h)), the
  MLP a gated unit or a mixture of them; logits are N(h) W. Matrices start normal with standard
  deviation sqrt(2 / (5 width)), and 1 / sqrt(2 L) times that where they write to the residual
  stream.

  Args:
    config: the architecture and its precision.
    loss_chunk: positions whose logits exist at a time, on each device, where losses are
      computed; `None` for all; "auto" as `cross_entropy.default_chunk_size` says.
    lora: adapters, whose parameters lie beside the kernels as `lora_a` and `lora_b`.

  Returns:
    The model. Parameters of the layers are stacked on a leading axis of length L.

  Raises:
    ValueError: if `loss_chunk` is none of these, an adapter's target is no linear map, or
      `config.attention` cannot serve, as `attention.choose` says.

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
    >>> import jax.numpy as jnp
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
  if lora is not None:
    check_targets(lora, config)
  config = dataclasses.replace(
    config, attention=attention.choose(config, jax.default_backend())
  )
  build = Build(config, lora)
  graphdef, _ = nnx.split(nnx.eval_shape(lambda: Decoder(build, rngs=nnx.Rngs(0))))

  def init(key: jax.Array) -> Params:
    return nnx.to_pure_dict(nnx.state(Decoder(build, rngs=nnx.Rngs(key)), nnx.Param))

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
    key: jax.Array | None = None,
  ) -> jax.Array:
    model = nnx.merge(graphdef, params)
    hidden_BxTxD = model(tokens, positions, segments, key)
    return cross_entropy.token_cross_entropy(
      hidden_BxTxD, model.output_matrix(), targets, loss_chunk
    )

  def outputs(
    params: Params,
    tokens: jax.Array,
    targets: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    key: jax.Array | None = None,
    *,
    errors: bool = False,
  ) -> Outputs:
    model = nnx.merge(graphdef, params)
    hidden_BxTxD, routing = model.with_routing(tokens, positions, segments, key)
    arrays, errors_BxT = (hidden_BxTxD, model.output_matrix(), targets), None
    if errors:
      losses_BxT, errors_BxT = cross_entropy.token_losses_and_errors(*arrays, loss_chunk)
    else:
      losses_BxT = cross_entropy.token_cross_entropy(*arrays, loss_chunk)
    found = Outputs(losses_BxT, hidden_BxTxD, token_error=errors_BxT)
    if routing is None:
      return found
    balance = balance_loss(routing, config.experts_per_token)
    return found._replace(balance_loss=balance, expert_load=routing.load_BxE[-1])

  def weighted_loss(
    params: Params,
    tokens: jax.Array,
    targets: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    weights: jax.Array,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    model = nnx.merge(graphdef, params)
    hidden_BxTxD = model(tokens, positions, segments, key)
    return cross_entropy.weighted_cross_entropy(
      hidden_BxTxD, model.output_matrix(), targets, weights, loss_chunk
    )

  def weighted_error_loss(
    params: Params,
    tokens: jax.Array,
    targets: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    weights: jax.Array,
    key: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    model = nnx.merge(graphdef, params)
    hidden_BxTxD = model(tokens, positions, segments, key)
    return cross_entropy.weighted_losses_and_errors(
      hidden_BxTxD, model.output_matrix(), targets, weights, loss_chunk
    )

  def linear_maps(params: Params) -> dict[str, LinearMap]:
    modules = adaptable(config)
    return {
      path: LinearMap(leaf.shape[1], leaf.shape[2], num_layers=leaf.shape[0])
      for path, leaf in subsets.leaves(params)
      if path.rpartition("/")[0] in modules and path.rpartition("/")[2] != "bias"
    }

  def tapped_losses(
    params: Params,
    taps: Taps,
    tokens: jax.Array,
    targets: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    top_layers: int = 0,
    *,
    forward_mode: bool = False,
  ) -> jax.Array:
    model = nnx.merge(graphdef, params)
    hidden_BxTxD = model.with_taps(tokens, positions, segments, nested(taps), top_layers)
    return cross_entropy.token_cross_entropy(
      hidden_BxTxD, model.output_matrix(), targets, loss_chunk, forward_mode
    )

  def logits(
    params: Params, tokens: jax.Array, positions: jax.Array, segments: jax.Array
  ) -> jax.Array:
    model = nnx.merge(graphdef, params)
    hidden_BxTxD = model(tokens, positions, segments)
    return cross_entropy.float32_logits(hidden_BxTxD, model.output_matrix())

  def output_matrix(params: Params) -> jax.Array:
    return nnx.merge(graphdef, params).output_matrix()

  def extend(
    params: Params, tokens: jax.Array, positions: jax.Array, valid: jax.Array, cache: Cache
  ) -> tuple[jax.Array, Cache]:
    model = nnx.merge(graphdef, params)
    hidden_BxTxD, cache = model.extend(tokens, positions, valid, cache)
    last_BxV = cross_entropy.float32_logits(hidden_BxTxD[:, -1:], model.output_matrix())[:, 0]
    return last_BxV, cache

  return LanguageModel(
    init=init,
    hidden=hidden,
    token_losses=token_losses,
    weighted_loss=weighted_loss,
    logits=logits,
    partition_specs=partition_specs,
    vocab_size=config.vocab_size,
    check_partition=functools.partial(check_partition, config),
    empty_cache=functools.partial(empty_cache, config),
    extend=extend,
    dropout=lora is not None and lora.dropout > 0,
    outputs=outputs,
    error_outputs=functools.partial(outputs, errors=True),
    weighted_error_loss=weighted_error_loss,
    output_matrix=output_matrix,
    balance_weight=config.balance_weight,
    linear_maps=linear_maps,
    tapped_losses=tapped_losses,
    skips_targets=True,
    forward_mode_losses=lambda params, *rows: tapped_losses(
      params, {}, *rows, forward_mode=True
    ),
  )
