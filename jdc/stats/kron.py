"""Projected per-example gradients by a Kronecker product of random matrices."""

import functools
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jdc.data.batch import RowInputs
from jdc.models.base import LanguageModel
from jdc.stats import ghost, linear_taps
from jdc.stats.gradients import Features, Options
from jdc.stats.linear_taps import Chosen, Params, Statistic, dot
from jdc.stats.whitening import whiten as whiten
from jdc.stats.whitening import whitening as whitening

FIELDS = frozenset({"gradient", "gradient_norm"})


def make_kron(
  model: LanguageModel,
  shapes: Params,
  wanted: frozenset[str],
  options: Options,
  key: jax.Array,
  sharding: jax.NamedSharding | None = None,
) -> Features:
  r"""Features of R = S k^2 numbers, k^2 for each of the S matrices whose gradients are wanted.

  With G [in, out] the gradient of a row's mean loss by one matrix of a linear map,

    feature = P_in G P_out = sum_t (P_in x_t) (P_out^T dy_t)^T,   f32[k, k],

  which is (P_in kron P_out^T) vec(G), rows first. P_in [k, in] and P_out [out, k] have
  independent entries N(0, 1 / k), drawn for each path and layer by itself, so that
  E[P_in^T P_in] = I and inner products of features are unbiased for those of gradients. Where
  k is not below `in` or `out`, that side is the identity, padded with zeros: it loses nothing.

  A tap keeps k numbers a token for the backward pass, which goes through the activations alone:
  no gradient by a parameter is computed, and no array is as large as one for each row.
  `gradient_norm` is exact, of the same maps, by `ghost.squared_norm` in the same pass.

  Args:
    model: offers `linear_maps` and `tapped_losses`.
    shapes: of the parameters, a pair.
    wanted: of "gradient" and "gradient_norm".
    options: `parameters` and `top_layers` choose the maps, as `linear_taps.choose` says; `size`
      is R, `microbatch_size` the rows that are computed at once.
    key: of the projection; the same key, path and layer have the same one.
    sharding: of batches; `None` for one device.

  Returns:
    The features, sorted by path, then layer, then rows first. Rows without target tokens get
    zeros.

  Raises:
    ValueError: naming unknown fields, a size that does not fit, and as `linear_taps.choose`.

  References:
    Choe et al., "What is Your Data Worth to GPT? LLM-Scale Data Valuation with Influence
      Functions", 2024, arXiv:2405.13954; here the matrices are random alone, since principal
      components would bias inner products.

  Example:
    >>> from jdc.data.batch import inputs_and_targets
    >>> from jdc.models.decoder import DecoderConfig, decoder
    >>> from jdc.stats.gradients import Options
    >>> config = DecoderConfig(
    ...   vocab_size=8, width=8, num_layers=2, num_heads=1, num_kv_heads=1, mlp_width=8
    ... )
    >>> model = decoder(config)
    >>> params = model.init(jax.random.key(0))
    >>> options = Options(provider="kron", size=2 * 7 * 3**2)
    >>> wanted = frozenset({"gradient"})
    >>> features = make_kron(model, (params, None), wanted, options, jax.random.key(1))
    >>> tokens = jnp.array([[1, 2, 1, 2], [3, 5, 7, 4]])
    >>> rows = inputs_and_targets(tokens, jnp.ones_like(tokens))
    >>> jax.jit(features.compute)((params, None), None, rows)["gradient"].shape
    (2, 126)
  """
  if not wanted or wanted - FIELDS:
    raise ValueError(
      f'the provider "kron" gives {", ".join(sorted(FIELDS))}, got {sorted(wanted)}; an '
      'optimizer\'s direction does not commute with its projection: it needs "exact"'
    )
  maps = linear_taps.choose(model, shapes, options)
  core_size = _core_size(maps, options.size)
  statistics = {}
  if "gradient" in wanted:
    statistics["gradient"] = _projected(core_size)
  if "gradient_norm" in wanted:
    statistics["gradient_norm"] = ghost.squared_norm(sharding)

  def compute(params: Params, moments: Any, inputs: RowInputs) -> dict[str, jax.Array]:
    del moments
    factors = projections(key, maps, core_size)

    def rows(inputs: RowInputs) -> dict[str, jax.Array]:
      found = linear_taps.collect(
        model, params, maps, statistics, factors, inputs, options.top_layers
      )
      result = {}
      if "gradient" in wanted:
        result["gradient"] = _joined(maps, found)
      if "gradient_norm" in wanted:
        result["gradient_norm"] = jnp.sqrt(ghost.sum_of_maps(maps, found, "gradient_norm"))
      return result

    return linear_taps.in_microbatches(rows, inputs, options.microbatch_size, sharding)

  return Features(options.size, compute)


