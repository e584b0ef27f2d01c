"""Importance weights of texts by hashed words and pairs of words, before any training."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

NUM_BUCKETS = 10_000

_BLOCK = 1 << 17  # bytes at work at a time: their 64-bit powers and sums fit a cache
_BASE = 0x9E3779B97F4A7C15  # odd, so that its powers have inverses modulo 2^64
_PAIR = 0xD6E8FEB86659FD93

# What a byte is in a word, 0 outside: letters in lower case, digits, and all of UTF-8 beyond
# ASCII as it is.
_CLASS = np.zeros(256, np.uint8)
for _byte in range(256):
  if _byte >= 128 or chr(_byte).isalnum():
    _CLASS[_byte] = ord(chr(_byte).lower()) if _byte < 128 else _byte


class Ngrams(NamedTuple):
  """The words of n texts, one text after another, and the pairs that they begin."""

  unigram: np.ndarray  # u16[W], bucket of each word
  bigram: np.ndarray  # u16[W], of it and the next one; 10,000 for the last word of a text
  num_words: np.ndarray  # i64[n], of each text


def hash_ngrams(texts: Iterable[str | bytes]) -> Ngrams:
  r"""Returns the buckets of all words and pairs of neighbouring words of some texts.

  A word is a run of ASCII letters, in lower case, digits and bytes of UTF-8 beyond ASCII. With
  its bytes b_0, b_1, ..., odd constants p and q, all modulo 2^64, and m the last steps of
  SplitMix64,

    h = m(sum_i b_i p^i),    unigram: h mod 10,000,    bigram: m(q h + h') mod 10,000.

  No word or pair is looked up, and nothing depends on the process or the platform.

  Args:
    texts: as text or as UTF-8.

  Returns:
    The buckets; texts without words have none.

  Example:
    >>> one = hash_ngrams(["A red fig", "RED-FIG!"])
    >>> one.num_words.tolist(), bool(np.all(one.unigram[1:3] == one.unigram[3:]))
    ([3, 2], True)
  """
  parts = [_hash_block(block) for block in _blocks(texts)]
  empty = Ngrams(*(np.zeros(0, kind) for kind in (np.uint16, np.uint16, np.int64)))
  return Ngrams(*(np.concatenate(x) for x in zip(empty, *parts, strict=True)))


def counts(ngrams: Ngrams) -> np.ndarray:
  """Returns how often each bucket occurs, i64[10000]; counts of parts of a pool add up."""
  of_words = np.bincount(ngrams.unigram, minlength=NUM_BUCKETS)
  return of_words + np.bincount(ngrams.bigram, minlength=NUM_BUCKETS + 1)[:NUM_BUCKETS]


def log_ratio(target_counts: np.ndarray, source_counts: np.ndarray) -> np.ndarray:
  """Returns log p_target - log p_source of each bucket, f64[10000], with add-one smoothing."""
  log_p = [np.log(n + 1) - np.log(np.sum(n) + len(n)) for n in (target_counts, source_counts)]
  return log_p[0] - log_p[1]


def log_weights(ngrams: Ngrams, ratio: np.ndarray) -> np.ndarray:
  """Returns the sum of the log ratios of each text's words and pairs, f64[n]."""
  padded = np.append(ratio, 0.0)  # the last word begins no pair
  of_words = padded[ngrams.unigram] + padded[ngrams.bigram]
  text_W = np.repeat(np.arange(len(ngrams.num_words)), ngrams.num_words)
  return np.bincount(text_W, of_words, minlength=len(ngrams.num_words))


def log_importance(pool: Ngrams, target: Ngrams) -> np.ndarray:
  r"""Returns the log importance weights of the texts of a pool, f64[n].

  With c_ib how often bucket b occurs in text i, and p the frequencies of the buckets in the
  target and in the whole pool, smoothed by one more of each,

    log w_i = sum_b c_ib (log p_target,b - log p_pool,b).

  Drawn without replacement by Gumbel-top-k on log w, a part of the pool has the target's
  distribution of words, as far as the pool holds it. Texts without words have log w = 0. A sum
  over words is larger in size for longer texts, and with few words in the target it is mostly
  negative, which smoothing by 10,000 words makes alike: texts should be of about one length, as
  packed rows are, and the target of 10,000 words or more.

  Args:
    pool: of `hash_ngrams`.
    target: the same of texts like those that are wanted.

  Raises:
    ValueError: if the target or the pool has no words.

  References:
    Xie et al., "Data Selection for Language Models via Importance Resampling", 2023,
      arXiv:2302.03169. There signs are words too, and a weight of the length may be added.

  Example:
    >>> pool = hash_ngrams(["red figs", "loud engines", "red plums"])
    >>> bool(np.argmin(log_importance(pool, hash_ngrams(["red plums and red figs"]))) == 1)
    True
  """
  named = {"pool": pool, "target": target}
  if wordless := [name for name, ngrams in named.items() if not len(ngrams.unigram)]:
    raise ValueError(f"texts with words are needed; {' and '.join(wordless)} have none")
  return log_weights(pool, log_ratio(counts(target), counts(pool)))


def _blocks(texts: Iterable[str | bytes]) -> Iterator[list[bytes]]:
  block: list[bytes] = []
  size = 0
  for text in texts:
    encoded = text if isinstance(text, bytes) else text.encode("utf-8", "backslashreplace")
    if block and size + len(encoded) > _BLOCK:
      yield block
      block, size = [], 0
    block.append(encoded)
    size += len(encoded) + 1
  if block:
    yield block


def _hash_block(texts: Sequence[bytes]) -> Ngrams:
  # A byte outside words before each text and after the last.
  joined = b"\n" + b"\n".join(texts) + b"\n"
  byte_L = _CLASS[np.frombuffer(joined, np.uint8)]
  inside_L = byte_L != 0
  edge_2W = np.flatnonzero(inside_L[1:] != inside_L[:-1]) + 1
  start_W, end_W = edge_2W[::2], edge_2W[1::2]
  # Of a few lengths only, so that they are there already.
  power_L, inverse_L = _powers(max(2 * _BLOCK, 1 << len(joined).bit_length()))
  # Modulo 2^64, so that sums of words are exact differences of running sums.
  sum_L = np.cumsum(byte_L * power_L[: len(joined)])
  hash_W = _mix((sum_L[end_W] - sum_L[start_W - 1]) * inverse_L[start_W])
  pair_W = np.full(len(hash_W), NUM_BUCKETS, np.uint16)
  pair_W[:-1] = _mix(hash_W[:-1] * np.uint64(_PAIR) + hash_W[1:]) % np.uint64(NUM_BUCKETS)
  size_n = np.fromiter(map(len, texts), np.int64, len(texts))
  last_n = np.searchsorted(start_W, np.cumsum(size_n + 1))  # words up to the end of each text
  pair_W[last_n[last_n > 0] - 1] = NUM_BUCKETS
  word_W = (hash_W % np.uint64(NUM_BUCKETS)).astype(np.uint16)
  return Ngrams(word_W, pair_W, np.diff(last_n, prepend=0))


@functools.lru_cache(maxsize=2)
def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns p^i and p^-i modulo 2^64 for i < `length`, u64[length] each."""
  factors_2xL = np.ones((2, length), np.uint64)
  factors_2xL[:, 1:] = np.array([[_BASE], [pow(_BASE, -1, 1 << 64)]], np.uint64)
  power_L, inverse_L = np.cumprod(factors_2xL, axis=1)
  return power_L, inverse_L


def _mix(x: np.ndarray) -> np.ndarray:
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
