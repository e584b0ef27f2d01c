"""Plans as TOML text: tables, `[[...]]` for arrays of tables, all else on one line."""

import json
import re
from collections.abc import Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def dumps(value: Mapping[str, Any]) -> str:
  """Returns the TOML that `tomllib.loads` turns into the value.

  >>> print(
  ...   dumps({"n": 1, "input": {"paths": ["a"]}, "step": [{"op": "x", "r": {"min": 0.5}}]})
  ... )
  n = 1
  <BLANKLINE>
  [input]
  paths = ["a"]
  <BLANKLINE>
  [[step]]
  op = "x"
  r = { min = 0.5 }
  <BLANKLINE>
  """
  plain, tables = [], []
  for key, held in value.items():
    if isinstance(held, Mapping):
      tables.append(f"[{_key(key)}]\n" + _lines(held))
    elif isinstance(held, list | tuple) and held and all(isinstance(x, Mapping) for x in held):
      tables += [f"[[{_key(key)}]]\n" + _lines(each) for each in held]
    else:
      plain.append(f"{_key(key)} = {_value(held)}\n")
  return "\n".join(["".join(plain), *tables] if plain else tables)


def _lines(table: Mapping[str, Any]) -> str:
  return "".join(f"{_key(key)} = {_value(held)}\n" for key, held in table.items())


def _key(key: str) -> str:
  return key if _BARE.fullmatch(key) else _string(key)


def _value(value: Any) -> str:
  if isinstance(value, bool):
    return "true" if value else "false"
  if isinstance(value, str):
    return _string(value)
  if isinstance(value, int | float):
    return repr(value)
  if isinstance(value, Mapping):
    inside = ", ".join(f"{_key(key)} = {_value(held)}" for key, held in value.items())
    return f"{{ {inside} }}" if inside else "{}"
  if isinstance(value, list | tuple):
    return f"[{', '.join(map(_value, value))}]"
  raise ValueError(f"{value!r} has no form in TOML")


def _string(value: str) -> str:
  # TOML's basic strings are JSON's, but for DEL.
  return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
