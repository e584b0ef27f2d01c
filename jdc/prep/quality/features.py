"""Hashed words and pairs of words of documents, and sums of weights over them."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jdc.prep.jit import jit
from jdc.prep.kernels.hashes import BASE, composed, fold_table, mix, most_words, words

_PAIR = np.uint64(0xD6E8FEB86659FD93)


class Features(NamedTuple):
  """Of n documents with F features in all.

  Attributes:
    bucket: i32[F], 0..B-1, document after document.
    starts: i64[n + 1], where those of each begin.
  """

  bucket: np.ndarray
  starts: np.ndarray


def features(text: pa.StringArray, buckets: int) -> Features:
  """Returns the buckets of all words and pairs of neighbouring words of documents.

  Words are those of `jdc.prep.near_dedup`: case-folded, without punctuation, each character one
  where a script puts no spaces. Words and pairs share the buckets; what occurs more than once
  is there more than once.

  Args:
    text: n documents.
    buckets: B, a power of two up to 2^30.

  Example:
    >>> found = features(pa.array(["Red figs", "", "red"]), 1 << 20)
    >>> found.starts.tolist(), bool(found.bucket[0] == found.bucket[3])
    ([0, 3, 3, 4], True)
  """
  check_buckets(buckets)
  offsets, data = composed(text)
  out = np.empty(int(offsets[-1] - offsets[0]) + 2 * len(text), np.int32)
  starts = _features(offsets, data, fold_table(), np.uint64(buckets - 1), out)
  return Features(out[: starts[-1]].copy(), starts)


def check_buckets(buckets: int) -> None:
  """Raises a ValueError if a number of buckets is no power of two up to 2^30."""
  if not 1 <= buckets <= 1 << 30 or buckets & (buckets - 1):
    raise ValueError(f"buckets must be a power of two up to 2^30, got {buckets}")


def sums(text: pa.StringArray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  r"""Returns z_i = sum_f w_f / sqrt(F_i) over the F_i features of each document, and the F_i.

  Args:
    text: n documents.
    weight: f32[B] of the buckets, B a power of two.

  Returns:
    f64[n], 0 for documents without words, and i64[n].
  """
  check_buckets(len(weight))
  offsets, data = composed(text)
  total, count = np.zeros(len(text)), np.zeros(len(text), np.int64)
  weight = np.ascontiguousarray(weight, np.float32)
  _sums(offsets, data, fold_table(), weight, total, count)
  return total / np.sqrt(np.maximum(count, 1)), count


@jit
def _features(
  offsets: np.ndarray, data: np.ndarray, fold: np.ndarray, mask: np.uint64, out: np.ndarray
) -> np.ndarray:
  most = most_words(offsets)
  word_hash = np.empty(most, np.uint64)
  first, last = np.empty(most, np.int64), np.empty(most, np.int64)
  starts = np.zeros(len(offsets), np.int64)
  for n in range(len(offsets) - 1):
    count = words(data, offsets[n], offsets[n + 1], fold, word_hash, first, last)
    end = starts[n]
    for w in range(count):
      out[end + w] = np.int32(word_hash[w] & mask)
    for w in range(count - 1):
      pair = mix((word_hash[w] ^ _PAIR) * BASE + word_hash[w + 1])
      out[end + count + w] = np.int32(pair & mask)
    starts[n + 1] = end + max(2 * count - 1, 0)
  return starts


@jit
def _sums(
  offsets: np.ndarray,
  data: np.ndarray,
  fold: np.ndarray,
  weight: np.ndarray,
  total: np.ndarray,
  features_of: np.ndarray,
) -> None:
  most = most_words(offsets)
  word_hash = np.empty(most, np.uint64)
  first, last = np.empty(most, np.int64), np.empty(most, np.int64)
  mask = np.uint64(len(weight) - 1)
  for n in range(len(offsets) - 1):
    count = words(data, offsets[n], offsets[n + 1], fold, word_hash, first, last)
    z = 0.0
    for w in range(count):
      z += weight[np.int64(word_hash[w] & mask)]
    for w in range(count - 1):
      pair = mix((word_hash[w] ^ _PAIR) * BASE + word_hash[w + 1])
      z += weight[np.int64(pair & mask)]
    total[n] = z
    features_of[n] = max(2 * count - 1, 0)
