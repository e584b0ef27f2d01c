"""How each example's gradient agrees with that of a target set, by one virtual step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jdc.data.batch import RowInputs
from jdc.models.base import LanguageModel
from jdc.stats.losses import full_params, make_example_losses, make_mean_loss

Params = tuple[Any, Any]  # those that are trained, and the frozen ones or None


def make_alignment(
  model: LanguageModel,
) -> Callable[[Params, RowInputs, RowInputs], jax.Array]:
  r"""Returns `(params, inputs, target) -> f32[B]`, inner products with the target's gradient.

  With l_i the mean loss of row i and L the mean loss of all tokens of the target rows, both
  without the noise of training, and theta the parameters that are trained,

    alignment_i = <grad l_i, grad L>
                = -d/da d/de_i L(theta - a sum_j e_j grad l_j)  at a = 0:

  how much a small step of gradient descent on row i lowers the loss of the target. No gradient
  of a single row exists: the inner product is differentiated by the weights e of the rows.
  Twice differentiated are token losses, so the model's attention must allow it: that of fused
  kernels mostly does not. The cost is that of a backward pass of the target rows, and of a
  forward and three backward passes or so of the rows.

  Args:
    model: gives token losses with reverse-mode derivatives, of second order too.

  Returns:
    A pure function for use in a step. The parameters are a pair, such as
    `jdc.train.state.Params`; a row is an example, so rows may not be packed.

  References:
    Ren et al., "Learning to Reweight Examples for Robust Deep Learning", 2018,
      arXiv:1803.09050.

  Example:
    >>> from jdc.data.batch import inputs_and_targets
    >>> from jdc.models.decoder import DecoderConfig, decoder
    >>> config = DecoderConfig(
    ...   vocab_size=8, width=8, num_layers=1, num_heads=1, num_kv_heads=1, mlp_width=8
    ... )
    >>> model = decoder(config)
    >>> params = model.init(jax.random.key(0))
    >>> tokens = jnp.array([[1, 2, 1, 2], [3, 5, 7, 4]])
    >>> rows = inputs_and_targets(tokens, jnp.ones_like(tokens))
    >>> target = inputs_and_targets(tokens[:1], jnp.ones((1, 4), jnp.int32))
    >>> like, unlike = jax.jit(make_alignment(model))((params, None), rows, target)
    >>> bool(like > unlike)
    True
  """
  target_gradient, products = make_target_gradient(model), make_products(model)

  def alignment(params: Params, inputs: RowInputs, target: RowInputs) -> jax.Array:
    return products(params, inputs, target_gradient(params, target))

  return alignment


def make_target_gradient(model: LanguageModel) -> Callable[[Params, RowInputs], Any]:
  """Returns `(params, target) -> gradient`, of the target's mean loss by what is trained.

  With `make_products`, for steps of several microbatches: the gradient is the same in all.
  """
  mean_loss = make_mean_loss(model)

  def target_gradient(params: Params, target: RowInputs) -> Any:
    trained, frozen = params
    return jax.grad(lambda x: mean_loss(full_params((x, frozen)), target))(trained)

  return target_gradient


def make_products(model: LanguageModel) -> Callable[[Params, RowInputs, Any], jax.Array]:
  """Returns `(params, inputs, gradient) -> f32[B]`, <grad l_i, gradient> for each row."""
  example_losses = make_example_losses(model)

  def products(params: Params, inputs: RowInputs, gradient: Any) -> jax.Array:
    trained, frozen = params
    loss_B, pull_back = jax.vjp(
      lambda x: example_losses(full_params((x, frozen)), inputs), trained
    )

    def along(weight_B: jax.Array) -> jax.Array:
      (weighted,) = pull_back(weight_B)
      products = jax.tree.map(_product, weighted, gradient)
      return sum(jax.tree.leaves(products), start=jnp.float32(0))

    # It is linear in the weights, so that any will do.
    return jax.lax.stop_gradient(jax.grad(along)(jnp.zeros_like(loss_B)))

  return products


def make_curvature(
  model: LanguageModel, microbatches: int = 1
) -> Callable[[Params, RowInputs, RowInputs], jax.Array]:
  r"""Returns `(params, inputs, target) -> f32[B]`, the curvature of the target along rows.

  With l_i, L and theta as in `make_alignment`, and H the Hessian of L by theta,

    curvature_i = (grad l_i)' H sum_j grad l_j,

  summed over all rows j. It takes the gradient of the rows, one product of the Hessian with a
  vector, and inner products as `make_products` has them: twice differentiated are token losses.

  Args:
    model: as in `make_alignment`.
    microbatches: into which the rows are split, one after the other.
  """
  example_losses, products = make_example_losses(model), make_products(model)
  target_gradient = make_target_gradient(model)

  def curvature(params: Params, inputs: RowInputs, target: RowInputs) -> jax.Array:
    trained, frozen = params

    def split(x: jax.Array) -> jax.Array:  # every device keeps its own rows
      return x.reshape(x.shape[0] // microbatches, microbatches, -1).swapaxes(0, 1)

    parts = jax.tree.map(split, inputs)

    def total(x: Any, part: RowInputs) -> jax.Array:
      return jnp.sum(example_losses(full_params((x, frozen)), part))

    def add(summed: Any, part: RowInputs) -> tuple[Any, None]:
      return jax.tree.map(jnp.add, summed, jax.grad(total)(trained, part)), None

    zeros = jax.tree.map(lambda x: jnp.zeros_like(x, jnp.float32), trained)
    summed, _ = jax.lax.scan(add, zeros, parts)

    def along(x: Any) -> jax.Array:
      found = jax.tree.map(_product, target_gradient((x, frozen), target), summed)
      return sum(jax.tree.leaves(found), start=jnp.float32(0))

    bent = jax.grad(along)(trained)
    found = jax.lax.map(lambda part: products(params, part, bent), parts)
    return found.swapaxes(0, 1).reshape(-1)

  return curvature


def aligned_products(
  products: Callable[[Params, RowInputs], jax.Array],
  params: Params,
  inputs: RowInputs,
  target: RowInputs,
  num_shards: int = 1,
) -> dict[str, jax.Array]:
  """Returns inner products of the gradients of rows, with each other and with the target's.

  Both come from one pass over the rows and the target's, by the same parameters.

  Args:
    products: all pairs of rows, as `jdc.stats.ghost.make_gradient_products` makes it.
    params: a pair.
    inputs: B rows.
    target: rows of the target set; their mean is over all of their tokens.
    num_shards: into which the rows are split; the target's are padded to a multiple of it.

  Returns:
    `gradient_product` f32[B, B] and `target_alignment` f32[B].
  """
  num_rows, num_target = inputs.tokens.shape[0], target.tokens.shape[0]
  padding = -num_target % num_shards
  padded = jax.tree.map(lambda x: jnp.pad(x, ((0, padding), (0, 0))), target)
  found = products(params, jax.tree.map(lambda *x: jnp.concatenate(x), inputs, padded))
  tokens_M = jnp.sum(target.mask, axis=1, dtype=jnp.float32)
  with_target_BxM = found[:num_rows, num_rows : num_rows + num_target]
  share_M = tokens_M / jnp.maximum(jnp.sum(tokens_M), 1)
  aligned_B = jnp.sum(with_target_BxM * share_M, axis=1)
  return {"gradient_product": found[:num_rows, :num_rows], "target_alignment": aligned_B}


def _product(x: jax.Array, y: jax.Array) -> jax.Array:
  return jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32))
