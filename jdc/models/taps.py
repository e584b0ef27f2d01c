"""Taps: what looks at the linear maps of a model while it runs, as for their gradients."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

# (x [B, T, in], y [B, T, out]) -> y, called with the input and the output of a linear map; its
# own backward pass sees the gradient by y. A pytree, such as a `jax.tree_util.Partial`.
Tap = Callable[[jax.Array, jax.Array], jax.Array]
# By the path of each map's matrix, such as "layers/attention/query/kernel".
Taps = Mapping[str, Tap]


class LinearMap(NamedTuple):
  """A linear map y = x W of a model, W [in, out]."""

  in_features: int
  out_features: int
  num_layers: int  # copies of it, stacked on the leading axis of W; 0: it is not stacked


def tapped(taps: Any, name: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """Returns y as the tap of this name leaves it, or as it is where there is none."""
  return taps[name](x, y) if taps and name in taps else y


def under(taps: Any, name: str) -> Any:
  """Returns the taps of a part of the model; `None` where there is none."""
  return taps.get(name) if taps else None


def nested(taps: Taps) -> dict[str, Any]:
  """Returns a nested dict by the pieces of the paths.

  Example:
    >>> nested({"layers/mlp/gate/kernel": 1, "layers/mlp/gate/lora_a": 2})
    {'layers': {'mlp': {'gate': {'kernel': 1, 'lora_a': 2}}}}
  """
  result: dict[str, Any] = {}
  for path, tap in taps.items():
    *parts, name = path.split("/")
    place = result
    for part in parts:
      place = place.setdefault(part, {})
    place[name] = tap
  return result
