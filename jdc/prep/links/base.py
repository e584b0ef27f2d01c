"""What all links of a chain have in common."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jdc.prep import batches, plan_step, tables
from jdc.prep.stages import Link
from jdc.prep.tables import View

Record = dict[str, Any]
BINS = 33  # of histograms of lengths: 0, [1, 2), [2, 4), ..., bytes


class Place(NamedTuple):
  """Where the files of a shard go."""

  root: Path
  shard: int

  def work(self, name: str, what: str, suffix: str) -> str:
    """Returns the pattern of a file in `work/`."""
    return f"work/{name}/{what}-{self.shard:05d}-{{sha}}.{suffix}"

  def visible(self, folder: str, suffix: str) -> str:
    """Returns the pattern of a file for users."""
    return f"{folder}/part-{self.shard:05d}-{{sha}}.{suffix}"


class Handler(Protocol):
  """A link at work on one shard."""

  def feed(self, batch: pa.RecordBatch, rows: np.ndarray) -> tuple[pa.RecordBatch, np.ndarray]:
    """Takes a batch and its rows in the present text; returns what is left of it."""

  def finish(self, view: View | None) -> tuple[View, Record]:
    """Returns the view after the link, and the record without its key."""

  def discard(self) -> None:
    """Leaves nothing behind."""


def histogram(lengths: np.ndarray) -> list[int]:
  """Returns how many of some numbers are 0, 1, 2 to 3, 4 to 7, ...

  >>> histogram(np.array([0, 1, 2, 3, 4]))[:5]
  [1, 1, 2, 1, 0]
  """
  bins = np.frexp(lengths.astype(np.float64))[1]
  return np.bincount(np.minimum(bins, BINS - 1), minlength=BINS).tolist()


def byte_lengths(batch: pa.RecordBatch) -> np.ndarray:
  """Returns the bytes of the text of each document."""
  return pc.binary_length(batch.column("text")).to_numpy(zero_copy_only=False).astype(np.int64)


def columns_read(links: Sequence[Link]) -> list[str]:
  """Returns the columns that links need of documents; `signal:` stands for all signals."""
  names: dict[str, None] = {}
  for link in links:
    names |= dict.fromkeys(_columns(link))
    if link.kind == "text":  # which makes all others
      break
  return list(names)


def _columns(link: Link) -> list[str]:
  if link.kind == "text":
    return batches.SCHEMA.names
  if link.kind == "keys":
    read = [measure for step in link.steps for measure in plan_step.measures(step)]
    signals = [plan_step.signal_column(m, name) for m in read for name in m.operator.provides]
    return [*batches.SCHEMA.names, "num_bytes", *signals]
  if link.kind == "tally":
    return list(tables.META)
  keep_text = json.loads(link.options).get("text")
  return [*tables.META, "signal:", *(["text"] if keep_text else [])]
