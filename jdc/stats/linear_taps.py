"""Statistics of the per-example gradients of linear maps, out of one backward pass.

The gradient of a row's loss by the matrix of y = x W is G = sum_t x_t dy_t^T. A tap, as
`jdc.models.taps` says, sees x and dy, so that what is wanted of G comes without a gradient by
any parameter: one forward pass and a backward pass through the activations alone.
"""

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdc.data.batch import RowInputs
from jdc.models import subsets
from jdc.models.base import LanguageModel
from jdc.models.taps import LinearMap
from jdc.stats.gradients import Options, microbatches
from jdc.stats.losses import full_params

Params = tuple[Any, Any]  # those that are trained, and the frozen ones or None


class Chosen(NamedTuple):
  """A linear map whose gradients are wanted."""

  in_features: int
  out_features: int
  layers: tuple[int, ...]  # those that are tapped; none where the map is not stacked

  @property
  def num_copies(self) -> int:
    """Matrices whose gradients are wanted."""
    return max(1, len(self.layers))


class Statistic(NamedTuple):
  """What a tap makes of a map's inputs and of the gradient by its outputs, in float32.

  Arrays are those of one layer. `constants` are what `collect` is given for the map, and what
  `keep` returns is all that lives until the backward pass.
  """

  shape: Callable[[int], tuple[int, ...]]  # rows -> shape of the statistic
  keep: Callable[[Any, jax.Array], Any]  # (constants, x [B, T, in]) -> kept
  reduce: Callable[[Any, Any, jax.Array], jax.Array]  # (constants, kept, dy [B, T, out])


def choose(model: LanguageModel, shapes: Params, options: Options) -> dict[str, Chosen]:
  """Returns the linear maps that `options` mean, by the path of their matrix, sorted.

  These are the maps that one of `options.parameters` matches, trained or frozen; without
  patterns, those that are trained. With `options.top_layers` they are of these last layers.

  Raises:
    ValueError: listing patterns without a map, matrices that match and cannot be tapped, and
      what is wrong with `top_layers`.
  """
  if model.linear_maps is None or model.tapped_losses is None:
    raise ValueError("the model offers no linear_maps and tapped_losses")
  full = full_params(shapes)
  maps, problems = model.linear_maps(full), []
  if options.parameters:
    accepts = subsets.matcher(options.parameters)
    problems += _unmatched(options.parameters, maps, subsets.paths(full))
  else:
    accepts = {*subsets.paths(shapes[0])}.__contains__
  paths = sorted(path for path in maps if accepts(path))
  if not paths and not problems:
    problems.append(f"no trained parameter is a linear map that can be tapped: {_listed(maps)}")
  top = options.top_layers
  depths = {path: maps[path].num_layers for path in paths}
  wrong = [f"{path} ({depth})" for path, depth in depths.items() if not 0 <= top <= depth]
  if top and wrong:
    problems.append(f"features.top_layers {top} does not fit the layers of {', '.join(wrong)}")
  if problems:
    raise ValueError("; ".join(problems))
  return {path: _chosen(maps[path], top) for path in paths}


def collect(
  model: LanguageModel,
  params: Params,
  maps: Mapping[str, Chosen],
  statistics: Mapping[str, Statistic],
  constants: Mapping[str, Any],
  inputs: RowInputs,
  top_layers: int,
) -> dict[str, dict[str, jax.Array]]:
  """Returns each statistic of each map, by path and name.

  The gradients are those of each row's mean loss over its target tokens, without the noise of
  training; those of a row without targets are 0.

  Args:
    model: offers `tapped_losses`.
    params: a pair, such as `jdc.train.state.Params`.
    maps: from `choose`.
    statistics: by name.
    constants: for each path, what its statistics get; arrays with a leading axis of the tapped
      layers where the map is stacked.
    inputs: B rows, each an example.
    top_layers: as in the options of `choose`.

  Returns:
    f32, of the shapes of the statistics, behind the same leading axis.
  """
  assert model.tapped_losses is not None
  tapped_losses, tap = model.tapped_losses, make_tap(statistics)
  tokens, targets, positions, segments, mask = inputs
  asked = model.asked(targets, mask)
  zeros = {
    path: {
      name: jnp.zeros((*([len(found.layers)] if found.layers else []), *x.shape(len(tokens))))
      for name, x in statistics.items()
    }
    for path, found in maps.items()
  }

  def loss(zeros: dict[str, dict[str, jax.Array]]) -> jax.Array:
    taps = {
      path: jax.tree_util.Partial(tap, zero, constants.get(path))
      for path, zero in zeros.items()
    }
    token_loss = tapped_losses(
      full_params(params), taps, tokens, asked, positions, segments, top_layers
    )
    sum_B = jnp.sum(jnp.where(mask, token_loss, 0), axis=1, dtype=jnp.float32)
    return jnp.sum(sum_B / jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.float32), 1))

  return jax.grad(loss)(zeros)


