"""Operators that change the fields of records beside their text."""

import functools
import json
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pydantic

from jdc.prep.batches import replace_text, set_column
from jdc.prep.catalog import Operator, Params
from jdc.prep.readers.jsonl import dump


class Select(Params):
  """See `select`."""

  fields: tuple[str, ...]


def select(batch: pa.RecordBatch, params: Select) -> pa.RecordBatch:
  """Keeps some fields of the records and drops the others; the text always stays.

  A field that no record has is an error when all have been read.
  """
  wanted = dict.fromkeys(params.fields)
  records = [json.loads(value) for value in batch.column("fields").to_pylist()]
  kept = [dump({k: v for k, v in record.items() if k in wanted}) for record in records]
  batch = set_column(batch, "fields", pa.array(kept, pa.string()))
  return _with_found(batch, records, wanted)


def _with_found(
  batch: pa.RecordBatch, records: Sequence[Mapping[str, Any]], names: Iterable[str]
) -> pa.RecordBatch:
  """Returns the batch with a column a name, which tells whether each record has it."""
  for name in names:
    found = [name in record for record in records]
    batch = set_column(batch, f"found:field {name!r}", pa.array(found, pa.bool_()))
  return batch


class Rename(Params):
  """See `rename`."""

  mapping: Annotated[dict[str, str], pydantic.Field(min_length=1)]

  @pydantic.field_validator("mapping")
  @classmethod
  def _loses_nothing(cls, value: dict[str, str]) -> dict[str, str]:
    new = list(value.values())
    if twice := sorted({name for name in new if new.count(name) > 1}):
      raise ValueError(f"several fields get the name {', '.join(map(repr, twice))}")
    if "text" in new:
      raise ValueError("no field gets the name 'text', which is the text; derive makes it")
    return value


def rename(batch: pa.RecordBatch, params: Rename) -> pa.RecordBatch:
  """Renames fields of the records, old name to new name.

  A record that has another field of the new name is dropped, since one of the two would go. A
  name that no record has is an error when all have been read.
  """
  names = params.mapping
  records = [json.loads(value) for value in batch.column("fields").to_pylist()]
  made = [{names.get(k, k): v for k, v in record.items()} for record in records]
  clash = [len(new) < len(old) for new, old in zip(made, records, strict=True)]
  batch = set_column(batch, "fields", pa.array([dump(record) for record in made], pa.string()))
  batch = _with_found(batch, records, names)
  return set_column(
    batch, "drop", pa.array(["rename" if lost else None for lost in clash], pa.string())
  )


class Derive(Params):
  """See `derive`."""

  fields: Annotated[dict[str, str], pydantic.Field(min_length=1)] = pydantic.Field(
    description="By name of a field its template."
  )
  missing: Literal["drop", "empty"] = pydantic.Field(
    "drop", description="What becomes of a record that lacks a field of a template."
  )

  @pydantic.field_validator("fields")
  @classmethod
  def _are_templates(cls, value: dict[str, str]) -> dict[str, str]:
    for name, template in value.items():
      try:
        _template(template)
      except ValueError as error:
        raise ValueError(f"{name}: {template!r}: {error}") from None
    return value


