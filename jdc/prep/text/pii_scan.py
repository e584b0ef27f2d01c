"""A scan of bytes for what personal data looks like, so that most documents need no more.

It may only err on one side: a document in which a rule of `pii_addresses`, `pii_numbers` or
`pii_phones` finds something has the flag of that rule.
"""

from typing import Any

import numpy as np

from jdc.prep.jit import jit

EMAIL, IPV4, IPV6, CARD, PHONE, IBAN = 1, 2, 4, 8, 16, 32

_DIGIT, _AT, _COLON = 1, 2, 3
_KIND = np.zeros(256, np.uint8)
_KIND[ord("0") : ord("9") + 1] = _DIGIT
_KIND[ord("@")], _KIND[ord(":")] = _AT, _COLON
_HEX = np.zeros(256, np.bool_)
_HEX[list(b"0123456789abcdefABCDEF")] = True
_IBAN_LETTERS = 11  # least number of letters and digits after the first four
# Bytes that may stand between the digits of one number, also of U+00A0 and U+2010 to U+2013.
_BETWEEN = np.zeros(256, np.bool_)
_BETWEEN[[*b" -.()/", 0xC2, 0xA0, 0xE2, 0x80, *range(0x90, 0x94)]] = True
# Bytes that may stand between a word that announces a phone number and the number.
_FILL = np.zeros(256, np.bool_)
_FILL[list(b" \t.:#=+(")] = True


def _endings(words: str) -> np.ndarray:
  return np.array(
    sorted(int.from_bytes(word[-3:].encode()) for word in words.split()), np.int64
  )


# The last three letters of words that announce a phone number, and of what may follow them.
_CUES = _endings(
  "tel phone mobile mob cell fax hotline whatsapp telefon telefono celular handy ph"
)
_AFTER_CUES = _endings("number no nr num is")