def in_microbatches(
  function: Callable[[RowInputs], Any],
  inputs: RowInputs,
  size: int,
  sharding: jax.NamedSharding | None,
) -> Any:
  """Returns `function` of the rows, at most `size` of them at a time, concatenated.

  Args:
    function: of a batch, to arrays with a leading axis of its rows.
    inputs: B rows; padded with rows without tokens to microbatches of one size.
    size: the most rows at a time, over all devices.
    sharding: of batches; `None` for one device.
  """
  num_rows = len(inputs.tokens)
  if num_rows <= size:
    return function(inputs)
  count, size = microbatches(num_rows, size, sharding)

  def split(x: jax.Array) -> jax.Array:
    # Every count-th row, so that the rows of a device stay on it.
    x = jnp.pad(x, ((0, count * size - num_rows), (0, 0)))
    return place(x.reshape(size, count, -1).swapaxes(0, 1), sharding, axis=1)

  def joined(x: jax.Array) -> jax.Array:
    return x.swapaxes(0, 1).reshape(count * size, *x.shape[2:])[:num_rows]

  return jax.tree.map(joined, jax.lax.map(function, RowInputs(*map(split, inputs))))


def place(x: jax.Array, sharding: jax.NamedSharding | None, axis: int | None) -> jax.Array:
  """Splits an axis over the devices as rows of a batch are; `None` has all of x on each."""
  if sharding is None:
    return x
  spec = jax.P() if axis is None else jax.P(*[None] * axis, *sharding.spec)
  return jax.lax.with_sharding_constraint(x, jax.NamedSharding(sharding.mesh, spec))


def dot(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns a product of arrays, with sums in float32."""
  # Accelerators round float32 factors unless told not to.
  highest = jax.lax.Precision.HIGHEST
  return jnp.einsum(equation, x, y, precision=highest, preferred_element_type=jnp.float32)


def make_tap(statistics: Mapping[str, Statistic]) -> Callable[..., jax.Array]:
  """Returns `(zeros, constants, x, y) -> y`, by whose zeros the gradient is the statistics."""

  @jax.custom_vjp
  def tap(zeros: Any, constants: Any, x_BxTxD: jax.Array, y_BxTxF: jax.Array) -> jax.Array:
    del zeros, constants, x_BxTxD
    return y_BxTxF

  def forward(zeros: Any, constants: Any, x_BxTxD: jax.Array, y_BxTxF: jax.Array) -> Any:
    del zeros
    kept = {name: s.keep(constants, x_BxTxD) for name, s in statistics.items()}
    return y_BxTxF, (constants, kept)

  def backward(residuals: Any, dy_BxTxF: jax.Array) -> Any:
    constants, kept = residuals
    found = {name: s.reduce(constants, kept[name], dy_BxTxF) for name, s in statistics.items()}
    return found, None, None, dy_BxTxF

  tap.defvjp(forward, backward)
  return tap


def _chosen(found: LinearMap, top_layers: int) -> Chosen:
  first = found.num_layers - top_layers if top_layers else 0
  layers = tuple(range(first, found.num_layers))
  return Chosen(found.in_features, found.out_features, layers)


def _unmatched(
  patterns: tuple[str, ...], maps: Mapping[str, LinearMap], paths: tuple[str, ...]
) -> list[str]:
  """What is wrong with patterns of paths."""
  problems = []
  without = [p for p in patterns if not any(fnmatch.fnmatchcase(path, p) for path in maps)]
  if without:
    problems.append(
      f"features.parameters {', '.join(map(repr, without))} match no linear map that can be "
      f"tapped: {_listed(maps)}"
    )
  # Norms and biases are no matrices; what is called as matrices are may be meant.
  names, accepts = {path.rpartition("/")[2] for path in maps}, subsets.matcher(patterns)
  meant = [
    path
    for path in paths
    if path not in maps and accepts(path) and (without or path.rpartition("/")[2] in names)
  ]
  if meant:
    problems.append(f"features.parameters match what cannot be tapped: {', '.join(meant)}")
  return problems


def _listed(maps: Mapping[str, LinearMap]) -> str:
  return ", ".join(sorted(maps)) or "there is none"
