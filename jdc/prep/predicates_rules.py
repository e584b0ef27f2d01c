"""The published rules: each a set of parameters with the published values as defaults.

Gopher: Rae et al., Scaling Language Models: Methods, Analysis & Insights from Training Gopher,
2021, arXiv:2112.11446, A.1.1 and table A1. FineWeb: Penedo et al., The FineWeb Datasets:
Decanting the Web for the Finest Text Data at Scale, 2024, arXiv:2406.17557, 3.6. C4: Raffel et
al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, 2020,
arXiv:1910.10683, 2.2. RefinedWeb (Penedo et al., 2023, arXiv:2306.01116) takes both of
Gopher's groups as they are.

Each class says which of its bounds hold for documents that are mostly of a script without
spaces, whose words are single characters; where nothing is said, all of them hold.
"""

from typing import Annotated, ClassVar, Literal, Self

import pydantic

from jdc.prep.kernels import tokenise_stop_words as stop_words
from jdc.prep.predicates_base import Bound, Rule

Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Count = Annotated[int, pydantic.Field(ge=0)]
NonNegative = Annotated[float, pydantic.Field(ge=0)]
Language = Literal[
  "any", "en", "de", "fr", "es", "it", "pt", "nl", "sv", "pl", "ru", "uk", "tr", "ar", "hi",
  "zh", "ja",
]  # fmt: skip


class _Range(Rule):
  """A rule with `min` and `max`."""

  @pydantic.model_validator(mode="after")
  def _ordered(self) -> Self:
    low, high = getattr(self, "min"), getattr(self, "max")  # noqa: B009
    if low > high:
      raise ValueError(f"min must be at most max, got {low} and {high}")
    return self


class WordCount(_Range):
  """Gopher: between 50 and 100,000 words, symbols not counted.

  Of a script without spaces, as many characters: fewer words than it says.
  """

  source: ClassVar[str] = "gopher"
  min: Count = 50
  max: Count = 100_000

  def bounds(self) -> tuple[Bound, ...]:
    return (Bound("n_nonsym", self.min, self.max, True, "word_count"),)


class MeanWordLength(_Range):
  """Gopher: a mean word length of 3 to 10 characters. Not for scripts without spaces."""

  source: ClassVar[str] = "gopher"
  min: NonNegative = 3.0
  max: NonNegative = 10.0

  def bounds(self) -> tuple[Bound, ...]:
    return (Bound("mean_len", self.min, self.max, True, "mean_word_length", "spaced"),)


class SymbolRatio(Rule):
  """Gopher: at most 0.1 number signs a word, and at most 0.1 ellipses a word."""

  source: ClassVar[str] = "gopher"
  hash: NonNegative = 0.1
  ellipsis: NonNegative = 0.1

  def bounds(self) -> tuple[Bound, ...]:
    return (
      Bound("hash_ratio", None, self.hash, True, "symbol_ratio.hash"),
      Bound("ell_ratio", None, self.ellipsis, True, "symbol_ratio.ellipsis"),
    )


class BulletLines(Rule):
  """Gopher: at most 90 % of the lines start with a bullet point."""

  source: ClassVar[str] = "gopher"
  max: Share = 0.9

  def bounds(self) -> tuple[Bound, ...]:
    return (Bound("bullet", None, self.max, True, "bullet_lines"),)


class EllipsisLines(Rule):
  """Gopher: at most 30 % of the lines end with an ellipsis."""

  source: ClassVar[str] = "gopher"
  max: Share = 0.3

  def bounds(self) -> tuple[Bound, ...]:
    return (Bound("endell", None, self.max, True, "ellipsis_lines"),)


class AlphaWords(Rule):
  """Gopher: at least 80 % of the words contain an alphabetic character."""

  source: ClassVar[str] = "gopher"
  min: Share = 0.8

  def bounds(self) -> tuple[Bound, ...]:
    return (Bound("alpha", self.min, None, True, "alpha_words"),)


class StopWords(Rule):
  """Gopher: at least two different ones of eight stop words, of a language or of any.

  English is published, the other lists are ours. `any` takes the language with the most; it
  does not hold for documents of scripts without spaces, since four of these have no list.
  """

  source: ClassVar[str] = "gopher"
  min: Annotated[int, pydantic.Field(ge=0, le=stop_words.PER_LANGUAGE)] = 2
  language: Language = "en"

  def bounds(self) -> tuple[Bound, ...]:
    any_language = self.language == "any"
    signal = "stop" if any_language else f"stop_{self.language}"
    return (
      Bound(signal, self.min, None, True, "stop_words", "spaced" if any_language else "all"),
    )


class DuplicateLines(Rule):
  """Gopher: at most 30 % of the lines occurred before, with at most 20 % of the characters."""

  source: ClassVar[str] = "gopher"
  max: Share = 0.3
  max_characters: Share = 0.2

  def bounds(self) -> tuple[Bound, ...]:
    return (
      Bound("dup_line", None, self.max, True, "duplicate_lines"),
      Bound("dup_line_c", None, self.max_characters, True, "duplicate_lines.characters"),
    )


