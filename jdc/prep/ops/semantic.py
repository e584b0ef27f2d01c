"""Operators that compare documents by embeddings."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pydantic
from pydantic import Field

from jdc.prep.catalog import Operator, Params
from jdc.prep.globals_ import Context, Decision, Table

_HASH_BOW, _TRANSFORMERS = "hash-bow", "sentence-transformers:"
_FIELD, _FILE, _JDC = "field:", "file:", "jdc:"
_ACCEPTED = (
  f"{_HASH_BOW}, {_JDC}FOLDER, {_FIELD}NAME, {_FILE}PATH.parquet or {_TRANSFORMERS}NAME"
)


class Embed(Params):
  """Where embeddings come from."""

  embed: str = Field(_HASH_BOW, description=f"One of {_ACCEPTED}.")
  dimension: Annotated[int, Field(ge=8, le=65_536)] = Field(256, description="Of hash-bow.")
  key: str = Field("", description="Of file: the field by which records are found there.")
  max_tokens: Annotated[int, Field(ge=0)] = Field(
    0, description="Of jdc: so many at the beginning of a document; 0: all."
  )
  batch_size: Annotated[int, Field(ge=1)] = Field(8, description="Of a model.")
  seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0

  @pydantic.field_validator("embed")
  @classmethod
  def _is_known(cls, value: str) -> str:
    prefixes = (_JDC, _FIELD, _FILE, _TRANSFORMERS)
    if value != _HASH_BOW and not any(value.startswith(p) and value != p for p in prefixes):
      raise ValueError(f"must be {_ACCEPTED}")
    return value

  def files(self) -> tuple[str, ...]:
    if self.embed.startswith(_FILE):
      return (self.embed.removeprefix(_FILE),)
    if self.embed.startswith(_JDC):
      from jdc.prep import language_model

      return language_model.files(self.embed)
    return ()

  def at(self, root: Path) -> Self:
    for prefix in (_FILE, _JDC):
      if self.embed.startswith(prefix):
        path = f"{prefix}{root / self.embed.removeprefix(prefix)}"
        return self.model_copy(update={"embed": path})
    return self


_KEYS_OF = ("embed", "dimension", "key", "max_tokens", "batch_size", "seed")


def embeddings(batch: pa.RecordBatch, params: Embed) -> np.ndarray:
  """Returns the embeddings of documents, f32[n, D]; zeros where there is nothing to embed."""
  name = params.embed
  if name == _HASH_BOW:
    from jdc.prep.semantic import hash_bow

    seed, dimension = params.seed, params.dimension
    return hash_bow.embed(batch.column("text"), dimension=dimension, seed=seed)
  if name.startswith(_JDC):
    from jdc.prep import language_model

    texts, opened = batch.column("text").to_pylist(), language_model.open_model(name)
    return language_model.embeddings(opened, texts, params.batch_size, params.max_tokens)
  if name.startswith(_TRANSFORMERS):
    from jdc.prep.semantic import transformers

    model = name.removeprefix(_TRANSFORMERS)
    return transformers.embed(batch.column("text").to_pylist(), model, params.batch_size)
  from jdc.prep.semantic import given

  if name.startswith(_FIELD):
    return given.of_field(batch, name.removeprefix(_FIELD))
  return given.of_file(batch, name.removeprefix(_FILE), params.key)


class Cluster(Embed):
  """See `semantic_clusters`."""

  k: Annotated[int, Field(ge=1)] | None = Field(
    None, description="Clusters; by default the square root of the number of documents."
  )
  iterations: Annotated[int, Field(ge=1)] = 20
  into: Annotated[str, Field(min_length=1)] = Field(
    "cluster", description="The field that gets the number; `domain` is the domain itself."
  )


class SemanticDedup(Embed):
  """See `semantic_dedup`."""

  eps: Annotated[float, Field(gt=0, lt=2)] = 0.05
  k: Annotated[int, Field(ge=1)] | None = Field(
    None, description="Clusters; by default the square root of the number of documents."
  )
  iterations: Annotated[int, Field(ge=1)] = 20
  keep: Literal["min_id", "first"] = "min_id"


@dataclasses.dataclass(frozen=True)
class _Embedded:
  """What both have in common: tables of embeddings."""

  params: Any

  def keys(self, batch: pa.RecordBatch) -> Table:
    return {"embedding": embeddings(batch, self.params)}

  def join(self, parts: Sequence[Table]) -> Table:
    if not parts:
      return {"embedding": np.zeros((0, 0), np.float32)}
    return {"embedding": np.concatenate([part["embedding"] for part in parts])}

  def apply(self, batch: pa.RecordBatch, resource: Table) -> pa.RecordBatch:
    del resource
    return batch


def _tables(tables: Sequence[Table], ids: Sequence[np.ndarray]) -> tuple[Any, Any]:
  """Returns those of shards with documents; others do not know how wide they are."""
  some = [n for n, part in enumerate(ids) if len(part)]
  return [tables[n]["embedding"] for n in some], [ids[n] for n in some]


class _Dedup(_Embedded):
  def decide(self, tables: Sequence[Table], context: Context) -> Decision:
    from jdc.prep.semantic import dedup

    p: SemanticDedup = self.params
    found, counts = dedup.decide(
      *_tables(tables, context.doc_ids),
      eps=p.eps,
      k=p.k,
      seed=p.seed,
      iterations=p.iterations,
      by_id=p.keep == "min_id",
    )
    counted = {"removed": len(found.row), **counts._asdict()}
    return Decision(
      found.row, ("semantic_dedup",), kept=found.kept, similarity=found.similarity,
      counts=counted,
    )  # fmt: skip


def semantic_dedup(params: SemanticDedup) -> _Dedup:
  """Removes documents whose embedding has a cosine above 1 - eps with one that stays.

  Documents are clustered by k-means and compared within clusters (SemDeDup, Abbas et al., 2023,
  arXiv:2303.09540), in the order of their ids. Documents without an embedding stay. With
  `hash-bow`, embeddings of hashed words and pairs of words, no model is needed; 0.05 to 0.3 are
  sensible then. Memory: 60 bytes a document; embeddings stay on the disk. See
  `jdc.prep.semantic.dedup`.
  """
  return _Dedup(params)


class _Clusters(_Embedded):
  def decide(self, tables: Sequence[Table], context: Context) -> Decision:
    from jdc.prep.semantic import dedup

    p: Cluster = self.params
    cluster, fitted = dedup.clusters(
      *_tables(tables, context.doc_ids), k=p.k, seed=p.seed, iterations=p.iterations
    )
    ids = np.concatenate([np.zeros((0, 16), np.uint8), *context.doc_ids])
    order = np.lexsort(np.ascontiguousarray(ids).view(">u8").T[::-1])
    sizes = np.bincount(cluster[cluster >= 0], minlength=len(fitted.centre))
    counts = {
      "clusters": len(fitted.centre),
      "sizes": sizes.tolist(),
      "without_embedding": int(np.sum(cluster < 0)),
      "iterations": fitted.iterations,
      "mean_cosine": round(fitted.mean_cosine, 6),
    }
    resource = {"doc_id": ids[order], "cluster": cluster[order], "centre": fitted.centre}
    return Decision(np.zeros(0, np.int64), (), counts=counts, resource=resource)

  def apply(self, batch: pa.RecordBatch, resource: Table) -> pa.RecordBatch:
    from jdc.prep.semantic import labels

    return labels.write(batch, resource["doc_id"], resource["cluster"], self.params.into)


def semantic_clusters(params: Cluster) -> _Clusters:
  """Clusters documents by k-means of their embeddings, and writes the number of the cluster.

  It becomes a field of the record, or with `into = "domain"` the domain `cluster_00017`, for
  `mix` to balance. Documents without an embedding get -1, `cluster_none`. Centres are in
  `work/`. See `jdc.prep.semantic.dedup.clusters`.
  """
  return _Clusters(params)


OPERATORS = (
  Operator(
    "semantic_dedup", "dedup", semantic_dedup, SemanticDedup, keys_of=_KEYS_OF,
    code=("jdc.prep.semantic.dedup",), stage_rank=55, cost=60.0,
  ),
  Operator(
    "semantic_clusters", "dedup", semantic_clusters, Cluster, keys_of=_KEYS_OF,
    provides=("fields",), rewrites=True, code=("jdc.prep.semantic.dedup",), stage_rank=85,
    cost=60.0,
  ),
)  # fmt: skip
