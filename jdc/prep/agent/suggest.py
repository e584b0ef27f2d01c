"""Operators that might serve words which were not understood: suggestions, never steps."""

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from jdc.prep.agent import lexicon
from jdc.prep.catalog import Operator

_K1, _B = 1.5, 0.75


def suggestions(
  words: Iterable[str], operators: Mapping[str, Operator], most: int = 2
) -> dict[str, list[str]]:
  """Returns for each word the operators whose help is about it, by BM25, or like words.

  References:
    Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009.

  Example:
    >>> from jdc.prep import ops
    >>> suggestions(["javascript"], ops.OPERATORS)["javascript"]
    ['boilerplate']
    >>> suggestions(["duplcates"], ops.OPERATORS)["duplcates"]
    ["the word 'duplicates'"]
  """
  texts = {name: Counter(_terms(_help(operator))) for name, operator in operators.items()}
  lengths = {name: sum(held.values()) for name, held in texts.items()}
  mean = sum(lengths.values()) / len(lengths)
  vocabulary = sorted(_vocabulary())
  found = {}
  for word in words:
    terms = _terms(word)
    scores = {name: _score(terms, name, texts, lengths, mean) for name in texts}
    best = sorted((n for n in scores if scores[n] > 0), key=lambda n: (-scores[n], n))[:most]
    if not best:
      close = difflib.get_close_matches(word, vocabulary, n=1, cutoff=0.8)
      best = [f"the word {name!r}" for name in close]
    found[word] = best
  return found


def _help(operator: Operator) -> str:
  doc = operator.function.__doc__ or ""
  rule = operator.params.__doc__ or ""
  return f"{operator.name} {operator.name.replace('_', ' ')} {doc} {rule}"


def _terms(text: str) -> list[str]:
  words = re.findall(r"[a-z0-9]+|[^\x00-\x7f]+", text.casefold())
  return [w.removesuffix("s") if len(w) > 3 else w for w in words]


def _score(
  terms: list[str],
  name: str,
  texts: Mapping[str, Counter[str]],
  lengths: Mapping[str, int],
  mean: float,
) -> float:
  total = 0.0
  for term in terms:
    holding = sum(term in held for held in texts.values())
    count = texts[name][term]
    weight = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
    total += weight * count * (_K1 + 1) / (count + _K1 * (1 - _B + _B * lengths[name] / mean))
  return total


def _vocabulary() -> set[str]:
  """Returns the plain words of the lexicon."""
  words: set[str] = set()
  for pattern in lexicon.PATTERNS:
    words |= set(re.findall(r"(?<![\\\w])[a-z]{5,}", pattern.words))
  return words
