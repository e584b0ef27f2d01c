"""What planners are told of data, and the sample that they are not told of."""

import functools
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jdc.prep import near_dedup, profile, sampling
from jdc.prep.spec import InputSpec

HELD_SHARE = 0.25  # of the documents, by a hash of their ids, are never profiled
_MOST_KEYS = 1_000_000  # documents whose duplicates are counted: 240 bytes each
NGRAMS = (5, 1)  # words of the shingles by which near duplicates are found, in this order
_URL = r"https?://|www\.[a-z0-9-]+\.[a-z]{2,}"
_CITATION = r"\[\d{1,3}\]|\[edit\]|\[citation needed\]"
_SCRIPTS = (
  "Latin", "Han", "Hiragana", "Katakana", "Hangul", "Cyrillic", "Arabic", "Devanagari",
  "Greek", "Hebrew", "Thai",
)  # fmt: skip


class Survey(NamedTuple):
  """What one pass over an input gave.

  Attributes:
    profile: measures, as `jdc.prep.profile.profile` gives them, and those of `measure_more`.
    sample: the documents that were measured.
    held: others, drawn from each source by the same seed.
    weights: f64[held], how many documents of all that were read each held one stands for.
  """

  profile: dict[str, Any]
  sample: pa.Table
  held: pa.Table
  weights: np.ndarray


def survey(
  spec: InputSpec,
  *,
  root: str | Path = ".",
  sample: int = 5000,
  held: int = 2000,
  seed: int = 0,
  most_mb: float = 1024.0,
) -> Survey:
  """Reads an input once; draws a sample to measure and, of other documents, one to hold back.

  Of `HELD_SHARE` of the documents, chosen by id and seed, each source gives as many to the held
  sample, as far as it has them; weights make up for sources of different sizes.

  Args:
    spec: what to read.
    root: the folder that relative paths start at.
    sample: most documents that are measured.
    held: about how many are held back.
    seed: of both draws.
    most_mb: most MiB that are read.

  Raises:
    ValueError: if no document can be read, or none is left to hold back.
  """
  taken = sampling.Sample(sample, seed)
  aside: dict[str, sampling.Sample] = {}
  sizes: Counter[str] = Counter()
  tables: list[tuple[near_dedup.Keys, ...]] = []
  counted = 0

  def each(batch: pa.RecordBatch) -> None:
    nonlocal counted
    numbers = sampling.numbers(sampling.id_bytes(batch.column("doc_id")), seed + 1)
    apart = pa.array(numbers < np.uint64(HELD_SHARE * 2**64))
    taken.add(batch.filter(pc.invert(apart)))
    for value in pc.value_counts(batch.column("source")).to_pylist():
      name = value["values"]
      sizes[name] += value["counts"]
      own = batch.filter(pc.and_(apart, pc.equal(batch.column("source"), name)))
      aside.setdefault(name, sampling.Sample(held, seed)).add(own)
    if counted < _MOST_KEYS:
      counted += batch.num_rows
      tables.append(tuple(near_dedup.keys(batch.column("text"), ngram=n) for n in NGRAMS))

  accounts = profile.read_input(spec, each, root=root, seed=seed, most_mb=most_mb)
  table = taken.table()
  parts, weights = _allocate(aside, sizes, held)
  if not table.num_rows or not parts:
    raise ValueError(
      f"{', '.join(sizes) or _named(spec)}: {sum(sizes.values())} documents could be read, "
      f"too few to measure some and hold others back; bad records: {_bad(accounts)}"
    )
  found = {
    **accounts,
    "seed": seed,
    "columns": profile.columns(table.column("fields").to_pylist()),
    **profile.measure(table),
    **measure_more(table),
    **_all_duplicates(tables, counted),
  }
  return Survey(found, table, pa.concat_tables(parts).combine_chunks(), weights)


