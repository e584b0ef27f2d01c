"""Whether answers agree: as texts, as numbers, by the words that they share."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

Compare = Literal["text", "number", "overlap"]
Form = Callable[[str], Any]  # what is compared of an answer; `None` agrees with nothing
Agrees = Callable[[Any, Any], bool]
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_DELETE = str.maketrans("", "", string.punctuation)


class Found(NamedTuple):
  """What the answers say together.

  Attributes:
    share: of the answers that agree.
    chosen: the first that does; `None` where none does.
  """

  share: float
  chosen: str | None


def as_texts(value: Any) -> list[str]:
  """Returns the answers that a field holds: a text, a number, or a list of them."""
  if isinstance(value, list):
    return [text for each in value for text in as_texts(each)]
  if isinstance(value, str):
    return [value] if value.strip() else []
  return [str(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def comparison(compare: Compare, min_overlap: float = 0.6) -> tuple[Form, Agrees]:
  """Returns what is compared of an answer, and whether two of that agree.

  References:
    Rajpurkar, Zhang, Lopyrev and Liang, "SQuAD: 100,000+ Questions for Machine Comprehension
    of Text", 2016, arXiv:1606.05250, for the normal form and the F1 of words.
  """
  if compare == "number":
    from jdc.eval.generation import number

    return number, lambda a, b: a == b
  if compare == "text":
    return normal_form, lambda a, b: a == b
  return words, lambda a, b: f1(a, b) >= min_overlap


def judge(answers: Sequence[str], right: str | None, form: Form, agrees: Agrees) -> Found:
  """Returns how many answers agree with the right one, or with the one that most agree with.

  Example:
    >>> judge(["7", "It is 7.", "8"], None, *comparison("number"))
    Found(share=0.6666666666666666, chosen='7')
  """
  held = [form(answer) for answer in answers]
  if right is not None:
    reference = form(right)
  else:
    votes = [sum(_agree(a, b, agrees) for b in held) for a in held]
    reference = held[votes.index(max(votes))]
  good = [_agree(reference, value, agrees) for value in held]
  chosen = answers[good.index(True)] if any(good) else None
  return Found(sum(good) / len(good), chosen)


def _agree(a: Any, b: Any, agrees: Agrees) -> bool:
  return a is not None and b is not None and agrees(a, b)


def normal_form(text: str) -> str | None:
  """Returns a text without case, punctuation, articles and spacing; `None` if nothing is left.

  >>> normal_form("The Eiffel  Tower."), normal_form("?")
  ('eiffel tower', None)
  """
  plain = _ARTICLES.sub(" ", text.casefold().translate(_DELETE))
  return " ".join(plain.split()) or None


def words(text: str) -> Counter[str] | None:
  """Returns the words of the normal form, `None` if there are none."""
  plain = normal_form(text)
  return Counter(plain.split()) if plain else None


def f1(a: Counter[str], b: Counter[str]) -> float:
  """Returns 2 |a and b| / (|a| + |b|), words counted as often as they occur.

  >>> f1(words("in the year 1889"), words("1889"))
  0.5
  """
  return 2 * (a & b).total() / (a.total() + b.total())
