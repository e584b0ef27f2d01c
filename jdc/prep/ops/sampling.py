"""Operators that take some documents: samples, and mixtures of domains to a budget."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
from pydantic import Field

from jdc.data.tokenize import Tokenizer
from jdc.prep import sample as lib
from jdc.prep.catalog import Operator, Params
from jdc.prep.globals_ import Context, Decision, Table

Positive = Annotated[float, Field(gt=0)]


class Sample(Params):
  """See `sample`."""

  max_tokens: Annotated[int, Field(ge=1)] | None = Field(None, description="In `unit`.")
  weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
  temperature: Positive = 1.0
  unit: Literal["words", "bytes", "tokens"] = "words"
  tokenizer: str = Field("", description="A tokenizer.json, for the unit `tokens`.")
  seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0

  def files(self) -> tuple[str, ...]:
    return (self.tokenizer,) if self.tokenizer else ()

  def at(self, root: Path) -> Self:
    path = str(root / self.tokenizer) if self.tokenizer else ""
    return self.model_copy(update={"tokenizer": path})


@functools.lru_cache(maxsize=1)
def _tokenizer(path: str) -> Tokenizer | None:
  from jdc.prep.sinks.tokens import TokenOptions, open_tokenizer

  return open_tokenizer(TokenOptions(tokenizer=path)).tokenizer if path else None


@dataclasses.dataclass(frozen=True)
class _Sample:
  params: Sample

  def keys(self, batch: pa.RecordBatch) -> Table:
    p = self.params
    return lib.keys(batch, p.unit, p.seed, _tokenizer(p.tokenizer)).arrays()

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
    return lib.join([lib.from_arrays(part, p.unit, p.seed) for part in parts]).arrays()

  def decide(self, tables: Sequence[Table], context: Context) -> Decision:
    del context
    p = self.params
    keys = [lib.from_arrays(table, p.unit, p.seed) for table in tables]
    none = np.zeros(0, np.int64)
    if not any(len(key.number) for key in keys):
      return Decision(none, ("sample",))
    mix = lib.decide(keys, p.weights, p.max_tokens, p.temperature)
    gone = np.concatenate([~_taken(key, mix) for key in keys])
    return Decision(np.flatnonzero(gone), ("sample",), counts=_plain(mix.to_json()))

  def apply(self, batch: pa.RecordBatch, resource: Table) -> pa.RecordBatch:
    del resource
    return batch


def _taken(keys: lib.Keys, mix: lib.Mix) -> np.ndarray:
  """Returns which documents are taken; without repetition that is once or not at all."""
  shares = [mix.shares[name] for name in keys.domains]
  whole = np.array([share.copies > 0 for share in shares], bool)
  threshold = np.array([share.threshold for share in shares], np.uint64)
  return whole[keys.domain] | (keys.number < threshold[keys.domain])


def _plain(value: dict[str, Any]) -> dict[str, Any]:
  value["shares"] = {name: dict(share) for name, share in value["shares"].items()}
  return value


def sample(params: Sample) -> _Sample:
  """Takes documents by a hash of their ids, to a budget of tokens and to weights of domains.

  Memory: 16 bytes a document and 16 for its id. See `jdc.prep.sample`; no document is repeated.
  """
  return _Sample(params)


def mix(params: Sample) -> _Sample:
  """Mixes domains by weights, as `sample` does; without a budget the largest one that fits."""
  return _Sample(params)


OPERATORS = tuple(
  Operator(
    function.__name__, "sample", function, Sample, stage_rank=90,
    cost=10.0,
  )
  for function in (sample, mix)
)  # fmt: skip
