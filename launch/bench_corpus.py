"""A corpus for benchmarks of data preparation, of text that any Linux machine has.

Sentences come from the docstrings of Python's library and from /usr/share/doc, with 35 % of the
words replaced, so that documents have nothing in common that was not planted. Of the documents
10 % are exact copies, 15.5 % near ones with 0.5, 1, 2, 3 or 5 % of the words replaced, deleted
or inserted, and 9 % junk of nine kinds. All depends only on the seed and the machine's files.
"""

import gzip
import itertools
import json
import re
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

RATES = (0.005, 0.01, 0.02, 0.03, 0.05)  # of edits, by words
_EXACT, _NEAR, _JUNK = 0.0998, 0.1555, 0.0898  # of the documents
_REPLACED = 0.35
_FILES, _GROUP = 4, 8_192
_SOURCE_BYTES = 40_000_000
_DOCSTRING = re.compile(r'"""(.+?)"""', re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_SENTENCE = re.compile(r"[A-Z][A-Za-z0-9 ,;:'()\-]{24,300}[.!?]")
_AFTER = (" ", "\n", "\n\n")
_SEPARATORS = len(_AFTER)
TRUTH = pa.schema([("kind", pa.string()), ("original", pa.int64()), ("rate", pa.float64())])


class Truth(NamedTuple):
  """What a document is (original, exact, near, junk), a copy of which row, with what edits."""

  kind: str
  original: int
  rate: float


class Corpus:
  """The documents by number; each is made when it is asked for.

  Args:
    documents: how many.
    seed: of all that is drawn.
    sentences: what they are made of; default: those of the machine.
  """

  def __init__(self, documents: int, seed: int, sentences: list[str] | None = None):
    self._seed = seed
    split = [sentence.split() for sentence in sentences or machine_sentences()]
    place = {word: i for i, word in enumerate(dict.fromkeys(itertools.chain(*split)))}
    # A word and what comes after it are one piece of text.
    self._pieces = [word + after for word in place for after in _AFTER]
    self._words = np.array([place[word] for word in itertools.chain(*split)])
    self._starts = np.cumsum([0, *map(len, split)])
    self.truth = _plan(documents, np.random.default_rng([seed, 0]))

  def text(self, row: int) -> str:
    """Returns the text of a document."""
    rng = np.random.default_rng([self._seed, 1, row])
    truth = self.truth[row]
    if truth.kind == "junk":
      return self._junk(rng)
    if truth.kind == "original":
      return self._render(self._document(rng))
    words = self._document(np.random.default_rng([self._seed, 1, truth.original]))
    return self._render(self._edit(words, truth.rate, rng) if truth.rate else words)

  def _render(self, pieces: np.ndarray) -> str:
    return "".join(map(self._pieces.__getitem__, pieces.tolist())).rstrip()

  def _document(self, rng: np.random.Generator) -> np.ndarray:
    count = int(np.clip(rng.lognormal(2.46, 0.7), 3, 80))
    return self._sentences(rng.integers(len(self._starts) - 1, size=count), rng)

  def _sentences(self, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    words = np.concatenate([self._words[self._starts[i] : self._starts[i + 1]] for i in chosen])
    other = rng.random(len(words)) < _REPLACED
    words[other] = rng.choice(self._words, int(other.sum()))
    pieces = words * _SEPARATORS
    ends = np.cumsum(np.diff(self._starts)[chosen]) - 1
    pieces[ends] += rng.choice(_SEPARATORS, len(ends), p=(0.7, 0.22, 0.08))
    return pieces

  def _edit(self, pieces: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    where = np.flatnonzero(rng.random(len(pieces)) < rate)
    if not len(where):
      where = rng.integers(len(pieces), size=1)
    kind = rng.integers(3, size=len(where))
    new = rng.choice(self._words, len(where)) * _SEPARATORS
    pieces = pieces.copy()
    replaced = where[kind == 0]
    pieces[replaced] = new[kind == 0] + pieces[replaced] % _SEPARATORS
    times = np.ones(len(pieces), np.int64)
    times[where[kind == 1]] = 0
    times[where[kind == 2]] = 2
    first = np.cumsum(times) - times
    out = np.repeat(pieces, times)
    out[first[where[kind == 2]]] = new[kind == 2]
    return out

  def _junk(self, rng: np.random.Generator) -> str:
    words = [self._pieces[i].strip() for i in self._document(rng).tolist()]
    some = rng.integers(1 << 30, size=40).tolist()
    lines = [" ".join(words[i : i + 8]) for i in range(0, len(words), 8)]
    kind = rng.integers(9)
    if kind == 0:
      return (" ".join(words[:12]) + ". ") * (10 + some[0] % 30)
    if kind == 1:
      return " ".join(words[: 3 + some[0] % 12])
    if kind == 2:
      return "\n".join(f"* {line}" for line in lines)
    if kind == 3:
      return "\n".join(f"{line} ..." for line in lines)
    if kind == 4:
      return " ".join(f"{number:,}" for number in some * 4)
    if kind == 5:
      return " ".join(f"#{word}" for word in words)
    if kind == 6:
      return "Lorem ipsum dolor sit amet, " + " ".join(words)
    if kind == 7:
      return f"function f{some[0]}() {{\n  return '{lines[0]}';\n}}\n" * 5
    return "Please enable JavaScript.\n" + "\n".join(f"{word} |" for word in words[:60])


def machine_sentences() -> list[str]:
  """Returns distinct sentences from the texts of this machine, sorted.

  Raises:
    ValueError: if it has too few.
  """
  found: dict[str, None] = {}
  for text in _texts():
    for sentence in _SENTENCE_END.split(" ".join(text.split())):
      if _SENTENCE.fullmatch(sentence) and 5 <= sentence.count(" ") < 40:
        found[sentence] = None
  if len(found) < 1_000:
    raise ValueError(f"this machine's files hold {len(found)} sentences; 1,000 are needed")
  return sorted(found)


def _texts() -> Iterator[str]:
  library = Path(sysconfig.get_path("stdlib"))
  for path in sorted(library.rglob("*.py")):
    if "site-packages" not in path.parts and "dist-packages" not in path.parts:
      yield from _DOCSTRING.findall(path.read_text(encoding="utf-8", errors="replace"))
  size = 0
  for path in sorted(Path("/usr/share/doc").rglob("*")):
    if size > _SOURCE_BYTES or not path.is_file() or path.is_symlink():
      continue
    try:
      data = path.read_bytes()
      text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error):
      continue  # images, and what only root may read
    size += len(text)
    yield text


def _plan(documents: int, rng: np.random.Generator) -> list[Truth]:
  """Returns what each document is; copies stand anywhere, before their original too."""
  exact, near, junk = (round(share * documents) for share in (_EXACT, _NEAR, _JUNK))
  order = rng.permutation(documents)
  originals = order[: documents - exact - near - junk]
  truth = [Truth("original", row, 0.0) for row in range(documents)]
  sources = rng.choice(originals, exact + near).tolist()
  for i, row in enumerate(order[len(originals) :].tolist()):
    if i < exact:
      truth[row] = Truth("exact", sources[i], 0.0)
    elif i < exact + near:
      truth[row] = Truth("near", sources[i], RATES[i % len(RATES)])
    else:
      truth[row] = Truth("junk", row, 0.0)
  return truth


def write(corpus: Corpus, folder: Path) -> int:
  """Writes the files of a corpus, the truth last; returns the bytes of its text."""
  folder.mkdir(parents=True, exist_ok=True)
  documents, size = len(corpus.truth), 0
  schema = pa.schema([("id", pa.string()), ("url", pa.string()), ("text", pa.string())])
  with pq.ParquetWriter(folder / "corpus.parquet", schema, compression="zstd") as parquet:
    for number, rows in enumerate(np.array_split(np.arange(documents), _FILES)):
      with open(folder / f"raw-{number:02d}.jsonl", "w", encoding="utf-8") as file:
        for begin in range(0, len(rows), _GROUP):
          records = [_record(corpus, row) for row in rows[begin : begin + _GROUP].tolist()]
          size += sum(len(record["text"].encode()) for record in records)
          file.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
          parquet.write_table(pa.Table.from_pylist(records, schema))
  columns = [pa.array(column) for column in zip(*corpus.truth, strict=True)]
  pq.write_table(pa.table(columns, schema=TRUTH), folder / "truth.parquet")
  return size


def _record(corpus: Corpus, row: int) -> dict[str, str]:
  url = f"https://example.org/{row % 977}/{row}"
  return {"id": f"{row:08d}", "url": url, "text": corpus.text(row)}
