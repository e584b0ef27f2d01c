"""Card, bank account and phone numbers in text."""

import itertools
import re

from jdc.prep.text.digits import RUN, Span, groups, joined

# Lengths of account numbers by country, from SWIFT's IBAN registry.
_REGISTRY = (
  "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 "
  "DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 "
  "IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 "
  "MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 "
  "SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
)
_IBAN_LENGTHS = {entry[:2]: int(entry[2:]) for entry in _REGISTRY.split()}
_IBAN = re.compile("(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?=[ \u00a0]?[A-Z0-9])")

# First digits and lengths of each network's cards.
_NETWORKS = (
  (("4", "4"), (13, 16, 19)),  # Visa
  (("51", "55"), (16,)),  # Mastercard
  (("2221", "2720"), (16,)),
  (("34", "34"), (15,)),  # American Express
  (("37", "37"), (15,)),
  (("6011", "6011"), (16, 17, 18, 19)),  # Discover
  (("644", "659"), (16, 17, 18, 19)),
  (("300", "305"), (14, 16, 17, 18, 19)),  # Diners Club
  (("3095", "3095"), (14, 16, 17, 18, 19)),
  (("36", "36"), (14, 15, 16, 17, 18, 19)),
  (("38", "39"), (14, 16, 17, 18, 19)),
  (("3528", "3589"), (16, 17, 18, 19)),  # JCB
  (("62", "62"), (16, 17, 18, 19)),  # UnionPay
  (("81", "81"), (16, 17, 18, 19)),
  (("2200", "2204"), (16, 17, 18, 19)),  # Mir
  (("5018", "5018"), (12, 13, 14, 15, 16, 17, 18, 19)),  # Maestro
  (("5020", "5020"), (12, 13, 14, 15, 16, 17, 18, 19)),
  (("5038", "5038"), (12, 13, 14, 15, 16, 17, 18, 19)),
  (("5893", "5893"), (12, 13, 14, 15, 16, 17, 18, 19)),
  (("6304", "6304"), (12, 13, 14, 15, 16, 17, 18, 19)),
  (("6759", "6763"), (12, 13, 14, 15, 16, 17, 18, 19)),
  (("60", "60"), (16,)),  # RuPay
  (("508", "508"), (16,)),
)
# Lengths of the groups in which cards print their digits.
_CARD_GROUPS = {
  (4, 4, 4, 4), (4, 4, 4, 4, 1), (4, 4, 4, 4, 2), (4, 4, 4, 4, 3), (4, 6, 5), (4, 6, 4),
  (4, 4, 4, 1), (4, 4, 4), (6, 13),
}  # fmt: skip


def ibans(text: str) -> list[Span]:
  """Returns the spans of international bank account numbers.

  Two capital letters of a country of the registry and its number of letters and digits, with
  no spaces or one after every fourth, whose remainder by 97 is 1 once the first four
  characters stand last and letters count as 10 to 35.

  References:
    ISO 13616-1:2020; SWIFT, IBAN Registry; ISO/IEC 7064 (MOD 97-10).

  Example:
    >>> text = "DE89 3704 0044 0532 0130 00, not DE88370400440532013000"
    >>> [text[slice(*span)] for span in ibans(text)]
    ['DE89 3704 0044 0532 0130 00']
  """
  spans = []
  for match in _IBAN.finditer(text):
    length = _IBAN_LENGTHS.get(match[0][:2], 0)
    spaced = length + (length - 1) // 4
    for size, step in ((length, 0), (spaced, 5)):
      part = text[match.start() : match.start() + size]
      blanks = set(part[4::5]) if step else set()
      plain = part.replace("\u00a0", " ").replace(" ", "")
      follows = text[match.start() + size : match.start() + size + 1]
      if (
        length
        and len(plain) == length
        and blanks <= {" ", "\u00a0"}
        and re.fullmatch("[A-Z0-9]+", plain)
        and not re.match("[A-Za-z0-9]", follows)
        and int("".join(str(int(char, 36)) for char in plain[4:] + plain[:4])) % 97 == 1
      ):
        spans.append((match.start(), match.start() + size))
        break
  return spans


def cards(text: str) -> list[Span]:
  """Returns the spans of payment card numbers.

  A number of 12 to 19 digits which starts as those of a network do and has a length that the
  network issues, whose Luhn sum is a multiple of 10: from the right, every second digit
  doubled, 9 taken off where that exceeds 9. The digits stand together or in groups as on cards,
  all with a space or all with a hyphen between them; not after or before a letter, or a decimal
  or thousands separator with a digit.

  References:
    ISO/IEC 7812-1:2017 (annex B: Luhn's formula); the networks' published ranges.

  Example:
    >>> text = "4111 1111 1111 1111, not 4111 1111 1111 1112"
    >>> [text[slice(*span)] for span in cards(text)]
    ['4111 1111 1111 1111']
  """
  return [
    span
    for run in RUN.finditer(text)
    if run.end() - run.start() >= 12
    for span in _cards_in(text, groups(run))
  ]


def luhn(digits: str) -> bool:
  """Whether a number passes Luhn's formula.

  Example:
    >>> luhn("79927398713"), luhn("79927398710")
    (True, False)
  """
  total = 0
  for place, char in enumerate(reversed(digits)):
    digit = int(char) * (1 + place % 2)
    total += digit - 9 * (digit > 9)
  return total % 10 == 0


def _cards_in(text: str, parts: list[Span]) -> list[Span]:
  """Returns the cards among neighbouring groups of digits, the longest at the first place."""
  spans, first = [], 0
  while first < len(parts):
    ends = range(min(first + 5, len(parts)), first, -1)
    last = next((end for end in ends if _is_card(text, parts[first:end])), None)
    if last is not None:
      spans.append((parts[first][0], parts[last - 1][1]))
    first = last or first + 1
  return spans


def _is_card(text: str, parts: list[Span]) -> bool:
  digits = joined(text, parts)
  between = {text[a[1] : b[0]] for a, b in itertools.pairwise(parts)}
  sizes = tuple(end - start for start, end in parts)
  start, end = parts[0][0], parts[-1][1]
  return (
    12 <= len(digits) <= 19
    and (len(sizes) == 1 or (sizes in _CARD_GROUPS and between in ({" "}, {"-"}, {"\u00a0"})))
    and not re.search("[0-9][.,/-]$", text[max(0, start - 2) : start])
    and not re.match("[.,/-][0-9]", text[end : end + 2])
    and any(
      low <= digits[: len(low)] <= high and len(digits) in lengths
      for (low, high), lengths in _NETWORKS
    )
    and luhn(digits)
  )
