"""Clusters of near duplicates: which documents are linked, and to what."""

import numpy as np

from jdc.prep.duplicates import Duplicates
from jdc.prep.kernels import bands as bands_lib
from jdc.prep.kernels import union_find

LEADERS = 1_000  # of documents that share a band


class Clusters:
  """The documents of a run of `decide`, numbered in the order in which they are kept."""

  def __init__(self, count: int):
    self.parent = np.arange(count)
    self.neighbour = np.full(count, -1)
    self.similarity = np.full(count, np.nan)

  def link(
    self,
    groups: list[tuple[np.ndarray, np.ndarray]],
    signature: np.ndarray,
    begin: np.ndarray,
    sets: np.ndarray,
    min_jaccard: float,
  ) -> tuple[int, int]:
    """Links all similar pairs; returns the pairs compared, and those too dissimilar."""
    arrays = begin, sets
    states = self.parent, self.neighbour, self.similarity
    # Equal sets first, each with one comparison: what is left of a group has different ones.
    equal = bands_lib.in_order(*bands_lib.shared(signature))
    compared, similar = union_find.link_similar(*equal, 1, *arrays, 1.0, *states)
    first = self.parent == np.arange(len(self.parent))
    self.neighbour[first], self.similarity[first] = -1, np.nan
    for members, starts in groups:
      group = np.repeat(np.arange(len(starts) - 1), np.diff(starts))[first[members]]
      different = members[first[members]], bands_lib.starts(group)
      more = union_find.link_similar(*different, LEADERS, *arrays, min_jaccard, *states)
      compared, similar = compared + more[0], similar + more[1]
    return compared, compared - similar

  def prefer_kept(self, begin: np.ndarray, sets: np.ndarray, min_jaccard: float) -> int:
    """Makes the one kept the neighbour of all that are similar to it; returns the others."""
    root = self.roots()
    other = np.flatnonzero((root != np.arange(len(root))) & (root != self.neighbour))
    other = other[np.argsort(root[other], kind="stable")]
    pairs = np.stack([root[other], other], axis=1)
    found = union_find.similarities(pairs, begin, sets, min_jaccard)
    near = found >= min_jaccard
    self.neighbour[other[near]], self.similarity[other[near]] = root[other[near]], found[near]
    return len(other) - int(near.sum())

  def roots(self) -> np.ndarray:
    """Returns the first document of the cluster of each."""
    root = self.parent
    while np.any(root[root] != root):
      root = root[root]
    return root

  def duplicates(self, row: np.ndarray) -> Duplicates:
    """Returns the decision; `row` is that of each document."""
    root = self.roots()
    gone = np.flatnonzero(root != np.arange(len(root)))
    gone = gone[np.argsort(row[gone])]
    near = np.where(self.neighbour[gone] < 0, root[gone], self.neighbour[gone])
    return Duplicates(row[gone], row[root[gone]], row[near], self.similarity[gone])
