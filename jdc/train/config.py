"""How a config file and flags fill the fields of a run, its policies among them."""

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections

from jdc.policies import Policies, combine
from jdc.train import fields as fields_lib
from jdc.train.run_config import (
  CheckpointConfig as CheckpointConfig,
)
from jdc.train.run_config import (
  CorpusConfig as CorpusConfig,
)
from jdc.train.run_config import (
  EvaluationConfig as EvaluationConfig,
)
from jdc.train.run_config import (
  FeaturesConfig as FeaturesConfig,
)
from jdc.train.run_config import (
  LoggingConfig as LoggingConfig,
)
from jdc.train.run_config import (
  MeshConfig as MeshConfig,
)
from jdc.train.run_config import (
  OptimizerConfig as OptimizerConfig,
)
from jdc.train.run_config import (
  PlanConfig as PlanConfig,
)
from jdc.train.run_config import (
  ProbeConfig as ProbeConfig,
)
from jdc.train.run_config import (
  ReferenceConfig as ReferenceConfig,
)
from jdc.train.run_config import (
  ResponsesConfig as ResponsesConfig,
)
from jdc.train.run_config import (
  RunConfig as RunConfig,
)
from jdc.train.run_config import (
  TargetConfig as TargetConfig,
)
from jdc.train.run_config import (
  TrainConfig as TrainConfig,
)
from jdc.train.run_config import (
  WeightsConfig as WeightsConfig,
)

# A run may be resumed with other values of these.
RESUMABLE = (
  "num_steps", "mesh", "evaluation", "checkpoint", "logging", "corpus.cache_dir",
  "weights.folder", "reference.folder", "responses.folder",  # what they hold is compared
)  # fmt: skip
ADAPTERS = ("*/lora_*",)
SLOTS = ("mixture", "selection", "ordering", "weighting")


def policy(factory: Callable[..., Any], **arguments: Any) -> ml_collections.ConfigDict:
  """Returns a config of a policy in which flags can override every parameter.

  Args:
    factory: what makes the policy, such as `mixture.odm` or a function of the config file.
    **arguments: those that differ from the factory's defaults. An argument that is a policy,
      as combinators take, is itself written with `policy`. A number, a string or a sequence
      that has no default may be left to a flag.

  Raises:
    TypeError: if the factory has no such parameter, with suggestions, or one is missing that no
      flag can give.
  """
  parameters = inspect.signature(factory).parameters
  unknown = [name for name in arguments if name not in parameters]
  if unknown:
    raise TypeError(f"{factory.__name__}: {fields_lib.suggest(unknown, parameters)}")
  fields: dict[str, Any] = {"factory": factory}
  hints = typing.get_type_hints(factory)
  for name, parameter in parameters.items():
    value = arguments.get(name, parameter.default)
    if value is inspect.Parameter.empty:
      kind = fields_lib.flag_type(hints.get(name))
      if kind is None:
        raise TypeError(f"{factory.__name__} needs a value for {name!r}")
      # A required one could not be locked, nor told its type, before a flag has set it.
      fields[name] = ml_collections.config_dict.placeholder(kind)
      continue
    fields[name] = fields_lib.overridable(value, hints.get(name))
  return ml_collections.ConfigDict(fields)


def build_policies(config: TrainConfig) -> Policies:
  """Returns the policies that a config names; reports the faults of all slots at once."""
  built, errors = {}, []
  for slot in SLOTS:
    chosen = getattr(config, slot)
    if chosen is None:
      continue
    if not _is_policy(chosen):
      errors.append(f"{slot} must be made by jdc.train.config.policy, got {chosen!r}")
      continue
    try:
      built[slot] = _build(chosen)
    except (TypeError, ValueError) as error:
      errors.append(f"{slot}: {error}")
  if errors:
    raise ValueError("; ".join(errors))
  return combine(**built)


def _build(chosen: Mapping[str, Any]) -> Any:
  """The policy that a config of `policy` names; its arguments may be such configs too."""
  known = inspect.signature(chosen["factory"]).parameters
  if unknown := [name for name in chosen if name not in known and name != "factory"]:
    raise ValueError(fields_lib.suggest(unknown, known))
  arguments, missing = {}, []
  for name in set(chosen) - {"factory"}:
    value = chosen[name]
    if value is None and known[name].default is inspect.Parameter.empty:
      missing.append(name)
      continue
    arguments[name] = _build(value) if _is_policy(value) else _plain(value)
  if missing:
    raise ValueError(f"{chosen['factory'].__name__} needs a value for {sorted(missing)}")
  return chosen["factory"](**arguments)


def _is_policy(value: Any) -> bool:
  return isinstance(value, Mapping | ml_collections.ConfigDict) and "factory" in value


def collect(*attempts: Callable[[], Any]) -> list[Any]:
  """Returns what each attempt returns; the ValueErrors of all become one."""
  results, errors = [], []
  for attempt in attempts:
    try:
      results.append(attempt())
    except ValueError as error:
      errors.append(str(error))
  if errors:
    raise ValueError("; ".join(errors))
  return results


