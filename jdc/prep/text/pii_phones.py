"""Phone numbers in text."""

import re
from typing import NamedTuple

from jdc.prep.text.digits import RUN, Span, groups, joined

_GAP = "[ \u00a0.\\-\u2010\u2011/]"
# No further part of the same number, a date or a list stands before or after.
_BEFORE = r"(?<![0-9A-Za-z_])(?<![0-9][.,/-])"
_AFTER = r"(?![0-9_]|(?!x[0-9]|ext)[A-Za-z]|[.,/-][0-9])"
_EXTENSION = re.compile(r"[ ,]{0,2}(?:x|ext\.?) ?[0-9]{1,5}(?![0-9A-Za-z_])")


class _Rule(NamedTuple):
  pattern: re.Pattern[str]
  min_digits: int
  max_digits: int
  cut: bool = False  # whether groups beyond the most digits belong to something else


def _rule(pattern: str, least: int, most: int, cut: bool = False) -> _Rule:
  return _Rule(re.compile(f"{_BEFORE}(?:{pattern}){_AFTER}"), least, most, cut)


_RULES = (
  # North America: (415) 555-0107, 415-555-0107, +1 415 555 0107.
  _rule(rf"(?:\+?1{_GAP}?)?\([2-9][0-9]{{2}}\){_GAP}?[2-9][0-9]{{2}}{_GAP}[0-9]{{4}}", 10, 11),
  _rule(
    rf"(?:\+?1{_GAP})?[2-9][0-9]{{2}}([.\-\u2010\u2011])[2-9][0-9]{{2}}\1[0-9]{{4}}", 10, 11
  ),
  _rule(rf"\+1{_GAP}?[2-9][0-9]{{2}}{_GAP}?[2-9][0-9]{{2}}{_GAP}?[0-9]{{4}}", 11, 11),
  # International: +44 (0)20 7946 0958, +4930123456, 0049 30 123456.
  _rule(
    rf"\+[1-9][0-9]{{0,2}}(?:(?:{_GAP}?\(0\){_GAP}?|{_GAP}?\(|\){_GAP}?|{_GAP})[0-9]{{1,10}})+",
    8, 15, cut=True,
  ),
  _rule(r"\+[1-9][0-9]{9,14}", 10, 15),
  _rule(rf"00[1-9][0-9]{{0,2}}(?:{_GAP}[0-9]{{2,8}}){{2,}}", 10, 17),
  # National, with the trunk prefix 0: (030) 123456, 020 7946 0958, 01 23 45 67 89.
  _rule(rf"\(0[1-9][0-9]{{0,3}}\){_GAP}?[0-9]{{2,8}}(?:{_GAP}[0-9]{{2,8}})*", 9, 11),
  _rule(
    rf"(?<![0-9] )0[1-9][0-9]{{0,3}}({_GAP})[0-9]{{2,8}}(?:\1[0-9]{{2,4}})*(?! [0-9])", 9, 11
  ),
  # Mobile numbers of China: 138 1234 5678.
  _rule(r"1[3-9][0-9]([ \-])[0-9]{4}\1[0-9]{4}", 11, 11),
)  # fmt: skip
_CUE = re.compile(
  "(?:(?<![A-Za-zÀ-ɏЀ-ӿ])(?:tel|telephone|phone|ph|mobile|mob|cell|cellphone|fax|hotline|"
  "whatsapp|tél|téléphone|telefon|telefono|teléfono|telefone|móvil|celular|handy|тел|телефон|"
  "факс)|电话|電話|手机|手機|传真|傳真|携帯|전화)"
  "(?:[ .]{0,2}(?:number|no|nr|num|is|号码|號碼|番号|номер)){0,2}[ \u00a0\t.:：#=(]{0,4}$",
  re.IGNORECASE,
)
_CUED = _rule(rf"[+(]{{0,2}}[0-9]+(?:[{_GAP[1:-1]}()]{{1,2}}[0-9]+)*", 7, 15, cut=True)
_LOOK_BACK = 40
# How a number of these rules may start: most groups of digits are out at once.
_MAY_START = re.compile(
  r"[+(]|0[0-9]|1[3-9][0-9][ -]|(?:1[^0-9]{1,2})?[2-9][0-9]{2}[.\-\u2010\u2011]"
)
_DATE = re.compile(
  r"(?:19|20)[0-9]{2}([-./ ])[01]?[0-9]\1[0-3]?[0-9](?![0-9])"
  r"|[0-3]?[0-9]([-./ ])[0-3]?[0-9]\2(?:19|20)[0-9]{2}(?![0-9])"
)
_MIN_DIGITS = 7


def phones(text: str) -> list[Span]:
  """Returns the spans of what is written like a phone number.

  - North American: area code and exchange of three digits from 200 on, then four digits, joined
    by "-" or "." or with the area code in brackets; with +1 also spaces.
  - International: "+" and a country code, 8 to 15 digits (E.164) in groups, or 10 to 15
    together; "00" in the place of "+" with two further groups or more.
  - National with the prefix 0: 9 to 11 digits in two groups or more with the same separator, no
    other group beside; Chinese mobile numbers as 3, 4 and 4 digits.
  - After a word for phone or fax: any 7 to 15 digits.

  Dates are none, nor are 5 and 4 digits (ZIP+4) or 3, 2 and 4 (social security) with a hyphen,
  amounts in thousands after "+", plain digits, and what is part of a longer number by ".", ","
  "/" or "-". An extension ("x12", "ext. 12") belongs to the number.

  References:
    ITU-T E.123 and E.164; ATIS, North American Numbering Plan.

  Example:
    >>> text = "+1 312 555 0153, (415) 555-0187, not 2024-01-02 or ISBN 0-306-40615-2"
    >>> [text[slice(*span)] for span in phones(text)]
    ['+1 312 555 0153', '(415) 555-0187']
  """
  spans = []
  for run in RUN.finditer(text):
    parts = groups(run)
    if len(joined(text, parts)) < _MIN_DIGITS:
      continue
    end = 0
    for index, (start, _) in enumerate(parts):
      if start < end:
        continue
      first = start - (text[start - 1 : start] == "(")
      first -= text[first - 1 : first] == "+"
      cued = index == 0 and _CUE.search(text[max(0, first - _LOOK_BACK) : first])
      if not cued and not _MAY_START.match(text, first):
        continue
      for rule in (*_RULES, _CUED) if cued else _RULES:
        if end := _end(text, first, rule):
          extension = _EXTENSION.match(text, end)
          end = extension.end() if extension else end
          spans.append((first, end))
          break
  return spans


def _end(text: str, first: int, rule: _Rule) -> int:
  """Returns the end of a number that starts at `first`, 0 where there is none by the rule."""
  match = rule.pattern.match(text, first)
  if not match or _DATE.match(text, first):
    return 0
  parts = groups(match)
  while rule.cut and len(joined(text, parts)) > rule.max_digits:
    parts.pop()
  if not rule.min_digits <= len(joined(text, parts)) <= rule.max_digits:
    return 0
  sizes, end = tuple(b - a for a, b in parts), parts[-1][1]
  hyphens = text[first:end].count("-") == len(parts) - 1
  if (hyphens and sizes in ((5, 4), (3, 2, 4))) or _is_amount(text, first, parts):
    return 0
  return end


def _is_amount(text: str, first: int, parts: list[Span]) -> bool:
  last_start, last_end = parts[-1]
  return text[first] == "+" and len(parts) > 1 and text[last_start:last_end] == "000"
