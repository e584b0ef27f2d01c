"""The signals of documents: numbers by which rules keep or drop them, all from one pass.

Words, lines and paragraphs are those of `jdc.prep.kernels.tokenise`. A character is a code
point; N is the number of characters of the text, white space included. A symbol is a word with
no letter, mark or number in it (Unicode categories L, M, N).

| signal | what it is |
|---|---|
| n_chars, n_words, n_lines, n_paras | characters, words, lines, paragraphs |
| n_nonsym | words that are no symbols |
| n_newlines | LINE FEEDs |
| n_sentences | words that, without their closing quotes and brackets, end in `SENTENCE_END` |
| mean_len | mean characters of words, but for symbols and those of scripts without spaces |
| hash_ratio | number signs (#) / words |
| ell_ratio | ellipses / words: "..." from left to right without overlap, and "…" |
| bullet | lines that begin with one of `BULLETS` or with a word of `LONE_BULLETS` / lines |
| endell | lines that end in "..." or "…" / lines |
| alpha | words with a letter / words |
| stop_xx | different stop words of language xx, 0 to 8; case and symbols around do not count |
| stop | the highest stop_xx |
| dup_line, dup_para | lines (paragraphs) that occurred before / lines (paragraphs) |
| dup_line_c, dup_para_c | characters of these / N |
| dup_line_c_fineweb | characters of lines that occurred before / (N - LINE FEEDs) |
| top2, top3, top4 | characters that the most frequent n-gram covers / N |
| dup5 to dup10 | characters covered by n-grams that occurred before / N |
| line_punct | lines that end in one of `LINE_END` / lines |
| short_line | lines of at most 30 characters / lines |
| nl_ratio | LINE FEEDs / words |
| curly | opening curly brackets |
| lorem | words ending in "lorem" before one beginning with "ipsum", any case |
| js_lines | lines that hold "javascript", any case |
| unspaced | characters of scripts without spaces, marks aside / characters of words |
| compression | bytes of the text under zlib level 1 / bytes of the text |

A ratio whose denominator is 0 is not defined and NaN: those over lines where there are none,
those over words where there are none, those over N in an empty text.

An n-gram is n words in a row, wherever lines end. It covers the text from the beginning of its
first word to the end of its last, white space between included. No character counts twice, as
the Gopher paper asks for repeated n-grams; here also for the most frequent one, which in
"a a a a" overlaps with itself. Of n-grams equally frequent the one that comes first counts; one
that occurs once is no repetition, and its share is 0.

Sources: Gopher, Rae et al., Scaling Language Models: Methods, Analysis & Insights from Training
Gopher, 2021, arXiv:2112.11446 (A.1.1 and table A1): n_nonsym, mean_len, hash_ratio, ell_ratio,
bullet, endell, alpha, stop_en, dup_*, top*. FineWeb, Penedo et al., The FineWeb Datasets, 2024,
arXiv:2406.17557 (3.6): line_punct, short_line, dup_line_c_fineweb, nl_ratio. C4, Raffel et al.,
Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, 2020,
arXiv:1910.10683 (2.2): n_sentences, curly, lorem, js_lines. RefinedWeb, Penedo et al., 2023,
arXiv:2306.01116 takes Gopher's.

How datatrove 0.10.1 counts otherwise. Given words between white space in place of its language
models', its filters and the same rules here decide alike on 97.8 % (Gopher quality), 95.2 %
(repetition) and 98.6 % (FineWeb) of every fourth document of a dirty crawl in eight languages.
What differed, and on how many of the 1,737 documents:

- an n-gram that occurs once is a top n-gram there, so that short texts are repetition (72);
- stop words are compared with their case, so that texts in capitals have few (32);
- closing quotation marks end no line (14);
- Chinese has as few words as it has spaces, so too many LINE FEEDs a word (10);
- a line of white space is a line, and repeats (9);
- "-" is a bullet whatever follows, "*" is none (7);
- repeated n-grams are skipped over from left to right, and their spaces not counted (3);
- lines are equal only with their white space (1).

The top n-gram also counts overlaps twice there, other control characters end lines in the rules
on bullets and ellipses, and a symbol is a word all of whose characters are in a list.
"""

