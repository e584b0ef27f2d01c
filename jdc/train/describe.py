"""What a policy was made of, as flat JSON, so that a resume under another one is noticed."""

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

_DEPTH = 8  # of closures in closures; a policy under several combinators reaches five


def describe(value: Any) -> dict[str, Any]:
  """Returns the parameters that functions hold in their closures, by dotted path.

  Numbers and strings are shown, arrays by a checksum, other objects by their type: nothing that
  differs between two processes that build the same thing.

  Example:
    >>> from jdc.policies import mixture
    >>> found = describe({"mixture": mixture.odm(smoothing=0.5)})
    >>> {x for path, x in found.items() if path.endswith("smoothing")}
    {0.5}
  """
  flat: dict[str, Any] = {}
  _visit(value, "", _DEPTH, flat)
  return flat


def _visit(value: Any, path: str, depth: int, flat: dict[str, Any]) -> None:
  parts: Mapping[str, Any] = {}
  if value is None or isinstance(value, bool | int | float | str):
    flat[path] = value
  elif isinstance(value, np.ndarray | jax.Array | np.generic):
    array = np.asarray(value)
    flat[path] = f"{array.dtype}{list(array.shape)} {zlib.crc32(array.tobytes())}"
  elif isinstance(value, Mapping):
    parts = {str(name): part for name, part in value.items()}
  elif isinstance(value, set | frozenset):
    flat[path] = sorted(map(str, value))
  elif isinstance(value, tuple | list):
    names = getattr(value, "_fields", range(len(value)))
    parts = {str(name): part for name, part in zip(names, value, strict=True)}
  elif hasattr(value, "__code__"):
    flat[path] = f"{value.__module__}.{value.__qualname__}"
    cells = value.__closure__ or ()
    parts = dict(zip(value.__code__.co_freevars, map(_content, cells), strict=True))
  elif dataclasses.is_dataclass(value):
    parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
  else:
    flat[path] = type(value).__name__
  for name, part in parts.items():
    if depth:
      _visit(part, f"{path}.{name}" if path else name, depth - 1, flat)


def _content(cell: Any) -> Any:
  try:
    return cell.cell_contents
  except ValueError:  # a variable that was never set
    return None
