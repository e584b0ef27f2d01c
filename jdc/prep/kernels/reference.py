"""Every signal in plain Python, from its definition: what the kernels are tested against.

Nothing here is shared with the kernels but the sets of characters and the lists of stop words,
which are part of the definitions. It is some hundred times slower.
"""

import functools
import itertools
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

from jdc.prep.kernels import tokenise_classes as classes
from jdc.prep.kernels import tokenise_stop_words as stop_words
from jdc.prep.text import scripts

NAN = float("nan")
_SPACES = f"[{re.escape(classes.WHITE_SPACE)}]"
_WORD = re.compile(f"[^{re.escape(classes.WHITE_SPACE)}]+")
_BLANK = re.compile(f"{_SPACES}*")


def reference(text: str) -> dict[str, float]:
  """Returns the signals of one document by name, as `signals.signals` defines them.

  Example:
    >>> found = reference("A fig.\\nA fig.\\n\\n# two")
    >>> found["n_words"], found["dup_line"], round(found["hash_ratio"], 3)
    (6, 0.3333333333333333, 0.167)
  """
  spans = _word_spans(text)
  words = [text[a:b] for a, b in spans]
  lines = [line for line in _strip_all(text.split("\n")) if line]
  paragraphs = _paragraphs(text)
  folded = {"".join(map(classes.fold, _core(word))) for word in set(words)}
  stops = {
    f"stop_{name}": len(folded & set(listed)) for name, listed in stop_words.WORDS.items()
  }
  return {
    "n_chars": len(text),
    "n_words": len(words),
    "n_nonsym": sum(not _is_symbol(word) for word in words),
    "n_lines": len(lines),
    "n_paras": len(paragraphs),
    "n_newlines": text.count("\n"),
    "n_sentences": sum(
      word.rstrip(classes.CLOSERS).endswith(tuple(classes.SENTENCE_END)) for word in words
    ),
    "curly": text.count("{"),
    "lorem": _lorem(words),
    "js_lines": sum("javascript" in _ascii_lower(line) for line in lines),
    "stop": max(stops.values()),
    **stops,
    **_word_ratios(text, words),
    **_line_ratios(text, lines),
    **_repeats("line", [(_words(line), len(line)) for line in lines], len(text)),
    **_repeats("para", paragraphs, len(text)),
    **_ngram_ratios(text, words, spans),
    "compression": _ratio(len(zlib.compress(text.encode(), 1)), len(text.encode())),
  }


@functools.cache
def _is_unspaced(character: str) -> bool:
  inside = any(first <= ord(character) <= last for first, last in scripts.UNSPACED)
  return inside and not _is_mark(character)


@functools.cache
def _is_mark(character: str) -> bool:
  return unicodedata.category(character).startswith("M")


@functools.cache
def _is_solid(character: str) -> bool:
  return unicodedata.category(character)[0] in "LMN"


def _is_symbol(word: str) -> bool:
  return not any(map(_is_solid, word))


def _word_spans(text: str) -> list[tuple[int, int]]:
  """Returns the first character of each word and the one after its last."""
  spans = []
  for match in _WORD.finditer(text):
    start, end = match.span()
    if not any(map(_is_unspaced, match[0])):
      spans.append((start, end))
      continue
    # Cuts stand before each unspaced character, and after it and its marks.
    cuts = {start, end}
    for at, character in enumerate(match[0], start):
      if _is_unspaced(character):
        after = at + 1
        while after < end and _is_mark(text[after]):
          after += 1
        cuts |= {at, after}
    ordered = sorted(cuts)
    spans += list(itertools.pairwise(ordered))
  return spans


def _words(text: str) -> tuple[str, ...]:
  return tuple(text[a:b] for a, b in _word_spans(text))


def _strip_all(lines: Iterable[str]) -> list[str]:
  return [line.strip(classes.WHITE_SPACE) for line in lines]


