"""Operators that change the text of documents."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pydantic
from pydantic import Field

from jdc.prep.batches import ID_BYTES, replace_text, set_column
from jdc.prep.catalog import Operator, Params
from jdc.prep.readers.jsonl import dump
from jdc.prep.text.buffers import replace_rows
from jdc.prep.text.sft import are_messages

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


def changed(
  batch: pa.RecordBatch, result: pa.Array | tuple[pa.Array, Mapping[str, np.ndarray]]
) -> pa.RecordBatch:
  """Returns a batch with a new text, and with what was counted on the way as signals."""
  text, counts = result if isinstance(result, tuple) else (result, {})
  batch = replace_text(batch, text)
  for name, values in counts.items():
    batch = set_column(batch, f"signal:{name}", pa.array(values))
  return batch


class FixUnicode(Params):
  """See `fix_unicode`."""

  form: Literal["NFC", "NFKC", "NFD", "NFKD"] = "NFC"
  mojibake: bool = True
  drop_controls: bool = True


def fix_unicode(batch: pa.RecordBatch, params: FixUnicode) -> pa.RecordBatch:
  """Repairs text that was decoded wrongly, normalises it, drops control characters."""
  from jdc.prep.text.unicode import fix_unicode as function

  return changed(batch, function(batch.column("text"), **params.model_dump()))


class NormalizeWhitespace(Params):
  """See `normalize_whitespace`."""

  max_blank_lines: Count = 1
  strip: bool = True
  keep_indent: bool = True


def normalize_whitespace(batch: pa.RecordBatch, params: NormalizeWhitespace) -> pa.RecordBatch:
  """Brings white space and ends of lines into one form."""
  from jdc.prep.text.whitespace import normalize_whitespace as function

  return changed(batch, function(batch.column("text"), **params.model_dump()))


class StripUrls(Params):
  """See `strip_urls`."""

  replacement: str = ""


def strip_urls(batch: pa.RecordBatch, params: StripUrls) -> pa.RecordBatch:
  """Replaces web addresses."""
  from jdc.prep.text.strip import strip_urls as function

  return changed(batch, function(batch.column("text"), **params.model_dump()))


def strip_citations(batch: pa.RecordBatch, params: Params) -> pa.RecordBatch:
  """Removes marks of citations such as [12] and [edit]."""
  from jdc.prep.text.strip import strip_citations as function

  del params
  return changed(batch, function(batch.column("text")))


class StripSymbolLines(Params):
  """See `strip_symbol_lines`."""

  max_symbol_ratio: Share = 0.5


def strip_symbol_lines(batch: pa.RecordBatch, params: StripSymbolLines) -> pa.RecordBatch:
  """Removes lines that are mostly symbols."""
  from jdc.prep.text.strip import strip_symbol_lines as function

  return changed(batch, function(batch.column("text"), **params.model_dump()))


class DropLines(Params):
  """See `drop_lines`."""

  no_terminal_punct: bool = False
  min_words: Count = 3
  javascript: bool = True
  policy: bool = True
  max_word_len: Annotated[int, Field(ge=1)] = 1000


def drop_lines(batch: pa.RecordBatch, params: DropLines) -> pa.RecordBatch:
  """Drops lines by the rules of C4 (Raffel et al., 2020, arXiv:1910.10683)."""
  from jdc.prep.text.c4 import drop_lines as function

  return changed(batch, function(batch.column("text"), **params.model_dump()))


class MaskPii(Params):
  """See `mask_pii`."""

  email: bool = True
  ip: bool = True
  phone: bool = True
  card_luhn: bool = True
  iban: bool = True
  ssn: bool = False
  street: bool = False
  name: bool = False
  style: str = "<EMAIL>"

  @pydantic.field_validator("style")
  @classmethod
  def _is_style(cls, value: str) -> str:
    from jdc.prep.text.pii import mask_pii as function

    function(pa.array([], pa.string()), style=value)
    return value


def mask_pii(batch: pa.RecordBatch, params: MaskPii) -> pa.RecordBatch:
  """Puts marks in the place of e-mail and IP addresses, phone, card and account numbers, ...

  On demand also in that of social security numbers and street addresses, as in the United
  States, and of names that stand beside what is masked; see `jdc.prep.text.pii`. Messages of
  instruction data are masked as the text is, since they are what is written of it.
  """
  from jdc.prep.text.pii import mask_pii as function

  batch = changed(batch, function(batch.column("text"), **params.model_dump()))
  fields, changes = batch.column("fields"), {}
  rows = np.flatnonzero(pc.match_substring(fields, '"messages"')).tolist()
  for row, value in zip(rows, fields.take(pa.array(rows, pa.int64())).to_pylist(), strict=True):
    record = json.loads(value)
    if not are_messages(record.get("messages")):
      continue
    contents = pa.array([turn["content"] for turn in record["messages"]], pa.string())
    masked, _ = function(contents, **params.model_dump())
    if not masked.equals(contents):
      turns = zip(record["messages"], masked.to_pylist(), strict=True)
      record["messages"] = [{**turn, "content": content} for turn, content in turns]
      changes[row] = dump(record)
  places = np.zeros(batch.num_rows, np.bool_)
  places[list(changes)] = True
  return set_column(batch, "fields", replace_rows(fields, places, list(changes.values())))


class HtmlToText(Params):
  """See `html_to_text`."""

  main_content: bool = True
  keep_tables: bool = False
  repeat: bool = False


def html_to_text(batch: pa.RecordBatch, params: HtmlToText) -> pa.RecordBatch:
  """Replaces HTML by the text that it shows, by default without menus and footers."""
  from jdc.prep.text.html import html_to_text as function

  return changed(batch, function(batch.column("text"), **params.model_dump()))


class ChunkText(Params):
  """See `chunk_text`."""

  tokens: Annotated[int, Field(ge=1)] = 1024
  overlap: Count = 0
  by: Literal["paragraph", "line", "sentence", "word"] = "paragraph"

  @pydantic.model_validator(mode="after")
  def _fits(self) -> "ChunkText":
    if self.overlap >= self.tokens:
      raise ValueError(f"overlap must be below tokens={self.tokens}, got {self.overlap}")
    return self


def chunk_text(batch: pa.RecordBatch, params: ChunkText) -> pa.RecordBatch:
  """Cuts documents into chunks of at most so many words, at the ends of paragraphs.

  A chunk has the source and offset of its document, the field `chunk`, its first byte in the
  document's text, and as id a hash of the document's id and that byte; a document that is one
  chunk from its first byte on keeps its id.
  """
  from jdc.prep.text.chunk import chunk_text as function

  made = function(batch.column("text"), **params.model_dump())
  batch = replace_text(batch.take(pa.array(made.row)), made.text)
  alone = np.bincount(made.row, minlength=1)[made.row] == 1
  ids, fields = [], []
  held = zip(
    batch.column("doc_id").to_pylist(),
    batch.column("fields").to_pylist(),
    made.offset.tolist(),
    alone.tolist(),
    strict=True,
  )
  for identity, value, offset, whole in held:
    if not whole or offset:
      content = identity + b"chunk\0%d" % offset
      identity = hashlib.blake2b(content, digest_size=ID_BYTES).digest()
    ids.append(identity)
    fields.append(dump({**json.loads(value), "chunk": offset}))
  batch = set_column(batch, "doc_id", pa.array(ids, pa.binary(ID_BYTES)))
  return set_column(batch, "fields", pa.array(fields, pa.string()))


def _text(
  function: Callable[[pa.RecordBatch, Any], pa.RecordBatch],
  params: type[Params],
  rank: int,
  cost: float,
  **options: Any,
) -> Operator:
  return Operator(
    function.__name__,
    "map",
    function,
    params,
    provides=("text",),
    stage_rank=rank,
    cost=cost,
    **options,
  )


OPERATORS = (
  _text(
    html_to_text, HtmlToText, 8, 50.0,
    not_after={"mask_pii": "its marks, such as <EMAIL>, would count as tags"},
  ),
  _text(chunk_text, ChunkText, 70, 20.0),
  _text(fix_unicode, FixUnicode, 10, 1.0, early=True),
  _text(strip_urls, StripUrls, 14, 1.0, early=True),
  _text(strip_citations, Params, 15, 1.0, early=True),
  _text(strip_symbol_lines, StripSymbolLines, 16, 2.0, early=True),
  # In this order a second run changes nothing: lines are judged as they are written. All stand
  # before the rules, which then judge what is written, too.
  _text(normalize_whitespace, NormalizeWhitespace, 17, 2.0, early=True),
  _text(mask_pii, MaskPii, 18, 3.0, early=True, messages=True),
  _text(drop_lines, DropLines, 19, 4.0, early=True),
)  # fmt: skip
