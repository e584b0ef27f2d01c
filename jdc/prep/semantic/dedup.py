"""Removes documents that mean almost the same as another one: SemDeDup."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jdc.prep import sampling
from jdc.prep.duplicates import Duplicates
from jdc.prep.semantic import kmeans
from jdc.prep.semantic.greedy import greedy
from jdc.prep.semantic.vectors import Vectors

PER_CENTRE = 256  # rows that centres are made of, for each
_LISTED = 10


class Counts(NamedTuple):
  """What a decision saw.

  Attributes:
    documents: all of them.
    without_embedding: those whose embedding is zero, as of a text without words; they stay.
    clusters: k.
    largest_cluster: its documents.
    iterations: of k-means.
    mean_cosine: of documents with the centres of their clusters.
    compared: pairs of documents of one cluster; of all pairs, this share was looked at.
  """

  documents: int
  without_embedding: int
  clusters: int
  largest_cluster: int
  iterations: int
  mean_cosine: float
  compared: int


def clusters(
  tables: Sequence[np.ndarray],
  doc_ids: Sequence[np.ndarray],
  *,
  k: int | None = None,
  seed: int = 0,
  iterations: int = 20,
) -> tuple[np.ndarray, kmeans.Fit]:
  """Returns the cluster of each document, i32[N], -1 where the embedding is zero.

  Centres are made by `kmeans.fit` of the 256 k documents with the smallest hash of (seed, id),
  in its order, so that they depend on the documents, not on where they stand. Then each
  document joins the nearest one.

  Args:
    tables: embeddings of all documents in parts, f32[., D].
    doc_ids: their ids, in the same parts u8[., 16].
    k: number of clusters; `None`: the square root of the number of embeddings.
    seed: of the hash.
    iterations: of k-means, at most.

  Raises:
    ValueError: if parts do not fit together; a number is NaN or infinite, with the ids; k is
      more than there are embeddings.
  """
  _check(tables, doc_ids)
  vectors = Vectors(tables)
  ids = np.concatenate([np.zeros((0, 16), np.uint8), *doc_ids])
  norm = vectors.norms()
  _check_finite(norm, ids)
  known = np.flatnonzero(norm > 0)
  if not len(known):
    empty = kmeans.Fit(np.zeros((0, 0), np.float32), 0, 0.0, 0)
    return np.full(len(ids), -1, np.int32), empty
  k = max(1, round(len(known) ** 0.5)) if k is None else k
  if k > len(known):
    raise ValueError(f"k={k}, but only {len(known)} documents have an embedding")
  number = sampling.numbers(ids[known], seed)
  some = np.argsort(number, kind="stable")[: PER_CENTRE * k]
  fitted = kmeans.fit(vectors.take(known[some]), k, iterations=iterations)
  cluster, cosine = kmeans.assign(vectors.parts(), fitted.centre)
  cluster[norm == 0] = -1
  mean = float(np.mean(cosine[known], dtype=np.float64))
  return cluster, fitted._replace(mean_cosine=mean)


def decide(
  tables: Sequence[np.ndarray],
  doc_ids: Sequence[np.ndarray],
  *,
  eps: float = 0.05,
  k: int | None = None,
  seed: int = 0,
  iterations: int = 20,
  by_id: bool = True,
) -> tuple[Duplicates, Counts]:
  r"""Returns which documents go: those of cosine above 1 - eps with one of their cluster.

  Documents of a cluster are taken in the order of their ids, and one goes if it is that similar
  to an earlier one that stays. So the decision depends on the embeddings and ids, not on the
  order of documents; no two of a cluster that stay are that similar; and each that goes is
  that similar to the one kept for it. Documents of different clusters are not compared: with
  k = 1 the result is that over all pairs, with more some pairs are missed. Documents whose
  embedding is zero stay.

  No array of N x N is built: embeddings may be memory maps, and beside them a document takes
  about 60 bytes; centres are made of 256 k embeddings in memory.

  Args:
    tables: embeddings of all documents in parts, f32[., D], of any length.
    doc_ids: their ids, in the same parts u8[., 16].
    eps: in (0, 2).
    k: number of clusters; `None`: the square root of the number of embeddings.
    seed: of the choice of the first centres.
    iterations: of k-means, at most.
    by_id: False takes documents in the order of the input.

  Returns:
    The decision; neighbours are the rows kept, similarities are cosines.

  Raises:
    ValueError: as `clusters`; if eps is out of range.

  References:
    Abbas et al., "SemDeDup: Data-efficient learning at web-scale through semantic
    deduplication", 2023, arXiv:2303.09540. There the order within a cluster is by the distance
    to its centre, and one goes for any earlier one, whether that stays or not.

  Example:
    >>> x = np.array([[1, 0], [0, 1], [2, 0.1], [0, 0]], np.float32)
    >>> ids = np.arange(64, dtype=np.uint8).reshape(4, 16)
    >>> found, counts = decide([x], [ids], eps=0.05, k=1)
    >>> found.row.tolist(), found.kept.tolist(), counts.without_embedding
    ([2], [0], 1)
  """
  if not 0 < eps < 2:
    raise ValueError(f"eps must be in (0, 2), got {eps}")
  cluster, fitted = clusters(tables, doc_ids, k=k, seed=seed, iterations=iterations)
  vectors = Vectors(tables)
  order = _order(cluster, doc_ids if by_id else None)
  order = order[cluster[order] >= 0]
  sizes = np.bincount(cluster[order], minlength=len(fitted.centre))
  kept, similarity = np.arange(len(cluster)), np.ones(len(cluster))
  for rows in np.split(order, np.cumsum(sizes)[:-1]):
    if len(rows) < 2:
      continue
    found = greedy(rows, vectors.take, 1.0 - eps)
    kept[rows], similarity[rows] = rows[found.kept], found.cosine
  row = np.flatnonzero(kept != np.arange(len(kept)))
  counts = Counts(
    documents=len(cluster),
    without_embedding=int(np.sum(cluster < 0)),
    clusters=len(fitted.centre),
    largest_cluster=int(sizes.max(initial=0)),
    iterations=fitted.iterations,
    mean_cosine=round(fitted.mean_cosine, 6),
    compared=int(np.sum(sizes * (sizes - 1) // 2)),
  )
  return Duplicates(row, kept[row], kept[row], similarity[row]), counts


def _order(cluster: np.ndarray, doc_ids: Sequence[np.ndarray] | None) -> np.ndarray:
  """Returns all rows by cluster, and within by id or, without ids, as they stand."""
  if doc_ids is None:
    return np.argsort(cluster, kind="stable")
  ids = np.concatenate([np.zeros((0, 16), np.uint8), *doc_ids])
  halves = np.ascontiguousarray(ids).view(">u8")
  return np.lexsort((halves[:, 1], halves[:, 0], cluster))


def _check(tables: Sequence[np.ndarray], doc_ids: Sequence[np.ndarray]) -> None:
  shapes = [table.shape for table in tables]
  widths = sorted({shape[1] for shape in shapes if len(shape) == 2})
  if any(len(shape) != 2 for shape in shapes) or len(widths) > 1:
    raise ValueError(f"tables must be of one width D, got shapes {shapes}")
  if [len(table) for table in tables] != [len(part) for part in doc_ids]:
    raise ValueError(
      f"doc_ids must be in the same parts as tables, got {[len(part) for part in doc_ids]} "
      f"rows for {[len(table) for table in tables]}"
    )


def _check_finite(norm: np.ndarray, ids: np.ndarray) -> None:
  bad = np.flatnonzero(~np.isfinite(norm))
  if len(bad):
    listed = ", ".join(bytes(ids[row]).hex() for row in bad[:_LISTED])
    more = f" and {len(bad) - _LISTED} more" if len(bad) > _LISTED else ""
    raise ValueError(
      f"embeddings of {len(bad)} documents have numbers that are not finite: {listed}{more}"
    )
