"""Likeness of texts by their words: a baseline that needs no model."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

_WORD = re.compile(r"\w+|[^\w\s]")  # words, and every other sign by itself


def likeness(pool: Sequence[str], target: Sequence[str]) -> np.ndarray:
  r"""Returns the cosine of each text of a pool to the mean of some target texts.

  With c_iw how often text i of N holds word w, in lower case, and n_w the texts of the pool
  that hold it,

    v_iw = c_iw (1 + ln((1 + N) / (1 + n_w))),    score_i = cos(v_i, mean_j v_j / |v_j|),

  j running over the target texts. Words that the pool does not hold count for nothing; a text
  without words has score 0.

  Args:
    pool: N texts.
    target: at least one text.

  Returns:
    f64[N], in [0, 1].

  Raises:
    ValueError: if there is no text in one of the two.

  References:
    Salton and Buckley, "Term-weighting approaches in automatic text retrieval", 1988.

  Example:
    >>> likeness(["a red fig", "two plums", "A fig!"], ["red figs"]).round(3).tolist()
    [0.681, 0.0, 0.0]
  """
  if not len(pool) or not len(target):
    raise ValueError(f"texts to compare are needed, got {len(pool)} and {len(target)}")
  vocabulary: dict[str, int] = {}
  for text in pool:
    for word in _words(text):
      vocabulary.setdefault(word, len(vocabulary))
  text_e, word_e, count_e = _counts(pool, vocabulary)
  size = max(len(vocabulary), 1)
  num_texts_W = np.bincount(word_e, minlength=size)
  rarity_W = 1 + np.log((1 + len(pool)) / (1 + num_texts_W))
  weight_e = _unit(text_e, count_e * rarity_W[word_e], len(pool))
  text_t, word_t, count_t = _counts(target, vocabulary)
  weight_t = _unit(text_t, count_t * rarity_W[word_t], len(target))
  centre_W = np.bincount(word_t, weight_t, minlength=size)
  centre_W = centre_W / (np.linalg.norm(centre_W) or 1.0)
  return np.bincount(text_e, weight_e * centre_W[word_e], minlength=len(pool))


def _words(text: str) -> list[str]:
  return _WORD.findall(text.lower())


def _counts(
  texts: Sequence[str], vocabulary: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Text, word and count of each entry that is not 0."""
  size = max(len(vocabulary), 1)
  places = [
    number * size + vocabulary[word]
    for number, text in enumerate(texts)
    for word in _words(text)
    if word in vocabulary
  ]
  entry_e, count_e = np.unique(np.array(places, np.int64), return_counts=True)
  return entry_e // size, entry_e % size, count_e.astype(np.float64)


def _unit(text_e: np.ndarray, weight_e: np.ndarray, num_texts: int) -> np.ndarray:
  norm = np.sqrt(np.bincount(text_e, weight_e**2, minlength=num_texts))
  return weight_e / norm[text_e]
