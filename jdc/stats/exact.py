"""Features of exact per-example gradients, a microbatch at a time."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jdc.data.batch import RowInputs
from jdc.models import subsets
from jdc.models.base import LanguageModel
from jdc.stats.directions import Adam, Moments, adam_direction
from jdc.stats.gradients import Features, Options, Params, chosen_paths, microbatches
from jdc.stats.losses import full_params, make_example_losses
from jdc.stats.projection import make_projection, paths_and_leaves


def make_exact(
  model: LanguageModel,
  shapes: Params,
  wanted: frozenset[str],
  options: Options,
  key: jax.Array,
  adam: Adam | None,
  sharding: jax.NamedSharding | None,
) -> Features:
  """Returns the features of "exact"; arguments are those of `gradients.make_features`.

  Gradients are by float32 copies of the chosen parameters. Those of one microbatch exist at a
  time, each whole on the device that holds its row, however the parameters are split. A mixture
  of experts cannot be vmapped, and goes row by row.
  """
  select, rest = chosen_parts(shapes, options)
  losses = make_example_losses(_from_top(model, options.top_layers))
  project = make_projection(options.projection, options.size, key)
  one_by_one = has_experts(model, shapes)

  def gradients(params: Params, rows: RowInputs) -> Any:
    rebuild = rest(params)

    def loss(chosen: Any, row: RowInputs) -> jax.Array:
      return losses(rebuild(chosen), jax.tree.map(lambda x: x[None], row))[0]

    chosen = select(params)
    of_row = lambda row: jax.grad(loss)(chosen, row)
    if one_by_one:
      found = jax.lax.map(of_row, rows)
    else:
      axes = _batch_axes(sharding, rows.tokens.shape[0])
      found = jax.vmap(of_row, spmd_axis_name=axes)(rows)
    return jax.tree.map(lambda x: placed(x, sharding), found)

  def features(params: Params, moments: Moments | None, rows: RowInputs) -> dict:
    gradient, found = gradients(params, rows), {}
    if "gradient_norm" in wanted:
      found["gradient_norm"] = _norms(gradient)
    if "gradient" in wanted:
      found["gradient"] = project(gradient)
    if "update_direction" in wanted:
      assert adam is not None  # checked by make_features
      assert moments is not None
      direction = jax.vmap(lambda g: adam_direction(options.direction, adam, g, moments))
      found["update_direction"] = project(direction(gradient))
    # A row without targets has no gradient, but momentum would still give it a direction.
    counts_B = jnp.any(rows.mask, axis=1)
    keep = jax.vmap(lambda counts, x: jnp.where(counts, x, 0.0))
    return {name: placed(keep(counts_B, x), sharding) for name, x in found.items()}

  def compute(
    params: Params, moments: Moments | None, inputs: RowInputs
  ) -> dict[str, jax.Array]:
    if "update_direction" in wanted:
      if moments is None:
        raise ValueError("update_direction needs the moments of the optimizer, got None")
      mu, nu = (select((tree, None)) for tree in (moments.mu, moments.nu))
      moments = Moments(mu, nu, moments.count)
    of_block = lambda rows: features(params, moments, rows)
    return _map_blocks(of_block, options.microbatch_size, inputs, sharding)

  return Features(options.size, compute)


def chosen_parts(shapes: Params, options: Options) -> tuple[Callable, Callable]:
  """Returns how parameters are taken apart for a gradient by some of them.

  Returns:
    `params -> chosen`, the last layers alone with `top_layers`, in float32; and
    `params -> (chosen -> the model's parameters)`.
  """
  paths, top = chosen_paths(shapes, options), options.top_layers
  # Then no part need be taken out of a tree, which may be any pytree.
  is_trained = paths == {path for path, _ in paths_and_leaves(shapes[0])}

  def split(params: Params) -> tuple[Any, Any]:
    if is_trained:
      return params
    chosen, others = subsets.split(full_params(params), paths.__contains__)
    return chosen, others or None

  def select(params: Params) -> Any:
    return jax.tree.map(lambda x: x[-top:].astype(jnp.float32), split(params)[0])

  def rest(params: Params) -> Callable[[Any], Any]:
    whole, others = split(params)

    def rebuild(chosen: Any) -> Any:
      if top:
        chosen = jax.tree.map(lambda x, y: jnp.concatenate([x[:-top], y]), whole, chosen)
      return full_params((chosen, others))

    return rebuild

  return select, rest


def _from_top(model: LanguageModel, top_layers: int) -> LanguageModel:
  """The model with token losses whose backward pass ends below its last layers."""
  tapped_losses = model.tapped_losses
  if not top_layers or tapped_losses is None:
    return model
  return model._replace(
    token_losses=lambda params, *rows: tapped_losses(params, {}, *rows, top_layers)
  )


def has_experts(model: LanguageModel, shapes: Params) -> bool:
  """Whether it is a mixture of experts, which cannot be vmapped."""
  if model.outputs is None:
    return False
  row = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  outputs = jax.eval_shape(model.outputs, full_params(shapes), row, row, row, row)
  return outputs.expert_load is not None


def _norms(gradient: Any) -> jax.Array:
  """The norms of stacked trees, f32[b]."""
  squares = [
    jnp.sum(jnp.square(x.reshape(x.shape[0], -1)), axis=1) for x in jax.tree.leaves(gradient)
  ]
  return jnp.sqrt(jnp.sum(jnp.stack(squares), axis=0))


def _map_blocks(
  function: Callable[[RowInputs], Any],
  size: int,
  inputs: RowInputs,
  sharding: jax.NamedSharding | None,
) -> Any:
  """Maps blocks of at most `size` rows one after the other; padding makes up the last."""
  num_rows = inputs.tokens.shape[0]
  count, size = microbatches(num_rows, size, sharding)

  def split(x: jax.Array) -> jax.Array:
    # Row i goes to block i mod count, so that every device keeps its own rows.
    x = jnp.pad(x, ((0, count * size - num_rows), (0, 0)))
    return placed(x.reshape(size, count, *x.shape[1:]), sharding).swapaxes(0, 1)

  def join(x: jax.Array) -> jax.Array:
    x = placed(x.swapaxes(0, 1), sharding)
    return x.reshape(-1, *x.shape[2:])[:num_rows]

  return jax.tree.map(join, jax.lax.map(function, jax.tree.map(split, inputs)))


def _batch_axes(sharding: jax.NamedSharding | None, num_rows: int) -> tuple[str, ...] | None:
  """The axes of the mesh over which rows are split; `None` where they do not divide."""
  if sharding is None or not sharding.spec or sharding.spec[0] is None:
    return None
  entry = sharding.spec[0]
  axes = (entry,) if isinstance(entry, str) else tuple(entry)
  shards = math.prod(sharding.mesh.shape[axis] for axis in axes)
  return axes if shards > 1 and num_rows % shards == 0 else None


def placed(x: jax.Array, sharding: jax.NamedSharding | None) -> jax.Array:
  """Returns rows where the batch has its own; all else of them is in one place."""
  axes = _batch_axes(sharding, x.shape[0])
  if sharding is None or axes is None:
    return x
  return jax.lax.with_sharding_constraint(x, jax.NamedSharding(sharding.mesh, jax.P(axes)))
