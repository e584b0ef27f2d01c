"""The example table of a run, joined by document.

A document's statistic is the mean over its pieces, weighted by their target tokens: its own
losses, which the step told apart, and what its rows share with their other documents, as
`jdc.train.example_table` says. Copies that a mixture made of a document count as views of it;
the loss at its first view is that of the copy that was seen first.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from jdc.prep.ops.sampling import copy_id

NAME = "examples.parquet"
_NEEDED = (
  "example_id", "doc_id", "source", "source_offset", "tokens", "domain", "times_seen",
  "loss_first", "step_first", "loss_last", "step_last", "loss_excess", "influence",
  "influence_std", "influence_count", "num_nonfinite",
)  # fmt: skip


class Pieces(NamedTuple):
  """The columns of the table that feedback reads, [P] each; NaN where there is none."""

  document: np.ndarray  # i64, place among the documents
  example: np.ndarray  # i64
  tokens: np.ndarray  # f64
  times_seen: np.ndarray  # f64
  loss_first: np.ndarray
  step_first: np.ndarray
  loss_last: np.ndarray
  step_last: np.ndarray
  loss_excess: np.ndarray
  influence: np.ndarray
  influence_std: np.ndarray
  influence_count: np.ndarray
  num_nonfinite: np.ndarray


class Table(NamedTuple):
  """The pieces of D documents of K domains."""

  pieces: Pieces
  doc_id: list[str]  # [D], of their first copies
  source: list[str]
  domain: np.ndarray  # i64[D]
  domains: tuple[str, ...]
  num_copies: np.ndarray  # i64[D]
  is_copy: np.ndarray  # bool[P], pieces of further copies
  sha256: str  # of the file


class Documents(NamedTuple):
  """What a run learnt about D documents, [D] each; NaN where it learnt nothing.

  Attributes:
    tokens: target tokens, of all copies.
    seen: of these, those in rows that were trained on.
    views: how often these were trained on, on average.
    loss_first: nats per token when first seen.
    step_first: that step, a mean over pieces.
    loss_last: nats per token when last seen.
    loss_excess: loss over that of its batches.
    influence: mean over rows and views.
    influence_count: rows times views.
    influence_squares: sum of squares of the deviations from that mean.
    nonfinite: views of its rows whose losses were not finite, which count for nothing else.
  """

  tokens: np.ndarray
  seen: np.ndarray
  views: np.ndarray
  loss_first: np.ndarray
  step_first: np.ndarray
  loss_last: np.ndarray
  loss_excess: np.ndarray
  influence: np.ndarray
  influence_count: np.ndarray
  influence_squares: np.ndarray
  nonfinite: np.ndarray


def read(run: str | Path) -> Table:
  """Reads the table in the folder of a run.

  Raises:
    ValueError: if there is none, it lacks columns, or its run did not read token shards, which
      name documents.
  """
  path = Path(run) / NAME
  if not path.is_file():
    raise ValueError(f"{path}: no such file; train with --config.logging.example_table=True")
  if missing := [name for name in _NEEDED if name not in pq.read_schema(path).names]:
    raise ValueError(f"{path}: lacks the columns {', '.join(missing)}: is no example table")
  columns = pq.read_table(path, columns=list(_NEEDED)).to_pydict()
  if any(doc_id is None for doc_id in columns["doc_id"]):
    raise ValueError(
      f"{path}: names no documents; the run must read token shards, as launch/prep.py "
      "writes them"
    )
  ids, piece_document = np.unique(np.array(columns["doc_id"]), return_inverse=True)
  first = np.full(len(ids), len(piece_document))
  np.minimum.at(first, piece_document, np.arange(len(piece_document)))
  places = list(zip(columns["source"], columns["source_offset"], strict=True))
  original = _originals(ids.tolist(), [places[i] for i in first])
  kept, of_kept = np.unique(original, return_inverse=True)
  names, domain = np.unique(np.array(columns["domain"]), return_inverse=True)
  numbers = {
    name: np.array([np.nan if x is None else x for x in columns[name]], np.float64)
    for name in Pieces._fields
    if name in columns
  }
  pieces = Pieces(
    document=of_kept[piece_document], example=np.array(columns["example_id"]), **numbers
  )
  return Table(
    pieces,
    [str(ids[k]) for k in kept],
    [places[first[k]][0] for k in kept],
    domain[first[kept]],
    tuple(names.tolist()),
    np.bincount(of_kept, minlength=len(kept)),
    original[piece_document] != piece_document,
    hashlib.sha256(path.read_bytes()).hexdigest(),
  )


def _originals(ids: list[str], places: list[Any]) -> np.ndarray:
  """Returns for each id that of the document it is a copy of, or itself, i64[n]."""
  groups: dict[Any, list[int]] = {}
  for i, place in enumerate(places):
    groups.setdefault(place, []).append(i)
  original = np.arange(len(ids))
  for members in groups.values():
    known = {ids[i]: i for i in members}
    for i in members if len(members) > 1 else ():
      for number in range(1, len(members)):
        copy = copy_id(bytes.fromhex(ids[i]), number).hex()
        if copy in known:
          original[known[copy]] = i
  return original


def documents(table: Table) -> Documents:
  """Returns the statistics of the documents of a table."""
  p, size = table.pieces, len(table.doc_id)
  seen = np.isfinite(p.loss_first)
  weight = np.where(seen, p.tokens, 0.0)

  def mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    known = np.isfinite(values) & (weights > 0)
    total = np.bincount(p.document[known], weights[known], size)
    summed = np.bincount(p.document[known], (weights * values)[known], size)
    return np.where(total > 0, summed / np.where(total > 0, total, 1.0), np.nan)

  earliest = np.full(size, np.inf)
  np.minimum.at(earliest, p.document[seen], p.step_first[seen])
  # Of the copies, the one that was seen first; a document without any keeps all its pieces.
  copied = table.num_copies[p.document] > 1
  fresh = weight * (~copied | (p.step_first <= earliest[p.document]))
  count = np.nan_to_num(p.influence_count)
  influence = mean(p.influence, count)
  within = count * (np.nan_to_num(p.influence_std) ** 2)
  between = count * (p.influence - influence[p.document]) ** 2
  squares = np.where(count > 0, within + between, 0.0)
  return Documents(
    tokens=np.bincount(p.document, p.tokens, size),
    seen=np.bincount(p.document, weight, size),
    views=mean(p.times_seen, weight),
    loss_first=mean(p.loss_first, fresh),
    step_first=mean(p.step_first, fresh),
    loss_last=mean(p.loss_last, weight),
    loss_excess=mean(p.loss_excess, weight),
    influence=influence,
    influence_count=np.bincount(p.document, count, size),
    influence_squares=np.bincount(p.document, squares, size),
    nonfinite=np.bincount(p.document, np.nan_to_num(p.num_nonfinite), size),
  )
