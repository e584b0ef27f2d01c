"""Embeddings of texts by hashed words and pairs of words, without a model."""

import numpy as np
import pyarrow as pa

from jdc.prep.jit import jit
from jdc.prep.kernels.hashes import BASE, composed, fold_table, mix, most_words, words

_STEP = np.uint64(0xD6E8FEB86659FD93)
_63 = np.uint64(63)


def embed(text: pa.StringArray, *, dimension: int = 256, seed: int = 0) -> np.ndarray:
  r"""Returns unit vectors whose products estimate cosines of bags of words and pairs of words.

  Words are those of `jdc.prep.near_dedup`: case-folded, without punctuation, each character one
  where a script puts no spaces. With c_g how often a word or pair of neighbours g occurs, h and
  s hashes of (seed, g) to 0..D-1 and to -1 or 1,

    x_b = sum_{g: h(g) = b} s(g) (1 + ln c_g),    e = x / |x|.

  <e, e'> estimates the cosine of the weights without bias, with a standard deviation of about
  1 / sqrt(D) for texts that have little in common, and less for those that have much.

  Args:
    text: n documents.
    dimension: D.
    seed: of the hashes, in [0, 2^63).

  Returns:
    f32[n, D]; zeros for a text without words.

  Raises:
    ValueError: if an argument is out of range, or texts are none.

  References:
    Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", 2009,
    arXiv:0902.2206.

  Example:
    >>> x = embed(pa.array(["Ripe figs, red figs.", "RIPE FIGS red figs", "loud engines", "!"]))
    >>> (x @ x[0]).round(2).tolist()
    [1.0, 1.0, 0.0, 0.0]
  """
  if dimension < 1 or not 0 <= seed < 1 << 63:
    raise ValueError(
      f"dimension must be 1 or more and seed in [0, 2^63), got {dimension} and {seed}"
    )
  offsets, data = composed(text)
  out = np.zeros((len(text), dimension), np.float32)
  _embed(offsets, data, fold_table(), np.uint64(seed), out)
  return out


@jit
def _embed(
  offsets: np.ndarray, data: np.ndarray, fold: np.ndarray, seed: np.uint64, out: np.ndarray
) -> None:
  most = most_words(offsets)
  word_hash = np.empty(most, np.uint64)
  first, last = np.empty(most, np.int64), np.empty(most, np.int64)
  grams = np.empty(2 * most, np.uint64)
  total = np.empty(out.shape[1], np.float64)
  salt, dimension = mix(seed * _STEP + _STEP), np.uint64(out.shape[1])
  for n in range(len(offsets) - 1):
    count = words(data, offsets[n], offsets[n + 1], fold, word_hash, first, last)
    if count == 0:
      continue
    for w in range(count):
      grams[w] = word_hash[w]
    for w in range(count - 1):
      grams[count + w] = mix(word_hash[w] * BASE + word_hash[w + 1])
    total[:] = 0.0
    _add(np.sort(grams[: 2 * count - 1]), salt, dimension, total)
    norm = np.sqrt(np.sum(total * total))
    if norm > 0:
      for d in range(out.shape[1]):
        out[n, d] = total[d] / norm


@jit
def _add(grams: np.ndarray, salt: np.uint64, dimension: np.uint64, total: np.ndarray) -> None:
  """Adds the sign and weight of each distinct one of sorted hashes to its place."""
  start = 0
  for i in range(1, len(grams) + 1):
    if i < len(grams) and grams[i] == grams[start]:
      continue
    h = mix(grams[start] ^ salt)
    sign = 1.0 - 2.0 * np.float64(h >> _63)
    total[np.int64(h % dimension)] += sign * (1.0 + np.log(i - start))
    start = i
