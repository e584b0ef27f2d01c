"""What the fields of a config accept: their names, their types, what flags can override."""

import dataclasses
import difflib
import numbers
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections


def suggest(unknown: Sequence[str], known: Any, where: str = "") -> str:
  """Returns a sentence that names unknown fields, the closest known ones, and all known."""
  parts = []
  for name in unknown:
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f", did you mean {close[0]!r}?" if close else ""
    parts.append(f"{where + ' has ' if where else ''}no field {name!r}{hint}")
  return f"{'; '.join(parts)} (known: {', '.join(known) or 'none'})"


def overridable(value: Any, hint: Any) -> Any:
  """Returns the value as what flags take for the type: a flag of an int accepts no float."""
  kinds = [hint, *typing.get_args(hint)]
  if value is None:
    sequences = (tuple, Sequence)
    kinds = [tuple if typing.get_origin(kind) in sequences else kind for kind in kinds[1:]]
    kinds = [kind for kind in kinds if kind in (int, float, str, bool, tuple)]
    return ml_collections.config_dict.placeholder(kinds[0]) if kinds else None
  if isinstance(value, int) and float in kinds and not {int, bool} & set(kinds):
    return float(value)
  return value


def flag_type(hint: Any) -> type | None:
  """Returns the type of the flag that gives a value of a type; `None` where none can."""
  kinds = [typing.get_origin(hint) or hint, *typing.get_args(hint)]
  if kinds[0] in (tuple, Sequence):
    return tuple
  if kinds[0] is typing.Literal:
    return str
  return next((kind for kind in kinds if kind in (int, float, str, bool)), None)


def nested(cls: type) -> dict[str, type]:
  """Returns the fields that are dataclasses themselves."""
  return {
    name: kind
    for name, hint in typing.get_type_hints(cls).items()
    for kind in (hint, *typing.get_args(hint))
    if dataclasses.is_dataclass(kind) and isinstance(kind, type)
  }


def unknown_fields(values: Mapping[str, Any], cls: type, where: str = "") -> Iterator[str]:
  """Yields a sentence for each level of a nested mapping with fields that `cls` lacks."""
  inner, fields = nested(cls), [field.name for field in dataclasses.fields(cls)]
  unknown = [name for name in values if name not in fields]
  if unknown:
    yield suggest(unknown, fields, where or "config")
  for name in values:
    if name in inner and isinstance(values[name], Mapping | ml_collections.ConfigDict):
      yield from unknown_fields(values[name], inner[name], f"{where or 'config'}.{name}")


def wrong_types(config: Any, prefix: str = "") -> Iterator[str]:
  """Yields a sentence for each field of a nested dataclass that has not its type."""
  for name, hint in typing.get_type_hints(type(config)).items():
    value = getattr(config, name)
    if not _has_type(value, hint):
      kind = getattr(hint, "__name__", hint) if not typing.get_args(hint) else hint
      yield f"{prefix}{name} must be of type {kind}, got {value!r}"
    elif dataclasses.is_dataclass(value):
      yield from wrong_types(value, f"{prefix}{name}.")


def _has_type(value: Any, hint: Any) -> bool:
  if hint in (int, float):
    kind = numbers.Integral if hint is int else numbers.Real
    return isinstance(value, kind) and not isinstance(value, bool)
  if hint in (str, bool) or dataclasses.is_dataclass(hint):
    return isinstance(value, hint)
  if typing.get_origin(hint) is tuple:
    item = typing.get_args(hint)[0]
    return isinstance(value, tuple | list) and all(_has_type(x, item) for x in value)
  return True
