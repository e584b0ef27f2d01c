"""Runs of digits in text, as numbers of cards and phones are written."""

import re

Span = tuple[int, int]

# What may stand between two digits of one number, at most three of them.
_BETWEEN = " \u00a0.\\-\u2010\u2011\u2012\u2013/()"
RUN = re.compile(
  f"(?<![A-Za-z0-9_])[+(]{{0,2}}[0-9](?:[{_BETWEEN}]{{0,3}}[0-9])*"
  r"(?![0-9_]|(?!x[0-9]|ext)[A-Za-z])"
)
_DIGITS = re.compile("[0-9]+")


def groups(run: re.Match[str]) -> list[Span]:
  """Returns where the runs of digits stand in a match of `RUN`.

  Example:
    >>> groups(RUN.search("on (415) 555-0107."))
    [(4, 7), (9, 12), (13, 17)]
  """
  return [match.span() for match in _DIGITS.finditer(run.string, *run.span())]


def joined(text: str, parts: list[Span]) -> str:
  """Returns the digits of the groups."""
  return "".join(text[start:end] for start, end in parts)
