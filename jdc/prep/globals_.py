"""What operators that decide over all documents at once have in common."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

Table = Mapping[str, np.ndarray]


class Context(NamedTuple):
  """What a decision may ask for beside the keys.

  Attributes:
    doc_ids: u8[., 16] of each shard, in input order.
    fetch: (rows i64[m], ascending, counted over all shards) -> their texts, in any batches.
    folder: where large temporary files may go.
  """

  doc_ids: Sequence[np.ndarray]
  fetch: Callable[[np.ndarray], Iterable[pa.StringArray]]
  folder: Path


@dataclasses.dataclass(frozen=True)
class Decision:
  """Which documents go, or what a later pass over them needs.

  Attributes:
    row: i64[R], ascending, counted over all shards.
    reason: of all R, or i64[R] places in `reasons`.
    reasons: names of reasons.
    kept: i64[R], the row that each duplicates; `None` where rows go for another reason.
    neighbour: i64[R], the row that `similarity` is to; `None` where that is `kept`.
    similarity: f64[R]; NaN where unknown; `None` where it makes no sense.
    counts: what the decision measured, for the report.
    resource: arrays for `GlobalOp.apply`; `None` if documents go.
  """

  row: np.ndarray
  reasons: tuple[str, ...]
  reason: np.ndarray | None = None
  kept: np.ndarray | None = None
  neighbour: np.ndarray | None = None
  similarity: np.ndarray | None = None
  counts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  resource: Table | None = None


class GlobalOp(Protocol):
  """An operator of kind `dedup` or `sample`, with its parameters."""

  def keys(self, batch: pa.RecordBatch) -> Table:
    """Returns what the decision needs of a batch."""

  def join(self, parts: Sequence[Table]) -> Table:
    """Returns the table of a shard, of those of its batches."""

  def decide(self, tables: Sequence[Table], context: Context) -> Decision:
    """Returns the decision over the tables of all shards."""

  def apply(self, batch: pa.RecordBatch, resource: Table) -> pa.RecordBatch:
    """Changes documents, for decisions with a resource."""


class RowWise:
  """Joins tables whose arrays all have a row a document, and changes no document."""

  empty: Mapping[str, tuple[tuple[int, ...], Any]] = {}  # name -> shape after rows, dtype

  def join(self, parts: Sequence[Table]) -> Table:
    """Returns the rows of all parts, one after the other."""
    return {
      name: np.concatenate([np.zeros((0, *shape), kind), *(part[name] for part in parts)])
      for name, (shape, kind) in self.empty.items()
    }

  def apply(self, batch: pa.RecordBatch, resource: Table) -> pa.RecordBatch:
    """Returns the batch."""
    del resource
    return batch