import zlib
from collections.abc import Collection

import numpy as np
import pyarrow as pa

from jdc.prep.jit import jit
from jdc.prep.kernels import signals_measures as measures
from jdc.prep.kernels import signals_ngrams as ngrams
from jdc.prep.kernels import tokenise
from jdc.prep.kernels import tokenise_classes as classes
from jdc.prep.kernels import tokenise_stop_words as stop_words

COUNTS = (
  "n_chars",
  "n_words",
  "n_nonsym",
  "n_lines",
  "n_paras",
  "n_newlines",
  "n_sentences",
  "curly",
  "lorem",
  "js_lines",
)
_TOP = tuple(f"top{n}" for n in ngrams.TOP)
_DUPLICATE = tuple(f"dup{n}" for n in ngrams.DUPLICATE)
# What the kernel counts: in `tokenise.scan`, `of_words`, `of_lines`, `covered_characters`.
_PARTS = (
  *("n_words", "n_lines"),
  *("n_chars", "n_newlines", "hashes", "ellipses", "curly", "unspaced_chars", "n_paras"),
  *("word_chars", "n_nonsym", "spaced", "spaced_chars", "alpha_words", "n_sentences", "lorem"),
  *("bullets", "ellipsis_ends", "ended", "short", "js_lines"),
  *("lines_again", "lines_again_chars", "paras_again", "paras_again_chars"),
  *(f"{name}_chars" for name in (*_TOP, *_DUPLICATE)),
)
_RATIOS = {
  "mean_len": ("spaced_chars", "spaced"),
  "hash_ratio": ("hashes", "n_words"),
  "ell_ratio": ("ellipses", "n_words"),
  "bullet": ("bullets", "n_lines"),
  "endell": ("ellipsis_ends", "n_lines"),
  "alpha": ("alpha_words", "n_words"),
  "dup_line": ("lines_again", "n_lines"),
  "dup_line_c": ("lines_again_chars", "n_chars"),
  "dup_para": ("paras_again", "n_paras"),
  "dup_para_c": ("paras_again_chars", "n_chars"),
  **{name: (f"{name}_chars", "n_chars") for name in (*_TOP, *_DUPLICATE)},
  "line_punct": ("ended", "n_lines"),
  "short_line": ("short", "n_lines"),
  "nl_ratio": ("n_newlines", "n_words"),
  "dup_line_c_fineweb": ("lines_again_chars", "no_newline_chars"),
  "unspaced": ("unspaced_chars", "word_chars"),
}
STOPS = tuple(f"stop_{language}" for language in stop_words.LANGUAGES)
COMPRESSION = "compression"
SIGNALS = (*COUNTS, "stop", *STOPS, *_RATIOS, COMPRESSION)

_LEVEL = 1