def scan(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
  """Returns the flags u8[n] of n documents.

  Example:
    >>> text = b"a@b.org 10.1.2.3"
    >>> scan(np.frombuffer(text, np.uint8), np.array([0, len(text)])).tolist() == [EMAIL | IPV4]
    True
  """
  return _scan(data, offsets, _KIND, _HEX, _BETWEEN, _FILL, _CUES, _AFTER_CUES)


@jit
def _scan(
  data: np.ndarray,
  offsets: np.ndarray,
  kinds: np.ndarray,
  hexadecimal: np.ndarray,
  between: np.ndarray,
  fill: np.ndarray,
  cues: np.ndarray,
  after_cues: np.ndarray,
) -> np.ndarray:
  flags = np.zeros(len(offsets) - 1, np.uint8)
  for row in range(len(offsets) - 1):
    start, end, found = offsets[row], offsets[row + 1], 0
    i = start
    while True:
      i = _skip(data, i, end, kinds)
      if i == end:
        break
      kind = kinds[data[i]]
      if kind == _DIGIT:
        found |= _iban(data, i, start, end, kinds)
        i, flag = _run(data, i, start, end, kinds, between, fill, cues, after_cues)
        found |= flag
      elif kind == _AT:
        if i > start and i + 1 < end and data[i - 1] > 32 and data[i + 1] > 44:
          found |= EMAIL
        i += 1
      else:
        found |= _ipv6(data, i, start, end, hexadecimal)
        i += 1
    flags[row] = found
  return flags


@jit
def _skip(data: np.ndarray, i: int, end: int, kinds: np.ndarray) -> int:
  """Returns the place of the next byte that is of a kind, or the end."""
  # Unsigned places, which need no look at whether they count from the end.
  place, stop = np.uint64(i), np.uint64(end)
  while place < stop and kinds[data[place]] == 0:
    place += np.uint64(1)
  found: Any = np.int64(place)
  return found


@jit
def _iban(data: np.ndarray, i: int, start: int, end: int, kinds: np.ndarray) -> int:
  """Two capital letters before the first of two digits, and enough of both after these."""
  if i < start + 2 or i + 1 >= end or kinds[data[i + 1]] != _DIGIT:
    return 0
  if not (65 <= data[i - 1] <= 90 and 65 <= data[i - 2] <= 90):
    return 0
  count, k = 0, i + 2
  while k < end and count < _IBAN_LETTERS:
    if 65 <= data[k] <= 90 or kinds[data[k]] == _DIGIT:
      count += 1
    elif data[k] != 0x20 and data[k] != 0xC2 and data[k] != 0xA0:  # spaces, also U+00A0
      return 0
    k += 1
  return IBAN if count == _IBAN_LETTERS else 0


@jit
def _ipv6(data: np.ndarray, i: int, start: int, end: int, hexadecimal: np.ndarray) -> int:
  """Before a colon four digits, of which the first is 2 or 3, soon after it another colon."""
  if i < start + 4 or not 0x32 <= data[i - 4] <= 0x33:
    return 0
  if not (hexadecimal[data[i - 3]] and hexadecimal[data[i - 2]] and hexadecimal[data[i - 1]]):
    return 0
  k = i + 1
  while k < end and k < i + 5 and hexadecimal[data[k]]:
    k += 1
  return IPV6 if k < end and data[k] == 0x3A else 0


@jit
def _run(
  data: np.ndarray,
  i: int,
  start: int,
  end: int,
  kinds: np.ndarray,
  between: np.ndarray,
  fill: np.ndarray,
  cues: np.ndarray,
  after_cues: np.ndarray,
) -> tuple[int, int]:
  """Reads groups of digits with little between them from byte i on; returns (end, flags)."""
  found, digits, dotted = 0, 0, 0
  # Of the two groups before: their lengths; of the last: what stands before it.
  before2 = before = gap = mark = 0
  alone2 = alone = False  # no more of the same number stands before them
  phone = trunk = False
  first = last = i
  while True:
    begin = i
    while i < end and kinds[data[i]] == _DIGIT:
      i += 1
    size = i - begin
    digits += size
    gap_before, mark_before = gap, mark
    gap, mark = begin - last, data[begin - 1] if begin > start else 0
    dotted = dotted + 1 if before and mark == 46 and gap == 1 else 0
    if dotted >= 3:
      found |= IPV4
    found |= _card(size, before, before2)
    after_one = alone and before == 1 and data[last - 1] == 49  # a country code
    free = after_one or not _continues(data, begin, start, kinds)
    if mark == 43 or (mark == 40 and size < 6 and i < end and data[i] == 41):
      phone = True
    if size == 4 and before2 == 3 and alone2 and gap == gap_before and mark == mark_before:
      phone = True
    if data[begin] == 48 and size > 1 and free:
      trunk = True
    last, before2, before, alone2, alone = i, before, size, alone, free
    while i < end and between[data[i]] and i - last < 9:
      i += 1
    if i >= end or kinds[data[i]] != _DIGIT:
      break
  if digits >= 7 and (
    phone or (trunk and digits >= 9) or _cued(data, first, start, fill, cues, after_cues)
  ):
    found |= PHONE
  return last, found


@jit
def _card(size: int, before: int, before2: int) -> int:
  if size >= 12 or (size == 13 and before == 6):
    return CARD
  if before2 == 4 and ((before == 4 and size == 4) or (before == 6 and 4 <= size <= 5)):
    return CARD
  return 0


@jit
def _continues(data: np.ndarray, i: int, start: int, kinds: np.ndarray) -> bool:
  """Whether the digits before belong to the same number, date or list: '.', ',', '/', '-'."""
  if i < start + 2 or kinds[data[i - 2]] != _DIGIT:
    return False
  byte = data[i - 1]
  return byte == 46 or byte == 44 or byte == 47 or byte == 45


@jit
def _cued(
  data: np.ndarray,
  i: int,
  start: int,
  fill: np.ndarray,
  cues: np.ndarray,
  after_cues: np.ndarray,
) -> bool:
  """Whether a word that announces a phone number may stand before byte i."""
  for _ in range(3):
    i -= 1
    while i >= start and fill[data[i]]:
      i -= 1
    if i < start:
      return False
    if data[i] >= 0x80:
      return True
    code, size = np.int64(0), 0
    while i >= start and 97 <= data[i] | 0x20 <= 122:
      if size < 3:
        code |= np.int64(data[i] | 0x20) << (8 * size)
      size += 1
      i -= 1
    if _holds(cues, code):
      return True
    if not _holds(after_cues, code):
      return False
    i += 1
  return False


@jit
def _holds(codes: np.ndarray, code: np.int64) -> bool:
  at = np.searchsorted(codes, code)
  return bool(at < len(codes) and codes[at] == code)
