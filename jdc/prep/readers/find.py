"""Which files a plan reads: what its paths and globs mean."""

import glob
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from jdc.prep import problems
from jdc.prep.spec import InputSpec

ACCEPTED = (
  ".jsonl, .ndjson or .json (an object a line), .txt or .md, .warc or .wet, each also .gz or "
  ".zst; .parquet"
)
_SUFFIX = re.compile(
  r"\.(?P<text>jsonl|ndjson|json|txt|md|text|warc|wet)(?P<compression>\.gz|\.zst)?$"
  r"|\.(?P<binary>parquet)$",
  re.IGNORECASE,
)
_FORMATS = {
  "jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl", "txt": "text", "md": "text",
  "text": "text", "warc": "warc", "wet": "warc", "parquet": "parquet",
}  # fmt: skip
_SPLITS = {"train": "train", "validation": "validation", "valid": "validation"}
_SPLITS |= {"val": "validation", "dev": "validation", "test": "test"}
_WORDS = re.compile(r"[-._/\\]")


class InputFile(NamedTuple):
  """A file of the input."""

  path: str
  source: str  # as the plan names it
  domain: str
  format: str
  compression: str


def find(spec: InputSpec, root: Path) -> list[InputFile]:
  """Returns the files of a plan, sorted within each pattern, each file once.

  Args:
    spec: what to read.
    root: the folder that relative paths start at.

  Raises:
    ValueError: lists patterns without a file, unknown suffixes, files that two domains claim,
      splits that a folder lacks.
  """
  found: dict[str, InputFile] = {}  # by what links lead to: each file is read once
  wrong: list[str] = []
  groups = spec.paths if isinstance(spec.paths, Mapping) else {spec.domain: spec.paths}
  for domain, patterns in groups.items():
    for pattern in patterns:
      matches = _expand(pattern, root, spec, wrong)
      if not matches and not any(line.startswith(pattern) for line in wrong):
        wrong.append(f"{pattern}: no such file, seen from {root}")
      for path, source in matches:
        file = _input_file(path, source, domain, spec, wrong)
        if file is None:
          continue
        try:
          source.encode()
        except UnicodeEncodeError:
          wrong.append(f"{os.fsencode(source)!r}: a name that is not UTF-8; rename the file")
          continue
        held = found.setdefault(os.path.realpath(path), file)
        if held.domain != domain:
          wrong.append(f"{source}: both in domain {held.domain!r} and in {domain!r}")
        elif _depth(file) < _depth(held):
          found[os.path.realpath(path)] = file
  problems.raise_all(wrong, "input.paths")
  return list(found.values())


def _depth(file: InputFile) -> int:
  """Returns how long a path is: of several to a file, as through a loop of links, least."""
  return len(Path(file.path).parts)


def _expand(
  pattern: str, root: Path, spec: InputSpec, wrong: list[str]
) -> list[tuple[str, str]]:
  """Returns (path, source) of what a pattern means: files, or those in folders."""
  base = os.path.join(root, pattern)
  names = [base] if os.path.exists(base) else sorted(glob.glob(base, recursive=True))
  result = []
  for name in names:
    source = (
      pattern + name.removeprefix(base)
      if name.startswith(base)
      else _named(name, root, pattern)
    )
    if os.path.isdir(name):
      if spec.format == "hf":
        inside = _hf_files(Path(name), spec.split, pattern, wrong)
      elif name == base or "**" not in pattern:
        inside = sorted(_visible_files(Path(name)))
      else:
        continue  # files in folders that ** matches match by themselves
      result += [(str(p), _join(source, os.path.relpath(p, name))) for p in inside]
    elif os.path.isfile(name) or os.path.islink(name):
      result.append((name, source))
    else:
      wrong.append(f"{source}: neither a file nor a folder")
  return result


def _named(name: str, root: Path, pattern: str) -> str:
  return name if os.path.isabs(pattern) else Path(os.path.relpath(name, root)).as_posix()


def _join(folder: str, name: str) -> str:
  return f"{folder.rstrip('/')}/{Path(name).as_posix()}"


def _visible_files(folder: Path) -> Iterable[Path]:
  for path in folder.rglob("*"):
    parts = path.relative_to(folder).parts
    if path.is_file() and not any(part.startswith(".") for part in parts):
      yield path


def _hf_files(folder: Path, split: str, pattern: str, wrong: list[str]) -> list[Path]:
  """Returns the data files of one split of a folder laid out as on the Hugging Face Hub.

  The split is a word of the file's name or of a folder above it, as in
  `data/train-00000-of-00002.parquet` or `train/part.jsonl`; files that name none are `train`.
  """
  by_split: dict[str, list[Path]] = {}
  for path in sorted(_visible_files(folder)):
    match = _SUFFIX.search(path.name)
    if match and (match["binary"] or match["text"].lower() in ("jsonl", "ndjson", "json")):
      words = _WORDS.split(path.relative_to(folder).as_posix())
      named = [_SPLITS[word.lower()] for word in reversed(words) if word.lower() in _SPLITS]
      if not match["binary"] and path.name in ("dataset_infos.json", "state.json"):
        continue
      by_split.setdefault(named[0] if named else "train", []).append(path)
  chosen = by_split.get(_SPLITS.get(split, split), [])
  if not chosen:
    wrong.append(
      f"{pattern}: no split {split!r}; found: {', '.join(sorted(by_split)) or 'none'}"
    )
  return chosen


def _input_file(
  path: str, source: str, domain: str, spec: InputSpec, wrong: list[str]
) -> InputFile | None:
  match = _SUFFIX.search(path)
  compression = (match["compression"] or "").lower() if match else ""
  given: str = "auto" if spec.format == "hf" else spec.format
  if given == "auto":
    if match is None:
      wrong.append(f"{source}: unknown suffix; accepted: {ACCEPTED}, or say input.format")
      return None
    given = _FORMATS[(match["text"] or match["binary"]).lower()]
  elif not compression:
    suffix = Path(path).suffix.lower()
    compression = suffix if suffix in (".gz", ".zst") and given != "parquet" else ""
  return InputFile(path, source, domain, given, compression)