def derive(batch: pa.RecordBatch, params: Derive) -> pa.RecordBatch:
  """Makes fields of templates, such as text = "{title}\\n\\n{text}"; {{ and }} are braces.

  A name in braces stands for the record's field of that name, strings as they are and other
  values as JSON; {meta.url} for a field of a field; {text} for the text; {jdc.source},
  {jdc.offset} and {jdc.domain} for where the record comes from. A template without braces is
  a constant. The field `text` is the text. All templates see the record as it came. A record
  that lacks a field, or has null there, is dropped for the reason `derive.missing.FIELD`, or
  with missing="empty" gets "" for it; one whose text would have a lone surrogate is dropped for
  `derive.lone_surrogate`.
  """
  templates = {name: _template(template) for name, template in params.fields.items()}
  texts, fields, reasons = [], [], []
  for row in batch.select(_SEEN).to_pylist():
    record = json.loads(row["fields"])
    seen = {**record, "text": row["text"], "jdc": row}
    held = {name: [_value(seen, field) for _, field in t] for name, t in templates.items()}
    pairs = [
      (field, v)
      for name, t in templates.items()
      for (_, field), v in zip(t, held[name], strict=True)
    ]
    lacks = [field for field, value in pairs if value is None]
    made = {
      name: "".join(
        before + (value or "") for (before, _), value in zip(parts, held[name], strict=True)
      )
      for name, parts in templates.items()
    }
    text = made.pop("text", row["text"])
    valid = _is_valid(text)
    texts.append(text if valid else row["text"])
    fields.append(dump({**record, **made}))
    reason = None if valid else "derive.lone_surrogate"
    reasons.append(
      f"derive.missing.{lacks[0]}" if lacks and params.missing == "drop" else reason
    )
  batch = replace_text(batch, pa.array(texts, pa.string()))
  batch = set_column(batch, "fields", pa.array(fields, pa.string()))
  return set_column(batch, "drop", pa.array(reasons, pa.string()))


_SEEN = ["source", "offset", "domain", "text", "fields"]


@functools.cache
def _template(text: str) -> tuple[tuple[str, str], ...]:
  """Returns (text before, name of a field) of each part of a template; the last has no name."""
  found = []
  for before, name, spec, conversion in string.Formatter().parse(text):
    if spec or conversion or name == "":
      raise ValueError("accepted in braces: the name of a field, alone")
    found.append((before, name or ""))
  return tuple(found)


def _is_valid(text: str) -> bool:
  """Whether a text has no lone surrogates, which JSON may hold and UTF-8 may not."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def _value(record: Mapping[str, Any], name: str) -> str | None:
  """Returns a field as text, `None` where there is none; nothing for no name."""
  if not name:
    return ""
  value: Any = record
  for key in [name] if name in record else name.split("."):
    value = value.get(key) if isinstance(value, Mapping) else None
  if value is None or isinstance(value, str):
    return value
  return json.dumps(value, ensure_ascii=False)


class SftNormalize(Params):
  """See `sft_normalize`."""

  to: Literal["messages"] = "messages"


def sft_normalize(batch: pa.RecordBatch, params: SftNormalize) -> pa.RecordBatch:
  """Rewrites instruction data of the usual formats as lists of messages of role and content.

  The contents become the text, so that operators on text work on them; the messages stay as
  they are. Records of no known format are dropped, with what is wrong as `problem`.
  """
  from jdc.prep.text import sft

  done = sft.sft_normalize(batch.column("fields"), to=params.to)
  good = np.array([not problem for problem in done.problem], bool)
  texts = np.full(len(good), "", object)
  texts[good] = sft.sft_text(done.fields.filter(pa.array(good))).to_pylist()
  batch = set_column(batch, "fields", done.fields)
  batch = set_column(batch, "text", pa.array(texts.tolist(), pa.string()))
  batch = set_column(batch, "signal:problem", pa.array(done.problem, pa.string()))
  reason = ["sft_normalize" if problem else None for problem in done.problem]
  return set_column(batch, "drop", pa.array(reason, pa.string()))


OPERATORS = (
  Operator("select", "map", select, Select, needs=("fields",), stage_rank=5, cost=5.0),
  Operator("rename", "map", rename, Rename, needs=("fields",), stage_rank=4, cost=5.0),
  Operator(
    "derive", "map", derive, Derive, needs=("fields",), provides=("text",), stage_rank=7,
    cost=8.0,
  ),
  Operator(
    "sft_normalize", "map", sft_normalize, SftNormalize, needs=("fields",),
    provides=("text", "messages"), stage_rank=6, cost=20.0,
  ),
)  # fmt: skip
