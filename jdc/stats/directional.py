"""Features of derivatives along random directions, in forward mode: no backward pass."""

import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jdc.data.batch import RowInputs
from jdc.models.base import LanguageModel
from jdc.stats.directions import Moments
from jdc.stats.exact import chosen_parts, has_experts, placed
from jdc.stats.gradients import Features, Options, Params, passes
from jdc.stats.losses import make_example_losses
from jdc.stats.projection import paths_and_leaves


def make_directional(
  model: LanguageModel,
  shapes: Params,
  options: Options,
  key: jax.Array,
  sharding: jax.NamedSharding | None,
) -> Features:
  r"""Returns the `gradient` features of "directional"; arguments are as in `make_features`.

  With xi_r, r = 1..R, independent standard normal directions in the chosen parameters,

    y_ir = d/de l_i(theta + e xi_r) / sqrt(R)  at e = 0,
    E <y_i, y_j> = <g_i, g_j>,  Var <y_i, y_j> = (|g_i|^2 |g_j|^2 + <g_i, g_j>^2) / R,

  g_i the gradient of l_i. It is the dense Gaussian projection of the gradients, taken without
  them: each direction costs a forward pass whose products are taken twice. `microbatch_size`
  directions exist at a time, each as large as the parameters, and one where experts, which
  cannot be vmapped, are mixed. The directions are functions of the key and of a leaf's path.

  The finite difference (l_i(theta + e xi) - l_i(theta - e xi)) / 2e of zeroth-order methods
  tends to y_ir sqrt(R) as e does to 0; here there is no e to choose.

  Raises:
    ValueError: if the losses of the model have no derivatives in forward mode, such as those of
      fused attention kernels.

  References:
    Baydin et al., "Gradients without Backpropagation", 2022, arXiv:2202.08587.
  """
  select, rest = chosen_parts(shapes, options)
  losses = make_example_losses(_in_forward_mode(model, options.top_layers))
  at_once = 1 if has_experts(model, shapes) else min(options.microbatch_size, options.size)
  numbers_R = jnp.arange(options.size)

  def compute(
    params: Params, moments: Moments | None, inputs: RowInputs
  ) -> dict[str, jax.Array]:
    del moments
    chosen, rebuild = select(params), rest(params)
    loss = lambda x: losses(rebuild(x), inputs)

    def along(number: jax.Array) -> jax.Array:
      direction = _direction(jax.random.fold_in(key, number), chosen)
      return _derivative(loss, chosen, direction)

    batch = at_once if at_once > 1 else None
    found_RxB = jax.lax.map(along, numbers_R, batch_size=batch)
    return {"gradient": placed(found_RxB.T / math.sqrt(options.size), sharding)}

  row = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  mask = jax.ShapeDtypeStruct(row.shape, jnp.bool_)
  jax.eval_shape(compute, shapes, None, RowInputs(row, row, row, row, mask))
  return Features(options.size, compute, *passes(options._replace(microbatch_size=at_once)))


def _direction(key: jax.Array, tree: Any) -> Any:
  drawn = [
    # Python's own hash differs between processes.
    jax.random.normal(jax.random.fold_in(key, zlib.crc32(path.encode())), x.shape, x.dtype)
    for path, x in paths_and_leaves(tree)
  ]
  return jax.tree.unflatten(jax.tree.structure(tree), drawn)


def _in_forward_mode(model: LanguageModel, top_layers: int) -> LanguageModel:
  losses = model.forward_mode_losses
  if losses is None:
    return model
  return model._replace(token_losses=lambda *given: losses(*given, top_layers))


def _derivative(function: Callable, x: Any, direction: Any) -> jax.Array:
  try:
    return jax.jvp(function, (x,), (direction,))[1]
  except TypeError as error:
    if "forward-mode" not in str(error):
      raise
    raise ValueError(
      "features.provider 'directional' needs losses with derivatives in forward mode, which "
      "fused kernels of attention and other functions with derivatives of their own lack; for "
      f"the decoder set attention='mask'. {error}"
    ) from error
