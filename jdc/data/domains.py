"""Folders of domains and of tasks: which files are whose, and which are not trained on."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from jdc.data import formats

_SPLITS = {
  "train": "train",
  "val": "validation",
  "validation": "validation",
  "target": "target",
}
_OTHER_SPLITS = ("dev", "eval", "test", "valid")
_NOT_DATA = re.compile(r"(readme|licen[cs]e|notice)(\.(md|rst|txt))?", re.IGNORECASE)


class DomainFiles(NamedTuple):
  """The sources of one domain; empty where no files are set apart for a split."""

  train: tuple[Path, ...]
  validation: tuple[Path, ...] = ()  # what a run is scored on
  target: tuple[Path, ...] = ()  # what its policies may observe


def find_domains(folder: str | Path) -> dict[str, DomainFiles]:
  """Finds the domains of a folder, one an entry, sorted by name.

  An entry is a file `web.jsonl.gz`; or `web.train.jsonl.gz` beside `web.val.jsonl.gz` (or
  `.validation.`) and `web.target.jsonl.gz`, the target set of policies; or a sub-folder `web/`
  of files, of which `val.jsonl` or `NAME.val.jsonl` are for validation; or a sub-folder with
  the folders `train/`, `val/` and `target/`, whatever depth the files below have; or a
  prepared TFDS folder. Hidden entries are ignored, and files named exactly README, LICENSE,
  LICENCE or NOTICE in any case, without a suffix or with .md, .rst or .txt.

  Raises:
    ValueError: lists everything that is wrong: a missing or empty folder, two entries for the
      same files of one domain, a suffix that is not accepted, an empty file, validation or
      target files without training files.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise ValueError(f"{folder}: no such folder of domains")
  problems: list[str] = []
  found: dict[str, dict[str, list[Path]]] = {}
  origin: dict[tuple[str, str], Path] = {}
  for entry in _entries(folder):
    name, files = _folder_domain(entry) if entry.is_dir() else _file_domain(entry)
    problems += files.pop("problems", [])
    for split, paths in files.items():
      other = origin.setdefault((name, split), entry)
      if other != entry:
        problems.append(f"{entry}: domain {name!r} already has {split} files from {other}")
      found.setdefault(name, {})[split] = paths
  for name, files in found.items():
    if "train" not in files:
      splits = " and ".join(sorted(files))
      problems.append(f"{folder}: domain {name!r} has {splits} files but none to train on")
    problems += [f"{p}: empty file" for paths in files.values() for p in paths if _is_empty(p)]
  if not found and not problems:
    problems.append(f"{folder}: holds no domain; accepted: {formats.ACCEPTED}, or sub-folders")
  if problems:
    raise ValueError("\n".join(problems))
  return {
    name: DomainFiles(**{split: tuple(paths) for split, paths in found[name].items()})
    for name in sorted(found)
  }


def find_tasks(folder: str | Path) -> dict[str, DomainFiles]:
  """Finds the tasks of a folder of target sets, one a file, sorted by name.

  Of `gsm8k.dev.jsonl.gz` the name is `gsm8k`: that of a split is no part of it. Ignored are the
  entries that `find_domains` ignores.

  Returns:
    All records of a task as files to train on, which no split is taken from.

  Raises:
    ValueError: lists everything that is wrong: a missing or empty folder, two files of one
      task, a suffix that is not accepted, a folder, an empty file.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise ValueError(f"{folder}: no such folder of target sets")
  problems: list[str] = []
  found: dict[str, Path] = {}
  for entry in _entries(folder):
    name = formats.parse_name(entry.name)
    if entry.is_dir() or name is None:
      problems.append(f"{entry}: a task is a file; accepted: {formats.ACCEPTED}")
      continue
    task, _, tag = name.stem.rpartition(".")
    task = task if task and tag in {*_SPLITS, *_OTHER_SPLITS} else name.stem
    if found.setdefault(task, entry) != entry:
      problems.append(f"{entry}: task {task!r} already has the file {found[task]}")
    elif _is_empty(entry):
      problems.append(f"{entry}: empty file")
  if not found and not problems:
    problems.append(f"{folder}: holds no task; accepted: {formats.ACCEPTED}")
  if problems:
    raise ValueError("\n".join(problems))
  return {task: DomainFiles((found[task],)) for task in sorted(found)}


def _entries(folder: Path) -> list[Path]:
  return sorted(path for path in folder.iterdir() if _visible(path, folder))


def _file_domain(path: Path) -> tuple[str, dict[str, Any]]:
  name = formats.parse_name(path.name)
  if name is None:
    return "", {"problems": [f"{path}: unknown suffix; accepted: {formats.ACCEPTED}"]}
  domain, _, tag = name.stem.rpartition(".")
  if tag in _OTHER_SPLITS and domain:
    return "", {"problems": [f"{path}: split {tag!r} unknown; accepted: {list(_SPLITS)}"]}
  if tag not in _SPLITS:
    return name.stem, {"train": [path]}
  if not domain:
    return "", {"problems": [f"{path}: names no domain; accepted: NAME.{path.name}"]}
  return domain, {_SPLITS[tag]: [path]}


def _folder_domain(folder: Path) -> tuple[str, dict[str, Any]]:
  if (folder / "dataset_info.json").is_file():
    return folder.name, _tfds_domain(folder)
  problems: list[str] = []
  files: dict[str, Any] = {}
  entries = _entries(folder)
  if any(path.is_dir() for path in entries):
    for path in entries:
      if path.name not in _SPLITS or not path.is_dir():
        problems.append(
          f"{path}: accepted beside train/, val/ and target/ are only such folders"
        )
        continue
      below = sorted(p for p in path.rglob("*") if p.is_file() and _visible(p, path))
      files.setdefault(_SPLITS[path.name], []).extend(below)
  else:
    for path in entries:
      name = formats.parse_name(path.name)
      tag = name.stem.rpartition(".")[2] if name else ""
      files.setdefault(_SPLITS.get(tag, "train"), []).append(path)
  problems += [
    f"{path}: unknown suffix; accepted: {formats.ACCEPTED}"
    for paths in files.values()
    for path in paths
    if formats.parse_name(path.name) is None
  ]
  if not files and not problems:
    problems.append(f"{folder}: holds no files")
  problems += [f"{folder}: holds no {split} files" for split in files if not files[split]]
  return folder.name, {**files, "problems": problems}


def _tfds_domain(folder: Path) -> dict[str, Any]:
  path = folder / "dataset_info.json"
  try:
    names = [split["name"] for split in json.loads(path.read_text("utf-8"))["splits"]]
  except (ValueError, LookupError, TypeError) as error:
    return {"problems": [f"{path}: not the description of a TFDS data set: {error!r}"]}
  if not _SPLITS.keys() & set(names):
    return {"problems": [f"{folder}: no split of {names} is one of {list(_SPLITS)}"]}
  return {_SPLITS[n]: [Path(f"{formats.TFDS}{folder}:{n}")] for n in names if n in _SPLITS}


def _visible(path: Path, folder: Path) -> bool:
  if any(part.startswith(".") for part in path.relative_to(folder).parts):
    return False
  return path.is_dir() or _NOT_DATA.fullmatch(path.name) is None


def _is_empty(path: Path) -> bool:
  name = formats.parse_name(path.name)
  if str(path).startswith(formats.TFDS) or name is None:
    return False
  try:
    return not any(formats.chunks(path, name.compression))
  except ValueError:  # damaged data: the reader says where
    return False
