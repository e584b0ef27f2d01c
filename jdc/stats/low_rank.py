"""The gradient of a target set by linear maps, as matrices of low rank."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdc.data.batch import RowInputs
from jdc.models import subsets
from jdc.models.base import LanguageModel
from jdc.stats import linear_taps
from jdc.stats.gradients import Options
from jdc.stats.linear_taps import Chosen, Params
from jdc.stats.losses import full_params
from jdc.stats.target import split_rows
from jdc.stats.target_rows import TargetRows

_ITERATIONS = 2  # of the subspace; each brings the factors closer to the leading ones
_OVERSAMPLING = 8  # directions that are found and not kept


class LowRankGradient(NamedTuple):
  """A target's gradient by each map, and how much of it the factors hold."""

  maps: dict[str, dict[str, jax.Array]]  # as `jdc.stats.map_alignment` takes it
  share: jax.Array  # f32[], of the gradient's squared norm


def make_low_rank_gradient(
  model: LanguageModel,
  rank: int,
  batch_size: int,
  sharding: jax.NamedSharding | None = None,
) -> Callable[[Params, TargetRows], LowRankGradient]:
  r"""Returns `(params, rows) -> LowRankGradient`, for inner products that cost next to nothing.

  With G the gradient of the target's mean loss by the matrix of a map,

    G ~ Q (Q' G),

  where Q [in, r] holds the leading left singular vectors of G in a subspace of a few more
  dimensions, found by iteration, orth(G G' ... G G' G Omega). The error is a little above that
  of the best matrix of rank r, and none where G is of rank r or less. A row's inner product
  with it takes r (in + out) / (in out) of the operations of the map. Omega is drawn from a
  fixed seed. A map that r (in + out) >= in out has its whole matrix.

  Args:
    model: offers `linear_maps`.
    rank: r, at least 1.
    batch_size: rows in one pass, over all devices.
    sharding: of batches; `None` for one device.

  Returns:
    A pure function. `share` is sum |Q' G|^2 / sum |G|^2 over all maps, 1 where nothing is lost
    or the gradient is 0.

  Raises:
    ValueError: if the rank is not a positive integer.

  References:
    Halko, Martinsson, Tropp, "Finding structure with randomness: Probabilistic algorithms for
    constructing approximate matrix decompositions", 2011, arXiv:0909.4061 (algorithm 4.4).

  Example:
    >>> import numpy as np
    >>> from jdc.models.decoder import DecoderConfig, decoder
    >>> config = DecoderConfig(
    ...   vocab_size=8, width=8, num_layers=1, num_heads=1, num_kv_heads=1, mlp_width=8
    ... )
    >>> model = decoder(config)
    >>> tokens = np.array([[1, 2, 1, 2]], np.int32)
    >>> zero = np.zeros(1, np.int32)
    >>> rows = TargetRows(tokens, np.ones_like(tokens), zero, zero)
    >>> found = make_low_rank_gradient(model, 2, 1)((model.init(jax.random.key(0)), None), rows)
    >>> found.maps["layers/mlp/up/kernel"]["x"].shape, bool(found.share > 0.5)
    ((1, 2, 8), True)
  """
  if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
    raise ValueError(f"target.alignment_rank must be an integer of 1 or more, got {rank!r}")

  def target_gradient(params: Params, rows: TargetRows) -> LowRankGradient:
    maps = linear_taps.choose(model, params, Options())
    matrices, others = subsets.split(full_params(params), maps.__contains__)
    chunks = split_rows(rows, batch_size, sharding)
    total = jnp.maximum(jnp.sum(chunks.mask, dtype=jnp.float32), 1)

    def loss_sum(matrices: Any, chunk: RowInputs) -> jax.Array:
      tokens, targets, positions, segments, mask = chunk
      asked = model.asked(targets, mask)
      full = subsets.join(matrices, others)
      losses = model.token_losses(full, tokens, asked, positions, segments)
      return jnp.sum(jnp.where(mask, losses, 0), dtype=jnp.float32) / total

    def add(summed: Any, chunk: RowInputs) -> tuple[Any, None]:
      return jax.tree.map(jnp.add, summed, jax.grad(loss_sum)(matrices, chunk)), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), matrices)
    gradient, _ = jax.lax.scan(add, zeros, chunks)
    return _compress(dict(subsets.leaves(gradient)), maps, rank)

  return target_gradient


def _compress(
  gradient: dict[str, jax.Array], maps: dict[str, Chosen], rank: int
) -> LowRankGradient:
  found: dict[str, dict[str, jax.Array]] = {}
  held, whole = jnp.float32(0), jnp.float32(0)
  for path, matrix in gradient.items():
    norm = jnp.sum(jnp.square(matrix))
    whole = whole + norm
    ins, outs = maps[path].in_features, maps[path].out_features
    if rank * (ins + outs) >= ins * outs:
      found[path], held = {"matrix": matrix}, held + norm
      continue
    key = jax.random.key(zlib.crc32(path.encode()))
    stacked = matrix.reshape(-1, ins, outs)
    basis, rest = jax.lax.map(lambda x, key=key: _factors(x, rank, key), stacked)
    held = held + jnp.sum(jnp.square(rest))
    lead = matrix.shape[:-2]
    found[path] = {
      "x": basis.reshape(*lead, rank, ins),
      "dy": rest.reshape(*lead, rank, outs),
    }
  # A gradient that is not finite has no share either.
  share = jnp.where(whole == 0, 1.0, held / jnp.where(whole == 0, 1.0, whole))
  return LowRankGradient(found, share)


def _factors(matrix_DxF: jax.Array, rank: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns Q' [r, in] and Q' G [r, out]."""
  # Relative to its largest entry, as squares of small gradients vanish.
  scale = jnp.max(jnp.abs(matrix_DxF))
  unit_DxF = matrix_DxF / jnp.where(scale > 0, scale, 1.0)
  columns = min(rank + _OVERSAMPLING, *matrix_DxF.shape)
  orthonormal = lambda x: jnp.linalg.qr(x)[0]
  drawn_FxC = jax.random.normal(key, (matrix_DxF.shape[1], columns))
  basis_DxC = orthonormal(linear_taps.dot("df,fc->dc", unit_DxF, drawn_FxC))
  for _ in range(_ITERATIONS):
    other_FxC = orthonormal(linear_taps.dot("df,dc->fc", unit_DxF, basis_DxC))
    basis_DxC = orthonormal(linear_taps.dot("df,fc->dc", unit_DxF, other_FxC))
  inside_CxF = linear_taps.dot("dc,df->cf", basis_DxC, unit_DxF)
  # Of the directions found, the leading ones; eigenvalues ascend.
  _, vectors_CxC = jnp.linalg.eigh(linear_taps.dot("cf,ef->ce", inside_CxF, inside_CxF))
  basis_RxD = linear_taps.dot("cr,dc->rd", vectors_CxC[:, -rank:], basis_DxC)
  return basis_RxD, linear_taps.dot("rd,df->rf", basis_RxD, matrix_DxF)
