"""Removes near duplicates: MinHash-LSH finds candidates, exact Jaccard similarity decides."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jdc.prep.duplicates import Duplicates
from jdc.prep.exact_dedup import check_ids
from jdc.prep.kernels import bands as bands_lib
from jdc.prep.kernels import minhash, union_find
from jdc.prep.kernels.hashes import composed, fold_table
from jdc.prep.near_clusters import Clusters
from jdc.prep.near_shingles import Fetch, read_shingles


class Keys(NamedTuple):
  """What clusters are found by, of n documents: 8 x bands + 4 bytes each.

  Attributes:
    bands: u64[bands, n].
    num_words: i32[n]; documents without words have no duplicates here.
  """

  bands: np.ndarray
  num_words: np.ndarray


class Counts(NamedTuple):
  """What verification did.

  Attributes:
    candidates: documents that share a band with another one.
    compared: pairs of these that were compared: those not in one cluster already.
    refuted: of them, pairs whose similarity was too low. Without verification these would have
      been merged: refuted / compared is the rate of false merges of MinHash-LSH by itself.
    chained: documents that go though they are not similar to the one kept, but to another one
      of the cluster.
  """

  candidates: int
  compared: int
  refuted: int
  chained: int


def keys(
  text: pa.StringArray, *, ngram: int = 5, bands: int = 14, rows: int = 8, seed: int = 1
) -> Keys:
  r"""Returns the MinHash-LSH keys of documents.

  A word is a run of letters, marks and digits, in Unicode's normal form C and case-folded;
  punctuation is no part of it. In scripts without spaces between words every character is one.
  The shingles S(d) are the runs of `ngram` words of document d, or all its words if they are
  fewer. With hashes x of shingles and h_j(x) = a_j x + b_j modulo 2^32, a_j odd,

    key_k(d) = hash(min_x h_j(x) for j of band k),   k = 1, ..., bands.

  Two documents of Jaccard similarity J share a key, and are compared, with probability
  1 - (1 - J^rows)^bands: by default 0.5 at J = 0.69, 0.99 at J = 0.86.

  Args:
    text: n documents.
    ngram: words of a shingle.
    bands: keys of a document.
    rows: minima of a key.
    seed: of the a_j and b_j.

  Raises:
    ValueError: if `text` is no array of strings or has nulls, or a parameter is below 1.

  References:
    Broder, "On the resemblance and containment of documents", 1997.
    Lee et al., "Deduplicating Training Data Makes Language Models Better", 2021,
      arXiv:2107.06499. Penedo et al., "The FineWeb Datasets", 2024, arXiv:2406.17557, whose
      5 words, 14 bands and 8 rows are the default; there cluster members are not compared.

  Example:
    >>> found = keys(pa.array(["One, two, three.", "one two THREE", "one two", "..."]))
    >>> [bool(np.all(found.bands[:, 0] == found.bands[:, i])) for i in (1, 2)]
    [True, False]
    >>> found.num_words.tolist()
    [3, 3, 2, 0]
  """
  given = {"ngram": ngram, "bands": bands, "rows": rows}
  if bad := [
    f"{name} must be 1 or more, got {value}" for name, value in given.items() if value < 1
  ]:
    raise ValueError("; ".join(bad))
  a, b = minhash.permutations(bands * rows, seed)
  return Keys(*minhash.band_keys(*composed(text), fold_table(), ngram, rows, a, b))


def decide(
  tables: Sequence[Keys],
  fetch: Fetch,
  *,
  doc_ids: Sequence[np.ndarray] | None = None,
  ngram: int = 5,
  min_jaccard: float = 0.7,
  verify: bool = True,
  folder: str | Path | None = None,
) -> tuple[Duplicates, Counts]:
  """Returns which documents go, so that one of each cluster stays.

  Documents that share a band are compared; those of exact Jaccard similarity |A & B| / |A | B|
  of at least `min_jaccard` are linked, and a cluster is a connected component of links. So in a
  chain A ~ B ~ C all are one cluster, though A and C may be less similar than that: each that
  goes is similar to another member, not always to the one kept. The clusters do not depend on
  any order. Of more than 1,000 documents with one band key and different shingles, pairs are
  those with one of the 1,000 that take precedence.

  Shingles are compared by 64-bit hashes, so that a similarity is exact but for collisions, of a
  probability below 1e-13 for a pair of documents of 1,000 words.

  Memory: the tables, 8 x bands + 4 bytes a document, which may be memory maps, since one band
  is read at a time; 24 bytes a document while it is. A candidate takes 16 bytes for each band
  that it shares and about 100 more. The shingles of candidates, 8 bytes each, are in memory up
  to 192 MiB, beyond that in a file that is memory-mapped.

  Args:
    tables: of all documents, in parts, made with the same parameters.
    fetch: (rows i64[m], ascending, counted over all parts) -> their texts in this order, in any
      batches. Called once, with the candidates.
    doc_ids: ids of the documents, in the same parts u8[., 16]: of a cluster the least stays,
      whatever the order of the parts. None: the first in the input stays.
    ngram: as in `keys`.
    min_jaccard: in (0, 1].
    verify: False links all that share a band, without a look at texts.
    folder: where the file of shingles is made, and removed; default: the system's for such.

  Raises:
    ValueError: if parts do not fit together, a parameter is out of range, or `fetch` returns
      another number of texts.

  Example:
    >>> text = pa.array(["a b c d e f g h i j k l", "x y", "A b c d e f g h i j k l m", "x z"])
    >>> decide([keys(text)], lambda rows: [text.take(rows)])[0].row.tolist()
    [2]
  """
  _check(tables, doc_ids, ngram, min_jaccard)
  groups = [_sharing(tables, band) for band in range(len(tables[0].bands) if tables else 0)]
  place = np.zeros(sum(len(table.num_words) for table in tables), np.int64)
  for shared, _ in groups:
    place[shared] = 1
  rows = np.flatnonzero(place)
  order = bands_lib.precedence(rows, doc_ids)  # documents are numbered in it from here on
  place[rows[order]] = np.arange(len(rows))
  members = [bands_lib.in_order(place[shared], group) for shared, group in groups]
  clusters = Clusters(len(rows))
  if not verify:
    for group in members:
      union_find.link_all(*group, clusters.parent)
    return clusters.duplicates(rows[order]), Counts(len(rows), 0, 0, 0)
  with read_shingles(rows, fetch, ngram, folder) as shingles:
    begin = shingles.begin[order]
    counts = clusters.link(
      members, shingles.signature[order], begin, shingles.sets, min_jaccard
    )
    chained = clusters.prefer_kept(begin, shingles.sets, min_jaccard)
  return clusters.duplicates(rows[order]), Counts(len(rows), *counts, chained)


def _sharing(tables: Sequence[Keys], band: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the rows that share their key of a band with another, as `bands.shared` does."""
  parts, rows, begin = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], 0
  for table in tables:
    some = np.flatnonzero(table.num_words)
    full = len(some) == len(table.num_words)
    parts.append(table.bands[band] if full else table.bands[band][some])
    rows.append(some + begin)
    begin += len(table.num_words)
  return bands_lib.shared(np.concatenate(parts), np.concatenate(rows))


def _check(
  tables: Sequence[Keys],
  doc_ids: Sequence[np.ndarray] | None,
  ngram: int,
  min_jaccard: float,
) -> None:
  problems = []
  counts = sorted({len(table.bands) for table in tables})
  if len(counts) > 1:
    problems.append(f"all tables must have as many bands, got {counts}")
  for i, table in enumerate(tables):
    if table.bands.shape[1:] != table.num_words.shape:
      shapes = f"bands {list(table.bands.shape)}, num_words {list(table.num_words.shape)}"
      problems.append(f"tables[{i}] must be of one number of documents, got {shapes}")
  if ngram < 1:
    problems.append(f"ngram must be 1 or more, got {ngram}")
  if not 0 < min_jaccard <= 1:
    problems.append(f"min_jaccard must be in (0, 1], got {min_jaccard}")
  if problems:
    raise ValueError("; ".join(problems))
  check_ids(doc_ids, [len(table.num_words) for table in tables])
