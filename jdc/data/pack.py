"""From files of domains to packed tables, kept in a cache."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from jdc.data import cache, rows
from jdc.data.packer import BLOCK_TOKENS, Packer
from jdc.data.rows import RowTable
from jdc.data.sources import (
  Document,
  DomainFiles,
  OnBadRecord,
  ReadReport,
  read_documents,
  set_aside,
)
from jdc.data.tokenize import Encoded, Tokenizer

_NO_TOKENS = "the tokenizer makes no tokens of the text"
_BATCH_CHARS = 1 << 21
_BATCH_DOCUMENTS = 512


Table = TypeVar("Table")


class Domain(NamedTuple, Generic[Table]):
  """A domain ready to draw from."""

  name: str
  train: Table
  validation: Table | None  # `None` where nothing is held out
  num_bad_records: int  # set aside, over all splits
  target: Table | None = None  # what policies may observe, as they may not validation

  @property
  def splits(self) -> dict[str, Table]:
    """The tables that there are, by split."""
    tables = {"train": self.train, "validation": self.validation, "target": self.target}
    return {split: table for split, table in tables.items() if table is not None}


class _Options(NamedTuple):
  sequence_length: int
  validation_fraction: float
  text_field: str
  on_bad_record: OnBadRecord
  seed: int
  target_fraction: float


def pack_documents(
  documents: Iterable[Document],
  tokenizer: Tokenizer,
  sequence_length: int,
  folder: str | Path,
  block_tokens: int = BLOCK_TOKENS,
) -> RowTable:
  """Tokenizes and packs documents into the rows of a new folder; the rule is `Packer`'s.

  Args:
    documents: of one domain.
    tokenizer: text to ids.
    sequence_length: T, target positions of a row.
    folder: must not exist.
    block_tokens: tokens held in memory; does not change the rows.

  Raises:
    ValueError: if a document has no tokens, or all of them together no target token.
  """
  with Packer(folder, tokenizer, sequence_length, block_tokens) as packer:
    for batch in _batches(documents):
      encoded = tokenizer.encode_batch([document.text for document in batch])
      for document, tokens in zip(batch, encoded, strict=True):
        packer.add(document.where, tokens, len(document.text.encode("utf-8")))
    return packer.finish()


def prepare(
  domains: Mapping[str, DomainFiles],
  tokenizer: Tokenizer,
  sequence_length: int,
  validation_fraction: float,
  cache_dir: str | Path,
  *,
  text_field: str = "text",
  on_bad_record: OnBadRecord = "error",
  quarantine: str | Path | None = None,
  seed: int = 0,
  target_fraction: float = 0.0,
) -> dict[str, Domain[RowTable]]:
  """Tokenizes and packs every domain, or opens what an earlier call left in the cache.

  A domain without validation files holds out round(validation_fraction * D) of its D distinct
  texts: those with the smallest hash of (seed, text). One without target files sets the next
  round(target_fraction * D) apart as its target set, which policies may observe. Equal
  documents fall on one side, and neither the order of the documents changes the split nor
  target_fraction what is held out for validation.

  A cache folder is named by a hash of the names and contents of the domain's files, the
  tokenizer, the options and the format. It is built under another name and then renamed: an
  interrupted build is never used, and of two processes that build at once one wins.

  Args:
    domains: as `find_domains` returns them.
    tokenizer: text to ids.
    sequence_length: T, target positions of a row.
    validation_fraction: in [0, 1); 0 holds nothing out. Not used where validation files are
      given.
    cache_dir: holds the packed rows; made where missing.
    text_field: the field that holds the text.
    on_bad_record: "error" or "quarantine", as in `read_documents`; a text without a token is a
      bad record too.
    quarantine: with "quarantine", holds after the call all bad records of these domains.
    seed: of the held-out splits.
    target_fraction: in [0, 1), below 1 - validation_fraction; 0 makes no target set. Not used
      where target files are given.

  Returns:
    The domains by name, in the order given.

  Raises:
    ValueError: lists what is wrong with all domains: files, bad records, too few documents for
      the splits, no target tokens.
  """
  options = _Options(
    sequence_length, validation_fraction, text_field, on_bad_record, seed, target_fraction
  )
  fractions = cache.Fractions(validation_fraction, target_fraction)
  problems = cache.problems_of(domains, sequence_length, fractions, on_bad_record, quarantine)
  if problems:
    raise ValueError("\n".join(problems))

  def build(folder: Path, files: DomainFiles) -> None:
    _build(folder, files, tokenizer, options)

  parts = (rows.FORMAT_VERSION, tokenizer.fingerprint, cache.parts_of(options))
  aside = quarantine if on_bad_record == "quarantine" else None
  folders = cache.prepare_all(domains, parts, build, cache_dir, aside)
  return {name: open_domain(name, folder, RowTable) for name, folder in folders.items()}


def open_domain(name: str, folder: Path, table: Callable[[Path], Table]) -> Domain[Table]:
  """Opens the splits that are there of a domain in the cache."""
  meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
  held_out = {
    split: table(folder / split) if (folder / split).is_dir() else None
    for split in cache.HELD_OUT
  }
  return Domain(
    name, table(folder / "train"), num_bad_records=meta["num_bad_records"], **held_out
  )


def _build(folder: Path, files: DomainFiles, tokenizer: Tokenizer, options: _Options) -> None:
  split_of = _split_of(folder, files, options)
  report = ReadReport()
  with ExitStack() as stack:
    packers = {
      name: stack.enter_context(Packer(folder / name, tokenizer, options.sequence_length))
      for name in cache.splits(files, options)
    }
    for name, sources in files._asdict().items():
      for document, encoded in _tokenized(sources, folder, tokenizer, options, report):
        split = split_of(document.text) if name == "train" else None
        packers[split or name].add(document.where, encoded, len(document.text.encode("utf-8")))
    problems = []
    for name, packer in packers.items():
      try:
        packer.finish()
      except ValueError as error:
        problems.append(f"{name}: {error} ({report.num_bad_records} bad records)")
  if problems:
    raise ValueError("; ".join(problems))
  meta = {"num_bad_records": report.num_bad_records}
  (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _split_of(
  folder: Path, files: DomainFiles, options: _Options
) -> Callable[[str], str | None]:
  """Returns where a text of the training files is held out; `None` is training."""
  fractions = cache.held_out(files, options)
  if not any(fractions):
    return lambda text: None
  first_pass = folder / "first_pass.jsonl"  # the second pass sets bad records aside for good
  documents = read_documents(files.train, options.text_field, options.on_bad_record, first_pass)
  texts = (document.text for document in documents)
  split_of = cache.split_by_hash(texts, fractions, options.seed)
  first_pass.unlink(missing_ok=True)
  return split_of


def _tokenized(
  sources: Sequence[Path],
  folder: Path,
  tokenizer: Tokenizer,
  options: _Options,
  report: ReadReport,
) -> Iterator[tuple[Document, Encoded]]:
  if not sources:
    return
  bad_records = folder / cache.BAD_RECORDS
  documents = read_documents(
    sources, options.text_field, options.on_bad_record, bad_records, report
  )
  for batch in _batches(documents):
    encoded = tokenizer.encode_batch([document.text for document in batch])
    for document, tokens in zip(batch, encoded, strict=True):
      if len(tokens[0]):
        yield document, tokens
      elif options.on_bad_record == "error":
        raise ValueError(f"{document.where}: {_NO_TOKENS}")
      else:
        set_aside(bad_records, document.where, _NO_TOKENS, document.text)
        report.num_documents -= 1
        report.num_bad_records += 1


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
  """Groups documents into lists of a bounded number of characters."""
  batch: list[Document] = []
  num_chars = 0
  for document in documents:
    batch.append(document)
    num_chars += len(document.text)
    if num_chars >= _BATCH_CHARS or len(batch) >= _BATCH_DOCUMENTS:
      yield batch
      batch, num_chars = [], 0
  if batch:
    yield batch
