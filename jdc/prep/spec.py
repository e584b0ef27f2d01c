"""The plan: what is read, which operators run, what is written; the same as `pipeline.toml`.

jdc_pipeline = 1
goal = "clean English web text; no e-mail addresses"
[input]
paths = ["raw/*.jsonl.gz"]
[[step]]
op = "filter"
rules = { word_count = {min = 50} }
[[step]]
op = "exact_dedup"
why = "profile: exact_dup_rate=0.101"
[output]
shard_mb = 128
[expect]
kept_rate = [0.4, 0.9]
"""

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from jdc.prep import problems, toml_text

DOMAIN = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$"
DomainName = Annotated[str, pydantic.StringConstraints(pattern=DOMAIN)]
Paths = Annotated[
  tuple[Annotated[str, pydantic.Field(min_length=1)], ...], pydantic.Field(min_length=1)
]
_CONFIG = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class InputSpec(pydantic.BaseModel):
  """What is read.

  Attributes:
    paths: files, folders or globs (`**` too); relative ones start at the plan's folder. A table
      of them by name makes each name a domain.
    format: how the files are read; `auto` goes by their suffix. `hf` is a folder as the
      Hugging Face Hub holds data sets.
    text_column: the field with the text; empty for instruction data, whose records
      `sft_normalize` reads.
    domain: the domain of all documents where `paths` names none.
    domain_column: the field that names each record's domain.
    split: of `hf` layouts, the split that is read.
    document: of plain text, what a document is.
    id: how documents get their ids: blake2b of source and offset.
    on_bad_line: whether a record that cannot be read is set aside, or stops the run.
    task_mb: most bytes of a shard task, in MiB of input; bounds memory and what a kill costs.
  """

  model_config = _CONFIG
  paths: Paths | dict[DomainName, Paths]
  format: Literal["auto", "jsonl", "parquet", "text", "warc", "hf"] = "auto"
  text_column: str = "text"
  domain: DomainName = "data"
  domain_column: str = ""
  split: str = "train"
  document: Literal["file", "paragraph", "line"] = "file"
  id: Literal["auto:hash"] = "auto:hash"
  on_bad_line: Literal["quarantine", "error"] = "quarantine"
  task_mb: Annotated[float, pydantic.Field(gt=0, le=64)] = 64.0


class StepSpec(pydantic.BaseModel):
  """One step: an operator and its parameters; in TOML they stand side by side.

  Attributes:
    op: the operator's name.
    why: why the step is there; not part of the plan's hash.
    params: the parameters that are not the operator's defaults.
  """

  model_config = _CONFIG
  op: str
  why: str = ""
  params: dict[str, Any] = {}

  @pydantic.model_validator(mode="before")
  @classmethod
  def _gather(cls, value: Any) -> Any:
    if isinstance(value, Mapping) and "params" not in value:
      named = {k: v for k, v in value.items() if k in ("op", "why")}
      return {**named, "params": {k: v for k, v in value.items() if k not in named}}
    return value


class OutputSpec(pydantic.BaseModel):
  """What is written: one folder a domain, of files of at most `shard_mb` MiB of text.

  Attributes:
    format: `parquet`, with the fields as JSON in a column; `jsonl` (zstd) and `arrayrecord`, of
      records as they came with the new text; `tokens`, token shards as `tokens` says.
    shard_mb: most text of a file, in MiB.
    row_group: of Parquet, rows of a row group.
    compression: of Parquet.
    fields: whether the other fields of a record go along.
    tokens: of token shards, the fields of `jdc.prep.sinks.tokens.TokenOptions`; a tokenizer's
      path starts at the plan's folder.
  """

  model_config = _CONFIG
  format: Literal["parquet", "jsonl", "arrayrecord", "tokens"] = "parquet"
  shard_mb: Annotated[float, pydantic.Field(gt=0, le=4096)] = 128.0
  row_group: Annotated[int, pydantic.Field(ge=1, le=8192)] = 8192
  compression: Literal["zstd", "snappy", "none"] = "zstd"
  fields: bool = True
  tokens: dict[str, Any] = {}


