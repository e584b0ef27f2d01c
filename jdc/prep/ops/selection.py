"""Operators that select documents by language, lists, evaluation sets, and their messages."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from jdc.prep import decontaminate as decontaminate_lib
from jdc.prep import evaluation_texts
from jdc.prep.catalog import Operator, Params
from jdc.prep.problems import suggestion

Reasons = dict[str, np.ndarray]
Code = Annotated[str, Field(pattern="^[a-z]{2,3}$")]


class Language(Params):
  """See `language`."""

  keep: Annotated[tuple[Code, ...], Field(min_length=1)] = ("en",)
  min_score: Annotated[float, Field(ge=0, le=1)] = 0.65
  max_bytes: Annotated[int, Field(ge=64)] = 512

  def file_problems(self) -> list[str]:
    from jdc.prep.text import language_tables

    known = language_tables.codes()
    unknown = [code for code in self.keep if code not in known]
    return [
      f"keep: no language {code!r} is told apart{suggestion(code, known)}" for code in unknown
    ]


def identify(batch: pa.RecordBatch, params: Any) -> dict[str, Any]:
  """Identifies the language of documents."""
  from jdc.prep.text.language import language as function

  found: dict[str, Any] = function(batch.column("text"), max_bytes=params.max_bytes)
  return {
    "lang": pa.array(found["lang"].tolist(), pa.string()),
    "lang_score": found["lang_score"],
  }


def language(found: Mapping[str, Any], params: Language) -> Reasons:
  """Keeps documents in some languages, by ISO 639 code."""
  known = pc.is_in(found["lang"], pa.array(params.keep, pa.string()))
  unsure = np.asarray(found["lang_score"]) < params.min_score
  return {"language": ~known.to_numpy(zero_copy_only=False), "language.score": unsure}


class IdentifyParams(Params):
  """See `identify_language`."""

  max_bytes: Annotated[int, Field(ge=64)] = 512


def _problems(read: Callable[[str], Any], paths: Iterable[str]) -> list[str]:
  """Returns why files cannot be read."""
  found = []
  for path in paths:
    try:
      read(path)
    except ValueError as error:
      found.append(str(error))
  return found


class Contamination(Params):
  """See `contamination`."""

  against: Annotated[tuple[str, ...], Field(min_length=1)]
  ngram: Annotated[int, Field(ge=decontaminate_lib.MIN_WORDS)] = 13

  def files(self) -> tuple[str, ...]:
    return self.against

  def file_problems(self) -> list[str]:
    return _problems(lambda path: list(evaluation_texts.read_texts(path)), self.against)

  def at(self, root: Path) -> Self:
    return self.model_copy(update={"against": tuple(str(root / p) for p in self.against)})


class Decontaminate(Contamination):
  """See `decontaminate`."""

  max_hits: Annotated[int, Field(ge=0)] = 0


_indexes: dict[tuple[Any, ...], decontaminate_lib.Index] = {}  # of this process, by parameters


def contamination(batch: pa.RecordBatch, params: Contamination) -> dict[str, Any]:
  """Finds the texts of evaluation sets in documents."""
  stamps = tuple(Path(path).stat().st_mtime_ns for path in params.against)
  key = (params.against, params.ngram, stamps)
  if key not in _indexes:
    _indexes.clear()
    _indexes[key] = decontaminate_lib.load(params.against, ngram=params.ngram)
  found = decontaminate_lib.find(batch.column("text"), _indexes[key])
  return {"contamination_hits": found.hits, "contaminated_by": found.evaluation}


def decontaminate(found: Mapping[str, Any], params: Decontaminate) -> Reasons:
  """Drops documents that hold texts of evaluation sets; see `jdc.prep.decontaminate`."""
  return {"decontaminate": np.asarray(found["contamination_hits"]) > params.max_hits}


class SftFilter(Params):
  """See `sft_filter`."""

  min_response: Annotated[int, Field(ge=0)] = 1
  drop_refusals: bool = True
  max_turns: Annotated[int, Field(ge=1)] | None = None
  drop_copied: bool = True


def sft_signals(batch: pa.RecordBatch, params: Params) -> dict[str, np.ndarray]:
  """Counts turns, words of responses, refusals and copied questions of instruction data."""
  from jdc.prep.text.sft_filter import sft_signals as function

  del params
  return function(batch.column("fields"))


def sft_filter(found: Mapping[str, Any], params: SftFilter) -> Reasons:
  """Drops instruction data whose responses are too short, refuse, or repeat what was asked."""
  from jdc.prep.text.sft_filter import sft_filter as function

  why = function(dict(found), **params.model_dump())
  names = ("response_words", "refusal", "turns", "copied")
  return {f"sft_filter.{name}": why == name for name in names}


class ListFile(Params):
  """A list in a file of one entry a line."""

  path: str

  def files(self) -> tuple[str, ...]:
    return (self.path,)

  def file_problems(self) -> list[str]:
    from jdc.prep.text import blocklist as lib

    return _problems(lib.read_list, [self.path])

  def at(self, root: Path) -> Self:
    return self.model_copy(update={"path": str(root / self.path)})


class Blocklist(ListFile):
  """See `blocklist`."""

  max_hits: Annotated[int, Field(ge=0)] = 0


class UrlList(ListFile):
  """See `url_blocklist`."""

  field: str = "url"


def blocklist_hits(batch: pa.RecordBatch, params: ListFile) -> dict[str, np.ndarray]:
  """Counts words and phrases of a list in documents."""
  from jdc.prep.text import blocklist as lib

  return lib.blocklist(batch.column("text"), lib.read_list(params.path))


def blocklist(found: Mapping[str, Any], params: Blocklist) -> Reasons:
  """Drops documents with words or phrases of a list, a file of one a line."""
  return {"blocklist": np.asarray(found["blocklist_hits"]) > params.max_hits}


def url_blocklist_hits(batch: pa.RecordBatch, params: UrlList) -> dict[str, np.ndarray]:
  """Tells which records come from web domains of a list."""
  from jdc.prep.text import blocklist as lib

  return lib.url_blocklist(batch.column("fields"), lib.read_list(params.path), params.field)


def url_blocklist(found: Mapping[str, Any], params: UrlList) -> Reasons:
  """Drops records from web domains of a list, a file of one a line, or their subdomains.

  A record without an address stays; that no record has one is an error when all have been read.
  """
  return {"url_blocklist": np.asarray(found["url_blocklist_hits"]) > 0}


OPERATORS = (
  Operator(
    "identify_language", "signals", identify, IdentifyParams, provides=("lang", "lang_score"),
    stage_rank=30, cost=20.0,
  ),
  Operator(
    "contamination", "signals", contamination, Contamination,
    provides=("contamination_hits", "contaminated_by"),
    stage_rank=30, cost=10.0,
  ),
  Operator(
    "language", "predicate", language, Language,
    uses=lambda params: (("identify_language", {"max_bytes": params.max_bytes}),),
    stage_rank=41, cost=0.1,
  ),
  Operator(
    "decontaminate", "predicate", decontaminate, Decontaminate,
    uses=lambda params: (
      ("contamination", {"against": list(params.against), "ngram": params.ngram}),
    ),
    stage_rank=80, cost=0.1,
  ),
  Operator(
    "sft_signals", "signals", sft_signals, Params, needs=("messages",),
    provides=("sft_turns", "sft_response_words", "sft_refusals", "sft_copied"),
    stage_rank=30, cost=30.0,
  ),
  Operator(
    "sft_filter", "predicate", sft_filter, SftFilter, needs=("messages",),
    uses=lambda params: (("sft_signals", {}),),
    stage_rank=40, cost=0.1,
  ),
  Operator(
    "blocklist_hits", "signals", blocklist_hits, ListFile, provides=("blocklist_hits",),
    stage_rank=30, cost=10.0,
  ),
  Operator(
    "blocklist", "predicate", blocklist, Blocklist,
    uses=lambda params: (("blocklist_hits", {"path": params.path}),), stage_rank=42, cost=0.1,
  ),
  Operator(
    "url_blocklist_hits", "signals", url_blocklist_hits, UrlList, needs=("fields",),
    provides=("url_blocklist_hits", "url_missing"), lacks=("url_missing", "address in field"),
    stage_rank=30, cost=5.0,
  ),
  Operator(
    "url_blocklist", "predicate", url_blocklist, UrlList, needs=("fields",),
    uses=lambda params: (
      ("url_blocklist_hits", {"path": params.path, "field": params.field}),
    ),
    stage_rank=9, cost=0.1,
  ),
)  # fmt: skip
