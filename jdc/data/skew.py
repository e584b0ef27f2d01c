"""A copy of a folder of domains in which the domains differ in size by a stated ratio."""

import gzip
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jdc.data.domains import DomainFiles
from jdc.data.sources import Document, find_domains, read_documents

_DESCRIBED = ".skew.json"


def write_skewed(
  source: str | Path, folder: str | Path, ratio: float, seed: int = 0, text_field: str = "text"
) -> dict[str, int]:
  """Subsamples the training documents of domains, the first to `ratio` times the last.

  Domain k of K, sorted by name, keeps documents of about b r^(-k / (K - 1)) bytes of text, with
  r the ratio and b the bytes of the smallest domain, which every domain has. Documents are kept
  by rising hash of (seed, text). Of the validation documents every second one by that order
  becomes the target set, so that what policies observe and what they are scored on differ;
  equal ones stay together.

  Args:
    source: a folder of domains with validation files; see `find_domains`.
    folder: receives NAME.train.jsonl.gz, NAME.target.jsonl.gz and NAME.val.jsonl.gz, and
      `.skew.json`; one that is there already is left alone.
    ratio: r >= 1.
    seed: of the choice.
    text_field: the field that holds the text, in the copy too.

  Returns:
    Bytes of training text by domain.

  Raises:
    ValueError: if the ratio is below 1, there are fewer than two domains, or a domain has fewer
      than two different validation documents, all of these named; if the folder was made of
      other files or with other arguments.
  """
  domains, final = find_domains(source), Path(folder)
  made_of = _made_of(domains, ratio, seed, text_field)
  if final.exists():
    return _opened(final, made_of)
  problems = [] if ratio >= 1 else [f"ratio must be 1 or more, got {ratio}"]
  if len(domains) < 2:
    problems.append(f"{source}: a skew needs two domains or more, got {list(domains)}")
  halves = {
    name: _halves(
      _shuffled(read_documents(files.validation, text_field), seed) if files.validation else []
    )
    for name, files in domains.items()
  }
  problems += [
    f"domain {name} has no two validation documents that differ; at least 2 are needed, "
    "one for the target set"
    for name, (_, validation) in halves.items()
    if not validation
  ]
  if problems:
    raise ValueError("; ".join(problems))
  train = {
    name: _shuffled(read_documents(files.train, text_field), seed)
    for name, files in domains.items()
  }
  smallest = min(_num_bytes(documents) for documents in train.values())
  kept = {
    name: _first(train[name], smallest * ratio ** (-k / (len(domains) - 1)))
    for k, name in enumerate(domains)
  }
  sizes = {name: _num_bytes(documents) for name, documents in kept.items()}
  partial = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
  partial.mkdir(parents=True)
  try:
    for name in domains:
      _write(partial / f"{name}.train.jsonl.gz", kept[name], text_field)
      for split, documents in zip(("target", "val"), halves[name], strict=True):
        _write(partial / f"{name}.{split}.jsonl.gz", documents, text_field)
    content = {"made_of": made_of, "sizes": sizes}
    (partial / _DESCRIBED).write_text(json.dumps(content), encoding="utf-8")
    os.replace(partial, final)
  finally:
    shutil.rmtree(partial, ignore_errors=True)
  return sizes


def _made_of(
  domains: Mapping[str, DomainFiles], ratio: float, seed: int, text_field: str
) -> dict[str, Any]:
  """What a copy is made of, as JSON: the arguments, and the bytes of each file by name."""
  files = {
    f"{name}/{path.name}": path.stat().st_size if path.is_file() else 0
    for name, held in domains.items()
    for path in (*held.train, *held.validation)
  }
  return {"ratio": float(ratio), "seed": seed, "text_field": text_field, "files": files}


def _opened(folder: Path, made_of: Mapping[str, Any]) -> dict[str, int]:
  path = folder / _DESCRIBED
  if not path.exists():
    raise ValueError(f"{folder} is no copy with a skew; choose another folder")
  saved = json.loads(path.read_text(encoding="utf-8"))
  changed = [
    f"{name}: {saved['made_of'].get(name)} -> {value}"
    for name, value in made_of.items()
    if saved["made_of"].get(name) != value
  ]
  if changed:
    raise ValueError(
      f"{folder} was made of other data, choose another folder or remove it: "
      + "; ".join(changed)
    )
  return saved["sizes"]


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


def _halves(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
  """Every second of the different documents, and the others."""
  place: dict[str, int] = {}
  halves: tuple[list[Document], list[Document]] = ([], [])
  for document in documents:
    halves[place.setdefault(document.text, len(place)) % 2].append(document)
  return halves


def _write(path: Path, documents: Sequence[Document], text_field: str) -> None:
  # Without a time and a name in the header, so that equal documents are equal files.
  with open(path, "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
    for document in documents:
      file.write((json.dumps({text_field: document.text}) + "\n").encode())
