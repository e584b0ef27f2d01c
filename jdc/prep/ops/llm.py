"""Operators that ask a language model, and those that judge what it answered."""

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pydantic
from pydantic import Field

from jdc.prep.batches import set_column
from jdc.prep.catalog import Operator, Params, out_of_bounds
from jdc.prep.llm.params import FieldName, Generate, Map, ModelParams, Score

if TYPE_CHECKING:
  from jdc.prep.llm.work import Work


def llm_score(params: Score) -> "Work":
  """Asks a model for a number in a range, and writes it into a field.

  The answer is JSON with a reason and the score, or with `response="text"` a line with one
  number; of checkpoints also the mean of the whole numbers in range, each weighted by its
  likelihood as the answer. `field_range` drops documents by the score.
  """
  from jdc.prep.llm.work import Work

  return Work(params)


def llm_map(params: Map) -> "Work":
  """Asks a model for a text, or for JSON, and writes it into the text or into fields.

  With several samples fields hold lists, one answer each.
  """
  from jdc.prep.llm.work import Work

  return Work(params)


def llm_generate(params: Generate) -> "Work":
  """Asks a model for a list, and makes a document of each of its items.

  A new document has the source, offset, domain and other fields of the one that it was made of,
  whose id stands in the field `parent_id`, its own place in `parent_part`, and as id a hash of
  both. A document of which nothing is made is dropped as `llm_generate.none`.
  """
  from jdc.prep.llm.work import Work

  return Work(params)


class FieldNumber(Params):
  """See `field_number`."""

  field: FieldName


def field_number(batch: pa.RecordBatch, params: FieldNumber) -> dict[str, np.ndarray]:
  """Reads a number from a field of the records; NaN where there is none."""
  numbers = [_number(record.get(params.field)) for record in _records(batch)]
  return {"field_number": np.array(numbers, np.float64)}


class FieldRange(FieldNumber):
  """See `field_range`."""

  minimum: float | None = None
  maximum: float | None = None

  @pydantic.model_validator(mode="after")
  def _bounds(self) -> Self:
    low, high = self.minimum, self.maximum
    if low is None and high is None:
      raise ValueError("minimum or maximum must be given")
    if low is not None and high is not None and low > high:
      raise ValueError(f"minimum={low:g} must not be above maximum={high:g}")
    return self


def field_range(found: Mapping[str, Any], params: FieldRange) -> dict[str, np.ndarray]:
  """Keeps documents in which a field is a number in a range; drops those without one."""
  values = np.asarray(found["field_number"])
  outside = out_of_bounds(values, params.minimum, params.maximum)
  name = f"field_range.{params.field}"
  return {f"{name}.missing": np.isnan(values), name: outside}


class AnswersAgree(Params):
  """See `answers_agree`."""

  answers: FieldName = Field(description="The field with an answer, or a list of them.")
  reference: FieldName | Literal[""] = Field(
    "", description="The field with the right answer; empty: the most frequent one."
  )
  compare: Literal["text", "number", "overlap"] = "text"
  min_overlap: Annotated[float, Field(gt=0, le=1)] = Field(
    0.6, description="Of overlap, the F1 of words from which answers agree."
  )
  into: FieldName = Field("agreement", description="The field for the share that agrees.")
  chosen_into: FieldName | Literal[""] = Field(
    "", description="A field for the first answer that agrees; empty for none."
  )


def answers_agree(batch: pa.RecordBatch, params: AnswersAgree) -> pa.RecordBatch:
  """Writes the share of answers that agree with the right one, or with the most frequent one.

  Answers agree as texts without case, punctuation and articles, as the numbers that they end
  with (after "####" if that is there), or by the words that they share. Documents without the
  fields, or whose answers none agree with what they are chosen by, are dropped. Words that are
  shared do not make answers agree that have other numbers, or of which one has a negation.
  """
  from jdc.prep.llm import agreement
  from jdc.prep.readers.jsonl import dump

  form, agrees = agreement.comparison(params.compare, params.min_overlap)
  fields, reasons = [], []
  for record in _records(batch):
    reason, found = None, agreement.Found(0.0, None)
    answers = agreement.as_texts(record.get(params.answers))
    right = agreement.as_texts(record.get(params.reference)) if params.reference else None
    if not answers or (params.reference and not right):
      reason = "answers_agree.missing"
    else:
      found = agreement.judge(answers, right[0] if right else None, form, agrees)
    record[params.into] = found.share
    if params.chosen_into and found.chosen is not None:
      record[params.chosen_into] = found.chosen
    elif params.chosen_into and reason is None:
      reason = "answers_agree.none"
    fields.append(dump(record))
    reasons.append(reason)
  batch = set_column(batch, "fields", pa.array(fields, pa.string()))
  return set_column(batch, "drop", pa.array(reasons, pa.string()))


def _records(batch: pa.RecordBatch) -> list[dict[str, Any]]:
  return [json.loads(value) for value in batch.column("fields").to_pylist()]


def _number(value: Any) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float):
    return np.nan
  try:
    return float(value)
  except OverflowError:  # a whole number beyond the range
    return math.inf if value > 0 else -math.inf


def _model(
  function: Callable[[Any], Any], params: type[ModelParams], provides: tuple[str, ...] = ()
) -> Operator:
  return Operator(
    function.__name__,
    "model",
    function,
    params,
    provides=provides,
    code=("jdc.prep.llm.task",),
    stage_rank=80,
    cost=100_000.0,
  )


OPERATORS = (
  _model(llm_score, Score),
  _model(llm_map, Map, ("text",)),
  _model(llm_generate, Generate, ("text",)),
  Operator(
    "answers_agree", "map", answers_agree, AnswersAgree, needs=("fields",),
    code=("jdc.prep.llm.agreement",), stage_rank=81, cost=20.0,
  ),
  Operator(
    "field_number", "signals", field_number, FieldNumber, needs=("fields",),
    provides=("field_number",), stage_rank=82, cost=3.0,
  ),
  Operator(
    "field_range", "predicate", field_range, FieldRange, needs=("fields",),
    uses=lambda params: (("field_number", {"field": params.field}),), stage_rank=82,
  ),
)  # fmt: skip