def _paragraphs(text: str) -> list[tuple[tuple[tuple[str, ...], ...], int]]:
  """Returns of each paragraph the words of its lines, and its characters."""
  blank = [_BLANK.fullmatch(line) is not None for line in text.split("\n")]
  groups: list[list[str]] = [[]]
  for line, is_blank in zip(text.split("\n"), blank, strict=True):
    if is_blank:
      groups.append([])
    else:
      groups[-1].append(line)
  return [
    (
      tuple(_words(line) for line in group),
      len("\n".join(group).strip(classes.WHITE_SPACE)),
    )
    for group in groups
    if group
  ]


def _core(word: str) -> str:
  """Returns a word without the symbols at its ends."""
  solid = [at for at, character in enumerate(word) if _is_solid(character)]
  return word[solid[0] : solid[-1] + 1] if solid else ""


def _lorem(words: Sequence[str]) -> int:
  lower = [_ascii_lower(word) for word in words]
  return sum(
    a.endswith("lorem") and b.startswith("ipsum") for a, b in itertools.pairwise(lower)
  )


def _ascii_lower(text: str) -> str:
  return re.sub("[A-Z]", lambda match: match[0].lower(), text)


def _ratio(above: float, below: float) -> float:
  return above / below if below else NAN


def _word_ratios(text: str, words: Sequence[str]) -> dict[str, float]:
  spaced = [word for word in words if not _is_symbol(word) and not _is_unspaced(word[0])]
  unspaced = sum(map(_is_unspaced, text))
  return {
    "mean_len": _ratio(sum(map(len, spaced)), len(spaced)),
    "hash_ratio": _ratio(text.count("#"), len(words)),
    "ell_ratio": _ratio(text.count("...") + text.count("…"), len(words)),
    "alpha": _ratio(sum(any(c.isalpha() for c in word) for word in words), len(words)),
    "nl_ratio": _ratio(text.count("\n"), len(words)),
    "unspaced": _ratio(unspaced, sum(map(len, words))),
  }


def _line_ratios(text: str, lines: Sequence[str]) -> dict[str, float]:
  def share(flags: Iterable[bool]) -> float:
    return _ratio(sum(flags), len(lines))

  seen: set[tuple[str, ...]] = set()
  again = 0
  for line in lines:
    again += len(line) if _words(line) in seen else 0
    seen.add(_words(line))
  return {
    "bullet": share(
      line[0] in classes.BULLETS or _words(line)[0] in set(classes.LONE_BULLETS)
      for line in lines
    ),
    "endell": share(line.endswith(("...", "…")) for line in lines),
    "line_punct": share(line.endswith(tuple(classes.LINE_END)) for line in lines),
    "short_line": share(len(line) <= 30 for line in lines),
    "dup_line_c_fineweb": _ratio(again, len(text.replace("\n", ""))),
  }


def _repeats(what: str, items: Sequence[tuple[Hashable, int]], total: int) -> dict[str, float]:
  seen, again = set(), []
  for key, length in items:
    if key in seen:
      again.append(length)
    seen.add(key)
  return {
    f"dup_{what}": _ratio(len(again), len(items)),
    f"dup_{what}_c": _ratio(sum(again), total),
  }


def _ngram_ratios(
  text: str, words: Sequence[str], spans: Sequence[tuple[int, int]]
) -> dict[str, float]:
  found = {}
  for n in range(2, 11):
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    counts = Counter(grams)
    covered = bytearray(len(text))
    top, most = max(counts.items(), key=lambda item: item[1], default=((), 0))
    before: set[tuple[str, ...]] = set()
    for i, gram in enumerate(grams):
      if (n <= 4 and gram == top and most >= 2) or (n > 4 and gram in before):
        begin, end = spans[i][0], spans[i + n - 1][1]
        covered[begin:end] = b"\1" * (end - begin)
      before.add(gram)
    found[f"{'top' if n <= 4 else 'dup'}{n}"] = _ratio(covered.count(1), len(text))
  return found
