"""Parts of a nested dict of parameters: what is trained, and what stays as it is."""

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jdc.models.base import Params


def paths(params: Params) -> tuple[str, ...]:
  """Returns the path of each leaf, such as "layers/attention/query/lora_a", in order.

  Example:
    >>> paths({"output": {"kernel": 1}, "layers": {"norm": {"scale": 2}}})
    ('output/kernel', 'layers/norm/scale')
  """
  return tuple(path for path, _ in leaves(params))


def matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
  """Returns whether a path matches one of the patterns; `*` also stands for slashes.

  Example:
    >>> adapters = matcher(["layers/*/lora_*"])
    >>> adapters("layers/mlp/gate/lora_b"), adapters("layers/mlp/gate/kernel")
    (True, False)
  """
  patterns = tuple(patterns)
  return lambda path: any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def check_patterns(patterns: Iterable[str], params: Params) -> None:
  """Checks that every pattern matches a leaf.

  Args:
    patterns: of paths, as in `matcher`.
    params: a nested dict; the leaves may be arrays, shapes or anything else.

  Raises:
    ValueError: naming every pattern that matches nothing, and the paths there are.
  """
  known = paths(params)
  without = [p for p in patterns if not any(fnmatch.fnmatchcase(path, p) for path in known)]
  if without:
    raise ValueError(
      f"{', '.join(map(repr, without))} match no parameter; known: {', '.join(known)}"
    )


def split(params: Params, trainable: Callable[[str], bool]) -> tuple[Params, Params]:
  """Splits a nested dict by the paths of its leaves.

  Args:
    params: a nested dict; the leaves may be arrays, shapes, specs or anything else.
    trainable: whether a path belongs to the first part.

  Returns:
    Two nested dicts with the leaves themselves, without empty dicts.

  Example:
    >>> params = {"gate": {"kernel": 1, "lora_a": 2}, "norm": {"scale": 3}}
    >>> split(params, matcher(["*/lora_*"]))
    ({'gate': {'lora_a': 2}}, {'gate': {'kernel': 1}, 'norm': {'scale': 3}})
  """
  return _select(params, trainable, ""), _select(params, lambda path: not trainable(path), "")


def join(a: Params, b: Params) -> Params:
  """Returns the nested dict with the leaves of both, the inverse of `split`.

  Raises:
    ValueError: naming every path that both have.

  Example:
    >>> join({"gate": {"lora_a": 2}}, {"gate": {"kernel": 1}})
    {'gate': {'lora_a': 2, 'kernel': 1}}
  """
  shared = sorted(_shared(a, b, ""))
  if shared:
    raise ValueError(f"both parts have {', '.join(shared)}")
  return _union(a, b)


def _select(params: Params, wanted: Callable[[str], bool], prefix: str) -> Params:
  result = {}
  for name, value in params.items():
    path = f"{prefix}{name}"
    if isinstance(value, Mapping):
      value = _select(value, wanted, f"{path}/")
      if value:
        result[name] = value
    elif wanted(path):
      result[name] = value
  return result


def _union(a: Params, b: Params) -> Params:
  result = dict(a)
  for name, value in b.items():
    result[name] = _union(a[name], value) if name in a else value
  return result


def _shared(a: Params, b: Params, prefix: str) -> Iterator[str]:
  for name in a.keys() & b.keys():
    path = f"{prefix}{name}"
    if isinstance(a[name], Mapping) and isinstance(b[name], Mapping):
      yield from _shared(a[name], b[name], f"{path}/")
    else:
      yield path


def leaves(params: Params, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yields each leaf with its path."""
  for name, value in params.items():
    path = f"{prefix}{name}"
    if isinstance(value, Mapping):
      yield from leaves(value, f"{path}/")
    else:
      yield path, value
