"""Importance weights of documents by the words of a target (DSIR), and draws by them."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jdc.data import dsir
from jdc.prep import sampling

_WORDS = 1 << 20  # weighed at a time


class Keys(NamedTuple):
  """The words of n documents, 4 bytes each and 8 a document; see `jdc.data.dsir.Ngrams`."""

  unigram: np.ndarray
  bigram: np.ndarray
  num_words: np.ndarray


def keys(texts: Iterable[str]) -> Keys:
  """Returns the hashed words of documents, and the pairs that they begin."""
  return Keys(*dsir.hash_ngrams(texts))


def join(parts: Sequence[Keys]) -> Keys:
  """Returns one table of several."""
  kinds = (np.uint16, np.uint16, np.int64)
  empty = Keys(*(np.zeros(0, kind) for kind in kinds))
  return Keys(*(np.concatenate(x) for x in zip(empty, *parts, strict=True)))


def log_weights(tables: Sequence[Keys], target: dsir.Ngrams) -> np.ndarray:
  """Returns log p_target(words) - log p_pool(words) of all documents, f64[N].

  It is `jdc.data.dsir.log_importance` of all documents at once, without having them all in
  memory: tables may be memory maps. Documents without words have 0.

  Raises:
    ValueError: if the target or all documents together have no words.
  """
  pool = np.zeros(dsir.NUM_BUCKETS, np.int64)
  for table in tables:
    for part in _parts(table):
      pool += dsir.counts(part)
  counts = {"target": dsir.counts(target), "documents": pool}
  if wordless := [name for name, count in counts.items() if not count.any()]:
    raise ValueError(f"texts with words are needed; {' and '.join(wordless)} have none")
  ratio = dsir.log_ratio(counts["target"], pool)
  found = [dsir.log_weights(part, ratio) for table in tables for part in _parts(table)]
  return np.concatenate([np.zeros(0), *found])


def _parts(table: Keys) -> Iterable[dsir.Ngrams]:
  """Yields the words of some whole documents at a time."""
  ends = np.cumsum(table.num_words)
  begin = 0
  while begin < len(ends):
    before = int(ends[begin - 1]) if begin else 0
    end = max(begin + 1, int(np.searchsorted(ends, before + _WORDS, side="right")))
    words = slice(before, int(ends[end - 1]))
    yield dsir.Ngrams(
      np.asarray(table.unigram[words]),
      np.asarray(table.bigram[words]),
      np.asarray(table.num_words[begin:end]),
    )
    begin = end


def draw(
  log_weight: np.ndarray, doc_ids: Sequence[np.ndarray], *, count: int, seed: int
) -> np.ndarray:
  r"""Returns which documents are drawn without replacement by their weights, bool[N].

  With u_i in (0, 1) a hash of (seed, id), the `count` documents of the largest
  log w_i - log(-log u_i) are drawn (Gumbel-top-k), whatever the order of documents. Of equal
  ones those of the least id come first.

  Args:
    log_weight: f64[N].
    doc_ids: in parts u8[., 16].
    count: at most N.
    seed: of the hash.

  References:
    Kool, van Hoof and Welling, "Stochastic Beams and Where to Find Them", 2019,
    arXiv:1903.06059.
  """
  if not 0 <= count <= len(log_weight):
    raise ValueError(f"count must be in [0, {len(log_weight)}], got {count}")
  ids = np.concatenate([np.zeros((0, 16), np.uint8), *doc_ids])
  u = (sampling.numbers(ids, seed).astype(np.float64) + 0.5) / 2**64
  # u is 1 - tiny at most: of numbers near 2^64 the float may be 2^64 itself.
  noise = -np.log(-np.log(np.clip(u, 1e-300, 1 - 1e-16)))
  halves = np.ascontiguousarray(ids).view(">u8")
  order = np.lexsort((halves[:, 1], halves[:, 0], -(log_weight + noise)))
  taken = np.zeros(len(ids), bool)
  taken[order[:count]] = True
  return taken


def quantiles(log_weight: np.ndarray) -> dict[str, Any]:
  """Returns what a report says of weights."""
  if not len(log_weight):
    return {}
  values = np.quantile(log_weight, [0, 0.05, 0.5, 0.95, 1]).round(4).tolist()
  return dict(zip(("least", "5%", "median", "95%", "largest"), values, strict=True))
