"""The linear maps of a model that is not ours: which ones a tap can stand for."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jdc.models import subsets
from jdc.models.base import LanguageModel, Params
from jdc.models.taps import LinearMap, Taps

# (path of the matrix, its shape, x, y) -> y, called after every linear layer of a forward pass.
Observe = Callable[[str, tuple[int, ...], jax.Array, jax.Array], jax.Array]
# (params, tokens, targets, positions, segments, observe or None) -> f32[B, T]
Losses = Callable[..., jax.Array]

_ROWS = 3  # of the pass that is traced; no common size, so that axes are told apart
_LOOPS = ("scan", "while", "cond")
_MARK = "linear map "


def language_model(
  init: Callable[[jax.Array], Params],
  losses: Losses,
  vocab_size: int,
  length: int,
  partition_specs: Callable[[Params], Any] | None = None,
) -> LanguageModel:
  """Returns a model whose linear maps are found by a traced forward pass.

  A linear layer is tapped where its matrix is a parameter as it stands, [*in, *out] for inputs
  [B, T, *in] and outputs [B, T, *out], and where the pass calls it once, outside of loops: the
  sum over t of x_t dy_t^T is its whole gradient then. Others, as layers stacked for a scan,
  called twice or inside a jit of the model's own, are not among `linear_maps`. Several axes in
  or out count as one, flattened.

  Args:
    init: gives the parameters, a nested dict with string keys.
    losses: token losses that call what they are given after every linear layer.
    vocab_size: V.
    length: T of the traced pass, of 3 rows.
    partition_specs: of the parameters; `None` has all of them on every device.
  """

  def token_losses(params: Params, *inputs: jax.Array) -> jax.Array:
    return losses(params, *inputs, None)

  def linear_maps(params: Params) -> dict[str, LinearMap]:
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    # A jit inside the model keeps its first trace: what is found again is found in any pass.
    again = _find(losses, shapes, length)
    return {path: x for path, x in _find(losses, shapes, length).items() if path in again}

  def tapped_losses(
    params: Params,
    taps: Taps,
    tokens: jax.Array,
    targets: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    top_layers: int = 0,
  ) -> jax.Array:
    if top_layers:
      raise ValueError(f"top_layers {top_layers}: the layers of this model are not known")

    called = set()

    def observe(path: str, shape: tuple[int, ...], x: jax.Array, y: jax.Array) -> jax.Array:
      if path not in taps:
        return y
      called.add(path)
      if not _fits(shape, x, y, tokens.shape):
        raise ValueError(f"{path} maps {x.shape} to {y.shape}, not tokens {tokens.shape}")
      flat_x, flat_y = (z.astype(y.dtype).reshape(*tokens.shape, -1) for z in (x, y))
      return taps[path](flat_x, flat_y).reshape(y.shape)

    found = losses(params, tokens, targets, positions, segments, observe)
    if missed := sorted(taps.keys() - called):
      raise ValueError(
        f"the layers of {', '.join(missed)} were not called in this pass, or in a jit inside "
        "the model, which keeps a trace without taps"
      )
    return found

  return LanguageModel(
    init=init,
    hidden=_not_offered("hidden"),
    token_losses=token_losses,
    logits=_not_offered("logits"),
    partition_specs=partition_specs or (lambda shapes: jax.tree.map(lambda _: jax.P(), shapes)),
    vocab_size=vocab_size,
    linear_maps=linear_maps,
    tapped_losses=tapped_losses,
  )


def _find(losses: Losses, shapes: Params, length: int) -> dict[str, LinearMap]:
  leaves = dict(subsets.leaves(shapes))
  maps: dict[str, LinearMap] = {}

  def observe(path: str, shape: tuple[int, ...], x: jax.Array, y: jax.Array) -> jax.Array:
    whole = path in leaves and leaves[path].shape == shape
    if whole and _fits(shape, x, y, (_ROWS, length)):
      in_features, out_features = (z.size // (_ROWS * length) for z in (x, y))
      maps[path] = LinearMap(in_features, out_features, num_layers=0)
    return checkpoint_name(y, _MARK + path)

  def traced(params: Params, rows: jax.Array) -> jax.Array:
    return losses(params, rows, rows, rows, rows, observe)

  rows = jax.ShapeDtypeStruct((_ROWS, length), jnp.int32)
  jaxpr = jax.make_jaxpr(traced)(shapes, rows).jaxpr
  calls = Counter(_calls(jaxpr))
  return {path: found for path, found in maps.items() if calls[path] == 1}


def _calls(jaxpr: Any) -> Iterator[str]:
  """Yields the path of a map for each call, and again for one in a loop."""
  for equation in jaxpr.eqns:
    if equation.primitive.name == "name" and equation.params["name"].startswith(_MARK):
      yield equation.params["name"].removeprefix(_MARK)
    for parameter in jax.tree.leaves(equation.params, is_leaf=_is_jaxpr):
      if _is_jaxpr(parameter):
        inner = parameter.jaxpr if isinstance(parameter, jex.ClosedJaxpr) else parameter
        calls = list(_calls(inner))
        yield from calls * (2 if equation.primitive.name in _LOOPS else 1)


def _is_jaxpr(parameter: Any) -> bool:
  return isinstance(parameter, jex.Jaxpr | jex.ClosedJaxpr)


def _fits(shape: tuple[int, ...], x: jax.Array, y: jax.Array, rows: tuple[int, ...]) -> bool:
  """Whether a layer with a matrix of this shape maps each token by itself."""
  return x.shape[:2] == y.shape[:2] == tuple(rows) and x.shape[2:] + y.shape[2:] == shape


def _not_offered(name: str) -> Callable[..., Any]:
  def missing(*arguments: Any) -> Any:
    del arguments
    raise ValueError(f"`{name}` is not offered by this model; add it by `_replace`")

  return missing