def signals(
  text: pa.StringArray, names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
  """Returns the signals of documents; what each of them is, the module says.

  Memory: 90 to 125 bytes a word of the longest document, and the result.

  Args:
    text: N documents.
    names: those to return, by default all of `SIGNALS`. `compression` costs several times as
      much as all others together, and is computed only where it is among them.

  Returns:
    By name, in the order of `SIGNALS`: counts i32[N], stop words u8[N], ratios f64[N].

  Raises:
    ValueError: if a name is unknown, or the text is not of type string, holds nulls or is not
      valid UTF-8.

  Example:
    >>> found = signals(pa.array(["One fig, two figs.", "# 好好"]), ["n_words", "hash_ratio"])
    >>> found["n_words"].tolist(), found["hash_ratio"].round(2).tolist()
    ([4, 3], [0.0, 0.33])
  """
  unknown = sorted(set(names or ()) - set(SIGNALS))
  if unknown:
    raise ValueError(f"unknown signals {unknown}; known: {list(SIGNALS)}")
  offsets, data = tokenise.checked_buffers(text)
  found = _of_buffers(offsets, data)
  if names is None or COMPRESSION in names:
    found[COMPRESSION] = _compression(offsets, data)
  return {name: found[name] for name in SIGNALS if names is None or name in names}


def _of_buffers(offsets: np.ndarray, data: np.ndarray) -> dict[str, np.ndarray]:
  number, words = len(offsets) - 1, tokenise.max_words(offsets, data)
  rows = np.empty((len(_PARTS), number), np.int32)
  stops = np.empty((len(STOPS), number), np.uint8)
  _measure(
    data,
    offsets,
    (classes.table(), classes.lower(), *stop_words.table()),
    tokenise.scratch(words),
    # Untouched pages of zeros take no memory: short documents use the beginning only.
    np.zeros((ngrams.table_size(2 * words), 2), np.uint64),
    rows,
    stops,
  )
  parts = dict(zip(_PARTS, rows, strict=True))
  parts["no_newline_chars"] = parts["n_chars"] - parts["n_newlines"]
  ratios = {
    name: _ratio(parts[above], parts[below]) for name, (above, below) in _RATIOS.items()
  }
  return {
    **{name: parts[name] for name in COUNTS},
    "stop": stops.max(axis=0, initial=0),
    **dict(zip(STOPS, stops, strict=True)),
    **ratios,
  }


def _compression(offsets: np.ndarray, data: np.ndarray) -> np.ndarray:
  view = data.data
  sizes = [
    len(zlib.compress(view[a:b], _LEVEL))
    for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
  ]
  return _ratio(np.array(sizes, np.int64), np.diff(offsets))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
  return np.divide(above, below, out=np.full(len(below), np.nan), where=below != 0)


@jit
def _measure(
  data: np.ndarray,
  offsets: np.ndarray,
  tables: tuple[np.ndarray, ...],
  words_and_lines: tuple[np.ndarray, ...],
  table: np.ndarray,
  rows: np.ndarray,
  stops: np.ndarray,
) -> None:
  """Writes `rows`, i32[parts,N], and `stops`, u8[languages,N]; the rest is scratch."""
  class_table, lower, stop_keys, stop_masks = tables
  spans, hashes, kinds, lines, counts = words_and_lines
  memory = ngrams.scratch(hashes.size)
  of_words = np.empty(measures.NUM_OF_WORDS, np.int64)
  of_lines = np.empty(measures.NUM_OF_LINES, np.int64)
  covered = np.empty(ngrams.NUM_SHARES, np.int64)
  met = np.empty(2, np.uint64)
  known = measures.known_words()
  epoch = np.uint64(1)
  for d in range(offsets.size - 1):
    a, b = offsets[d], offsets[d + 1]
    words, number = tokenise.scan(data, a, b, class_table, spans, hashes, kinds, lines, counts)
    measures.of_words(
      data, a, words, class_table, lower, stop_keys, stop_masks, spans, hashes, kinds, known,
      of_words, met,
    )  # fmt: skip
    measures.of_lines(
      data, a, words, number, class_table, spans, hashes, lines, table, epoch, of_lines
    )
    epoch = ngrams.covered_characters(
      words, spans, hashes, table, epoch + np.uint64(1), memory, covered
    )
    rows[0, d], rows[1, d] = words, number
    row = 2
    for part in (counts, of_words, of_lines, covered):
      for k in range(part.size):
        rows[row, d] = part[k]
        row += 1
    _count_stops(met, stops, d)


@jit
def _count_stops(met: np.ndarray, stops: np.ndarray, d: int) -> None:
  for language in range(stops.shape[0]):
    byte = met[language // 8] >> np.uint64(8 * (language % 8)) & np.uint64(0xFF)
    number = 0
    while byte:
      byte &= byte - np.uint64(1)
      number += 1
    stops[language, d] = number
