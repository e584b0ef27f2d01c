"""Identity numbers, street addresses, and the names that stand beside personal data."""

import re
from collections.abc import Iterable

Span = tuple[int, int]

# Social security numbers as the Social Security Administration issues them, and taxpayer
# numbers of the same form as the Internal Revenue Service does.
_SSN = re.compile(
  r"(?<![\w-])(?<!\d[./,])(?:(?!000|666)[0-8]\d{2}-(?!00)\d{2}"
  r"|9\d{2}-(?:5\d|6[0-5]|7\d|8[0-8]|9[0-24-9]))-(?!0000)\d{4}(?![\w-])(?![./,]\d)"
)
SSN_TRIGGER = r"\d{3}-\d{2}-\d{4}"
# The common suffixes of the Postal Service's Publication 28, appendix C1, and the usual ways to
# write them.
_SUFFIXES = (
  "Street St Avenue Ave Road Rd Boulevard Blvd Lane Ln Drive Dr Court Ct Place Pl Square Sq "
  "Terrace Ter Parkway Pkwy Highway Hwy Way Circle Cir Trail Trl Alley Aly Crescent Cres Close "
  "Row"
)
_SUFFIX = "|".join(_SUFFIXES.split())
STREET_TRIGGER = rf"\d[A-Za-z]?\s[^\n]{{1,60}}\b(?:{_SUFFIX})\b"
_WORD = r"[A-Z\u00c0-\u00de][\w.'’-]*"
_STREET = re.compile(
  rf"(?<![\w.,/$€£-])(?<!\d )(?P<number>\d{{1,6}}[A-Za-z]?)[ \t]+"
  rf"(?:(?:{_WORD}|\d{{1,3}}(?:st|nd|rd|th))[ \t]+){{1,4}}?(?:{_SUFFIX})\b\.?"
  rf"(?P<rest>(?:,?[ \t]+(?:Apt|Apartment|Suite|Ste|Unit|Floor|Fl|#)\.?[ \t]*[\w-]+)?"
  rf"(?:,[ \t]*{_WORD}(?:[ \t]{_WORD}){{0,2}})?(?:,?[ \t]+[A-Z]{{2}}\b)?"
  rf"(?:,?[ \t]+\d{{5}}(?:-\d{{4}})?\b)?)"
)
_YEARS = range(1500, 2100)
# Two to five words with capitals or initials; then how text goes on to personal data.
_NAME = rf"(?:(?:[A-Z]\.[ \t]?|{_WORD}[ \t]+)){{1,4}}{_WORD}"
_LINKS = (
  "at on via by under is was lives live resides living residing has uses with the a his her "
  "their my phone telephone tel mobile fax e-mail email mail address number home private can "
  "be reached reachable and or whose number's"
)
_BESIDE = re.compile(
  rf"(?P<name>{_NAME})(?:'s)?[ \t]*[,:(–—-]?[ \t]*"
  rf"(?:(?i:{'|'.join(_LINKS.split())})\b[.:]?[ \t]*){{0,6}}[(<]?$"
)
_BEFORE = 120  # characters before a piece of personal data in which a name is looked for
_OPENERS = (
  "contact call email e-mail mail write ask reach phone tel text fax visit meet please dear "
  "attn attention to from by for the of and or send questions number card account our your my "
  "this social security address name mr mrs ms dr"
)
_NO_NAMES = frozenset(_OPENERS.split())  # words with capitals that begin a sentence


def ssns(text: str) -> list[Span]:
  """Returns the spans of social security numbers and taxpayer numbers of the United States.

  Three, two and four digits joined by hyphens, of ranges that are issued or kept for examples.

  References:
    Social Security Administration, Social Security Number Randomization, 2011; Internal Revenue
    Service, Publication 1915 (ITIN).

  Example:
    >>> text = "219-09-9999, not 000-12-3456 or 1-219-09-9999"
    >>> [text[slice(*span)] for span in ssns(text)]
    ['219-09-9999']
  """
  return [match.span() for match in _SSN.finditer(text)]


def streets(text: str) -> list[Span]:
  """Returns the spans of street addresses as they are written in English.

  A number, one to four words with capitals and a suffix such as Street or Ave; an apartment, a
  city, a state of two letters and a ZIP code go along where they follow. A number that could be
  a year counts only with one of these.

  References:
    United States Postal Service, Publication 28, Postal Addressing Standards, appendix C1.

  Example:
    >>> text = "Ann lives at 12 Elm St, Apt 4, Salem, OR 97301. In 1929 Wall Street fell."
    >>> [text[slice(*span)] for span in streets(text)]
    ['12 Elm St, Apt 4, Salem, OR 97301']
  """
  found = []
  for match in _STREET.finditer(text):
    number = match["number"]
    year = number.isdigit() and int(number) in _YEARS
    if match["rest"].strip() or not year:
      found.append(match.span())
  return found


def names(text: str, others: Iterable[Span]) -> list[Span]:
  """Returns the spans of names that a sentence ties to a piece of personal data behind them.

  Two to five words with capitals, or initials, which nothing but words such as "at", "is" or
  "lives at" and a mark separates from the piece. By this alone a company's name counts, too;
  and names that stand by themselves, as those of authors, do not.

  Args:
    text: a document.
    others: spans of personal data.

  References:
    McCallister et al., Guide to Protecting the Confidentiality of Personally Identifiable
    Information, NIST SP 800-122, 2010: what is linked to a person.

  Example:
    >>> text = "As Jo Fox wrote: contact Ann B. Lee at ann@example.org."
    >>> [text[slice(*span)] for span in names(text, [(39, 54)])]
    ['Ann B. Lee']
  """
  found = []
  for start, _ in others:
    begin = max(0, start - _BEFORE)
    line = text[begin:start].rpartition("\n")
    begin += len(line[0]) + len(line[1])
    match = _BESIDE.search(line[2])
    if match is None:
      continue
    first = match.start("name")
    for word in re.findall(r"\S+\s*", match["name"]):
      if word.strip().strip(".,:").casefold() not in _NO_NAMES:
        break
      first += len(word)
    if len(line[2][first : match.end("name")].split()) >= 2:
      found.append((begin + first, begin + match.end("name")))
  return sorted(set(found))