def to_config_dict(config: Any) -> ml_collections.ConfigDict:
  """Returns a dataclass as a `ConfigDict`, whose fields flags can override."""
  fields, hints = {}, typing.get_type_hints(type(config))
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    nested = dataclasses.is_dataclass(value)
    fields[field.name] = (
      to_config_dict(value) if nested else fields_lib.overridable(value, hints[field.name])
    )
  return ml_collections.ConfigDict(fields, convert_dict=False)


def from_config_dict(values: Mapping[str, Any], cls: type[Any] = TrainConfig) -> Any:
  """Returns the dataclass that `values` describe; unknown fields are errors, all in one."""
  unknown = list(fields_lib.unknown_fields(values, cls))
  if unknown:
    raise ValueError("; ".join(unknown))
  nested, arguments = fields_lib.nested(cls), {}
  for name, value in values.items():
    if name in nested and isinstance(value, Mapping | ml_collections.ConfigDict):
      value = from_config_dict(value, nested[name])
    arguments[name] = value
  return cls(**arguments)


def unknown_overrides(config: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
  """Returns a sentence for each dotted path that is no field of a config."""
  problems = []
  for path in paths:
    names, fields = path.split("."), config
    for depth, name in enumerate(names):
      if not isinstance(fields, Mapping | ml_collections.ConfigDict) or name not in fields:
        known = list(fields) if hasattr(fields, "keys") else []
        problems.append(fields_lib.suggest([name], known, ".".join(["config", *names[:depth]])))
        break
      fields = fields[name]
  return problems


def from_json(flat: Mapping[str, Any], cls: type[Any], prefix: str = "", **changes: Any) -> Any:
  """Returns the dataclass whose fields `to_json` wrote under a prefix, such as "model."."""
  inner, arguments = fields_lib.nested(cls), {}
  for field in dataclasses.fields(cls):
    path = prefix + field.name
    if path in flat:
      value = flat[path]
      arguments[field.name] = tuple(value) if isinstance(value, list) else value
    elif any(name.startswith(f"{path}.") for name in flat):
      arguments[field.name] = from_json(flat, inner[field.name], f"{path}.")
  return cls(**arguments | changes)


def trainable_patterns(flat: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the patterns of the trained parameters of a config as JSON; empty for all."""
  chosen = tuple(flat.get("trainable") or ())
  return chosen or (ADAPTERS if "lora.rank" in flat else ())


def to_json(config: RunConfig) -> dict[str, Any]:
  """Returns flat JSON values by dotted path; a policy is named by its factory."""
  flat: dict[str, Any] = {}

  def visit(prefix: str, value: Any) -> None:
    if dataclasses.is_dataclass(value):
      value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping | ml_collections.ConfigDict):
      for name, item in value.items():
        visit(f"{prefix}.{name}" if prefix else name, item)
    elif callable(value):
      flat[prefix] = f"{value.__module__}.{value.__qualname__}"
    else:
      flat[prefix] = _listed(value)

  visit("", config)
  return flat


def _listed(value: Any) -> Any:
  if isinstance(value, set | frozenset):
    return sorted(value)
  # Nested, as a saved config comes back as lists all the way down.
  return [_listed(item) for item in value] if isinstance(value, tuple | list) else value


def differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
  """Returns, as `name: saved -> current`, the fields that forbid a resume."""
  names = sorted(saved.keys() | current.keys())
  allowed = tuple(f"{name}." for name in RESUMABLE)
  return [
    f"{name}: {saved.get(name)!r} -> {current.get(name)!r}"
    for name in names
    if saved.get(name) != current.get(name)
    and name not in RESUMABLE
    and not name.startswith(allowed)
  ]


def parse_arg(arg: str | None, **known: Any) -> dict[str, Any]:
  """Reads the part of `--config=file.py:ARG` after the colon.

  `ARG` is a comma-separated list of `name=value` and of bare names, which mean `True`; values
  take the type of their default.

  Example:
    >>> parse_arg("tiny,steps=5", tiny=False, steps=100)
    {'tiny': True, 'steps': 5}
  """
  values = dict(known)
  for part in filter(None, (arg or "").split(",")):
    name, given, text = part.partition("=")
    if name not in known:
      raise ValueError(f"config argument: {fields_lib.suggest([name], known)}")
    default = known[name]
    if not given:
      if default is not False:
        raise ValueError(f"config argument {name!r} needs a value, as in {name}={default}")
      values[name] = True
    elif isinstance(default, bool):
      raise ValueError(f"config argument {name!r} is a switch and takes no value, got {text!r}")
    else:
      try:
        values[name] = type(default)(text)
      except ValueError:
        kind = type(default).__name__
        raise ValueError(
          f"config argument {name!r} must be of type {kind}, got {text!r}"
        ) from None
  return values


def _plain(value: Any) -> Any:
  return value.to_dict() if isinstance(value, ml_collections.ConfigDict) else value
