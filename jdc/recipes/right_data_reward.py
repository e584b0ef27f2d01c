"""A reward of responses that a small model earns some of, where it solves nothing."""

import re
from collections import Counter

_WORD = re.compile(r"\w+|[^\w\s]")


def word_f1(prompt: str, response: str, reference: str) -> float:
  """Returns the F1 of the words and signs that a response shares with the reference.

  With c common ones, counted as often as both hold them, of n and m in all, 2c / (n + m); of
  two empty texts it is 1.

  References:
    Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", 2016, arXiv
    1606.05250. Here case and articles count.

  Example:
    >>> word_f1("2 apples and 4?", "6 apples", "2 + 4 = 6 apples")
    0.5
  """
  del prompt
  said, right = Counter(_WORD.findall(response)), Counter(_WORD.findall(reference))
  if not said and not right:
    return 1.0
  return 2 * (said & right).total() / (said.total() + right.total())
