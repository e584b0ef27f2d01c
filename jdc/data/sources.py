"""Raw text sources: documents, one at a time or by random access, with their place."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import grain

from jdc.data import formats, random_access
from jdc.data.domains import DomainFiles as DomainFiles
from jdc.data.domains import find_domains as find_domains

OnBadRecord = Literal["error", "quarantine"]
T = TypeVar("T")


class Document(NamedTuple):
  """A text, and where it stands: "file:line" or "file[index]"."""

  text: str
  where: str


@dataclasses.dataclass
class ReadReport:
  """Counts of one pass over sources, filled while the documents are read."""

  num_documents: int = 0
  num_bad_records: int = 0


def read_documents(
  paths: Iterable[str | Path],
  text_field: str = "text",
  on_bad_record: OnBadRecord = "error",
  quarantine: str | Path | None = None,
  report: ReadReport | None = None,
) -> Iterator[Document]:
  """Reads documents one at a time, in the order of the sources.

  The format follows from the file name: `.jsonl` or `.json` (one JSON object a line, blank
  lines hold no record; a `.json` file that begins with "[" is one array of objects, read
  whole) and `.txt` (one document a file), each also `.gz` or `.zst`; `.parquet`;
  `.array_record` or `.arrayrecord` (records are JSON objects in UTF-8). TFDS data sets that
  are prepared as ArrayRecord are named `tfds:NAME[:SPLIT]` or given as their folder (split
  train) or `tfds:FOLDER[:SPLIT]`; TensorFlow is not imported.

  A bad record is one that is not a JSON object in UTF-8, lacks `text_field`, holds something
  else than a string there, or an empty one; so is what follows a break in compressed data.

  Args:
    paths: files and TFDS sources.
    text_field: the field or column that holds the text.
    on_bad_record: "error" raises at the first bad record; "quarantine" appends it to the file
      `quarantine` as a JSON line with the fields `where`, `error` and `raw`, and goes on.
    quarantine: the file of bad records.
    report: counts documents and bad records.

  Returns:
    An iterator of documents.

  Raises:
    ValueError: at the call, if a path is missing, its suffix is not accepted or an option is
      wrong; while reading, at a bad record, or at a file of which nothing can be read.
    ImportError: if a format needs a package that is not installed.
  """

  def document(record: formats.Record) -> tuple[Document, str]:
    text, error = text_of(record, text_field)
    return Document(text, record.where), error

  accepted = f"a non-empty string {text_field!r} in UTF-8"
  return read_records(
    paths, document, accepted, text_field, on_bad_record, quarantine, report or ReadReport()
  )


def read_records(
  paths: Iterable[str | Path],
  parse: Callable[[formats.Record], tuple[T, str]],
  accepted: str,
  text_field: str | None,
  on_bad_record: OnBadRecord,
  quarantine: str | Path | None,
  report: ReadReport,
) -> Iterator[T]:
  """Reads what `parse` makes of each record: (value, "") or (anything, what is wrong).

  Args:
    paths: files and TFDS sources, as for `read_documents`.
    parse: is also given the records that have an error.
    accepted: says in an error what a good record is.
    text_field: the only field needed, `None` for all; a text file has no other.
    on_bad_record: as in `read_documents`.
    quarantine: as in `read_documents`.
    report: counts values and bad records.

  Raises:
    ValueError: as `read_documents`.
  """
  sources = [source_name(path) for path in paths]
  problems = [problem for source in sources if (problem := source_problem(source))]
  if not sources:
    problems.append("no files are given")
  if on_bad_record not in ("error", "quarantine"):
    problems.append(f"on_bad_record must be 'error' or 'quarantine', got {on_bad_record!r}")
  if on_bad_record == "quarantine" and quarantine is None:
    problems.append("on_bad_record='quarantine' needs a quarantine file, got None")
  if problems:
    raise ValueError("\n".join(problems))
  aside = Path(quarantine) if quarantine and on_bad_record == "quarantine" else None
  return _parsed(sources, parse, accepted, text_field, aside, report)


def source_name(path: str | Path) -> str:
  """Returns the name under which a source is read: a prepared TFDS folder's split is train."""
  if Path(path, "dataset_info.json").is_file():
    return f"{formats.TFDS}{path}:train"
  return str(path)


def source_problem(source: str) -> str:
  """Returns what keeps a source from being opened, "" where nothing does."""
  if source.startswith(formats.TFDS):
    return ""
  if not Path(source).is_file():
    return f"{source}: no such file"
  if formats.parse_name(Path(source).name) is None:
    return f"{source}: unknown suffix; accepted: {formats.ACCEPTED}"
  return ""


def text_of(record: formats.Record, text_field: str) -> tuple[str, str]:
  """Returns (text, "") of a good record and ("", what is wrong) of a bad one."""
  if record.error:
    return "", record.error
  if text_field not in record.fields:
    return "", f"field {text_field!r} is absent; fields present: {sorted(record.fields)}"
  text = record.fields[text_field]
  try:
    if isinstance(text, bytes):
      text = text.decode("utf-8")
    if not isinstance(text, str):
      return "", f"field {text_field!r} is of type {type(text).__name__}, not a string"
    text.encode("utf-8")
  except UnicodeError as error:
    return "", f"field {text_field!r} is not valid Unicode: {error}"
  return text, "" if text else f"field {text_field!r} is empty"


def open_source(path: str | Path, text_field: str = "text") -> grain.MapDataset[Document]:
  """Opens a source for random access: uncompressed JSONL, Parquet, ArrayRecord or TFDS.

  JSONL is read through once to find where its lines start. A bad record raises when it is
  asked for.

  Args:
    path: a file, a prepared TFDS folder or `tfds:NAME[:SPLIT]`.
    text_field: the field or column that holds the text.

  Returns:
    A dataset of documents.

  Raises:
    ValueError: if the path is missing or its format has no random access.
  """
  source = source_name(path)
  if problem := source_problem(source):
    raise ValueError(problem)

  def document(record: formats.Record) -> Document:
    text, error = text_of(record, text_field)
    if error:
      raise ValueError(f"{record.where}: {error}")
    return Document(text, record.where)

  return grain.MapDataset.source(random_access.open_records(source, text_field)).map(document)


def _parsed(
  sources: list[str],
  parse: Callable[[formats.Record], tuple[T, str]],
  accepted: str,
  text_field: str | None,
  quarantine: Path | None,
  report: ReadReport,
) -> Iterator[T]:
  for source in sources:
    for record in formats.records(source, text_field):
      value, error = parse(record)
      if not error:
        report.num_documents += 1
        yield value
        continue
      if quarantine is None:
        raise ValueError(
          f"{record.where}: {error}; accepted: {accepted}, or on_bad_record='quarantine'"
        )
      set_aside(quarantine, record.where, error, record.raw)
      report.num_bad_records += 1


def set_aside(quarantine: Path, where: str, error: str, raw: Any) -> None:
  """Appends a bad record to the quarantine file."""
  with open(quarantine, "a", encoding="utf-8") as file:
    file.write(json.dumps({"where": where, "error": error, "raw": _printable(raw)}) + "\n")


def _printable(raw: Any) -> str:
  if isinstance(raw, bytes):
    return raw.decode("utf-8", "backslashreplace")
  return raw if isinstance(raw, str) else repr(raw)
