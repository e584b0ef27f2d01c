"""Which documents lie between two percentiles of a signal, over all of them or by domain."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Keys(NamedTuple):
  """Of n documents: their values, NaN where there is none, and domains.

  Attributes:
    value: f64[n].
    domain: i32[n], place in `domains`.
    domains: of byte strings.
  """

  value: np.ndarray
  domain: np.ndarray
  domains: np.ndarray


def decide(
  tables: Sequence[Keys],
  doc_ids: Sequence[np.ndarray],
  *,
  low: float,
  high: float,
  by_domain: bool = False,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
  """Returns the rows outside, i64[R], why each goes, i64[R], and counts.

  Of n documents with a value, ordered by value and then by id, those at the places r = 0, ...,
  n - 1 with low n / 100 <= r < high n / 100 stay: the share is kept to one document, with ties,
  and does not depend on the order of the input. Why: 0 too low, 1 too high, 2 no finite value.

  Args:
    tables: of all documents, in parts.
    doc_ids: their ids, in the same parts u8[., 16].
    low: in [0, 100).
    high: in (low, 100].
    by_domain: the percentiles are those of each domain.

  Example:
    >>> value, ids = np.array([3, 1, np.nan, 2.0]), np.zeros((4, 16), np.uint8)
    >>> names = np.array([b"web"])
    >>> row, why, counts = decide(
    ...   [Keys(value, np.zeros(4, np.int32), names)], [ids], low=0, high=60
    ... )
    >>> row.tolist(), why.tolist(), counts["bounds"]
    ([0, 2], [1, 2], {'all': [1.0, 2.0]})
  """
  if not 0 <= low < high <= 100:
    raise ValueError(f"low and high must be 0 <= low < high <= 100, got {low} and {high}")
  value = np.concatenate([np.zeros(0), *(table.value for table in tables)])
  names = sorted({name for table in tables for name in table.domains.tolist()})
  group, groups = np.zeros(len(value), np.int64), ["all"]
  if by_domain:
    place = {name: i for i, name in enumerate(names)}
    groups = [name.decode() for name in names]
    codes = [np.array([place[n] for n in t.domains.tolist()] or [0])[t.domain] for t in tables]
    group = np.concatenate([group[:0], *codes])
  known = np.isfinite(value)
  halves = np.concatenate([np.zeros((0, 16), np.uint8), *doc_ids]).view(">u8")
  order = np.lexsort((halves[:, 1], halves[:, 0], value))
  why = np.where(known, -1, 2)
  bounds = {}
  for number, name in enumerate(groups):
    inside = order[(known & (group == number))[order]]
    begin, end = (int(np.ceil(share * len(inside) / 100)) for share in (low, high))
    why[inside[:begin]], why[inside[end:]] = 0, 1
    if begin < end:
      bounds[name] = [float(value[inside[begin]]), float(value[inside[end - 1]])]
  row = np.flatnonzero(why >= 0)
  counts = {"bounds": bounds, "undefined": int(np.sum(~known))}
  return row, why[row], counts