def projections(
  key: jax.Array, maps: Mapping[str, Chosen], core_size: int
) -> dict[str, tuple[jax.Array, jax.Array]]:
  """Returns P_in^T and P_out of each map, f32[in, k] and f32[out, k].

  Behind a leading axis of the tapped layers where the map is stacked. Those of a path and layer
  do not depend on which others there are.
  """
  # All sides of one size are drawn at once: compilation takes long for each draw.
  places: dict[int, list[tuple[str, int]]] = {}
  for path, found in maps.items():
    for side, features in enumerate(found[:2]):
      places.setdefault(features, []).append((path, side))
  drawn: dict[tuple[str, int], jax.Array] = {}
  for features, sides in places.items():
    streams = [
      (path, side, layer) for path, side in sides for layer in maps[path].layers or [0]
    ]
    matrices, start = _draw(key, streams, features, core_size), 0
    for path, side in sides:
      part = matrices[start : start + maps[path].num_copies]
      drawn[path, side] = part if maps[path].layers else part[0]
      start += len(part)
  return {path: (drawn[path, 0], drawn[path, 1]) for path in maps}


def _draw(
  key: jax.Array, streams: list[tuple[str, int, int]], features: int, core_size: int
) -> jax.Array:
  """Matrices f32[n, features, k] of paths, sides and layers."""
  if core_size >= features:
    return jnp.tile(jnp.eye(features, core_size), (len(streams), 1, 1))

  def one(numbers: jax.Array) -> jax.Array:
    stream = functools.reduce(jax.random.fold_in, numbers, key)
    return jax.random.normal(stream, (features, core_size)) / math.sqrt(core_size)

  numbers = [(zlib.crc32(path.encode()), side, layer) for path, side, layer in streams]
  return jax.vmap(one)(jnp.array(numbers, jnp.uint32))


def _core_size(maps: Mapping[str, Chosen], size: int) -> int:
  num_matrices = sum(found.num_copies for found in maps.values())
  core_size = math.isqrt(max(size, 0) // num_matrices)
  if core_size and size == num_matrices * core_size**2:
    return core_size
  near = [f"{num_matrices * k * k} (k = {k})" for k in (core_size, core_size + 1) if k]
  raise ValueError(
    f"features.size must be k^2 for each of {num_matrices} matrices ({len(maps)} linear maps "
    f"in their layers), got {size}; the nearest that fit: {', '.join(near)}"
  )


def _projected(core_size: int) -> Statistic:
  """P_in G P_out of each row, f32[B, k, k]."""

  def keep(factors: tuple[jax.Array, jax.Array], x_BxTxD: jax.Array) -> jax.Array:
    return _times(x_BxTxD, factors[0])

  def reduce(factors: Any, kept_BxTxK: jax.Array, dy_BxTxF: jax.Array) -> jax.Array:
    return dot("btk,btj->bkj", kept_BxTxK, _times(dy_BxTxF, factors[1]))

  return Statistic(lambda rows: (rows, core_size, core_size), keep, reduce)


def _times(x_BxTxD: jax.Array, factor_DxK: jax.Array) -> jax.Array:
  # In the activations' dtype, which a random factor may be rounded to; sums are in float32.
  x = x_BxTxD.reshape(-1, x_BxTxD.shape[2])
  y = dot("pd,dk->pk", x, factor_DxK.astype(x.dtype))
  return y.reshape(*x_BxTxD.shape[:2], -1)


def _joined(
  maps: Mapping[str, Chosen], found: Mapping[str, Mapping[str, jax.Array]]
) -> jax.Array:
  parts = []
  for path, chosen in maps.items():
    core = found[path]["gradient"]
    core = jnp.moveaxis(core, 0, 1) if chosen.layers else core
    parts.append(core.reshape(len(core), -1))
  return jnp.concatenate(parts, axis=1)