class DuplicateParagraphs(Rule):
  """Gopher: as of lines, at most 30 % of the paragraphs and 20 % of the characters."""

  source: ClassVar[str] = "gopher"
  max: Share = 0.3
  max_characters: Share = 0.2

  def bounds(self) -> tuple[Bound, ...]:
    return (
      Bound("dup_para", None, self.max, True, "duplicate_paragraphs"),
      Bound("dup_para_c", None, self.max_characters, True, "duplicate_paragraphs.characters"),
    )


class TopNgram(Rule):
  """Gopher: the top 2-, 3- and 4-gram cover at most 20, 18 and 16 % of the characters.

  Of a script without spaces, the top 4-gram at most what `top2` says, and no other: a word is
  about two of their characters.
  """

  source: ClassVar[str] = "gopher"
  top2: Share = 0.20
  top3: Share = 0.18
  top4: Share = 0.16

  def bounds(self) -> tuple[Bound, ...]:
    return (
      *(Bound(name, None, most, True, f"top_ngram.{name}", "spaced") for name, most in self),
      Bound("top4", None, self.top2, True, "top_ngram.unspaced", "unspaced"),
    )


class DupNgram(Rule):
  """Gopher: repeated 5- to 10-grams cover at most 15, 14, ... 10 % of the characters.

  Of a script without spaces, repeated 10-grams at most what `dup5` says, and no other: a word
  is about two of their characters, and shorter runs repeat in any longer text.
  """

  source: ClassVar[str] = "gopher"
  dup5: Share = 0.15
  dup6: Share = 0.14
  dup7: Share = 0.13
  dup8: Share = 0.12
  dup9: Share = 0.11
  dup10: Share = 0.10

  def bounds(self) -> tuple[Bound, ...]:
    return (
      *(Bound(name, None, most, True, f"dup_ngram.{name}", "spaced") for name, most in self),
      Bound("dup10", None, self.dup5, True, "dup_ngram.unspaced", "unspaced"),
    )


class FinewebLines(Rule):
  """FineWeb: how lines end, how long they are, how much repeats, how few words they hold.

  Dropped are documents of which a share of at most 0.12 of the lines ends in terminal
  punctuation; at least 0.67 of the lines are short; at least 0.01 of the characters, LINE FEEDs
  aside, are in lines that occurred before; or that have more than 0.3 LINE FEEDs a word.

  The paper prints 0.1 for repeated characters and "shorter than 30 characters", and has no
  bound on LINE FEEDs; the code of the data set, which is followed here, took 0.01, at most 30
  characters, and the last bound. Its first three bounds drop a document exactly at the
  threshold, as the paper does; later releases of that code keep it. The length of lines does
  not hold for scripts without spaces: 30 characters are a sentence there. Thai, Lao and Khmer
  end few sentences with a mark; `terminal = 0`, which is no bound, is for them.
  """

  source: ClassVar[str] = "fineweb"
  terminal: Share = 0.12
  short: Share = 0.67
  dup_chars: Share = 0.01
  newlines: NonNegative = 0.3

  def bounds(self) -> tuple[Bound, ...]:
    ends = Bound("line_punct", self.terminal, None, False, "fineweb_lines.terminal")
    return (
      *([ends] if self.terminal else []),
      Bound("short_line", None, self.short, False, "fineweb_lines.short", "spaced"),
      Bound("dup_line_c_fineweb", None, self.dup_chars, False, "fineweb_lines.dup_chars"),
      Bound("nl_ratio", None, self.newlines, True, "fineweb_lines.newlines"),
    )


class Boilerplate(Rule):
  """C4: no curly bracket, no "lorem ipsum"; at most 3 lines with "javascript".

  C4 removes single lines with "javascript", as `drop_lines` does; the bound is for documents
  that keep theirs.
  """

  source: ClassVar[str] = "c4"
  curly: bool = True
  lorem: bool = True
  javascript_lines: Count = 3

  def bounds(self) -> tuple[Bound, ...]:
    limits = (
      ("curly", 0 if self.curly else None),
      ("lorem", 0 if self.lorem else None),
      ("js_lines", self.javascript_lines),
    )
    return tuple(
      Bound(signal, None, most, True, f"boilerplate.{signal}")
      for signal, most in limits
      if most is not None
    )


class Sentences(Rule):
  """C4: at least 5 sentences, counted by the marks that end them.

  5 is what datatrove takes; the code that made C4 took 3, of lines of 5 words or more. Not for
  scripts without spaces: Thai and Lao end no sentence with a mark.
  """

  source: ClassVar[str] = "c4"
  min: Count = 5

  def bounds(self) -> tuple[Bound, ...]:
    return (Bound("n_sentences", self.min, None, True, "sentences", "spaced"),)


class CompressionRatio(_Range):
  """Ours: zlib at level 1 leaves 15 to 90 % of the bytes, neither a loop nor noise."""

  source: ClassVar[str] = "jdc"
  min: NonNegative = 0.15
  max: NonNegative = 0.9

  def bounds(self) -> tuple[Bound, ...]:
    return (Bound("compression", self.min, self.max, True, "compression_ratio"),)
