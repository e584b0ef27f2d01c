"""Personal data masked: e-mail and IP addresses, phone, card and account numbers."""

import functools
import operator
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jdc.prep.text import pii_addresses, pii_numbers, pii_people, pii_phones, pii_scan
from jdc.prep.text.buffers import replace_rows, to_buffers

Span = tuple[int, int]

_STYLE = re.compile(r"[<\[{|*#]+[A-Z_ ]*EMAIL[A-Z_ ]*[>\]}|*#]+")


class _Kind(NamedTuple):
  parameter: str  # of `mask_pii`
  label: str  # takes the place of EMAIL in `style`
  trigger: int  # flags of the scan without which a document has none
  find: Callable[[str], Sequence[Span]]


_SSN, _STREET = 64, 128  # beside the flags of `pii_scan`
# In the order in which they claim what two rules find.
_KINDS = (
  _Kind("email", "EMAIL", pii_scan.EMAIL, pii_addresses.emails),
  _Kind("iban", "IBAN", pii_scan.IBAN, pii_numbers.ibans),
  _Kind("ip", "IP", pii_scan.IPV4, pii_addresses.ipv4s),
  _Kind("ip", "IP", pii_scan.IPV6, pii_addresses.ipv6s),
  _Kind("card_luhn", "CARD", pii_scan.CARD, pii_numbers.cards),
  _Kind("phone", "PHONE", pii_scan.PHONE, pii_phones.phones),
  _Kind("ssn", "SSN", _SSN, pii_people.ssns),
  _Kind("street", "STREET", _STREET, pii_people.streets),
)
# What the scan has no flag for, and how such documents are found.
_PATTERNS = {_SSN: pii_people.SSN_TRIGGER, _STREET: pii_people.STREET_TRIGGER}
_ON_DEMAND = ("SSN", "STREET", "NAME")
_LABELS = (*dict.fromkeys(kind.label for kind in _KINDS), "NAME")


def mask_pii(
  text: pa.StringArray,
  email: bool = True,
  ip: bool = True,
  phone: bool = True,
  card_luhn: bool = True,
  iban: bool = True,
  ssn: bool = False,
  street: bool = False,
  name: bool = False,
  style: str = "<EMAIL>",
) -> tuple[pa.StringArray, dict[str, np.ndarray]]:
  """Puts a mark in the place of each piece of personal data that a stated rule finds.

  The rules are `pii_addresses.emails`, `pii_numbers.ibans`, `pii_addresses.ipv4s` and
  `.ipv6s`, `pii_numbers.cards`, `pii_phones.phones`, `pii_people.ssns` and `.streets`; where
  two find overlapping text, the first of this list has it. `pii_people.names` looks for names
  beside what these find. They are patterns with checksums, not proof: names that stand alone
  stay, and a number written like a phone number is taken for one. Masking is repeated until
  nothing is found, so that the result is a fixed point.

  Args:
    text: n documents.
    email, ip, phone, card_luhn, iban, ssn, street, name: which kinds to mask; the last three
      are written as in the United States or in English, and off by default.
    style: the mark of an e-mail address, in brackets of any kind or between "|", "*" or "#";
      the marks of other kinds have IP, PHONE, CARD, IBAN, SSN, STREET or NAME in the place of
      EMAIL.

  Returns:
    The n documents and `pii_email`, `pii_ip`, `pii_phone`, `pii_card`, `pii_iban`, i32[n]: how
    many were masked, 0 for a kind that is not wanted; where they are, `pii_ssn`, `pii_street`
    and `pii_name`, too.

  Raises:
    ValueError: if `style` is not of that form.

  Example:
    >>> masked, counts = mask_pii(pa.array(["Ann: ann@example.org, +44 20 7946 0958"]))
    >>> masked[0].as_py(), counts["pii_phone"].tolist()
    ('Ann: <EMAIL>, <PHONE>', [1])
  """
  if not _STYLE.fullmatch(style):
    raise ValueError(
      f"style must be EMAIL (and capital letters, spaces, '_') between brackets, '|', '*' or "
      f"'#', such as '<EMAIL>', got {style!r}"
    )
  given = {"email": email, "ip": ip, "phone": phone, "card_luhn": card_luhn, "iban": iban}
  given |= {"ssn": ssn, "street": street, "name": name}
  kinds = [kind for kind in _KINDS if given[kind.parameter]]
  labels = [label for label in _LABELS if label not in _ON_DEMAND or given[label.lower()]]
  counts = {label: np.zeros(len(text), np.int32) for label in labels}
  offsets, data = to_buffers(text)
  flags = pii_scan.scan(data, offsets)
  for flag, pattern in _PATTERNS.items():
    if any(kind.trigger == flag for kind in kinds):
      flags[np.asarray(pc.match_substring_regex(text, pattern))] |= flag
  wanted = functools.reduce(operator.or_, (kind.trigger for kind in kinds), 0)
  rows = np.flatnonzero(flags & wanted)
  changed, values = np.zeros(len(text), np.bool_), []
  for row, value in zip(rows.tolist(), text.take(pa.array(rows)).to_pylist(), strict=True):
    likely = [kind for kind in kinds if kind.trigger & flags[row]]
    masked = _mask(value, likely, kinds, name, style, counts, row)
    if masked != value:
      changed[row] = True
      values.append(masked)
  signals = {f"pii_{label.lower()}": count for label, count in counts.items()}
  return replace_rows(text, changed, values), signals


def _mask(
  text: str,
  likely: Sequence[_Kind],
  kinds: Sequence[_Kind],
  name: bool,
  style: str,
  counts: dict[str, np.ndarray],
  row: int,
) -> str:
  spans = _spans(text, likely, name)
  while spans:
    parts, at = [], 0
    for start, end, label in spans:
      parts += [text[at:start], style.replace("EMAIL", label)]
      counts[label][row] += 1
      at = end
    text = "".join([*parts, text[at:]])
    spans = _spans(
      text, kinds, False
    )  # a mark may have taken away what stood against another kind
  return text


def _spans(text: str, kinds: Sequence[_Kind], name: bool) -> list[tuple[int, int, str]]:
  taken: list[tuple[int, int, str]] = []
  for kind in kinds:
    spans = kind.find(text)
    taken += [(start, end, kind.label) for start, end in spans if _free(start, end, taken)]
  if name:
    found = pii_people.names(text, [span[:2] for span in taken])
    taken += [(*span, "NAME") for span in found if _free(*span, taken)]
  return sorted(taken)


def _free(start: int, end: int, taken: Sequence[tuple[int, int, str]]) -> bool:
  return all(end <= other or start >= stop for other, stop, _ in taken)
