"""Operators that take some documents: samples, and mixtures of domains to a budget."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pydantic
from pydantic import Field

from jdc.data import tokenize
from jdc.data.tokenize import Tokenizer
from jdc.prep import sample as lib
from jdc.prep import sample_keys
from jdc.prep.batches import ID_BYTES, set_column
from jdc.prep.catalog import Operator, Params
from jdc.prep.globals_ import Context, Decision, Table

Positive = Annotated[float, Field(gt=0)]


class Sample(Params):
  """See `sample`."""

  max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="In `unit`.")
  weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
  temperature: Positive = 1.0
  max_epochs: Positive = Field(
    1.0, description="The most that a domain may be repeated; above 1 documents may be copied."
  )
  unit: Literal["words", "bytes", "tokens"] = "words"
  tokenizer: str = Field("", description="A tokenizer.json, for the unit `tokens`.")
  seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0

  @pydantic.model_validator(mode="after")
  def _has_tokenizer(self) -> Self:
    if (self.unit == "tokens") != bool(self.tokenizer):
      raise ValueError(
        f"tokenizer must be given for unit='tokens' and only then, got unit={self.unit!r} and "
        f"tokenizer={self.tokenizer!r}"
      )
    return self

  def files(self) -> tuple[str, ...]:
    return (self.tokenizer,) if self.tokenizer else ()

  def file_problems(self) -> list[str]:
    try:
      _tokenizer(self.tokenizer)
    except ValueError as error:
      return str(error).splitlines()
    return []

  def at(self, root: Path) -> Self:
    path = str(root / self.tokenizer) if self.tokenizer else ""
    return self.model_copy(update={"tokenizer": path})


def _tokenizer(path: str) -> Tokenizer | None:
  if not path:
    return None
  status = os.stat(path)
  return _opened(path, (status.st_size, status.st_mtime_ns, status.st_ctime_ns))


@functools.lru_cache(maxsize=1)
def _opened(path: str, stamp: tuple[int, ...]) -> Tokenizer:
  del stamp
  return tokenize.from_file(path)  # without boundary tokens, which are not counted


@dataclasses.dataclass(frozen=True)
class _Sample:
  params: Sample

  def keys(self, batch: pa.RecordBatch) -> Table:
    p = self.params
    return sample_keys.keys(batch, p.unit, p.seed, _tokenizer(p.tokenizer)).arrays()

  def join(self, parts: Sequence[Table]) -> Table:
    p = self.params
    if not parts:
      none: dict[str, Any] = {
        "number": np.uint64,
        "size": np.int64,
        "domain": np.int32,
        "domains": "S1",
      }
      return {name: np.zeros(0, kind) for name, kind in none.items()}
    return sample_keys.join(
      [sample_keys.from_arrays(part, p.unit, p.seed) for part in parts]
    ).arrays()

  def decide(self, tables: Sequence[Table], context: Context) -> Decision:
    del context
    p = self.params
    keys = [sample_keys.from_arrays(table, p.unit, p.seed) for table in tables]
    none = np.zeros(0, np.int64)
    if not any(len(key.number) for key in keys):
      return Decision(none, ("sample",), resource=_NOTHING if repeats(p) else None)
    mix = lib.decide(keys, p.weights, p.max_tokens, p.temperature, p.max_epochs)
    counts = _plain(mix.to_json())
    if repeats(p):
      return Decision(none, ("sample",), counts=counts, resource=_table(mix))
    gone = np.concatenate([lib.copies_of_keys(key, mix) == 0 for key in keys])
    return Decision(np.flatnonzero(gone), ("sample",), counts=counts)

  def apply(self, batch: pa.RecordBatch, resource: Table) -> pa.RecordBatch:
    """Puts the copies of each document behind it, and marks those that are not taken."""
    names = [name.decode() for name in resource["domains"].tolist()]
    if not names:
      return set_column(batch, "drop", pa.nulls(batch.num_rows, pa.string()))
    domains = np.array([names.index(name) for name in batch.column("domain").to_pylist()], int)
    number = sample_keys.numbers(batch.column("doc_id"), self.params.seed)
    count = resource["copies"][domains] + (number < resource["threshold"][domains])
    row = np.repeat(np.arange(batch.num_rows), np.maximum(count, 1))
    made = batch.take(pa.array(row))
    place = np.arange(len(row)) - np.searchsorted(row, row)  # among the copies of a document
    ids = made.column("doc_id").to_pylist()
    for at in np.flatnonzero(place):
      ids[at] = copy_id(ids[at], int(place[at]))
    made = set_column(made, "doc_id", pa.array(ids, pa.binary(ID_BYTES)))
    reason = pa.array(np.full(len(row), "sample", object), pa.string(), mask=count[row] > 0)
    return set_column(made, "drop", reason)


def repeats(params: Sample) -> bool:
  """Whether documents may be taken more than once."""
  return params.max_epochs > 1


def copy_id(doc_id: bytes, number: int) -> bytes:
  """Returns the id of a further copy of a document; its first copy keeps its own.

  >>> copy_id(bytes(16), 1) == copy_id(bytes(16), 2)
  False
  """
  return hashlib.blake2b(doc_id + b"copy\0%d" % number, digest_size=ID_BYTES).digest()


_NOTHING: Table = {
  "domains": np.zeros(0, "S1"),
  "copies": np.zeros(0, np.int64),
  "threshold": np.zeros(0, np.uint64),
}


def _table(mix: lib.Mix) -> Table:
  """Returns what `apply` needs of a mixture, by domain."""
  shares = mix.shares.values()
  return {
    "domains": np.array([name.encode() for name in mix.shares], "S"),
    "copies": np.array([share.copies for share in shares], np.int64),
    "threshold": np.array([share.threshold for share in shares], np.uint64),
  }


def _plain(value: dict[str, Any]) -> dict[str, Any]:
  value["shares"] = {name: dict(share) for name, share in value["shares"].items()}
  return value


def sample(params: Sample) -> _Sample:
  """Takes documents by a hash of their ids, to a budget of tokens and to weights of domains.

  Memory: 20 bytes a document and 16 for its id. See `jdc.prep.sample`. Where a domain has less
  than its share, `max_epochs` lets its documents be taken more than once: copies stand behind
  each other, have ids of their own (`copy_id`), and the source and offset of their document.
  """
  return _Sample(params)


def mix(params: Sample) -> _Sample:
  """Mixes domains by weights, as `sample` does; without a budget the largest one that fits."""
  return _Sample(params)


OPERATORS = tuple(
  Operator(
    function.__name__, "sample", function, Sample, rewrites=repeats, stage_rank=90, cost=10.0,
  )
  for function in (sample, mix)
)  # fmt: skip
