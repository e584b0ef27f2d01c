"""Inner products and norms of the gradients of examples, none of which is formed."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jdc.data.batch import RowInputs
from jdc.models.base import LanguageModel
from jdc.stats import linear_taps
from jdc.stats.gradients import Options
from jdc.stats.linear_taps import Params, Statistic, dot, place
from jdc.stats.probes import num_shards


def make_gradient_products(
  model: LanguageModel,
  shapes: Params,
  options: Options,
  sharding: jax.NamedSharding | None = None,
) -> Callable[[Params, RowInputs], jax.Array]:
  r"""Returns `(params, inputs) -> f32[B, B]`, inner products of the rows' gradients.

  With G_i = sum_t x_it dy_it^T the gradient of row i's mean loss by the matrix of a linear map,

    <G_i, G_j> = sum_{t, t'} (x_it . x_jt') (dy_it . dy_jt'),

  summed over the chosen maps and layers. All come from one forward and one backward pass. Each
  map takes what needs fewer operations: the sum over t and t', 2 B^2 T^2 (in + out), row by
  row, with [B, T, T] numbers at a time; or the gradients, 2 B (T + B) in out, with [B, in, out]
  numbers at a time, of one map and one layer.

  All rows are computed at once, since all pairs are needed: `options.microbatch_size` does not
  count here. Over devices, the first way gathers x and dy of all rows on each, and the second
  splits gradients over their inputs.

  Args:
    model: offers `linear_maps` and `tapped_losses`.
    shapes: of the parameters, a pair.
    options: `parameters` and `top_layers` choose the maps, as `linear_taps.choose` says.
    sharding: of batches; `None` for one device.

  Returns:
    A pure function for use in a step. A row is an example, so rows may not be packed; one
    without target tokens has products 0.

  Raises:
    ValueError: as `linear_taps.choose`.

  References:
    Wang et al., "GREATS: Online Selection of High-Quality Data for LLM Training in Every
      Iteration", 2024, NeurIPS.

  Example:
    >>> from jdc.data.batch import inputs_and_targets
    >>> from jdc.models.decoder import DecoderConfig, decoder
    >>> from jdc.stats.gradients import Options
    >>> config = DecoderConfig(
    ...   vocab_size=8, width=8, num_layers=1, num_heads=1, num_kv_heads=1, mlp_width=8
    ... )
    >>> model = decoder(config)
    >>> params = model.init(jax.random.key(0))
    >>> tokens = jnp.array([[1, 2, 1, 2], [1, 2, 1, 2], [3, 5, 7, 4]])
    >>> rows = inputs_and_targets(tokens, jnp.ones_like(tokens))
    >>> products = make_gradient_products(model, (params, None), Options())
    >>> found = jax.jit(products)((params, None), rows)
    >>> found.shape, bool(found[0, 1] > found[0, 2])
    ((3, 3), True)
  """
  return _make_sum(model, shapes, options, _products(sharding))


def make_gradient_norms(
  model: LanguageModel,
  shapes: Params,
  options: Options,
  sharding: jax.NamedSharding | None = None,
) -> Callable[[Params, RowInputs], jax.Array]:
  """Returns `(params, inputs) -> f32[B]`, the norms of the rows' gradients by the chosen maps.

  As `make_gradient_products`, but of the diagonal alone, and its root; and
  `options.microbatch_size` rows at a time, since no pairs are needed. Beyond what the backward
  pass itself holds, a device holds the inputs of every chosen map, and the gradient of one row
  by one matrix, or [T, T] numbers where that takes fewer operations.
  """
  squares = _make_sum(model, shapes, options, squared_norm(sharding))

  def norms(params: Params, inputs: RowInputs) -> jax.Array:
    def rows(inputs: RowInputs) -> jax.Array:
      return jnp.sqrt(squares(params, inputs))

    size = options.microbatch_size
    return linear_taps.in_microbatches(rows, inputs, size, sharding)

  return norms


def squared_norm(sharding: jax.NamedSharding | None) -> Statistic:
  """Returns the statistic ||G_i||^2, f32[B]."""

  def each_row(constants: Any, x_BxTxD: jax.Array, dy_BxTxF: jax.Array) -> jax.Array:
    del constants
    batch_size = len(x_BxTxD)
    shards = 1 if sharding is None else math.gcd(num_shards(sharding), batch_size)

    def split(x: jax.Array) -> jax.Array:  # a row of each device at a time
      x = x.reshape(shards, batch_size // shards, *x.shape[1:]).swapaxes(0, 1)
      return place(x, sharding, axis=1)

    def one_of_each(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
      return jax.vmap(_squared_norm)(*rows)

    squares = jax.lax.map(one_of_each, (split(x_BxTxD), split(dy_BxTxF)))
    return squares.swapaxes(0, 1).reshape(batch_size)

  return Statistic(lambda rows: (rows,), _keep_all, each_row)


def _squared_norm(x_TxD: jax.Array, dy_TxF: jax.Array) -> jax.Array:
  (length, width), (_, height) = x_TxD.shape, dy_TxF.shape
  if length * (width + height) < width * height:
    return jnp.sum(dot("td,sd->ts", x_TxD, x_TxD) * dot("tf,sf->ts", dy_TxF, dy_TxF))
  return jnp.sum(jnp.square(dot("td,tf->df", x_TxD, dy_TxF)))


def _products(sharding: jax.NamedSharding | None) -> Statistic:
  def all_pairs(constants: Any, x_BxTxD: jax.Array, dy_BxTxF: jax.Array) -> jax.Array:
    del constants
    (batch_size, length, width), height = x_BxTxD.shape, dy_BxTxF.shape[2]
    over_tokens = batch_size * length**2 * (width + height)
    if over_tokens < (length + batch_size) * width * height:
      return _over_tokens(x_BxTxD, dy_BxTxF, sharding)
    return _over_gradients(x_BxTxD, dy_BxTxF, sharding)

  return Statistic(lambda rows: (rows, rows), _keep_all, all_pairs)


def _over_tokens(
  x_BxTxD: jax.Array, dy_BxTxF: jax.Array, sharding: jax.NamedSharding | None
) -> jax.Array:
  def with_all(row: tuple[jax.Array, jax.Array]) -> jax.Array:
    x_TxD, dy_TxF = row
    x_BxTxT = dot("td,bsd->bts", x_TxD, x_BxTxD)
    return jnp.sum(x_BxTxT * dot("tf,bsf->bts", dy_TxF, dy_BxTxF), axis=(1, 2))

  everywhere = (place(x_BxTxD, sharding, axis=None), place(dy_BxTxF, sharding, axis=None))
  return place(jax.lax.map(with_all, everywhere), sharding, axis=None)


def _over_gradients(
  x_BxTxD: jax.Array, dy_BxTxF: jax.Array, sharding: jax.NamedSharding | None
) -> jax.Array:
  gradient_BxDxF = dot("btd,btf->bdf", x_BxTxD, dy_BxTxF)
  if sharding is not None and gradient_BxDxF.shape[1] % num_shards(sharding) == 0:
    gradient_BxDxF = place(gradient_BxDxF, sharding, axis=1)
  products_BxB = dot("adf,bdf->ab", gradient_BxDxF, gradient_BxDxF)
  return place(products_BxB, sharding, axis=None)


def _make_sum(
  model: LanguageModel, shapes: Params, options: Options, statistic: Statistic
) -> Callable[[Params, RowInputs], jax.Array]:
  """Returns `(params, inputs)` -> the statistic, summed over the chosen maps and layers."""
  maps = linear_taps.choose(model, shapes, options)

  def total(params: Params, inputs: RowInputs) -> jax.Array:
    found = linear_taps.collect(
      model, params, maps, {"": statistic}, {}, inputs, options.top_layers
    )
    return sum_of_maps(maps, found, "")

  return total


def sum_of_maps(
  maps: dict[str, linear_taps.Chosen], found: dict[str, dict[str, jax.Array]], name: str
) -> jax.Array:
  """Returns a statistic that `linear_taps.collect` found, summed over maps and layers."""
  parts = [
    jnp.sum(found[path][name], axis=0) if chosen.layers else found[path][name]
    for path, chosen in maps.items()
  ]
  return sum(parts[1:], start=parts[0])


def _keep_all(constants: Any, x_BxTxD: jax.Array) -> jax.Array:
  del constants
  return x_BxTxD
