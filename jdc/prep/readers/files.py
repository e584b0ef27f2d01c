"""Which files a plan reads, how, and into which pieces they are divided."""

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import parquet

from jdc.prep import problems
from jdc.prep.batches import Piece
from jdc.prep.readers import jsonl, streams, warc
from jdc.prep.readers import parquet as parquet_reader
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
_PEEK = 100  # records of which at least one must have the text


class InputFile(NamedTuple):
  """A file of the input."""

  path: str
  source: str  # as the plan names it
  domain: str
  format: str
  compression: str


class FileIndex(NamedTuple):
  """What is known of a file once it has been passed over."""

  file: InputFile
  size: int
  mtime_ns: int
  sha256: str
  pieces: tuple[tuple[Piece, int], ...]  # with their bytes
  damage: str = ""


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


def index(file: InputFile, spec: InputSpec) -> FileIndex:
  """Passes over a file: its hash, and pieces of at most `task_mb` MiB.

  Raises:
    ValueError: if it can be no file of its format.
    OSError: if it cannot be read.
  """
  most = int(spec.task_mb * (1 << 20))
  status = os.stat(file.path)
  with open(file.path, "rb") as opened:
    digest = hashlib.file_digest(opened, "sha256").hexdigest()
  ranges, total, damage = _ranges(file, spec, most)
  pieces = []
  for number, (start, end, line) in enumerate(ranges):
    if file.format == "parquet":  # ranges of rows
      size = status.st_size // len(ranges)
    else:
      size = (ranges[number + 1][0] if number + 1 < len(ranges) else total) - start
    pieces.append((Piece(*file, digest, start, end, line), size))
  return FileIndex(file, status.st_size, status.st_mtime_ns, digest, tuple(pieces), damage)


def _ranges(
  file: InputFile, spec: InputSpec, most: int
) -> tuple[list[tuple[int, int, int]], int, str]:
  """Returns the pieces' (start, end, first line), the total and what breaks the file off."""
  if file.format == "parquet":
    try:
      with parquet.ParquetFile(file.path) as opened:
        parquet_reader.check_columns(opened.schema_arrow, spec, file.source)
        return parquet_reader.row_cuts(opened, spec.text_column, most), 0, ""
    except (ValueError, OSError) as error:
      raise ValueError(f"{file.source}: not readable as Parquet: {error}") from error
  if file.format == "warc":
    return warc.cuts(file.path, file.compression, most)
  if file.format == "text" and spec.document == "file":
    return [(0, -1, 1)], os.path.getsize(file.path), ""
  stream = streams.ByteStream(file.path, file.compression)
  try:
    by_paragraph = file.format == "text" and spec.document == "paragraph"
    divide = streams.paragraph_cuts if by_paragraph else streams.cuts
    ranges, damage = divide(stream, most)
    return ranges, stream.position, damage
  finally:
    stream.close()


def shards(indexes: Sequence[FileIndex], spec: InputSpec) -> list[tuple[Piece, ...]]:
  """Joins consecutive small pieces to tasks of at most an eighth of `task_mb`.

  Where a task ends goes by hashes of the pieces' places, too, so that a file that grows, comes
  or goes changes few tasks, and those behind it are joined as before.
  """
  most = spec.task_mb * (1 << 20) / 8
  result: list[tuple[Piece, ...]] = []
  size: float = most
  for held in indexes:
    for piece, length in held.pieces:
      if size + length > most or not result:
        result.append((piece,))
        size = length
      else:
        result[-1] = (*result[-1], piece)
        size += length
      if _ends_task(piece, length / most):
        size = most
  return result


def _ends_task(piece: Piece, share: float) -> bool:
  """Whether a task ends with a piece, which has a share of the bytes of a task.

  The probability is the piece's share, at most a half, so that a task has as many bytes on
  average as it may have at most, were it not for that bound.
  """
  place = f"{piece.source}\0{piece.start}".encode()
  number = int.from_bytes(hashlib.blake2b(place, digest_size=8).digest(), "big")
  return number < min(share, 0.5) * 2**64


def columns(file: InputFile, spec: InputSpec) -> list[str]:
  """Returns the fields that a file's first records have, to check a plan against them."""
  if file.format == "parquet":
    with parquet.ParquetFile(file.path) as opened:
      return list(opened.schema_arrow.names)
  if file.format != "jsonl":
    return [spec.text_column]
  names: dict[str, Any] = {}
  stream = streams.ByteStream(file.path, file.compression)
  try:
    for number, (_, line, wrong) in enumerate(streams.lines(stream, -1)):
      if number >= _PEEK or wrong:
        break
      try:
        names |= dict.fromkeys(jsonl.parse(line))
      except ValueError:
        continue
  finally:
    stream.close()
  return list(names)


def check_readable(files: Iterable[InputFile], spec: InputSpec) -> None:
  """Raises a ValueError that lists files that cannot be opened or lack the text."""
  wrong = []
  for file in files:
    try:
      if file.format == "jsonl" and _is_array(file):
        wrong.append(f"{file.source}: one JSON array; accepted: one JSON object a line")
        continue
      names = columns(file, spec)
      wanted = filter(None, [spec.text_column, spec.domain_column])
      wrong += [
        f"{file.source}: no field {name!r} in its first records"
        + problems.suggestion(name, names)
        for name in wanted
        if names and name not in names
      ]
    except OSError as error:
      wrong.append(f"{file.source}: cannot be read: {error.strerror or error}")
    except ValueError as error:
      wrong.append(f"{file.source}: {error}")
  problems.raise_all(wrong, "input")


def _is_array(file: InputFile) -> bool:
  stream = streams.ByteStream(file.path, file.compression)
  try:
    start = stream.read().lstrip()
  except ValueError:  # damaged from the start; its reader says so
    return False
  finally:
    stream.close()
  return start.startswith(b"[") and start[1:].lstrip()[:1] in (b"{", b"")
