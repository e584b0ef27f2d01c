"""Operators that keep documents between two percentiles of a signal."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pydantic
from pydantic import Field

from jdc.prep import percentile as lib
from jdc.prep.catalog import Operator
from jdc.prep.globals_ import Context, Decision, Table
from jdc.prep.ops import likelihood, quality

Percent = Annotated[float, Field(ge=0, le=100)]
_CODE = ("jdc.prep.percentile",)
_KEYS_OF = ("of",)  # what measures is part of the signals


@dataclasses.dataclass(frozen=True)
class _Percentile:
  """Takes the values of a signal, and decides by their order."""

  name: str  # of the operator
  signal: str
  params: Any

  def keys(self, batch: pa.RecordBatch) -> Table:
    domain = batch.column("domain").dictionary_encode()
    values = batch.column(f"signal:{self.signal}").to_numpy(zero_copy_only=False)
    names = [name.encode() for name in domain.dictionary.to_pylist()]
    codes = domain.indices.to_numpy(zero_copy_only=False).astype(np.int32)
    return {"value": values.astype(np.float64), "domain": codes, "domains": np.array(names)}

  def join(self, parts: Sequence[Table]) -> Table:
    names = sorted({name for part in parts for name in part["domains"].tolist()})
    place = {name: i for i, name in enumerate(names)}
    codes = [
      np.array([place[name] for name in part["domains"].tolist()], np.int32)[part["domain"]]
      for part in parts
    ]
    return {
      "value": np.concatenate([np.zeros(0), *(part["value"] for part in parts)]),
      "domain": np.concatenate([np.zeros(0, np.int32), *codes]),
      "domains": np.array(names, "S"),
    }

  def decide(self, tables: Sequence[Table], context: Context) -> Decision:
    p = self.params
    row, why, counts = lib.decide(
      [lib.Keys(**table) for table in tables],
      context.doc_ids,
      low=p.low,
      high=p.high,
      by_domain=p.by_domain,
    )
    reasons = tuple(f"{self.name}.{why}" for why in ("low", "high", "undefined"))
    return Decision(row, reasons, reason=why, counts={"removed": len(row), **counts})

  def apply(self, batch: pa.RecordBatch, resource: Table) -> pa.RecordBatch:
    del resource
    return batch


class PerplexityPercentile(likelihood.ModelLosses):
  """See `perplexity_percentile`."""

  of: Literal["perplexity", "bits_per_byte"] = "perplexity"
  low: Percent = 5.0
  high: Percent = 95.0
  by_domain: bool = False

  @pydantic.model_validator(mode="after")
  def _is_range(self) -> Self:
    return _ranged(self)


class QualityPercentile(quality.QualityModel):
  """See `quality_percentile`."""

  low: Percent = 50.0
  high: Percent = 100.0
  by_domain: bool = False

  @pydantic.model_validator(mode="after")
  def _is_range(self) -> Self:
    return _ranged(quality.with_source(self))


def _ranged(params: Any) -> Any:
  if params.low >= params.high:
    raise ValueError(f"low must be below high, got {params.low} and {params.high}")
  return params


def perplexity_percentile(params: PerplexityPercentile) -> _Percentile:
  """Keeps documents between two percentiles of perplexity, by default the 5th and the 95th.

  The percentiles are those of all documents that come to this step, counted exactly, or of each
  domain; see `jdc.prep.percentile`. Memory: 12 bytes a document and 16 for its id.
  """
  return _Percentile("perplexity_percentile", params.of, params)


def quality_percentile(params: QualityPercentile) -> _Percentile:
  """Keeps documents between two percentiles of a classifier's score, by default the best half.

  `low = 70` keeps the best 30 of 100. See `quality_classifier` and `jdc.prep.percentile`.
  """
  return _Percentile("quality_percentile", "quality", params)


OPERATORS = (
  Operator(
    "perplexity_percentile", "sample", perplexity_percentile, PerplexityPercentile,
    uses=likelihood.measure, keys_of=_KEYS_OF, code=_CODE, stage_rank=70, cost=1.0,
  ),
  Operator(
    "quality_percentile", "sample", quality_percentile, QualityPercentile,
    uses=quality.measure, keys_of=_KEYS_OF, code=_CODE, stage_rank=61, cost=1.0,
  ),
)  # fmt: skip
