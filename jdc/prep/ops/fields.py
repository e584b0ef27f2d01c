"""Operators that change the fields of records beside their text."""

import json
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from jdc.prep.batches import set_column
from jdc.prep.catalog import Operator, Params
from jdc.prep.readers.jsonl import dump


class Select(Params):
  """See `select`."""

  fields: tuple[str, ...]


def select(batch: pa.RecordBatch, params: Select) -> pa.RecordBatch:
  """Keeps some fields of the records and drops the others; the text always stays."""
  wanted = set(params.fields)
  return _mapped(batch, lambda record: {k: v for k, v in record.items() if k in wanted})


class Rename(Params):
  """See `rename`."""

  mapping: dict[str, str]


def rename(batch: pa.RecordBatch, params: Rename) -> pa.RecordBatch:
  """Renames fields of the records, old name to new name."""
  names = params.mapping
  return _mapped(batch, lambda record: {names.get(k, k): v for k, v in record.items()})


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


def _mapped(batch: pa.RecordBatch, function: Any) -> pa.RecordBatch:
  values = [dump(function(json.loads(value))) for value in batch.column("fields").to_pylist()]
  return set_column(batch, "fields", pa.array(values, pa.string()))


OPERATORS = (
  Operator("select", "map", select, Select, needs=("fields",), stage_rank=5, cost=5.0),
  Operator("rename", "map", rename, Rename, needs=("fields",), stage_rank=4, cost=5.0),
  Operator(
    "sft_normalize", "map", sft_normalize, SftNormalize, needs=("fields",),
    provides=("text", "messages"), stage_rank=6, cost=20.0,
  ),
)  # fmt: skip
