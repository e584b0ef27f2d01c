"""A user's own nnx model as a language model."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from jdc.models.base import LanguageModel, Params
from jdc.models.user_maps import Observe, language_model


def from_nnx(
  model: nnx.Module,
  token_losses: Callable[..., jax.Array],
  *,
  vocab_size: int,
  partition_specs: Callable[[Params], Any] | None = None,
  probe_length: int = 8,
) -> LanguageModel:
  """Returns a module of `flax.nnx` as pure functions over a nested dict of its `nnx.Param`.

  Its per-example gradients can be had by taps as well. Linear maps are found by a forward pass
  of 3 rows of `probe_length` tokens that is traced and never computed: every `nnx.Linear`, and
  every `nnx.LinearGeneral` over the last axes (as of `nnx.MultiHeadAttention`), by the path of
  its kernel, such as "blocks/0/up/kernel", if

    its input is [B, T, *in] and its output [B, T, *out],
    its kernel is a parameter of that shape, not stacked by a vmap, and no other layer's, and
    it is called once, outside of loops and conditions.

  In a pass that is tapped these layers call the tap with what goes in and out; a bias is part
  of what goes out, which has the same gradient. Not seen is a kernel that the model reads
  itself beside its layer's call, as a tied output may: leave it out by the patterns of paths,
  or tie by `nnx.Embed.attend`. Subclasses of these layers are not tapped.

  Args:
    model: with its parameters; what is no `nnx.Param` stays as it is now.
    token_losses: `(model, tokens, targets, positions, segments) -> f32[B, T]`, as the field of
      `LanguageModel`, on a module of the same kind. It draws no noise.
    vocab_size: V.
    partition_specs: as the field of `LanguageModel`; `None` has all parameters on every device.
    probe_length: tokens of a row in the traced pass.

  Returns:
    The model. `init` gives the parameters of `model` whatever the key is; `hidden`, `logits`
    and what is optional are not offered, and can be added by `_replace`. Layers have no
    numbers, so that `top_layers` is an error.

  Example:
    >>> import optax
    >>> class Bigram(nnx.Module):
    ...   def __init__(self, rngs):
    ...     self.embed = nnx.Embed(16, 4, rngs=rngs)
    ...     self.head = nnx.Linear(4, 16, rngs=rngs)
    >>> def token_losses(model, tokens, targets, positions, segments):
    ...   logits = model.head(model.embed(tokens))
    ...   return optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    >>> model = from_nnx(Bigram(nnx.Rngs(0)), token_losses, vocab_size=16)
    >>> model.linear_maps(model.init(jax.random.key(0)))
    {'head/kernel': LinearMap(in_features=4, out_features=16, num_layers=0)}
  """
  parts: Any = nnx.split(model, nnx.Param, ...)
  graphdef, state, rest = parts
  given = nnx.to_pure_dict(state)

  def losses(
    params: Params,
    tokens: jax.Array,
    targets: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    observe: Observe | None,
  ) -> jax.Array:
    merged = nnx.merge(graphdef, _keyed_like(given, params), rest)
    if observe is not None:
      _observe(merged, observe)
    return token_losses(merged, tokens, targets, positions, segments)

  return language_model(
    lambda key: _with_strings(given), losses, vocab_size, probe_length, partition_specs
  )


class _Place:
  """Where a layer is and what looks at it; static for nnx, equal to itself alone."""

  def __init__(self, path: str, observe: Observe):
    self.path, self.observe = path, observe

  def __call__(self, kernel: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return self.observe(self.path, kernel.shape, x, y)


class _Linear(nnx.Linear):
  place: _Place

  def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    return self.place(self.kernel, inputs, super().__call__(inputs, *args, **kwargs))


class _LinearGeneral(nnx.LinearGeneral):
  place: _Place

  def __call__(self, inputs: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
    y = super().__call__(inputs, *args, **kwargs)
    axes = (self.axis,) if isinstance(self.axis, int) else tuple(self.axis)
    last = tuple(range(inputs.ndim - len(axes), inputs.ndim))
    simple = tuple(axis % inputs.ndim for axis in axes) == last and not self.batch_axis
    return self.place(self.kernel, inputs, y) if simple else y


_OBSERVED: dict[type, type] = {nnx.Linear: _Linear, nnx.LinearGeneral: _LinearGeneral}


def _observe(model: nnx.Module, observe: Observe) -> None:
  """Has each linear layer of a module that was just merged call `observe`."""
  found: Any = nnx.iter_modules(model)
  layers = [(path, layer) for path, layer in found if type(layer) in _OBSERVED]
  owners = Counter(id(layer.kernel) for _, layer in layers)
  for path, layer in layers:
    if owners[id(layer.kernel)] == 1:
      # In place, so that whoever holds the layer calls this one; jitted or checkpointed parts
      # of the model copy its type and place.
      layer.__class__ = _OBSERVED[type(layer)]
      layer.place = _Place("/".join(map(str, (*path, "kernel"))), observe)


def _with_strings(tree: Any) -> Any:
  """Keys of lists are numbers."""
  if not isinstance(tree, Mapping):
    return tree
  return {str(name): _with_strings(value) for name, value in tree.items()}


def _keyed_like(given: Any, tree: Any) -> Any:
  if not isinstance(given, Mapping):
    return tree
  return {name: _keyed_like(value, tree[str(name)]) for name, value in given.items()}
