"""Documents that wait for answers, and what became of each."""

import asyncio
import json
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from jdc.prep.llm.answers import Question
from jdc.prep.llm.work import Document

_OWN = ("doc_id", "text", "fields")  # what operators see, and may change


class Rejected(Exception):
  """A document that gets no answer of use."""

  def __init__(self, cause: str, answer: str = ""):
    super().__init__(cause)
    self.cause, self.answer = cause, answer


class Row(NamedTuple):
  """A document of a batch, and what is asked of it."""

  place: int
  document: Document
  messages: list[dict[str, str]]
  questions: list[Question]  # the first attempt of each sample


class Batch:
  """Documents that were read together.

  Attributes:
    rest: the columns that no operator sees.
    results: for each document those that take its place, or why there are none.
    left: documents that wait.
    size: bytes of all texts.
    done: set when none waits.
  """

  def __init__(self, batch: pa.RecordBatch):
    self._ids, self._texts, self._fields = (batch.column(name).to_pylist() for name in _OWN)
    self.rest = batch.drop_columns(list(_OWN))
    self.results: list[list[Document] | Rejected] = [[]] * batch.num_rows
    self.left = batch.num_rows
    self.size: int = pc.sum(pc.binary_length(batch.column("text"))).as_py() or 0
    self.done = asyncio.Event()

  def document(self, place: int) -> Document:
    """Returns a document."""
    fields = json.loads(self._fields[place])
    return Document(self._ids[place], self._texts[place], fields)

  def origin(self, place: int) -> dict[str, Any]:
    """Returns where a document is from."""
    (found,) = self.rest.slice(place, 1).to_pylist()
    return dict(found)

  def finish(self, place: int, result: list[Document] | Rejected) -> None:
    """Says what became of a document."""
    self.results[place] = result
    self.left -= 1
    if not self.left:
      self.done.set()
