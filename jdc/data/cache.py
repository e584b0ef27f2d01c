"""Prepared domains kept in a cache: how they are named, split and built whole or not at all."""

import hashlib
import json
import math
import os
import re
import shutil
import uuid
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from jdc.data import formats
from jdc.data.sources import DomainFiles, source_name, source_problem

BAD_RECORDS = "bad_records.jsonl"

HELD_OUT = ("validation", "target")


class Fractions(NamedTuple):
  """The shares of a domain's distinct texts that are held out from training."""

  validation: float
  target: float


# Fills a new folder with what is made of the files, or raises a ValueError.
Build = Callable[[Path, DomainFiles], None]


def problems_of(
  domains: Mapping[str, DomainFiles],
  sequence_length: int,
  fractions: Fractions,
  on_bad_record: str,
  quarantine: str | Path | None,
) -> list[str]:
  """Returns what is wrong with the options that all preparations share."""
  problems = []
  if not domains:
    problems.append("domains must name at least one domain, got none")
  problems += [
    f"domain name {name!r} must be usable as a file name"
    for name in domains
    if not re.fullmatch(r"[^/\0]*[^/\0.][^/\0]*", name)
  ]
  if sequence_length < 1:
    problems.append(f"sequence_length must be at least 1, got {sequence_length}")
  problems += [
    f"{split}_fraction must be in [0, 1), got {fraction}"
    for split, fraction in fractions._asdict().items()
    if not 0 <= fraction < 1
  ]
  if all(0 <= fraction < 1 for fraction in fractions) and sum(fractions) >= 1:
    problems.append(
      f"validation_fraction {fractions.validation} and target_fraction {fractions.target} "
      "leave nothing to train on"
    )
  if on_bad_record not in ("error", "quarantine"):
    problems.append(f"on_bad_record must be 'error' or 'quarantine', got {on_bad_record!r}")
  if on_bad_record == "quarantine" and quarantine is None:
    problems.append("on_bad_record='quarantine' needs a quarantine file, got None")
  return problems


def prepare_all(
  domains: Mapping[str, DomainFiles],
  parts: Sequence[Any],
  build: Build,
  cache_dir: str | Path,
  quarantine: str | Path | None,
) -> dict[str, Path]:
  """Builds every domain that is not in the cache.

  A folder is named by a hash of the names and contents of the domain's files and of `parts`.
  It is built under another name and then renamed: an interrupted build is never used, and of
  two processes that build at once one wins.

  Args:
    domains: the files.
    parts: JSON values that decide, with the files, what is built.
    build: may leave bad records in the file `BAD_RECORDS` of its folder.
    cache_dir: holds the folders; made where missing.
    quarantine: holds after the call all bad records of these domains.

  Returns:
    The folder of each domain.

  Raises:
    ValueError: lists what is wrong with all domains.
  """
  folders: dict[str, Path] = {}
  problems: list[str] = []
  for name, files in domains.items():
    try:
      folders[name] = _cached(Path(cache_dir), name, files, parts, build)
    except ValueError as error:
      problems.append(f"domain {name!r}: {error}")
  if problems:
    raise ValueError("\n".join(problems))
  if quarantine is not None:
    _write_quarantine(Path(quarantine), folders)
  return folders


class Options(Protocol):
  """What decides, with the files, how a domain is split; a NamedTuple."""

  @property
  def validation_fraction(self) -> float: ...

  @property
  def target_fraction(self) -> float: ...

  def _asdict(self) -> dict[str, Any]: ...


def parts_of(options: Options) -> list[Any]:
  """Returns what of the options names a folder; without a target set, that of earlier ones."""
  fields = options._asdict().items()
  return [value for name, value in fields if value or name != "target_fraction"]


def held_out(files: DomainFiles, options: Options) -> Fractions:
  """Returns the shares of the training files: 0 where a split has files of its own."""
  return Fractions(
    0.0 if files.validation else options.validation_fraction,
    0.0 if files.target else options.target_fraction,
  )


def splits(files: DomainFiles, options: Options) -> list[str]:
  """Returns the splits that a domain will have."""
  shares = held_out(files, options)._asdict()
  return ["train", *(s for s in HELD_OUT if getattr(files, s) or shares[s])]


def split_by_hash(
  texts: Iterable[str], fractions: Fractions, seed: int
) -> Callable[[str], str | None]:
  """Returns the function that says in which split a text is held out, `None` for training.

  Of D distinct texts, ranked by a hash of (seed, text), the first round(v D) are for
  validation, the next round(u D) the target set, v and u the fractions. The order of the texts
  does not matter, and validation does not depend on u.

  Raises:
    ValueError: if that leaves nothing for a split that has a fraction, or for training.
  """
  hashes = array("Q", (_hash(text, seed) for text in texts))
  distinct = np.unique(np.array(hashes, np.uint64))
  wanted = {split: share for split, share in fractions._asdict().items() if share}
  counts = {split: math.floor(share * len(distinct) + 0.5) for split, share in wanted.items()}
  if min(counts.values()) == 0 or sum(counts.values()) >= len(distinct):
    shown = ", ".join(
      f"{split}_fraction {wanted[split]} holds out {counts[split]}" for split in wanted
    )
    raise ValueError(
      f"too few documents: {shown} of {len(distinct)} distinct ones; each split and training "
      "need at least one"
    )
  # The highest hash of each split, in rising order.
  ends = dict(zip(counts, np.cumsum([*counts.values()]) - 1, strict=True))
  thresholds = {split: int(distinct[end]) for split, end in ends.items()}

  def split_of(text: str) -> str | None:
    value = _hash(text, seed)
    return next((split for split, last in thresholds.items() if value <= last), None)

  return split_of


def _hash(text: str, seed: int) -> int:
  digest = hashlib.blake2b(f"{seed}:{text}".encode(), digest_size=8).digest()
  return int.from_bytes(digest, "little")


def _cached(
  cache_dir: Path, name: str, files: DomainFiles, parts: Sequence[Any], build: Build
) -> Path:
  folder = cache_dir / f"{name}-{_key(files, parts)}"
  if folder.is_dir():
    return folder
  temporary = cache_dir / f".building-{folder.name}-{uuid.uuid4().hex}"
  temporary.mkdir(parents=True)
  try:
    build(temporary, files)
    try:
      temporary.rename(folder)
    except OSError:
      if not folder.is_dir():  # else another process was first, with the same content
        raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return folder


def _key(files: DomainFiles, parts: Sequence[Any]) -> str:
  # Without files of its own a target set leaves the name of the folder as it is.
  present = [paths for split, paths in files._asdict().items() if paths or split != "target"]
  names = [[source_name(path) for path in paths] for paths in present]
  problems = [p for split in names for source in split if (p := source_problem(source))]
  if problems:
    raise ValueError("; ".join(problems))
  contents = [
    (str(file), file.stat().st_size, _digest(file))
    for split in names
    for source in split
    for file in formats.files_of(source)
  ]
  key = [*parts, names, contents]
  return hashlib.blake2b(json.dumps(key).encode(), digest_size=12).hexdigest()


def _digest(file: Path) -> str:
  with open(file, "rb") as opened:
    return hashlib.file_digest(opened, "blake2b").hexdigest()


def _write_quarantine(quarantine: Path, folders: Mapping[str, Path]) -> None:
  temporary = quarantine.with_name(f"{quarantine.name}.{uuid.uuid4().hex}")
  with open(temporary, "wb") as file:
    for folder in folders.values():
      if (folder / BAD_RECORDS).exists():
        file.write((folder / BAD_RECORDS).read_bytes())
  os.replace(temporary, quarantine)
