"""What a goal says: intents, and the words that were not understood."""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jdc.prep.agent import lexicon

_NEAR = 24  # characters before a match in which a negation counts for it
_CLAUSE = re.compile("[,.;:!?()\n，。；：！？、]")


class Intent(NamedTuple):
  """A wish.

  Attributes:
    capability: as `lexicon.PATTERNS` call it.
    words: of the goal.
    off: whether the goal asks to leave that alone.
    args: numbers, names and files.
  """

  capability: str
  words: str
  off: bool
  args: Mapping[str, Any]


class Goal(NamedTuple):
  """A goal that was read.

  Attributes:
    text: as given.
    intents: in the order of their words.
    unknown: words that were not understood, in order.
    doubts: what was understood in part or contradicts itself, and is therefore not acted on.
  """

  text: str
  intents: tuple[Intent, ...]
  unknown: tuple[str, ...]
  doubts: tuple[str, ...]

  def all(self, capability: str) -> list[Intent]:
    """Returns the wishes for a capability, those to leave it alone excluded."""
    return [i for i in self.intents if i.capability == capability and not i.off]

  def find(self, *capabilities: str) -> Intent | None:
    """Returns the first wish for one of some capabilities."""
    return next((i for name in capabilities for i in self.all(name)), None)

  def refuses(self, capability: str) -> Intent | None:
    """Returns the wish to leave something alone."""
    return next((i for i in self.intents if i.capability == capability and i.off), None)

  @property
  def languages(self) -> tuple[str, ...]:
    """The languages that are asked for, by ISO 639 code; empty: any."""
    if self.find("all_languages"):
      return ()
    return tuple(dict.fromkeys(i.args["code"] for i in self.all("language")))


def read(text: str) -> Goal:
  """Reads a goal by the lexicon, without a model.

  Args:
    text: English, Chinese or both.

  Raises:
    ValueError: if there are no words in it.

  Example:
    >>> goal = read("clean English text without duplicates, keep at least 30 %, rhymed")
    >>> [intent.capability for intent in goal.intents]
    ['clean', 'language', 'dedup', 'kept_rate']
    >>> goal.unknown
    ('rhymed',)
    >>> [intent.capability for intent in read("去除重复的英文网页, 至少保留30%").intents]
    ['dedup', 'language', 'web', 'kept_rate']
  """
  plain = unicodedata.normalize("NFKC", text).casefold()
  if not re.search(r"\w", plain):
    raise ValueError(f"goal {text!r}: holds no words")
  left = list(plain)
  found: list[tuple[int, Intent]] = []
  doubts: list[str] = []
  for start, end, intent in _matches(plain, left):
    left[start:end] = "\0" * (end - start)
    found.append((start, intent))
  rest = "".join(left)
  kept = []
  for start, intent in sorted(found, key=lambda pair: pair[0]):
    negation = _negation(rest, start)
    if negation:
      doubts.append(f"{negation!r} before {intent.words!r}: not acted on")
    else:
      kept.append(intent)
  for name in dict.fromkeys(i.capability for i in kept):
    both = [i.words for i in kept if i.capability == name]
    if len({i.off for i in kept if i.capability == name}) == 2:
      doubts.append(f"{' and '.join(map(repr, both))} contradict each other: not acted on")
      kept = [i for i in kept if i.capability != name]
  return Goal(text, tuple(kept), tuple(_unknown(rest)), tuple(doubts))


def _matches(plain: str, left: list[str]) -> Iterator[tuple[int, int, Intent]]:
  for pattern in lexicon.PATTERNS:
    for match in list(pattern.regex.finditer("".join(left))):
      off = pattern.thing and bool(match["stay"])
      words = plain[match.start() : match.end()].strip()
      yield *match.span(), Intent(pattern.capability, words, off, dict(pattern.read(match)))


def _negation(rest: str, start: int) -> str:
  """Returns a negation that was not understood just before a match, in its clause."""
  before = _CLAUSE.split(rest[max(0, start - _NEAR) : start])[-1]
  matches = list(lexicon.NEGATIONS.finditer(before))
  return matches[-1][0] if matches else ""


def _unknown(rest: str) -> list[str]:
  """Returns the words that no pattern matched and that carry a wish."""
  words = []
  for part in re.findall(r"[^\s\0,.;:!?()，。；：！？、\"'“”‘’]+", rest):
    for word in re.findall(r"[!-~]+|[^!-~]+", part):
      word = word.strip("-–—/+*&")
      if word.isascii():
        if word and word not in lexicon.FILLER:
          words.append(word)
      elif lexicon.FILLER_CHINESE.sub("", word):
        words.append(word)
  return list(dict.fromkeys(words))
