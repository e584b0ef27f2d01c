"""Whether answers agree: as texts, as numbers, by the words that they share."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, NamedTuple

Compare = Literal["text", "number", "overlap"]
Form = Callable[[str], Any]  # what is compared of an answer; `None` agrees with nothing
Agrees = Callable[[Any, Any], bool]
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# What tells numbers apart: 1.5 and 15, 3:1 and 31, -5 and 5. Other signs say nothing.
_SIGN = re.compile(r"(?P<of_number>(?<=\d)[.,:/^-](?=\d)|(?<![\w)])-(?=\.?\d))|[^\w\s]|_")
_MINUS = {ord(c): "-" for c in "\N{MINUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}\N{SMALL HYPHEN-MINUS}"}
# Scripts that put no spaces; a character of them is a word.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_NEGATIONS = {
  "not", "no", "never", "none", "nothing", "nobody", "neither", "nor", "without", "cannot",
  "cant", "dont", "doesnt", "didnt", "isnt", "arent", "wasnt", "werent", "wont", "wouldnt",
}  # fmt: skip
_MARK = "####"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_QUANTITY = re.compile(
  rf"(?P<sign>(?<![\w)])-)?[$\u20ac\u00a3]?\s?(?P<digits>{_DIGITS})"
  rf"(?:[eE](?P<power>[+-]?\d+)(?!\w)|(?P<part>\s\d+)?\s?/\s?(?P<below>{_DIGITS}))?"
  r"(?P<formula>\s?\^|\*\*\d|[\u00b9\u00b2\u00b3\u2070-\u2079]|\s?/\s?[\d.]+)?"
)
_FRAC = re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_MOST_DIGITS = 400  # of a number; one with more agrees with nothing


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
    return quantity, lambda a, b: a == b
  if compare == "text":
    return normal_form, lambda a, b: a == b
  return words, lambda a, b: f1(a, b) >= min_overlap and not contradict(a, b)


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


def quantity(text: str) -> Fraction | None:
  """Returns the first number after the first "####", or else the last number of a text.

  Unlike `jdc.eval.generation.number`, which follows how benchmarks are scored, it reads
  fractions and powers of ten, and takes no part of a formula for the whole.

  Returns:
    The number; `None` where there is none, or it is a power such as 10^3.

  Example:
    >>> [str(quantity(text)) for text in ("#### 3/4 of it", "so 1,500", "1 1/2", "it is 1.5e3")]
    ['3/4', '1500', '3/2', '1500']
    >>> quantity("#### 10^3")
  """
  text = _FRAC.sub(r" \1/\2", text.translate(_MINUS))
  before, mark, after = text.partition(_MARK)
  found = list(_QUANTITY.finditer(after if mark else before))
  if not found:
    return quantity(before) if mark else None
  return _value_of(found[0] if mark else found[-1])


def _value_of(found: re.Match[str]) -> Fraction | None:
  digits, power, part, below = (found[n] for n in ("digits", "power", "part", "below"))
  if found["formula"] or len(digits) + len(part or "") + len(below or "") > _MOST_DIGITS:
    return None
  value = _fraction(digits)
  if power:
    if len(power) > 4 or abs(int(power)) > _MOST_DIGITS:
      return None
    value *= Fraction(10) ** int(power)
  if below:
    divisor = _fraction(below)
    if not divisor:
      return None
    value = value + _fraction(part) / divisor if part else value / divisor
  return -value if found["sign"] else value


def _fraction(digits: str) -> Fraction:
  return Fraction(Decimal(digits.replace(",", "").strip()))


def normal_form(text: str) -> str | None:
  """Returns a text without case, punctuation, articles and spacing; `None` if nothing is left.

  What belongs to a number stays.

  >>> normal_form("The Eiffel  Tower."), normal_form("-1,500.5 m"), normal_form("?")
  ('eiffel tower', '-1500.5 m', None)
  """
  plain = unicodedata.normalize("NFC", text).casefold().translate(_MINUS)
  plain = _SIGN.sub(_kept, _THOUSANDS.sub("", plain))
  return " ".join(_ARTICLES.sub(" ", plain).split()) or None


def _kept(found: re.Match[str]) -> str:
  is_mark = unicodedata.category(found[0])[0] in "PS"  # others are parts of letters
  return "" if is_mark and not found["of_number"] else found[0]


def words(text: str) -> Counter[str] | None:
  """Returns the words of the normal form, `None` if there are none."""
  plain = normal_form(text)
  return Counter(_WORD.findall(plain)) if plain else None


def contradict(a: Counter[str], b: Counter[str]) -> bool:
  """Returns whether one of two answers has other numbers, or alone an English negation.

  >>> (
  ...   contradict(words("on 5 May 1889"), words("on 6 May 1889")),
  ...   contradict(words("5 May 1889"), words("in May 1889")),
  ... )
  (True, False)
  """
  numbers = [{word for word in answer if any(map(str.isdigit, word))} for answer in (a, b)]
  small, large = sorted(numbers, key=len)
  return not small <= large or bool(_NEGATIONS & a.keys()) != bool(_NEGATIONS & b.keys())


def f1(a: Counter[str], b: Counter[str]) -> float:
  """Returns 2 |a and b| / (|a| + |b|), words counted as often as they occur.

  >>> f1(words("in the year 1889"), words("1889"))
  0.5
  """
  return 2 * (a & b).total() / (a.total() + b.total())
