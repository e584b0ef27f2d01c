"""Operators that know documents by their ids, or texts by their hashes, from a file."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import pyarrow as pa
from pydantic import Field

from jdc.prep.catalog import Operator, Params
from jdc.prep.feedback import lists
from jdc.prep.globals_ import Context, Decision, RowWise, Table

Reasons = dict[str, np.ndarray]


class DropDocuments(Params):
  """See `drop_documents`."""

  path: str = Field(description="One document a line: its id in hexadecimal, a tab, a reason.")
  sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = Field(
    "", description="Of the file; another content is an error. Empty: any."
  )

  def files(self) -> tuple[str, ...]:
    return (self.path,)

  def file_problems(self) -> list[str]:
    content = Path(self.path).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if self.sha256 and found != self.sha256:
      return [f"{self.path}: its sha256 is {found}, the plan names {self.sha256}"]
    try:
      lists.read(self.path)
    except ValueError as error:
      return [str(error)]
    return []

  def at(self, root: Path) -> Self:
    return self.model_copy(update={"path": str(root / self.path)})


class RefuseTexts(Params):
  """See `refuse_texts`."""

  path: str = Field(
    description="Hashes of texts, one a line; see `jdc.prep.feedback.held_out`."
  )

  def files(self) -> tuple[str, ...]:
    return (self.path,)

  def at(self, root: Path) -> Self:
    return self.model_copy(update={"path": str(root / self.path)})


def _stamp(path: str) -> tuple[str, int, int, int]:
  status = os.stat(path)
  return path, status.st_size, status.st_mtime_ns, status.st_ctime_ns


@functools.lru_cache(maxsize=1)
def _listed(stamp: tuple[str, int, int, int]) -> dict[bytes, str]:
  return {bytes.fromhex(doc_id): reason for doc_id, reason in lists.read(stamp[0]).items()}


@functools.lru_cache(maxsize=1)
def _hashes(stamp: tuple[str, int, int, int]) -> frozenset[str]:
  return frozenset(Path(stamp[0]).read_text(encoding="ascii").split())


def listed_reason(batch: pa.RecordBatch, params: DropDocuments) -> dict[str, Any]:
  """Looks documents up in a list by their ids."""
  listed = _listed(_stamp(params.path))
  reasons = [listed.get(doc_id, "") for doc_id in batch.column("doc_id").to_pylist()]
  return {"listed_reason": pa.array(reasons, pa.string())}


def drop_documents(found: Mapping[str, Any], params: DropDocuments) -> Reasons:
  """Drops the documents that a file lists, each with its reason.

  Documents that are copies, as `mix` makes them, have ids of their own: stand before it.
  """
  reasons = np.array(pa.array(found["listed_reason"]).to_pylist(), object)
  known = sorted(set(lists.read(params.path).values()))
  return {f"drop_documents.{reason}": reasons == reason for reason in known}


@dataclasses.dataclass(frozen=True)
class _RefuseTexts(RowWise):
  params: RefuseTexts
  empty = {"passed": ((), np.bool_)}  # noqa: RUF012

  def keys(self, batch: pa.RecordBatch) -> Table:
    from jdc.prep.feedback import held_out

    refused = _hashes(_stamp(self.params.path))
    columns = (batch.column(name).to_pylist() for name in ("text", "source", "offset"))
    places = [
      f"{source}@{offset}"
      for text, source, offset in zip(*columns, strict=True)
      if held_out.text_hash(text) in refused
    ]
    if places:
      raise ValueError(
        f"{len(places)} documents have texts of the held-out set, the first: "
        f"{', '.join(places[:5])}; leave them out, with decontaminate or a list"
      )
    return {"passed": np.ones(batch.num_rows, np.bool_)}

  def decide(self, tables: Sequence[Table], context: Context) -> Decision:
    del context
    counts = {"passed": sum(len(table["passed"]) for table in tables)}
    return Decision(np.zeros(0, np.int64), ("refuse_texts",), counts=counts)


def refuse_texts(params: RefuseTexts) -> _RefuseTexts:
  """Stops the run where a document that is left has a text whose hash is listed; drops none."""
  return _RefuseTexts(params)


OPERATORS = (
  Operator(
    "listed_reason", "signals", listed_reason, DropDocuments, provides=("listed_reason",),
    code=("jdc.prep.feedback.lists",), stage_rank=85, cost=0.5,
  ),
  Operator(
    "drop_documents", "predicate", drop_documents, DropDocuments,
    uses=lambda params: (("listed_reason", params.model_dump()),),
    code=("jdc.prep.feedback.lists",), stage_rank=86, cost=0.1,
  ),
  Operator(
    "refuse_texts", "dedup", refuse_texts, RefuseTexts,
    code=("jdc.prep.feedback.held_out",), stage_rank=95, cost=5.0,
  ),
)  # fmt: skip
