"""Numbers and shares as goals write them, and the patterns of goals that hold them."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from jdc.prep.agent.pattern import Pattern

if TYPE_CHECKING:
  from jdc.prep.agent.goal import Intent

_NUMBER = r"\d[\d,]*(?:\.\d+)?"
_PERCENT = (
  rf"(?:{_NUMBER}\s*(?:%|percent\b|per cent\b)|百分之[\d.一二三四五六七八九十百]+|half\b|"
  r"一半|[一二三四五六七八九]成)"
)
_COUNT = rf"{_NUMBER}\s*(?:k\b|m\b|b\b|bn\b|thousand\b|million\b|billion\b|千|万|亿)?"
_FILE = r"[\w./~-]*\w\.\w{2,8}"
_FROM = (
  r"(?:at least|no less than|not less than|min(?:imum)?(?: of)?|>=|至少|不少于|不低于|最少)"
)
_UPTO = (
  r"(?:at most|no more than|not more than|up to|max(?:imum)?(?: of)?|<=|最多|不超过|"
  r"不多于|至多)"
)
_UNITS = {"k": 1e3, "thousand": 1e3, "千": 1e3, "m": 1e6, "million": 1e6, "万": 1e4}
_UNITS |= {"b": 1e9, "bn": 1e9, "billion": 1e9, "亿": 1e8}
_NUMERALS = {char: value for value, char in enumerate("零一二三四五六七八九")}


def number(text: str) -> float:
  """Returns a number as written in a goal.

  >>> number("1,000"), number("2.5 million"), number("3 亿")
  (1000.0, 2500000.0, 300000000.0)
  """
  match = re.match(rf"({_NUMBER})\s*([a-z]+|[千万亿])?", text)
  assert match is not None, text
  return float(match[1].replace(",", "")) * _UNITS.get(match[2] or "", 1)


def share(text: str) -> float:
  """Returns a share as written in a goal.

  >>> share("30 %"), share("百分之三十"), share("half"), share("七成")
  (0.3, 0.3, 0.5, 0.7)
  """
  if text in ("half", "一半"):
    return 0.5
  if text.endswith("成"):
    return _NUMERALS[text[0]] / 10
  if text.startswith("百分之"):
    return round(_numeral(text[3:]) / 100, 6)
  return round(number(text) / 100, 6)


# Of wishes that a goal has once: what their numbers must be.
_RANGES = {
  "kept_rate": (0.0, 1.0, "a share from 0 to 100 %"),
  "rule_share": (0.0, 1.0, "a share from 0 to 100 %"),
  "similarity": (1e-9, 1.0, "above 0 and at most 1"),
  "language_score": (0.0, 1.0, "from 0 to 1"),
}
_ONCE = (
  *_RANGES, "word_count", "chunk", "sequence_length", "budget", "shard_size", "seed", "tokens",
  "format",
)  # fmt: skip


def check(intents: Iterable["Intent"]) -> None:
  """Raises a ValueError that lists numbers out of range, and wishes that exclude each other."""
  wrong = []
  wishes = [held for held in intents if held.capability in _ONCE and not held.off]
  for held in wishes:
    low, high, accepted = _RANGES.get(held.capability, (0.0, float("inf"), ""))
    numbers = [x for x in held.args.values() if isinstance(x, int | float)]
    if any(not low <= x <= high for x in numbers):
      wrong.append(f"{held.words!r} must be {accepted}")
  for name in dict.fromkeys(held.capability for held in wishes):
    same = [held for held in wishes if held.capability == name]
    words = " and ".join(dict.fromkeys(repr(held.words) for held in same))
    given: dict[str, Any] = {}
    for held in same:
      if any(given.get(k, x) != x for k, x in held.args.items()):
        wrong.append(f"{words} cannot hold together: say one {name.replace('_', ' ')}")
        break
      given |= held.args
    else:
      if given.get("min", 0) > given.get("max", float("inf")):
        wrong.append(
          f"{words}: the least, {given['min']:g}, is above the most, {given['max']:g}"
        )
  if wrong:
    raise ValueError(f"goal: {'; '.join(wrong)}")


def _numeral(text: str) -> float:
  if re.fullmatch(r"[\d.]+", text):
    return float(text)
  if text == "百" or text == "一百":
    return 100
  tens, ten, ones = text.partition("十")
  if not ten:
    return _NUMERALS[text]
  return 10 * (_NUMERALS[tens] if tens else 1) + (_NUMERALS[ones] if ones else 0)


def _between(low: str, high: str) -> Callable[[re.Match[str]], Mapping[str, Any]]:
  def read(match: re.Match[str]) -> Mapping[str, Any]:
    held = match.groupdict()
    found = {}
    for name in (low, high):
      if held.get(name):
        found[name] = share(held[name])
    return found

  return read


def _range(match: re.Match[str]) -> Mapping[str, Any]:
  low = match["min"]
  return {"min": share(f"{low}%" if low.isdigit() else low), "max": share(match["max"])}


def _kept(match: re.Match[str]) -> Mapping[str, Any]:
  return {"min": share(match["low"])}


def _dropped(match: re.Match[str]) -> Mapping[str, Any]:
  return {"min": round(1 - share(match["high"]), 6)}


def _words(match: re.Match[str]) -> Mapping[str, Any]:
  held = match.groupdict()
  found = {}
  if held.get("low"):
    found["min"] = round(number(held["low"]))
  if held.get("high"):
    found["max"] = round(number(held["high"]))
  return found


def _budget(match: re.Match[str]) -> Mapping[str, Any]:
  unit = match["unit"]
  known = {"词": "words", "字节": "bytes"}
  return {"size": round(number(match["size"])), "unit": known.get(unit, unit)}


def _named(**names: Callable[[str], Any]) -> Callable[[re.Match[str]], Mapping[str, Any]]:
  return lambda match: {name: read(match[name]) for name, read in names.items()}


def _jaccard(match: re.Match[str]) -> Mapping[str, Any]:
  text = match["value"]
  return {"min_jaccard": share(text) if not re.fullmatch(r"[\d.]+", text) else float(text)}


_DOCS = (
  r"(?:\s*(?:of\s+)?(?:the\s+|all\s+)?(?:documents|records|data|texts?|pages|数据|文档|"
  r"文本|记录))?"
)
_THAT = r"(?:texts?|documents|pages|lines|文本|文档|网页)"

PATTERNS: tuple[Pattern, ...] = (
  Pattern(
    "rule_share",
    r"(?:no (?:single )?rule|a rule|单条规则|每条规则)[^,.;，。；]*?(?:more than|at most|"
    rf"超过)\s*(?P<most>{_PERCENT})",
    _named(most=share),
  ),
  Pattern(
    "kept_rate",
    rf"(?:keep|retain|保留|留下)(?:ing)?\s*(?:between\s+)?(?P<min>{_PERCENT}|\d+)\s*(?:and|"
    rf"to|-|–|至|到)\s*(?P<max>{_PERCENT}){_DOCS}",
    _range,
  ),
  Pattern(
    "kept_rate",
    r"(?:keep|retain|保留|"
    rf"留下)(?:ing)?\s*{_FROM}\s*(?P<low>{_PERCENT}){_DOCS}(?:\s*(?:or more|以上))?",
    _kept,
  ),
  Pattern(
    "kept_rate",
    rf"(?:keep|retain|保留|留下)(?:ing)?\s*(?P<low>{_PERCENT})\s*(?:or more|以上){_DOCS}",
    _kept,
  ),
  Pattern(
    "kept_rate",
    rf"{_FROM}\s*(?:keep|retain|保留|留下)\s*(?P<low>{_PERCENT}){_DOCS}",
    _kept,
  ),
  Pattern(
    "kept_rate",
    rf"{_UPTO}\s*(?:keep|retain|保留|留下)\s*(?P<max>{_PERCENT}){_DOCS}",
    _between("min", "max"),
  ),
  Pattern(
    "kept_rate",
    rf"{_UPTO}\s*(?:drop|remove|delete|lose|discard|丢弃|删除|去掉|"
    rf"丢掉)\s*(?P<high>{_PERCENT}){_DOCS}",
    _dropped,
  ),
  Pattern(
    "kept_rate",
    rf"(?:keep|retain|保留|留下)(?:ing)?\s*{_UPTO}\s*(?P<max>{_PERCENT}){_DOCS}",
    _between("min", "max"),
  ),
  Pattern(
    "kept_rate",
    r"(?:drop|remove|delete|lose|discard|丢弃|删除|去掉|"
    rf"丢掉)\s*{_UPTO}\s*(?P<high>{_PERCENT}){_DOCS}",
    _dropped,
  ),
  Pattern(
    "word_count",
    rf"(?:{_FROM})\s*(?P<low>{_COUNT})\s*(?:words|个词|词|个字|字)(?:\s*(?:long|each|"
    r"以上))?",
    _words,
  ),
  Pattern(
    "word_count",
    rf"(?:{_UPTO})\s*(?P<high>{_COUNT})\s*(?:words|个词|词|个字|字)(?:\s*(?:long|each|"
    r"以内))?",
    _words,
  ),
  Pattern(
    "word_count",
    rf"(?:fewer|less|shorter) than\s*(?P<low>{_COUNT})\s*words|(?:少于|"
    rf"不足)\s*(?P<low2>{_COUNT})\s*(?:个词|词|个字|字)(?:的{_THAT})?",
    lambda m: {"min": round(number(m["low"] or m["low2"]))},
    thing=True,
  ),
  Pattern(
    "chunk",
    r"(?:chunks?|pieces|分块|切块|切分)\s*(?:of|为|"
    rf"成)?\s*(?:{_UPTO}\s*)?(?P<tokens>{_COUNT})\s*(?:words|tokens|个词|词)",
    lambda m: {"tokens": round(number(m["tokens"]))},
  ),
  Pattern(
    "sequence_length",
    r"(?:sequences? (?:of )?(?:length )?|seq_len\s*=?\s*|"
    rf"序列长度\s*(?:为)?\s*)(?P<length>{_NUMBER})(?:\s*tokens)?",
    lambda m: {"length": round(number(m["length"]))},
  ),
  Pattern(
    "tokens",
    r"(?:tokeni[sz]ed?|tokens?|pack(?:ed)?|分词|词元)\s*(?:with|by|using|用|"
    rf"使用)\s*(?P<tokenizer>{_FILE}|bytes|字节)",
    lambda m: {"tokenizer": "bytes" if m["tokenizer"] == "字节" else m["tokenizer"]},
  ),
  Pattern(
    "budget",
    rf"(?:{_UPTO}\s*|a budget of\s*|budget of\s*|sample(?: of)?\s*|抽取\s*|"
    rf"预算\s*)(?P<size>{_COUNT})\s*(?P<unit>tokens|words|bytes|词|字节)",
    _budget,
  ),
  Pattern(
    "shard_size",
    rf"(?:shards?|files|分片)\s*(?:of|为|每个)?\s*(?P<mb>{_NUMBER})\s*(?:mb|mib|兆)",
    lambda m: {"mb": number(m["mb"])},
  ),
  Pattern(
    "similarity",
    r"(?:similarity|jaccard|相似度)\s*(?:of|above|over|>=?|大于|超过|"
    rf"高于)?\s*(?P<value>{_PERCENT}|0?\.\d+)",
    _jaccard,
  ),
  Pattern(
    "language_score",
    r"(?:language (?:score|confidence)|语言(?:置信度|得分))\s*(?:of|above|over|>=?|大于|"
    r"超过|高于)?\s*(?P<score>0?\.\d+)",
    _named(score=float),
  ),
  Pattern(
    "seed",
    r"(?:seed|随机种子|种子)\s*(?:of|is|=|为)?\s*(?P<seed>\d+)",
    _named(seed=int),
  ),
  # Files.
  Pattern(
    "decontaminate",
    r"(?:decontaminat(?:e|ed|ion)|contaminat(?:ed|ion)|evaluation (?:sets?|texts)|去污染|"
    rf"评测(?:集|数据))[^,.;，。；]*?(?P<path>{_FILE})",
    _named(path=str),
    thing=True,
  ),
  Pattern(
    "url_blocklist",
    r"(?:urls?|domains?|web ?sites?|hosts?|域名|网站)\s*(?:of|in|from|listed in|on|"
    rf"在)?\s*(?:the (?:list|file)\s*)?(?P<path>{_FILE})(?:\s*(?:中|里)?)",
    _named(path=str),
    thing=True,
  ),
  Pattern(
    "blocklist",
    r"(?:block ?list(?:ed)?(?: words)?|bad words|banned words|stop ?list|words|phrases|"
    r"屏蔽词|敏感词|黑名单)\s*(?:of|in|from|listed in|on|在)?\s*(?:the (?:list|"
    rf"file)\s*)?(?P<path>{_FILE})(?:\s*(?:中|里)?)",
    _named(path=str),
    thing=True,
  ),
)
