"""Finds documents that hold the texts of evaluation sets."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from jdc.prep.evaluation_texts import COLUMNS, read_texts
from jdc.prep.kernels import hashes_ngrams
from jdc.prep.kernels.hashes import composed, fold_table
from jdc.prep.kernels.minhash import slots

MIN_WORDS = 5  # of a text that is looked for as a whole
TEMPLATE = 3  # records that have one short text make it the wording of a prompt


class Contamination(NamedTuple):
  """What was found in n documents.

  Attributes:
    flagged: bool[n], more than `max_hits` matches.
    hits: i32[n], matches: places of a document at which words of an evaluation text start.
    evaluation: string[n], the id of the evaluation text of the first match; null without one.
  """

  flagged: np.ndarray
  hits: np.ndarray
  evaluation: pa.StringArray


@dataclasses.dataclass(frozen=True)
class Index:
  """What is looked for; about 50 bytes for each n-gram, and the texts themselves.

  Attributes:
    ids: string[E], of the evaluation texts.
    text: i64[R], the evaluation text of each run of words.
    runs: hashes u64[R], first words i64[R] and numbers of words i64[R] of the runs.
    words: bytes of all texts u8[.], first bytes i64[W] and last ones i64[W] of their words.
    table: of `hashes_ngrams.make_table`.
    unsearchable: ids of the records of which nothing is looked for, sorted.
  """

  ids: list[str]
  text: np.ndarray
  runs: tuple[np.ndarray, np.ndarray, np.ndarray]
  words: tuple[np.ndarray, np.ndarray, np.ndarray]
  table: tuple[np.ndarray, np.ndarray]
  unsearchable: list[str]


def load(
  against: Sequence[str | Path], *, ngram: int = 13, columns: Sequence[str] = COLUMNS
) -> Index:
  """Returns the index of the texts of evaluation files; see `make_index` and `read_texts`.

  Raises:
    ValueError: if a file cannot be read, or has none of the columns.
  """
  ids, texts = [], []
  for path in against:
    for identity, text in read_texts(path, columns):
      ids.append(identity)
      texts.append(text)
  return make_index(ids, texts, ngram=ngram)


def make_index(ids: Sequence[str], texts: Sequence[str], *, ngram: int = 13) -> Index:
  """Returns what `find` looks for: all runs of `ngram` words of some evaluation texts.

  Words are those of `near_dedup.keys`: runs of letters, marks and digits, case-folded, without
  punctuation; single characters in scripts without spaces, where 13 of them are less than 13
  words: choose a larger `ngram` for evaluation sets in these.

  A text of 5 to `ngram` - 1 words is looked for as a whole. It is left out if three records or
  more have the very same, which then is the wording of a prompt: a document that has the words
  "Complete the following Python function" is not contaminated. So are texts of fewer words, and
  runs of words that all begin with a digit, as 1 2 3 ... 13 is in many documents. Records of
  which nothing is left are listed as `unsearchable`: of these no document can be cleared.

  Args:
    ids: of the records; those of a record's texts are alike.
    texts: of the same number.
    ngram: words of a run, 5 or more.

  Raises:
    ValueError: if `ngram` is below 5, the numbers differ, or no text can be looked for.

  References:
    Brown et al., "Language Models are Few-Shot Learners", 2020, arXiv:2005.14165, appendix C,
      where the evaluation set decides n, between 8 and 13. 13 for all: Gao et al., "The Pile",
      2020, arXiv:2101.00027, and the usual choice since.

  Example:
    >>> make_index(["q1", "q2"], ["How many red figs are there?", "Why?"]).unsearchable
    ['q2']
  """
  if ngram < MIN_WORDS:
    raise ValueError(f"ngram must be {MIN_WORDS} or more, got {ngram}")
  if len(ids) != len(texts):
    raise ValueError(f"ids and texts must be as many, got {len(ids)} and {len(texts)}")
  offsets, data = composed(pa.array(texts, pa.large_string()))
  word_hash, first, last, starts = hashes_ngrams.all_words(offsets, data, fold_table())
  place, length = _places(word_hash, starts, ids, ngram)
  lettered = np.concatenate([[0], np.cumsum(~_is_digit(data[first]))])
  useful = lettered[place + length] > lettered[place]
  place, length = place[useful], length[useful]
  if not len(place):
    raise ValueError(
      f"none of {len(texts)} evaluation texts can be looked for: it takes {MIN_WORDS} words or "
      "more, one of them with a letter, that are not the same in many records"
    )
  text = np.searchsorted(starts, place, "right") - 1
  missing = sorted(set(ids) - {ids[t] for t in np.unique(text).tolist()})
  hashes, kept = np.unique(hashes_ngrams.runs(word_hash, place, length), return_index=True)
  table = hashes_ngrams.make_table(hashes, slots(len(hashes)))
  runs = hashes, place[kept], length[kept]
  return Index(list(ids), text[kept], runs, (data, first, last), table, missing)


def find(text: pa.StringArray, index: Index, *, max_hits: int = 0) -> Contamination:
  """Returns which documents hold words of evaluation texts.

  A hash that is in the index counts only if the words are the same, letter by letter.

  Args:
    text: n documents.
    index: of `load` or `make_index`.
    max_hits: matches that a document may have.

  Raises:
    ValueError: if `max_hits` is negative; if `text` is no array of strings, or has nulls.

  Example:
    >>> index = make_index(["exam:1"], ["How many red figs are in the basket?"])
    >>> found = find(pa.array(["Q: how many RED figs are in the basket", "Figs."]), index)
    >>> found.flagged.tolist(), found.evaluation.to_pylist()
    ([True, False], ['exam:1', None])
  """
  if max_hits < 0:
    raise ValueError(f"max_hits must be 0 or more, got {max_hits}")
  hashes, place, length = index.runs
  hits, match = hashes_ngrams.find_runs(
    *composed(text),
    fold_table(),
    np.unique(length),
    *index.table,
    hashes,
    place,
    length,
    *index.words,
  )
  names = [index.ids[t] for t in index.text[match].tolist()]
  found = pa.array(names, pa.string(), mask=match < 0)
  return Contamination(hits > max_hits, hits, found)


def _places(
  word_hash: np.ndarray, starts: np.ndarray, ids: Sequence[str], ngram: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns where the runs of all texts start, and their words, in order."""
  words = np.diff(starts)
  short = (words >= MIN_WORDS) & (words < ngram)
  whole = hashes_ngrams.runs(word_hash, starts[:-1], np.where(short, words, 0))
  records: dict[int, set[str]] = {}
  for t in np.flatnonzero(short).tolist():
    records.setdefault(int(whole[t]), set()).add(ids[t])
  for t in np.flatnonzero(short).tolist():
    short[t] = len(records[int(whole[t])]) < TEMPLATE
  # Every text has a run from each word on that leaves enough, or one, or none.
  count = np.where(short, 1, np.maximum(words - ngram + 1, 0))
  ends = np.cumsum(count)
  place = np.arange(ends[-1] if len(ends) else 0) + np.repeat(
    starts[:-1] - (ends - count), count
  )
  return place, np.repeat(np.where(short, words, ngram), count)


def _is_digit(byte: np.ndarray) -> np.ndarray:
  return (byte >= 48) & (byte <= 57)
