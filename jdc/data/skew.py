"""A copy of a folder of domains in which the domains differ in size by a stated ratio."""

import gzip
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

from jdc.data.sources import Document, find_domains, read_documents


def write_skewed(
  source: str | Path, folder: str | Path, ratio: float, seed: int = 0, text_field: str = "text"
) -> dict[str, int]:
  """Subsamples the training documents of domains, the first to `ratio` times the last.

  Domain k of K, sorted by name, keeps documents of about b r^(-k / (K - 1)) bytes of text, with
  r the ratio and b the bytes of the smallest domain, which every domain has. Documents are kept
  by rising hash of (seed, text). Of the validation documents every second one by that order
  becomes the target set, so that what policies observe and what they are scored on differ.

  Args:
    source: a folder of domains with validation files; see `find_domains`.
    folder: receives NAME.train.jsonl.gz, NAME.target.jsonl.gz and NAME.val.jsonl.gz, and
      `.sizes.json`; one that is there already is left alone.
    ratio: r >= 1.
    seed: of the choice.
    text_field: the field that holds the text.

  Returns:
    Bytes of training text by domain.

  Raises:
    ValueError: if the ratio is below 1, there are fewer than two domains, or a domain has fewer
      than two validation documents; all of these are named.
  """
  domains = find_domains(source)
  problems = [] if ratio >= 1 else [f"ratio must be 1 or more, got {ratio}"]
  if len(domains) < 2:
    problems.append(f"{source}: a skew needs two domains or more, got {list(domains)}")
  validation = {
    name: _shuffled(read_documents(files.validation, text_field), seed)
    for name, files in domains.items()
  }
  problems += [
    f"domain {name} has {len(documents)} validation documents; at least 2 are needed, one for "
    "the target set"
    for name, documents in validation.items()
    if len(documents) < 2
  ]
  if problems:
    raise ValueError("; ".join(problems))
  final = Path(folder)
  if not (final / ".sizes.json").exists():
    partial = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    partial.mkdir(parents=True)
    try:
      sizes = {}
      train = {
        name: _shuffled(read_documents(files.train, text_field), seed)
        for name, files in domains.items()
      }
      smallest = min(_num_bytes(documents) for documents in train.values())
      for k, name in enumerate(domains):
        kept = _first(train[name], smallest * ratio ** (-k / (len(domains) - 1)))
        sizes[name] = _num_bytes(kept)
        _write(partial / f"{name}.train.jsonl.gz", kept)
        _write(partial / f"{name}.target.jsonl.gz", validation[name][0::2])
        _write(partial / f"{name}.val.jsonl.gz", validation[name][1::2])
      (partial / ".sizes.json").write_text(json.dumps(sizes), encoding="utf-8")
      os.replace(partial, final)
    finally:
      shutil.rmtree(partial, ignore_errors=True)
  return json.loads((final / ".sizes.json").read_text(encoding="utf-8"))


def _shuffled(documents: Iterable[Document], seed: int) -> list[Document]:
  def place(document: Document) -> bytes:
    return hashlib.blake2b(f"{seed} {document.text}".encode()).digest()

  return sorted(documents, key=place)


def _num_bytes(documents: Sequence[Document]) -> int:
  return sum(len(document.text.encode()) for document in documents)


def _first(documents: Sequence[Document], num_bytes: float) -> list[Document]:
  """The first documents of so many bytes; the one that crosses the limit is the last."""
  kept: list[Document] = []
  total = 0
  for document in documents:
    if total >= num_bytes:
      break
    kept.append(document)
    total += len(document.text.encode())
  return kept


def _write(path: Path, documents: Sequence[Document]) -> None:
  # Without a time and a name in the header, so that equal documents are equal files.
  with open(path, "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
    for document in documents:
      file.write((json.dumps({"text": document.text}) + "\n").encode())