class Expectation(pydantic.BaseModel):
  """A range that a measured quantity must lie in; in TOML also `[min, max]`."""

  model_config = _CONFIG
  min: float | None = None
  max: float | None = None

  @pydantic.model_validator(mode="before")
  @classmethod
  def _of_pair(cls, value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) == 2:
      return {"min": value[0], "max": value[1]}
    return value

  @pydantic.model_validator(mode="after")
  def _can_hold(self) -> "Expectation":
    if self.min is not None and self.max is not None and self.min > self.max:
      raise ValueError(f"min must be at most max, got [{self.min}, {self.max}]")
    return self

  def holds(self, value: float) -> bool:
    """Whether a value lies in the range, ends included."""
    return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class PlanSpec(pydantic.BaseModel):
  """A plan; `check.resolve` says whether it can run.

  >>> plan = PlanSpec(input=InputSpec(paths=("raw/*.jsonl",)), step=(step("exact_dedup"),))
  >>> print(plan.to_toml())
  jdc_pipeline = 1
  <BLANKLINE>
  [input]
  paths = ["raw/*.jsonl"]
  <BLANKLINE>
  [[step]]
  op = "exact_dedup"
  <BLANKLINE>
  >>> PlanSpec.from_toml(plan.to_toml()) == plan
  True
  """

  model_config = _CONFIG
  jdc_pipeline: Literal[1] = 1
  goal: str = ""
  input: InputSpec
  step: tuple[StepSpec, ...] = ()
  output: OutputSpec = OutputSpec()
  expect: dict[str, Expectation] = {}
  provenance: dict[str, Any] = {}

  @classmethod
  def from_dict(cls, value: Mapping[str, Any], where: str = "plan") -> "PlanSpec":
    """Returns the plan that a nested dictionary, as read of TOML or JSON, stands for.

    Raises:
      ValueError: lists all that is wrong: with the structure, with every operator and every
        parameter.
    """
    found = problems.unknown_keys(value, cls.model_fields, "top level")
    known = {k: v for k, v in value.items() if k in cls.model_fields}
    parts: dict[str, Any] = {}
    for name, model in (("input", InputSpec), ("output", OutputSpec)):
      if name in known or name == "input":
        parts[name] = _validated(model, known.pop(name, {}), name, found)
    parts["step"] = tuple(_steps(known.pop("step", []), found))
    expect = known.pop("expect", {})
    if isinstance(expect, Mapping):
      parts["expect"] = {
        k: _validated(Expectation, v, f"expect.{k}", found) for k, v in expect.items()
      }
    else:
      found.append(f"expect={expect!r}: must be a table")
    if known.get("jdc_pipeline") != 1:
      given = known.get("jdc_pipeline")
      found.append(f"jdc_pipeline={given!r}: must be 1, the version of the format")
    problems.raise_all(found, where)
    try:
      return cls.model_validate({**known, **parts})
    except pydantic.ValidationError as error:
      raise ValueError("\n".join(problems.of_validation(error, where, cls))) from None

  @classmethod
  def from_toml(cls, text: str, where: str = "plan") -> "PlanSpec":
    """Returns the plan that a TOML text holds; ValueError lists all that is wrong."""
    try:
      value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
      raise ValueError(f"{where}: not TOML: {error}") from None
    return cls.from_dict(value, where)

  @classmethod
  def read(cls, path: str | Path) -> "PlanSpec":
    """Returns the plan of a file; ValueError lists all that is wrong."""
    try:
      text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
      raise ValueError(f"{path}: not readable: {error}") from error
    return cls.from_toml(text, str(path))

  def to_dict(self) -> dict[str, Any]:
    """Returns what TOML holds: no defaults, the parameters of a step beside its operator."""
    value = self.model_dump(mode="json", exclude_defaults=True)
    for spec in value.get("step", []):
      spec.update(spec.pop("params", {}))
    for name, held in value.get("expect", {}).items():
      value["expect"][name] = {k: v for k, v in held.items() if v is not None}
    return {"jdc_pipeline": self.jdc_pipeline, **value}

  def to_toml(self) -> str:
    """Returns the plan as TOML."""
    return toml_text.dumps(self.to_dict())


def step(op: str, *, why: str = "", **params: Any) -> StepSpec:
  """Returns a step of the operator `op`; `check.resolve` checks it with the plan.

  >>> step("sample", max_tokens=1000).params
  {'max_tokens': 1000}
  """
  return StepSpec(op=op, why=why, params=params)


def canonical_json(value: Any) -> str:
  """Returns JSON that is the same for equal values: sorted keys, no spaces.

  >>> canonical_json({"b": 1.0, "a": [True, None]})
  '{"a":[true,null],"b":1.0}'
  """
  return json.dumps(
    value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
  )


def content_hash(value: Any) -> str:
  """Returns the SHA-256, in hex, of the canonical JSON of a value."""
  return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _validated(
  model: type[pydantic.BaseModel], value: Any, where: str, found: list[str]
) -> pydantic.BaseModel | None:
  try:
    # As JSON, since a list stands for a tuple there and still nothing else is converted.
    return model.model_validate_json(json.dumps(value, default=str))
  except pydantic.ValidationError as error:
    found += problems.of_validation(error, where, model)
    return None


def _steps(value: Any, found: list[str]) -> list[StepSpec]:
  if not isinstance(value, list | tuple):
    found.append(f"step={value!r}: must be an array of tables, [[step]]")
    return []
  from jdc.prep import check  # the operators need this module

  steps = []
  for number, given in enumerate(value, start=1):
    where = f"step {number}"
    if isinstance(given, Mapping) and "op" not in given:
      found.append(f"{where}: op must be given")
      continue
    made = _validated(StepSpec, given, where, found)
    if isinstance(made, StepSpec):
      steps.append(made)
      found += check.step_problems(made, number)
  return steps
