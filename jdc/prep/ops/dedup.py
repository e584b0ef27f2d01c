"""Operators that decide over all documents at once."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from jdc.prep import exact_dedup as exact
from jdc.prep import line_dedup as line
from jdc.prep import near_dedup as near
from jdc.prep.batches import replace_text
from jdc.prep.catalog import Operator, Params
from jdc.prep.duplicates import Duplicates
from jdc.prep.globals_ import Context, Decision, RowWise, Table

Positive = Annotated[int, Field(ge=1)]
Keep = Literal["min_id", "first"]


def _decision(found: Duplicates, reason: str, counts: dict[str, Any]) -> Decision:
  return Decision(
    found.row,
    (reason,),
    kept=found.kept,
    neighbour=found.neighbour,
    similarity=found.similarity,
    counts={"removed": len(found.row), **counts},
  )


def _ids(keep: Keep, context: Context) -> Sequence[np.ndarray] | None:
  return context.doc_ids if keep == "min_id" else None


class ExactDedup(Params):
  """See `exact_dedup`."""

  normalize: bool = True
  keep: Keep = "min_id"


@dataclasses.dataclass(frozen=True)
class _Exact(RowWise):
  params: ExactDedup
  empty = {"key": ((exact.KEY_BYTES,), np.uint8)}  # noqa: RUF012

  def keys(self, batch: pa.RecordBatch) -> Table:
    return {"key": exact.keys(batch.column("text"), normalize=self.params.normalize)}

  def decide(self, tables: Sequence[Table], context: Context) -> Decision:
    ids = _ids(self.params.keep, context)
    found = exact.decide([table["key"] for table in tables], doc_ids=ids)
    return _decision(found, "exact_dedup", {})


def exact_dedup(params: ExactDedup) -> _Exact:
  """Keeps one of all documents whose texts are equal, by default but for case and spacing.

  Memory: 32 bytes a document. Of equal texts the one with the least id stays, or the first.
  """
  return _Exact(params)


class MinhashDedup(Params):
  """See `minhash_dedup`."""

  ngram: Positive = 5
  bands: Annotated[int, Field(ge=1, le=1024)] = 14
  rows: Annotated[int, Field(ge=1, le=1024)] = 8
  seed: Annotated[int, Field(ge=0)] = 1
  verify: bool = True
  min_jaccard: Annotated[float, Field(gt=0, le=1)] = 0.7
  keep: Keep = "min_id"


@dataclasses.dataclass(frozen=True)
class _Minhash(RowWise):
  params: MinhashDedup

  def keys(self, batch: pa.RecordBatch) -> Table:
    p = self.params
    found = near.keys(
      batch.column("text"), ngram=p.ngram, bands=p.bands, rows=p.rows, seed=p.seed
    )
    return found._asdict()

  def join(self, parts: Sequence[Table]) -> Table:
    # A band lies in one piece, since the decision reads one band at a time.
    none = np.zeros((self.params.bands, 0), np.uint64)
    return {
      "bands": np.concatenate([none, *(part["bands"] for part in parts)], axis=1),
      "num_words": np.concatenate(
        [np.zeros(0, np.int32), *(part["num_words"] for part in parts)]
      ),
    }

  def decide(self, tables: Sequence[Table], context: Context) -> Decision:
    p = self.params
    found, counts = near.decide(
      [near.Keys(table["bands"], table["num_words"]) for table in tables],
      context.fetch,
      doc_ids=_ids(p.keep, context),
      ngram=p.ngram,
      min_jaccard=p.min_jaccard,
      verify=p.verify,
      folder=context.folder,
    )
    return _decision(found, "minhash_dedup", counts._asdict())


def minhash_dedup(params: MinhashDedup) -> _Minhash:
  """Keeps one of each cluster of near duplicates, found by MinHash and verified by Jaccard.

  Memory: 8 bytes a band and 20 more a document. Of a cluster the one with the least id stays,
  or the first. See `jdc.prep.near_dedup`.
  """
  return _Minhash(params)


class DedupLines(Params):
  """See `dedup_lines`."""

  min_count: Annotated[int, Field(ge=2)] = 6
  unit: Literal["line", "paragraph"] = "line"
  scope: Literal["corpus"] = "corpus"


@dataclasses.dataclass(frozen=True)
class _Lines:
  params: DedupLines

  def keys(self, batch: pa.RecordBatch) -> Table:
    return line.count_lines(batch.column("text"), unit=self.params.unit)._asdict()

  def join(self, parts: Sequence[Table]) -> Table:
    return line.merge([line.LineCounts(**part) for part in parts])._asdict()

  def decide(self, tables: Sequence[Table], context: Context) -> Decision:
    del context
    counts = [line.LineCounts(**table) for table in tables]
    found = line.frequent(counts, min_count=self.params.min_count)
    none = np.zeros(0, np.int64)
    return Decision(none, (), counts={"lines": len(found)}, resource={"lines": found})

  def apply(self, batch: pa.RecordBatch, resource: Table) -> pa.RecordBatch:
    text, dropped = line.drop_lines(
      batch.column("text"), resource["lines"], unit=self.params.unit
    )
    batch = replace_text(batch, text)
    return batch.append_column("signal:duplicate_lines_dropped", pa.array(dropped))


def dedup_lines(params: DedupLines) -> _Lines:
  """Removes lines or paragraphs that occur often in the whole corpus.

  Memory: 16 bytes for each distinct line. See `jdc.prep.line_dedup`.
  """
  return _Lines(params)


OPERATORS = (
  Operator(
    "exact_dedup", "dedup", exact_dedup, ExactDedup,
    stage_rank=45, cost=5.0,
  ),
  Operator(
    "minhash_dedup", "dedup", minhash_dedup, MinhashDedup,
    stage_rank=50, cost=20.0,
  ),
  Operator(
    "dedup_lines", "dedup", dedup_lines, DedupLines, provides=("text",), rewrites=True,
    stage_rank=20, cost=5.0,
  ),
)  # fmt: skip