def _allocate(
  aside: dict[str, sampling.Sample], sizes: Counter[str], held: int
) -> tuple[list[pa.Table], np.ndarray]:
  share = -(-held // max(len(aside), 1))
  parts, weights = [], [np.zeros(0)]
  for name, sample in sorted(aside.items()):
    part = sample.table().slice(0, share)
    if part.num_rows:
      parts.append(part)
      weights.append(np.full(part.num_rows, sizes[name] / part.num_rows))
  return parts, np.concatenate(weights)


def _named(spec: InputSpec) -> str:
  given = spec.paths
  return str(list(given.values()) if isinstance(given, dict) else list(given))


def _bad(accounts: dict[str, Any]) -> str:
  held = accounts["bad_lines"].items()
  return ", ".join(f"{v['count']} {kind} ({v['examples'][0]})" for kind, v in held) or "none"


def measure_more(table: pa.Table) -> dict[str, Any]:
  """Measures what planners ask beyond `profile.measure`.

  Returns:
    `url_rate` and `citation_rate`, of documents with some; `chat_rate`, of records that are
    instruction data of a known format; `scripts`, shares of the letters; `reworded_dup_rate`,
    of documents whose set of words is that of another one, but for a Jaccard similarity of 0.7,
    near duplicates aside.
  """
  from jdc.prep.text.sft import sft_normalize

  text, size = table.column("text"), table.num_rows
  letters = {
    name: pc.sum(pc.count_substring_regex(text, rf"\p{{{name}}}")).as_py() for name in _SCRIPTS
  }
  total = max(sum(letters.values()), 1)
  fields = pa.concat_arrays(table.column("fields").chunks)
  return {
    "url_rate": _rate(text, _URL),
    "citation_rate": _rate(text, _CITATION),
    "chat_rate": sum(not problem for problem in sft_normalize(fields).problem) / size,
    "scripts": {name: count / total for name, count in letters.items() if count},
    "reworded_dup_rate": duplicate_rates(text)[1],
  }


def duplicate_rates(text: pa.ChunkedArray) -> dict[int, float]:
  """Returns the share of documents that each of `NGRAMS` finds, those before it aside."""
  left, rates = pa.concat_arrays(text.chunks), {}
  for ngram in NGRAMS:
    keys = near_dedup.keys(left, ngram=ngram)
    found, _ = near_dedup.decide([keys], functools.partial(_taken, left), ngram=ngram)
    keep = np.ones(len(left), bool)
    keep[found.row] = False
    left, rates[ngram] = left.filter(pa.array(keep)), len(found.row) / len(text)
  return rates


def _taken(text: pa.StringArray, rows: np.ndarray) -> list[pa.StringArray]:
  return [text.take(pa.array(rows))]


def _rate(text: pa.ChunkedArray, pattern: str) -> float:
  found = pc.match_substring_regex(text, pattern, ignore_case=True)
  return float(pc.mean(pc.cast(found, pa.float64())).as_py())


def _all_duplicates(tables: list[tuple[near_dedup.Keys, ...]], counted: int) -> dict[str, Any]:
  """Returns the rates of duplicates among all that was read; LSH decides, nothing is compared.

  A sample has fewer duplicates than all documents do, and these bound what they lose.
  """
  left = np.ones(sum(len(held[0].num_words) for held in tables), bool)
  rates = {}
  for number, ngram in enumerate(NGRAMS):
    parts, begin = [], 0
    for held in tables:
      mine = left[begin : begin + len(held[number].num_words)]
      begin += len(mine)
      keys = held[number]
      parts.append(near_dedup.Keys(keys.bands[:, mine], keys.num_words[mine]))
    found, _ = near_dedup.decide(parts, lambda rows: iter(()), verify=False, ngram=ngram)
    left[np.flatnonzero(left)[found.row]] = False
    rates[f"all_dup_rate_{ngram}_unverified"] = len(found.row) / max(counted, 1)
  return {**rates, "all_dup_documents": counted}
