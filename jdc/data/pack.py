"""From files of domains to packed tables, kept in a cache."""

import hashlib
import json
import math
import os
import re
import shutil
import uuid
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jdc.data import formats, rows
from jdc.data.packer import BLOCK_TOKENS, Packer
from jdc.data.rows import RowTable
from jdc.data.sources import (
  Document,
  DomainFiles,
  OnBadRecord,
  ReadReport,
  read_documents,
  set_aside,
  source_name,
  source_problem,
)
from jdc.data.tokenize import Encoded, Tokenizer

_BAD_RECORDS = "bad_records.jsonl"
_NO_TOKENS = "the tokenizer makes no tokens of the text"
_BATCH_CHARS = 1 << 21
_BATCH_DOCUMENTS = 512


class Domain(NamedTuple):
  """A domain ready to draw from."""

  name: str
  train: RowTable
  validation: RowTable | None  # `None` where nothing is held out
  num_bad_records: int  # set aside, over both splits


class _Options(NamedTuple):
  sequence_length: int
  validation_fraction: float
  text_field: str
  on_bad_record: OnBadRecord
  seed: int


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
) -> dict[str, Domain]:
  """Tokenizes and packs every domain, or opens what an earlier call left in the cache.

  A domain without validation files holds out round(validation_fraction * D) of its D distinct
  texts: those with the smallest hash of (seed, text). Equal documents fall on one side, and
  the split does not depend on the order of the documents.

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
    seed: of the held-out split.

  Returns:
    The domains by name, in the order given.

  Raises:
    ValueError: lists what is wrong with all domains: files, bad records, too few documents for
      the split, no target tokens.
  """
  options = _Options(sequence_length, validation_fraction, text_field, on_bad_record, seed)
  _check(domains, options, quarantine)
  cache_dir = Path(cache_dir)
  folders: dict[str, Path] = {}
  problems: list[str] = []
  for name, files in domains.items():
    try:
      folders[name] = _cached(cache_dir, name, files, tokenizer, options)
    except ValueError as error:
      problems.append(f"domain {name!r}: {error}")
  if problems:
    raise ValueError("\n".join(problems))
  if quarantine is not None and on_bad_record == "quarantine":
    _write_quarantine(Path(quarantine), folders)
  return {name: _open(name, folder) for name, folder in folders.items()}


def _check(
  domains: Mapping[str, DomainFiles], options: _Options, quarantine: str | Path | None
) -> None:
  problems = []
  if not domains:
    problems.append("domains must name at least one domain, got none")
  problems += [
    f"domain name {name!r} must be usable as a file name"
    for name in domains
    if not re.fullmatch(r"[^/\0]*[^/\0.][^/\0]*", name)
  ]
  if options.sequence_length < 1:
    problems.append(f"sequence_length must be at least 1, got {options.sequence_length}")
  if not 0 <= options.validation_fraction < 1:
    problems.append(f"validation_fraction must be in [0, 1), got {options.validation_fraction}")
  if options.on_bad_record not in ("error", "quarantine"):
    problems.append(
      f"on_bad_record must be 'error' or 'quarantine', got {options.on_bad_record!r}"
    )
  if options.on_bad_record == "quarantine" and quarantine is None:
    problems.append("on_bad_record='quarantine' needs a quarantine file, got None")
  if problems:
    raise ValueError("\n".join(problems))


def _cached(
  cache_dir: Path, name: str, files: DomainFiles, tokenizer: Tokenizer, options: _Options
) -> Path:
  folder = cache_dir / f"{name}-{_key(files, tokenizer, options)}"
  if folder.is_dir():
    return folder
  temporary = cache_dir / f".building-{folder.name}-{uuid.uuid4().hex}"
  temporary.mkdir(parents=True)
  try:
    _build(temporary, files, tokenizer, options)
    try:
      temporary.rename(folder)
    except OSError:
      if not folder.is_dir():  # else another process was first, with the same rows
        raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return folder


def _key(files: DomainFiles, tokenizer: Tokenizer, options: _Options) -> str:
  names = [[source_name(path) for path in paths] for paths in files]
  problems = [p for split in names for source in split if (p := source_problem(source))]
  if problems:
    raise ValueError("; ".join(problems))
  contents = [
    (str(file), file.stat().st_size, _digest(file))
    for split in names
    for source in split
    for file in formats.files_of(source)
  ]
  key = [rows.FORMAT_VERSION, tokenizer.fingerprint, options, names, contents]
  return hashlib.blake2b(json.dumps(key).encode(), digest_size=12).hexdigest()


def _digest(file: Path) -> str:
  with open(file, "rb") as opened:
    return hashlib.file_digest(opened, "blake2b").hexdigest()


def _build(folder: Path, files: DomainFiles, tokenizer: Tokenizer, options: _Options) -> None:
  held_out = _held_out(folder, files, options)
  report = ReadReport()
  with ExitStack() as stack:
    packers = {
      name: stack.enter_context(Packer(folder / name, tokenizer, options.sequence_length))
      for name in (("train", "validation") if files.validation or held_out else ("train",))
    }
    for name, sources in zip(("train", "validation"), files, strict=True):
      for document, encoded in _tokenized(sources, folder, tokenizer, options, report):
        split = "validation" if held_out and held_out(document.text) else name
        packers[split].add(document.where, encoded, len(document.text.encode("utf-8")))
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


def _held_out(
  folder: Path, files: DomainFiles, options: _Options
) -> Callable[[str], bool] | None:
  """Returns whether a text is held out, by its rank among the hashes of all texts."""
  if files.validation or not options.validation_fraction:
    return None
  first_pass = folder / "first_pass.jsonl"  # the second pass sets bad records aside for good
  documents = read_documents(files.train, options.text_field, options.on_bad_record, first_pass)
  hashes = array("Q", (_hash(document.text, options.seed) for document in documents))
  first_pass.unlink(missing_ok=True)
  distinct = np.unique(np.array(hashes, np.uint64))
  count = math.floor(options.validation_fraction * len(distinct) + 0.5)
  if not 0 < count < len(distinct):
    raise ValueError(
      f"too few documents: validation_fraction {options.validation_fraction} holds out {count} "
      f"of {len(distinct)} distinct ones; both sides need at least one"
    )
  threshold = int(distinct[count - 1])
  return lambda text: _hash(text, options.seed) <= threshold


def _hash(text: str, seed: int) -> int:
  digest = hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).digest()
  return int.from_bytes(digest, "little")


def _tokenized(
  sources: Sequence[Path],
  folder: Path,
  tokenizer: Tokenizer,
  options: _Options,
  report: ReadReport,
) -> Iterator[tuple[Document, Encoded]]:
  if not sources:
    return
  bad_records = folder / _BAD_RECORDS
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


def _open(name: str, folder: Path) -> Domain:
  meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
  validation = folder / "validation"
  return Domain(
    name,
    RowTable(folder / "train"),
    RowTable(validation) if validation.is_dir() else None,
    meta["num_bad_records"],
  )


def _write_quarantine(quarantine: Path, folders: Mapping[str, Path]) -> None:
  temporary = quarantine.with_name(f"{quarantine.name}.{uuid.uuid4().hex}")
  with open(temporary, "wb") as file:
    for folder in folders.values():
      if (folder / _BAD_RECORDS).exists():
        file.write((folder / _BAD_RECORDS).read_bytes())
  os.replace(temporary, quarantine)
