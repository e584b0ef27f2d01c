"""E-mail and IP addresses in text."""

import ipaddress
import re

Span = tuple[int, int]

# Letters of scripts with spaces; of others, text would run into the address.
_LETTER = "A-Za-z\u00c0-\u024f\u0370-\u03ff\u0400-\u052f"
_LABEL = f"[{_LETTER}0-9](?:[{_LETTER}0-9-]{{0,61}}[{_LETTER}0-9])?"
_EMAIL = re.compile(
  f"(?<![{_LETTER}0-9._%+-])[{_LETTER}0-9_][{_LETTER}0-9._%+'-]{{0,63}}@"
  rf"(?!\d(?:\.\d)?x\.)(?:{_LABEL}\.)+"
  f"(?:xn--[A-Za-z0-9-]{{1,59}}|[{_LETTER}]{{2,63}})(?![{_LETTER}0-9])"
)
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = re.compile(
  rf"(?<![A-Za-z0-9_.])(?<![A-Za-z][-/])(?:{_OCTET}\.){{3}}{_OCTET}"
  r"(?![A-Za-z0-9_]|\.[A-Za-z0-9]|-[A-Za-z])"
)
_IPV6 = re.compile(
  r"(?<![A-Za-z0-9_:.])[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}(?:[0-9A-Fa-f]{1,4}|(?<=::))"
  r"(?![A-Za-z0-9_]|:[0-9A-Fa-f:])"
)
_NUMBERING = re.compile(
  r"(?:version|versión|versione|versão|версия|ver|v|release|rel|build|firmware|kernel|section|"
  r"sections|sect|sec|chapter|clause|article|art|appendix|annex|figure|fig|table|step|rule|"
  r"paragraph|para|§+|rfc|iso|版本|バージョン|版|章|節|节|第)[ \t\u00a0.:#=]{0,3}$",
  re.IGNORECASE,
)
_LOOK_BACK = 16


def emails(text: str) -> list[Span]:
  """Returns the spans of e-mail addresses: local part, "@", a domain of two labels or more.

  The local part is of letters, digits and `._%+'-`, at most 64, and starts with a letter, a
  digit or "_"; the last label of the domain is of letters or starts with "xn--". Letters are
  those of Latin, Greek and Cyrillic.

  This is narrower than RFC 5322 and the WHATWG's rule for input fields: quoted local parts and
  the signs `!#$&*/=?^{|}~` are left out, which in running text belong to what stands around
  (`?to=ann@example.org`), and so are addresses without a dot in the domain. "@2x." and the
  like, which name enlarged pictures, are no domains.

  Example:
    >>> text = "to <ann.lee+x@mail.example.org>, icon@2x.png, me@home"
    >>> [text[slice(*span)] for span in emails(text)]
    ['ann.lee+x@mail.example.org']
  """
  return [match.span() for match in _EMAIL.finditer(text)]


def ipv4s(text: str) -> list[Span]:
  """Returns the spans of IPv4 addresses that may be a person's.

  Four decimal numbers of at most 255 without leading zeros, joined by dots, which touch no
  letter, digit, "_" or further part, and no name by "-" or "/" (foo-1.2.3.4, Foo/1.2.3.4). Left
  alone are: private, shared, loopback, link-local, multicast and reserved addresses, and
  0.0.0.0/8; addresses whose four numbers are all below 10, which are sections and versions far
  more often; and those after a word that announces a section or version. Addresses reserved for
  documentation are masked: examples of personal data hold them.

  References:
    IANA IPv4 Special-Purpose Address Registry (RFC 6890). That addresses which are not public
    stay is the rule of Penedo et al., FineWeb, 2024, arXiv:2406.17557.

  Example:
    >>> text = "203.0.113.9, 10.0.0.1, version 20.1.12.3, 1.2.3.4"
    >>> [text[slice(*span)] for span in ipv4s(text)]
    ['203.0.113.9']
  """
  return [match.span() for match in _IPV4.finditer(text) if _is_personal(match)]


def ipv6s(text: str) -> list[Span]:
  """Returns the spans of IPv6 addresses of 2000::/3, the only part given out (RFC 4291).

  Example:
    >>> text = "2001:db8::1, fe80::1, 12:30:45, std::min"
    >>> [text[slice(*span)] for span in ipv6s(text)]
    ['2001:db8::1']
  """
  return [match.span() for match in _IPV6.finditer(text) if _is_ipv6(match[0])]


# Not a person's: this network, private, shared, loopback, link-local, private, private;
# multicast and reserved addresses start from 224.
_NOT_PUBLIC = tuple(
  ipaddress.IPv4Network(block)
  for block in (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
    "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3",
  )
)  # fmt: skip


def _is_personal(match: re.Match[str]) -> bool:
  address = ipaddress.IPv4Address(match[0])
  if all(part < 10 for part in address.packed):
    return False
  if any(address in block for block in _NOT_PUBLIC):
    return False
  before = match.string[max(0, match.start() - _LOOK_BACK) : match.start()]
  return not _NUMBERING.search(before)


def _is_ipv6(text: str) -> bool:
  try:
    ipaddress.IPv6Address(text)
  except ValueError:
    return False
  return True
