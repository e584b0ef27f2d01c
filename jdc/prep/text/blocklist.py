"""Words and web domains that a list names."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from jdc.prep.text.codepoints import is_unspaced


def read_list(path: str | Path) -> list[str]:
  """Returns the entries of a file: one a line, without blank lines and those that start with #.

  Raises:
    ValueError: if the file is no UTF-8 or has no entry.
  """
  try:
    content = Path(path).read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise ValueError(f"{path}: invalid UTF-8 at byte {error.start}") from error
  lines = (line.strip() for line in content.splitlines())
  entries = [line for line in lines if line and not line.startswith("#")]
  if not entries:
    raise ValueError(f"{path}: no entries; accepted: one a line, comments start with '#'")
  return entries


def blocklist(text: pa.StringArray, words: Sequence[str]) -> dict[str, np.ndarray]:
  """Counts where words or phrases of a list stand in each document, as whole words.

  Case is folded on both sides. A place counts once for each entry that stands there; before its
  first and after its last character there is no letter, digit or "_", save where that character
  is itself none of these or of a script without spaces (`scripts.UNSPACED`).

  Args:
    text: n documents, in the same normal form as the words.
    words: entries that are not blank.

  Returns:
    `blocklist_hits`, i32[n].

  Raises:
    ValueError: if there are no words or a blank one.

  Example:
    >>> blocklist(pa.array(["Spam, spammer, SPAM!", "ham"]), ["spam"])[
    ...   "blocklist_hits"
    ... ].tolist()
    [2, 0]
  """
  import ahocorasick_rs

  entries = list(dict.fromkeys(word.strip().casefold() for word in words))
  if not entries or not all(entries):
    raise ValueError(f"words must be one or more entries that are not blank, got {len(words)}")
  finder = ahocorasick_rs.AhoCorasick(entries)
  starts = [_joins(entry[0]) for entry in entries]
  ends = [_joins(entry[-1]) for entry in entries]
  hits = np.zeros(len(text), np.int32)
  for row, value in enumerate(text.to_pylist()):
    folded = value.casefold()
    for entry, start, end in finder.find_matches_as_indexes(folded, overlapping=True):
      hits[row] += not (
        (starts[entry] and start > 0 and _is_word(folded[start - 1]))
        or (ends[entry] and end < len(folded) and _is_word(folded[end]))
      )
  return {"blocklist_hits": hits}


def url_blocklist(
  fields: pa.StringArray, domains: Iterable[str], field: str = "url"
) -> dict[str, np.ndarray]:
  """Tells which records come from a domain of a list, or from a subdomain of one.

  Hosts are compared in small letters and as IDNA writes them, without user, port and a final
  full stop. "www.example.org" in the list is that host, "example.org" all of its hosts too.

  Args:
    fields: n records as JSON objects.
    domains: names, a leading "*." is left out.
    field: of the record; holds an address, with or without its scheme.

  Returns:
    `url_blocklist_hits`, i32[n], 1 where a domain is listed; `url_missing`, i32[n], 1 where the
    field is absent, no string, or holds no host.

  Raises:
    ValueError: if there are no domains, or entries that are no domain: all are named.

  Example:
    >>> records = pa.array(['{"url": "https://Shop.bad.example:8080/x"}', "{}"])
    >>> found = url_blocklist(records, ["bad.example"])
    >>> found["url_blocklist_hits"].tolist(), found["url_missing"].tolist()
    ([1, 0], [0, 1])
  """
  blocked = _domains(domains)
  hits, missing = np.zeros(len(fields), np.int32), np.zeros(len(fields), np.int32)
  for row, value in enumerate(fields.to_pylist()):
    url = json.loads(value).get(field)
    host = host_of(url) if isinstance(url, str) else ""
    missing[row] = not host
    parts = host.split(".")
    hits[row] = any(".".join(parts[k:]) in blocked for k in range(len(parts)))
  return {"url_blocklist_hits": hits, "url_missing": missing}


def host_of(url: str) -> str:
  """Returns the host of an address, "" where there is none.

  Example:
    >>> host_of("HTTPS://user:pw@WWW.Müller.example:443/a?b#c")
    'www.xn--mller-kva.example'
  """
  after = url.strip().partition("://")[2] if "://" in url else url.strip().removeprefix("//")
  for stop in "/?#\\":
    after = after.partition(stop)[0]
  host = after.rpartition("@")[2].lower()
  if host.startswith("["):
    return host.partition("]")[0] + "]" if "]" in host else ""
  host = host.partition(":")[0].rstrip(".")
  if host.isascii():
    return host
  try:
    return host.encode("idna").decode("ascii")
  except UnicodeError:
    return ""


def _domains(domains: Iterable[str]) -> frozenset[str]:
  given = [domain.strip().removeprefix("*.") for domain in domains]
  wrong = [
    name for name in given if not name or set("/:@?# \t") & set(name) or not host_of(name)
  ]
  if wrong or not given:
    raise ValueError(
      f"domains must be one or more names such as 'example.org', got {wrong or 'none'}"
    )
  return frozenset(host_of(name) for name in given)


def _is_word(char: str) -> bool:
  return char.isalnum() or char == "_"


def _joins(char: str) -> bool:
  """Whether a letter beside this one would make it part of a longer word."""
  return _is_word(char) and not is_unspaced(np.int64(ord(char)))
