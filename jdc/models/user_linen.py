"""A user's own linen model as a language model."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jdc.models.base import LanguageModel, Params
from jdc.models.user_maps import Observe, language_model

_LAYERS = (nn.Dense, nn.DenseGeneral)


def from_linen(
  module: nn.Module,
  token_losses: Callable[..., jax.Array],
  *,
  vocab_size: int,
  partition_specs: Callable[[Params], Any] | None = None,
  probe_length: int = 8,
) -> LanguageModel:
  """Returns a module of `flax.linen` as pure functions over its "params".

  Its per-example gradients can be had by taps as well. Linear maps are found by a forward pass
  of 3 rows of `probe_length` tokens that is traced and never computed: every `nn.Dense`, and
  every `nn.DenseGeneral` over the last axes (as of `nn.MultiHeadDotProductAttention`), by the
  path of its kernel, such as "block_0/up/kernel", if

    its input is [B, T, *in] and its output [B, T, *out],
    its kernel is a parameter of that shape, not stacked by `nn.scan` or `nn.vmap`, and
    it is called once, outside of loops and conditions.

  In a pass that is tapped, `nn.intercept_methods` calls the tap with what goes in and out of
  these layers; a bias is part of what goes out, which has the same gradient. Not seen is a
  kernel that the model reads itself beside its layer's call, as a tied output may: leave it out
  by the patterns of paths, or tie by `nn.Embed.attend`. Subclasses of these layers are not
  tapped.

  Args:
    module: with parameters of the collection "params" alone.
    token_losses: `(module, tokens, targets, positions, segments) -> f32[B, T]`, as the field of
      `LanguageModel`, on the module with its parameters bound. It draws no noise.
    vocab_size: V.
    partition_specs: as the field of `LanguageModel`; `None` has all parameters on every device.
    probe_length: tokens of a row in the traced pass, and in that which makes the parameters.

  Returns:
    The model. `hidden`, `logits` and what is optional are not offered, and can be added by
    `_replace`. Layers have no numbers, so that `top_layers` is an error. `init` raises a
    ValueError that names other collections, if there are any.

  Example:
    >>> import optax
    >>> class Bigram(nn.Module):
    ...   @nn.compact
    ...   def __call__(self, tokens):
    ...     return nn.Dense(16, name="head")(nn.Embed(16, 4)(tokens))
    >>> def token_losses(module, tokens, targets, positions, segments):
    ...   return optax.softmax_cross_entropy_with_integer_labels(module(tokens), targets)
    >>> model = from_linen(Bigram(), token_losses, vocab_size=16)
    >>> model.linear_maps(model.init(jax.random.key(0)))
    {'head/kernel': LinearMap(in_features=4, out_features=16, num_layers=0)}
  """

  def init(key: jax.Array) -> Params:
    rows = jnp.ones((1, probe_length), jnp.int32)
    variables = nn.init(token_losses, module)(key, rows, rows, rows, rows)
    variables = nn.meta.unbox(variables)
    if other := sorted(variables.keys() - {"params"}):
      raise ValueError(f"the module has variables beside its params: {', '.join(other)}")
    return variables["params"]

  def losses(
    params: Params,
    tokens: jax.Array,
    targets: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    observe: Observe | None,
  ) -> jax.Array:
    apply = nn.apply(token_losses, module)
    arguments = ({"params": params}, tokens, targets, positions, segments)
    if observe is None:
      return apply(*arguments)
    with nn.intercept_methods(_interceptor(observe)):
      return apply(*arguments)

  return language_model(init, losses, vocab_size, probe_length, partition_specs)


def _interceptor(observe: Observe) -> Callable[..., Any]:
  def intercept(
    call: Callable[..., Any], args: tuple, kwargs: dict[str, Any], context: Any
  ) -> Any:
    y = call(*args, **kwargs)
    layer = context.module
    if type(layer) not in _LAYERS or context.method_name != "__call__":
      return y
    (x,) = args or kwargs.values()
    kernel = layer.get_variable("params", "kernel")
    if layer.is_initializing() or not _simple(layer, x.ndim):
      return y
    return observe("/".join((*layer.path, "kernel")), kernel.shape, x, y)

  return intercept


def _simple(layer: nn.Module, ndim: int) -> bool:
  """Whether the inputs of a layer are the last axes, in order."""
  if isinstance(layer, nn.Dense):
    return True
  axes = (layer.axis,) if isinstance(layer.axis, int) else tuple(layer.axis)
  last = tuple(range(ndim - len(axes), ndim))
  return tuple(axis % ndim for axis in axes) == last and not layer.batch_dims
