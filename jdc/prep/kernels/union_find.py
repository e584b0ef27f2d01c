"""Clusters: connected components of the pairs whose Jaccard similarity is high enough."""

from typing import Any

import numpy as np

from jdc.prep.jit import jit
from jdc.prep.kernels.minhash import contains, insert, slots


@jit
def find(parent: np.ndarray, x: int) -> int:
  """Returns the root of x, the least member of its cluster, and shortens the way there."""
  while parent[x] != x:
    parent[x] = parent[parent[x]]
    x = parent[x]
  return x


@jit
def join(parent: np.ndarray, x: int, y: int) -> bool:
  """Makes one cluster of those of x and y; False if they are one already."""
  x, y = find(parent, x), find(parent, y)
  parent[max(x, y)] = min(x, y)
  return x != y


@jit
def link_all(members: np.ndarray, starts: np.ndarray, parent: np.ndarray) -> None:
  """Joins the members of each group; group g is members[starts[g]:starts[g+1]]."""
  for g in range(len(starts) - 1):
    for i in range(starts[g] + 1, starts[g + 1]):
      join(parent, members[starts[g]], members[i])


@jit
def link_similar(
  members: np.ndarray,
  starts: np.ndarray,
  leaders: int,
  begin: np.ndarray,
  sets: np.ndarray,
  threshold: float,
  parent: np.ndarray,
  neighbour: np.ndarray,
  similarity: np.ndarray,
) -> tuple[int, int]:
  """Joins the members of each group that are similar enough, pair by pair.

  A pair that is in one cluster already is not compared: the clusters are those of all pairs.

  Args:
    members: i64[m], documents in the order of precedence within each group.
    starts: i64[groups + 1], places in `members`.
    leaders: pairs are those that have one of so many first members of the group.
    begin: i64[documents + 1, 2], where the set of each begins and ends in `sets`.
    sets: u64[.], distinct hashes, none 0.
    threshold: least Jaccard similarity.
    parent: i64[documents], changed.
    neighbour: i64[documents], changed: what a document was first found similar to.
    similarity: f64[documents], changed: how much.

  Returns:
    The number of pairs that were compared, and of those that were similar enough.
  """
  most: Any = np.int64(0)
  for m in members:
    most = max(most, begin[m, 1] - begin[m, 0])
  table = np.zeros(slots(most), np.uint64)
  compared, similar = 0, 0
  for g in range(len(starts) - 1):
    for i in range(starts[g], min(starts[g] + leaders, starts[g + 1])):
      u, built = members[i], False
      size = begin[u, 1] - begin[u, 0]
      mask = np.uint64(slots(size) - 1)
      for j in range(i + 1, starts[g + 1]):
        v = members[j]
        if find(parent, u) == find(parent, v):
          continue
        compared += 1
        other = begin[v, 1] - begin[v, 0]
        if min(size, other) / max(size, other) < threshold:  # bounds the similarity
          continue
        if not built:
          fill(table, mask, sets[begin[u, 0] : begin[u, 1]])
          built = True
        value = jaccard(table, mask, size, sets[begin[v, 0] : begin[v, 1]])
        if value < threshold:
          continue
        similar += 1
        join(parent, u, v)
        for one, two in ((u, v), (v, u)):
          if neighbour[one] < 0:
            neighbour[one], similarity[one] = two, value
  return compared, similar


@jit
def similarities(
  pairs: np.ndarray, begin: np.ndarray, sets: np.ndarray, threshold: float
) -> np.ndarray:
  """Returns the Jaccard similarity of each pair i64[p, 2] of documents, f64[p].

  It is 0 where the sizes of the sets alone keep it below the threshold.
  """
  most: Any = np.int64(0)
  for u in pairs[:, 0]:
    most = max(most, begin[u, 1] - begin[u, 0])
  table, last, mask = np.zeros(slots(most), np.uint64), np.int64(-1), np.uint64(0)
  out = np.zeros(len(pairs))
  for p in range(len(pairs)):
    u, v = pairs[p]
    size, other = begin[u, 1] - begin[u, 0], begin[v, 1] - begin[v, 0]
    if min(size, other) / max(size, other) < threshold:
      continue
    if u != last:
      mask, last = np.uint64(slots(size) - 1), u
      fill(table, mask, sets[begin[u, 0] : begin[u, 1]])
    out[p] = jaccard(table, mask, size, sets[begin[v, 0] : begin[v, 1]])
  return out


@jit
def fill(table: np.ndarray, mask: np.uint64, values: np.ndarray) -> None:
  """Makes the table hold these values and no others."""
  table[: np.int64(mask) + 1] = 0
  for value in values:
    insert(table, mask, value)


@jit
def jaccard(table: np.ndarray, mask: np.uint64, size: int, values: np.ndarray) -> float:
  """Returns |A & B| / |A | B| of a table's `size` values and the given distinct ones."""
  common = 0
  for value in values:
    common += contains(table, mask, value)
  return common / (size + len(values) - common)
