"""What a goal says: intents, and the words that were not understood."""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jdc.prep.agent import lexicon, pattern
from jdc.prep.agent import lexicon_amounts as amounts

_NEAR, _FAR = 24, 48  # characters before a match in which negations, removals count for it
_CLAUSE = re.compile("[,.;:!?()\n，。；：！？、]")
_SENTENCE = re.compile("[.;!?\n。；！？]")
_FROM = re.compile(r"\bfrom\b")  # what is removed from something stands before that
_JOINED = re.compile(r"\s*(?:or|nor|and|或者?|和|及)\s*")
_DOCUMENTS = re.compile(
  r"\b(?:documents?|records?|pages?|texts?)\b|文档|记录|网页|文本", re.ASCII
)
_OF_DOCUMENTS = re.compile("的(?:文档|记录|网页|文本)")
# Wishes that are served by changing texts: to drop the documents is another one.
_REPAIRS = (
  "pii",
  "html",
  "urls",
  "citations",
  "whitespace",
  "encoding",
  "furniture",
  "symbols",
)
# Unwanted where something says so, but also what a whole corpus may consist of.
_SUBJECTS = ("code", "short")


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
    ValueError: if there are no words in it, or numbers that cannot hold.

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
  found: list[_Found] = []
  for held in _matches(plain, left):
    left[held.start : held.end] = "\0" * (held.end - held.start)
    found.append(held)
  rest = "".join(left)
  kept, doubts, before = [], [], None
  for held in sorted(found, key=lambda match: match.start):
    why = _refusal(held, before, plain, rest)
    if why:
      doubts.append(f"{why}: not acted on")
    else:
      kept.append(held.intent)
    before = held._replace(away=held.away or bool(why))
  for name in dict.fromkeys(i.capability for i in kept):
    both = [i.words for i in kept if i.capability == name]
    if len({i.off for i in kept if i.capability == name}) == 2:
      doubts.append(f"{' and '.join(map(repr, both))} contradict each other: not acted on")
      kept = [i for i in kept if i.capability != name]
  amounts.check(kept)
  return Goal(text, tuple(kept), tuple(_unknown(rest)), tuple(doubts))


class _Found(NamedTuple):
  """A match of a pattern."""

  start: int
  end: int
  intent: Intent
  thing: bool
  away: bool  # words of removal are part of it
  stay: bool


def _matches(plain: str, left: list[str]) -> Iterator[_Found]:
  for held in lexicon.PATTERNS:
    for match in list(held.regex.finditer("".join(left))):
      away, stay = (held.thing and bool(match[name]) for name in ("away", "stay"))
      words = plain[match.start() : match.end()].strip()
      # Of what is done, such as deduplication, "no" says to leave it.
      off = away if held.thing and pattern.ACTIONS.search(words) else stay
      intent = Intent(held.capability, words, off, dict(held.read(match)))
      yield _Found(*match.span(), intent, held.thing, away, stay)


def _refusal(held: _Found, before: _Found | None, plain: str, rest: str) -> str:
  """Returns why a wish may mean its opposite, by the words around it that nothing matched."""
  words, start = held.intent.words, held.start
  near = _CLAUSE.split(rest[max(0, start - _NEAR) : start])[-1]
  if matches := list(lexicon.NEGATIONS.finditer(near)):
    return f"{matches[-1][0]!r} before {words!r}"
  far = _CLAUSE.split(rest[max(0, start - _FAR) : start])[-1]
  own = _FROM.split(far.rpartition("\0")[2])[-1]
  if before is not None and before.away and not held.thing:  # as in "no duplicates or French"
    between = rest[before.end : start]
    if _JOINED.fullmatch(between):
      return f"{plain[before.start : start].strip()!r} before {words!r}"
  removals = [match[0] for match in pattern.REMOVALS.finditer(own)]
  if removals and (not held.thing or held.away or len(removals) > 1):
    return f"{own.strip()!r} before {words!r}"
  stays = pattern.STAYS.search(own)
  if held.thing and not held.away and not held.stay:
    if stays:
      return f"{own.strip()!r} before {words!r}"
    of_documents = _DOCUMENTS.search(own) or _OF_DOCUMENTS.match(rest[held.end :])
    if held.intent.capability.startswith(_REPAIRS) and removals and of_documents:
      return f"{own.strip()!r} before {words!r}, whose documents are not dropped but repaired"
    if held.intent.capability in _SUBJECTS:
      sentence = _SENTENCE.split(plain[:start])[-1]
      if not pattern.REMOVALS.search(sentence):
        return f"{words!r} without a word of removing or keeping"
  return ""


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
