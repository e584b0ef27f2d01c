"""Exact inner products of the gradients of domains."""

import functools
import string
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jdc.data.batch import RowInputs, inputs_and_targets
from jdc.models import subsets
from jdc.models.base import LanguageModel
from jdc.models.partition import constrain
from jdc.stats.losses import full_params, make_loss_sum
from jdc.stats.probes import Probes
from jdc.stats.target import split_rows
from jdc.stats.target_rows import TargetRows

Params = tuple[Any, Any]  # those that are trained, and the frozen ones or None


class DomainProducts(NamedTuple):
  """Inner products of gradients, replicated."""

  domain_gradient_product: jax.Array  # f32[K, 2, K, 2]
  domain_target_alignment: jax.Array | None  # f32[K, 2]; `None` without target rows


def make_domain_products(
  model: LanguageModel,
  accepts: Callable[[str], bool] | None = None,
  sharding: jax.NamedSharding | None = None,
) -> Callable[..., DomainProducts]:
  r"""Returns `(params, probes, target=None) -> DomainProducts`.

  With g_ka the gradient of the mean loss of all target tokens in half-batch a of domain k, and
  g the same of all target rows, both without the noise of training,

    domain_gradient_product[k, a, j, b] = <g_ka, g_jb>,
    domain_target_alignment[k, a] = <g_ka, g>.

  The halves are independent, so that <g_k0, g_k1> estimates the squared norm of the gradient of
  domain k without the bias that |g_k0|^2 has by its noise.

  There is one backward pass a half-batch, one after the other. The gradients of all 2 K are
  held at once in float32, 8 K bytes for each accepted parameter, each split over the mesh as
  its parameter is; narrow them down by `accepts` where that is too much.

  Args:
    model: gives token losses.
    accepts: whether the gradient by a trained parameter counts, given its path, as
      `jdc.models.subsets.matcher` makes of patterns; `None` for all.
    sharding: of batches; `None` for one device.

  Returns:
    A jitted function whose results are replicated; call it inside `jax.set_mesh`. The
    parameters are a pair, such as `jdc.train.state.Params`. It raises a ValueError where
    `accepts` leaves no trained parameter.
  """
  loss_sum = make_loss_sum(model)

  def products(
    params: Params, probes: Probes, target: TargetRows | None = None
  ) -> DomainProducts:
    chosen, others, specs = _parts(model, params, accepts)

    def gradient(inputs: RowInputs) -> tuple[Any, jax.Array]:
      """The gradient of the sum of losses, in float32 where its parameters are."""

      def loss(chosen: Any) -> tuple[jax.Array, jax.Array]:
        return loss_sum(full_params((chosen, others)), inputs)

      found, num_tokens = jax.grad(loss, has_aux=True)(chosen)
      return jax.tree.map(_placed, found, specs), num_tokens

    def mean_gradient(rows: Probes) -> Any:
      total, num_tokens = gradient(inputs_and_targets(rows.tokens, rows.segments))
      return jax.tree.map(lambda g: g / jnp.maximum(num_tokens, 1), total)

    num_domains = probes.tokens.shape[0]
    halves = Probes(*(x.reshape(2 * num_domains, *x.shape[2:]) for x in probes))
    gradients = jax.lax.map(mean_gradient, halves)
    product = _inner(gradients, gradients).reshape(num_domains, 2, num_domains, 2)
    if target is None:
      return DomainProducts(product, None)

    def add(total: Any, inputs: RowInputs) -> tuple[Any, None]:
      return jax.tree.map(jnp.add, total, gradient(inputs)), None

    start = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (chosen, jnp.float32(0)))
    chunks = split_rows(target, probes.tokens.shape[2], sharding)
    (total, num_tokens), _ = jax.lax.scan(add, start, chunks)
    direction = jax.tree.map(lambda g: g[None] / jnp.maximum(num_tokens, 1), total)
    return DomainProducts(product, _inner(gradients, direction).reshape(num_domains, 2))

  if sharding is None:
    return jax.jit(products)
  return jax.jit(products, out_shardings=jax.NamedSharding(sharding.mesh, jax.P()))


def _parts(
  model: LanguageModel, params: Params, accepts: Callable[[str], bool] | None
) -> tuple[Any, Any, Any]:
  """The accepted parameters, all others or `None`, and how the first are split over a mesh."""
  trained, frozen = params
  full = full_params(params)
  specs = model.partition_specs(
    jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), full)
  )
  if accepts is None and frozen is None:
    return trained, None, specs
  paths = [path for path in subsets.paths(trained) if accepts is None or accepts(path)]
  if not paths:
    raise ValueError(
      f"no trained parameter is accepted; trained are: {', '.join(subsets.paths(trained))}"
    )
  chosen, others = subsets.split(full, {*paths}.__contains__)
  return chosen, others or None, subsets.split(specs, {*paths}.__contains__)[0]


def _placed(gradient: jax.Array, spec: jax.P) -> jax.Array:
  gradient = gradient.astype(jnp.float32)
  return constrain(gradient, *spec, *[None] * (gradient.ndim - len(spec)))


def _inner(a: Any, b: Any) -> jax.Array:
  """Inner products of I and J stacked trees, f32[I, J]."""

  def of_leaf(x: jax.Array, y: jax.Array) -> jax.Array:
    # No reshape to one axis, which would gather what is split over the mesh.
    axes = string.ascii_lowercase[: x.ndim - 1]
    equation = f"I{axes},J{axes}->IJ"
    return jnp.einsum(equation, x, y, precision=jax.lax.Precision.HIGHEST)

  return functools.reduce(jnp.add, jax.tree.leaves(jax.tree.map(of_leaf, a, b)))
