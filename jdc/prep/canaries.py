"""Texts whose fate is known beforehand, planted beside a sample that a plan is tried on."""

import math
import random
from collections.abc import Collection, Iterable
from typing import NamedTuple

import pyarrow as pa

from jdc.prep.canary_texts import CLEAN, LOREM
from jdc.prep.readers.jsonl import dump

SOURCE = "canaries"
KINDS = ("clean", "junk", "exact", "near", "pii")
_SPARE = 50  # words that copies and sentences with personal data have more
_PII = {
  "pii_email": ("write to {}", "mara.lindqvist@harbourmail.net"),
  "pii_ip": ("the server answers at {}", "85.214.132.117"),
  "pii_phone": ("call {}", "+1 415-238-0174"),
  "pii_card": ("the card {} was charged", "4539 1488 0343 6467"),
  "pii_iban": ("pay into {}", "DE89 3704 0044 0532 0130 00"),
  "pii_ssn": ("the social security number is {}", "219-09-9999"),
  "pii_street": ("send a letter to {}", "48 Harbour Lane, Bridgeton, NJ 08302"),
  "pii_name": ("ask {} at office@harbourmail.net", "Mara T. Lindqvist"),
}


class Canary(NamedTuple):
  """A planted text.

  Attributes:
    kind: `clean` and `pii` must stay, `junk` must go, of a group of `exact` or `near` one must
      stay.
    group: what it is a copy of, or which junk it is.
    text: the text.
    secrets: of `pii`, what must not be in the output.
  """

  kind: str
  group: str
  text: str
  secrets: tuple[str, ...] = ()


def plant(
  languages: Collection[str],
  pii: Iterable[str] = tuple(_PII),
  words: tuple[float, float] = (0, math.inf),
) -> list[Canary]:
  """Returns the canaries for texts in some languages.

  Clean ones are passages of `canary_texts`; there are none for languages that it lacks. Junk is
  what published filters were made against: loops, noise, placeholder text, symbols, lists
  without sentences, and, where languages are given, clean text in others.

  Args:
    languages: ISO 639-1 codes; empty: any, for which English ones stand.
    pii: kinds of personal data, as `pii_email`.
    words: least and most words that a text may have to stay.
  """
  known = [code for code in (languages or ("en",)) if code in CLEAN]
  found: list[Canary] = []
  for code in known:
    low, high = words
    texts = tuple(t for t in CLEAN[code] if low <= _count(t) and _count(t) + _SPARE <= high)
    found += _good(code, texts, pii)
  found += [Canary("junk", name, text) for name, text in _junk().items()]
  if languages:
    foreign = [code for code in CLEAN if code not in languages]
    found += [Canary("junk", f"language {code}", CLEAN[code][0]) for code in foreign]
  return found


def _good(code: str, texts: tuple[str, ...], pii: Iterable[str]) -> list[Canary]:
  """The first half are single, a quarter has copies, a quarter has personal data."""
  half, most = len(texts) // 2, -(-3 * len(texts) // 4)
  found = [Canary("clean", f"{code} {n}", text) for n, text in enumerate(texts[:half])]
  for n, text in enumerate(texts[half:most]):
    group = f"{code} {n}"
    if n % 2 == 0:
      found += [Canary("exact", group, text)] * 2
    else:
      found += [Canary("near", group, copy) for copy in (text, *edited(text))]
  kinds = sorted(set(pii) & _PII.keys())
  last = texts[most:]
  for n, text in enumerate(last):
    own = [_PII[kind] for kind in kinds[n :: len(last)]]
    said = " ".join(f"For questions {words.format(secret)}." for words, secret in own)
    if own:
      secrets = tuple(secret for _, secret in own)
      found.append(Canary("pii", f"{code} {n}", f"{text} {said}", secrets))
  return found


def _count(text: str) -> int:
  """Returns words, or characters of text without spaces."""
  return len(text.split()) if " " in text else len(text)


def edited(text: str) -> tuple[str, str]:
  """Returns two near duplicates of a text: a word left out, and a word twice.

  >>> edited("one two three four five six")
  ('one two four five six', 'one two three four four five six')
  """
  spaced = " " in text
  words = text.split(" ") if spaced else list(text)
  third, half = len(words) // 3, len(words) // 2
  join = " " if spaced else ""
  return (
    join.join([*words[:third], *words[third + 1 :]]),
    join.join([*words[: half + 1], *words[half:]]),
  )


def _junk() -> dict[str, str]:
  rng = random.Random(0)
  hexadecimal = lambda n: "".join(rng.choices("0123456789abcdef", k=n))
  base64 = lambda n: "".join(rng.choices("abcdefghijKLMNOPQRSTUVwxyz0123456789+/", k=n))
  digits = [" ".join(str(rng.randrange(10**6)) for _ in range(12)) for _ in range(30)]
  spam = "cheap flights best hotel deals casino bonus buy now free shipping loans online"
  links = [f"- Latest offer number {n} https://shop.example/{n} ..." for n in range(40)]
  return {
    "one word": "ok",
    "loop": "Click here to read more about this topic today. " * 60,
    "one line many times": "\n".join(["Sign in to leave a comment on this page."] * 50),
    "hexadecimal": "\n".join(hexadecimal(64) for _ in range(40)),
    "base64": "\n".join(base64(76) for _ in range(40)),
    "numbers": "\n".join(digits),
    "symbols": "### *** === ~~~ ||| %%% $$$ ^^^ &&& +++\n" * 30,
    "placeholder": LOREM,
    "search phrases": " ".join([spam] * 25),
    "clipped links": "\n".join(links),
  }


def table(canaries: Iterable[Canary]) -> pa.Table:
  """Returns canaries as documents of the source `SOURCE`."""
  texts = [canary.text for canary in canaries]
  return pa.table(
    {
      "source": pa.array([SOURCE] * len(texts), pa.string()),
      "text": pa.array(texts, pa.string()),
      "fields": pa.array([dump({})] * len(texts), pa.string()),
    }
  )
