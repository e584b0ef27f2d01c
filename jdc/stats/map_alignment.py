"""How the gradients of rows by linear maps agree with that of a target set, by taps."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdc.data.batch import RowInputs
from jdc.models import subsets
from jdc.models.base import LanguageModel
from jdc.stats import linear_taps
from jdc.stats.gradients import Options
from jdc.stats.linear_taps import Chosen, Params, Statistic, dot
from jdc.stats.losses import full_params

_NAME = "alignment"


class MapAlignment(NamedTuple):
  """Inner products with a target's gradient, by the linear maps among what is trained.

  With `taps` they come from the very backward pass that trains: the gradient of a loss by the
  zeros, summed by `total`, is each row's inner product of its gradient of that loss.
  """

  # (params, target rows) -> what the gradient of their mean loss by each map is made of
  target_gradient: Callable[[Params, RowInputs], Any]
  # (params, rows, target gradient) -> f32[B], of the rows' mean losses, in a pass of its own
  products: Callable[[Params, RowInputs, Any], jax.Array]
  # (params, number of rows) -> zeros
  zeros: Callable[[Params, int], Any]
  # (zeros, target gradient) -> taps
  taps: Callable[[Any, Any], Any]
  # the gradient by the zeros -> f32[B]
  total: Callable[[Any], jax.Array]


def make_map_alignment(model: LanguageModel) -> MapAlignment:
  r"""Returns what computes <grad l_i, grad L> by linear maps alone, exactly.

  With x_t the inputs of a map, dy_t the gradients of a row's loss by its outputs, and G the
  gradient of the target's mean loss L by its matrix, a row's part is

    <sum_t x_t dy_t', G> = sum_t x_t' G dy_t = sum_{t, s} (x_t . x'_s) (dy_t . dy'_s),

  x'_s and dy'_s those of the S positions of the target rows. Each map takes what needs fewer
  operations: with the matrix G, as many as its own forward pass; or with its factors, which is
  S (in + out) / (in out) of that. No gradient of a row is formed.

  Args:
    model: offers `linear_maps` and `tapped_losses`.

  Returns:
    Pure functions for use in a step; a row is an example, so rows may not be packed. Parameters
    are a pair, such as `jdc.train.state.Params`; what is trained and no map that can be tapped
    is left out: `left_out` names it.

  Example:
    >>> from jdc.data.batch import inputs_and_targets
    >>> from jdc.models.decoder import DecoderConfig, decoder
    >>> config = DecoderConfig(
    ...   vocab_size=8, width=8, num_layers=1, num_heads=1, num_kv_heads=1, mlp_width=8
    ... )
    >>> model = decoder(config)
    >>> params = model.init(jax.random.key(0)), None
    >>> tokens = jnp.array([[1, 2, 1, 2], [3, 5, 7, 4]])
    >>> rows = inputs_and_targets(tokens, jnp.ones_like(tokens))
    >>> target = inputs_and_targets(tokens[:1], jnp.ones((1, 4), jnp.int32))
    >>> align = make_map_alignment(model)
    >>> like, unlike = align.products(params, rows, align.target_gradient(params, target))
    >>> bool(like > unlike)
    True
  """
  tap = linear_taps.make_tap({_NAME: _aligned()})
  target_gradient = _make_target_gradient(model)

  def maps_of(params: Params) -> dict[str, Chosen]:
    return linear_taps.choose(model, params, Options())

  def zeros(params: Params, num_rows: int) -> dict[str, Any]:
    return {
      path: {_NAME: jnp.zeros((*_stack(chosen), num_rows))}
      for path, chosen in maps_of(params).items()
    }

  def taps(zeros: Mapping[str, Any], constants: Mapping[str, Any]) -> dict[str, Any]:
    return {
      path: jax.tree_util.Partial(tap, zero, constants[path]) for path, zero in zeros.items()
    }

  def total(found: Mapping[str, Any]) -> jax.Array:
    parts = [x[_NAME].reshape(-1, x[_NAME].shape[-1]).sum(axis=0) for x in found.values()]
    return sum(parts[1:], start=parts[0])

  def products(params: Params, inputs: RowInputs, constants: Mapping[str, Any]) -> jax.Array:
    found = linear_taps.collect(
      model, params, maps_of(params), {_NAME: _aligned()}, constants, inputs, 0
    )
    return jax.lax.stop_gradient(total(found))

  return MapAlignment(target_gradient, products, zeros, taps, total)


def left_out(model: LanguageModel, shapes: Params) -> tuple[str, ...]:
  """Returns the paths of the trained parameters that are no linear map that can be tapped."""
  maps = linear_taps.choose(model, shapes, Options())
  return tuple(path for path in subsets.paths(shapes[0]) if path not in maps)


def _aligned() -> Statistic:
  def each_row(constants: Any, x_BxTxD: jax.Array, dy_BxTxF: jax.Array) -> jax.Array:
    # In the precision of the activations, as the gradient that trains.
    cast = {name: x.astype(dy_BxTxF.dtype) for name, x in constants.items()}
    if "matrix" in cast:
      through_BxTxF = dot("btd,df->btf", x_BxTxD, cast["matrix"])
      return jnp.sum(through_BxTxF * dy_BxTxF, axis=(1, 2))
    x_BxTxS = dot("btd,sd->bts", x_BxTxD, cast["x"])
    return jnp.sum(x_BxTxS * dot("btf,sf->bts", dy_BxTxF, cast["dy"]), axis=(1, 2))

  return Statistic(lambda rows: (rows,), lambda constants, x: x, each_row)


def _make_target_gradient(model: LanguageModel) -> Callable[[Params, RowInputs], Any]:
  """Returns `(params, rows)` -> of each map the gradient's matrix, or x and dy, its factors."""
  flat = lambda x: x.reshape(-1, x.shape[-1]).astype(jnp.float32)
  factors = {
    "x": Statistic(lambda rows: (rows,), lambda _, x: flat(x), lambda _, x, dy: x),
    "dy": Statistic(lambda rows: (rows,), lambda _, x: None, lambda _, x, dy: flat(dy)),
  }
  tap = linear_taps.make_tap(factors)

  def target_gradient(params: Params, rows: RowInputs) -> dict[str, dict[str, jax.Array]]:
    maps = linear_taps.choose(model, params, Options())
    positions = rows.tokens.size
    few = {path: x for path, x in maps.items() if _takes_factors(x, positions)}
    matrices, others = subsets.split(
      full_params(params), lambda path: path in maps and path not in few
    )
    zeros = {
      path: {
        "x": jnp.zeros((*_stack(x), positions, x.in_features)),
        "dy": jnp.zeros((*_stack(x), positions, x.out_features)),
      }
      for path, x in few.items()
    }

    def mean_loss(matrices: Any, zeros: Any) -> jax.Array:
      return _tapped_mean(model, tap, subsets.join(matrices, others), zeros, rows)

    by_matrix, found = jax.grad(mean_loss, argnums=(0, 1))(matrices, zeros)
    found |= {path: {"matrix": x} for path, x in subsets.leaves(by_matrix)}
    return jax.lax.stop_gradient(found)

  return target_gradient


def _tapped_mean(
  model: LanguageModel, tap: Any, params: Any, zeros: Mapping[str, Any], rows: RowInputs
) -> jax.Array:
  assert model.tapped_losses is not None
  tokens, targets, positions, segments, mask = rows
  taps = {path: jax.tree_util.Partial(tap, zero, None) for path, zero in zeros.items()}
  asked = model.asked(targets, mask)
  losses = model.tapped_losses(params, taps, tokens, asked, positions, segments, 0)
  total = jnp.sum(jnp.where(mask, losses, 0), dtype=jnp.float32)
  return total / jnp.maximum(jnp.sum(mask, dtype=jnp.float32), 1)


def _takes_factors(chosen: Chosen, positions: int) -> bool:
  ins, outs = chosen.in_features, chosen.out_features
  return positions * (ins + outs) < ins * outs


def _stack(chosen: Chosen) -> tuple[int, ...]:
  return (len(chosen.layers),) if chosen.layers else ()
