"""Operators by importance weights: how much a document is like a target."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import pyarrow as pa
from pydantic import Field

from jdc.data import dsir
from jdc.prep import importance as lib
from jdc.prep.catalog import Operator, Params
from jdc.prep.globals_ import Context, Decision, Table


class DsirWeight(Params):
  """See `dsir_weight`."""

  target: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
    description="Files of texts like those that are wanted, or globs."
  )
  text_column: str = Field("text", description="Of the target's records.")
  into: Annotated[str, Field(min_length=1)] = "dsir_log_weight"

  def files(self) -> tuple[str, ...]:
    return self.target

  def at(self, root: Path) -> Self:
    from jdc.prep.quality.examples import expand

    return self.model_copy(update={"target": expand(self.target, root)})


class DsirSample(Params):
  """See `dsir_sample`."""

  target: Annotated[tuple[str, ...], Field(min_length=1)] = Field(
    description="Files of texts like those that are wanted, or globs."
  )
  text_column: str = Field("text", description="Of the target's records.")
  fraction: Annotated[float, Field(gt=0, le=1)] = 0.5
  seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0

  def files(self) -> tuple[str, ...]:
    return self.target

  def at(self, root: Path) -> Self:
    from jdc.prep.quality.examples import expand

    return self.model_copy(update={"target": expand(self.target, root)})


@dataclasses.dataclass(frozen=True)
class _Weighed:
  """What both have in common: tables of hashed words."""

  params: Any

  def keys(self, batch: pa.RecordBatch) -> Table:
    return lib.keys(batch.column("text").to_pylist())._asdict()

  def join(self, parts: Sequence[Table]) -> Table:
    return lib.join([lib.Keys(**part) for part in parts])._asdict()

  def _weights(self, tables: Sequence[Table]) -> np.ndarray:
    if not any(len(table["num_words"]) for table in tables):
      return np.zeros(0)
    keys = [lib.Keys(**table) for table in tables]
    return lib.log_weights(keys, _target(self.params.target, self.params.text_column))

  def apply(self, batch: pa.RecordBatch, resource: Table) -> pa.RecordBatch:
    del resource
    return batch


@functools.lru_cache(maxsize=1)
def _target(paths: tuple[str, ...], text_column: str) -> dsir.Ngrams:
  from jdc.prep.quality.examples import texts_of

  return dsir.hash_ngrams(texts_of(paths, text_column))


class _Sampled(_Weighed):
  def decide(self, tables: Sequence[Table], context: Context) -> Decision:
    p: DsirSample = self.params
    weight = self._weights(tables)
    count = round(p.fraction * len(weight))
    taken = lib.draw(weight, context.doc_ids, count=count, seed=p.seed)
    counts: dict[str, Any] = {"documents": len(weight), "taken": count}
    counts["log_weight"] = lib.quantiles(weight)
    counts["log_weight_of_taken"] = lib.quantiles(weight[taken])
    return Decision(np.flatnonzero(~taken), ("dsir_sample",), counts=counts)


def dsir_sample(params: DsirSample) -> _Sampled:
  """Draws a share of the documents without replacement, by how much they are like a target.

  Weights are those of hashed words and pairs of words (DSIR, Xie et al., 2023,
  arXiv:2302.03169; `jdc.data.dsir`), so that what is drawn has the target's distribution of
  them, as far as there are such documents. Weights of long documents are larger in size:
  `chunk_text` first makes them alike. Memory: 60 bytes a document; words, 4 bytes each, are on
  the disk.
  """
  return _Sampled(params)


class _Annotated(_Weighed):
  def decide(self, tables: Sequence[Table], context: Context) -> Decision:
    weight = self._weights(tables)
    ids = np.concatenate([np.zeros((0, 16), np.uint8), *context.doc_ids])
    order = np.lexsort(np.ascontiguousarray(ids).view(">u8").T[::-1])
    resource = {"doc_id": ids[order], "weight": weight[order]}
    counts = {"documents": len(weight), "log_weight": lib.quantiles(weight)}
    return Decision(np.zeros(0, np.int64), (), counts=counts, resource=resource)

  def apply(self, batch: pa.RecordBatch, resource: Table) -> pa.RecordBatch:
    from jdc.prep.semantic import labels

    return labels.write(batch, resource["doc_id"], resource["weight"], self.params.into)


def dsir_weight(params: DsirWeight) -> _Annotated:
  """Writes the logarithm of the importance weight of each document into a field of its record.

  Weights are those of `dsir_sample`, of the documents that come to this step.
  """
  return _Annotated(params)


OPERATORS = (
  Operator(
    "dsir_sample", "sample", dsir_sample, DsirSample, keys_of=(), stage_rank=80, cost=30.0
  ),
  Operator(
    "dsir_weight", "dedup", dsir_weight, DsirWeight, keys_of=(), provides=("fields",),
    rewrites=True, stage_rank=80, cost=40.0,
  ),
)  # fmt: skip
