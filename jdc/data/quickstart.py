"""A corpus of several domains from text that every Python installation already holds."""

import ast
import gzip
import hashlib
import importlib
import json
import platform
import re
import shutil
import sysconfig
import uuid
import warnings
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

_VALIDATION_FRACTION = 0.1
_MIN_DOCUMENTS = 2
_MODULE_BYTES = (1_000, 60_000)
_SKIPPED_FOLDERS = {
  "__pycache__",
  "dist-packages",
  "encodings",  # tables
  "idle_test",
  "lib2to3",
  "pydoc_data",  # the domain `reference`
  "site-packages",
  "test",
  "tests",
}
_MIN_NEW = 0.5  # of a text, in characters
_PARAGRAPH = 80  # characters; shorter ones, such as headings, may recur
_DOMAINS = ("docstrings", "licences", "python", "readmes", "reference")
_LICENCE = re.compile(r"(LICEN[CS]E|COPYING|COPYRIGHT|AUTHORS|NOTICE)", re.IGNORECASE)


class _Text(NamedTuple):
  id: str  # of the file it comes from, relative to its installation
  text: str


def write_corpus(folder: str | Path) -> None:
  """Writes the quickstart corpus, a folder of domains as `find_domains` reads them.

  | domain | what | kB of training and validation text |
  |---|---|---|
  | docstrings | docstrings of the standard library, a module each | 959 + 107 |
  | licences | licence, notice and author files of installed packages | 225 + 25 |
  | python | standard-library modules without docstrings and comments | 3,373 + 375 |
  | readmes | descriptions of installed packages | 710 + 79 |
  | reference | topics of the language reference (`pydoc_data`) | 298 + 33 |

  The sizes are those of CPython 3.11 with 100 packages installed; tests and tables of the
  standard library are left out.

  Texts are split by file, in the order of a hash of their relative names, until validation
  has a tenth of the domain's characters. No paragraph of more than a line stands in two texts
  of a domain. One installation always gives the same bytes.

  Does nothing where the folder already holds the corpus. It is written under another name and
  renamed, so that an interrupted call leaves none.

  Args:
    folder: gets `NAME.train.jsonl.gz` and `NAME.val.jsonl.gz` of each domain; the records have
      the fields `id` and `text`.

  Raises:
    ValueError: if the folder holds something else, or if the installation has fewer than two
      files for a domain (all such domains are listed).
  """
  folder = Path(folder)
  if _is_complete(folder):
    return
  if folder.exists() and any(folder.iterdir()):
    raise ValueError(f"{folder}: holds other files than the quickstart corpus; name a new one")
  texts = _read_domains()
  problems = [
    f"domain {name!r}: this Python installation has {len(found)} texts for it, at least "
    f"{_MIN_DOCUMENTS} are needed"
    for name, found in texts.items()
    if len(found) < _MIN_DOCUMENTS
  ]
  if problems:
    raise ValueError("\n".join(problems))
  folder.parent.mkdir(parents=True, exist_ok=True)
  temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
  temporary.mkdir()
  try:
    for name, found in texts.items():
      _write_domain(temporary, name, found)
    try:
      temporary.rename(folder)
    except OSError:
      if not _is_complete(folder):  # else another process was first
        raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def installation() -> str:
  """Returns 16 hex digits that name what the corpus is made of.

  They are a hash of the Python version and of the names and versions of the installed
  distributions, jdc aside, so that a folder of that name holds one installation's corpus.
  """
  versions = [(n, d.metadata["Version"] or "") for n, d in _distributions().items()]
  return _digest(json.dumps([platform.python_version(), sorted(versions)])).hex()


def _read_domains() -> dict[str, list[_Text]]:
  found = {"licences": _licences(), "readmes": _readmes(), "reference": _reference()}
  everything = {**_library(), **found}
  return {name: _distinct(everything[name]) for name in _DOMAINS}


def _is_complete(folder: Path) -> bool:
  return all((folder / name).is_file() for domain in _DOMAINS for name in _file_names(domain))


def _file_names(domain: str) -> tuple[str, str]:
  return f"{domain}.train.jsonl.gz", f"{domain}.val.jsonl.gz"


def _write_domain(folder: Path, name: str, texts: list[_Text]) -> None:
  held_out = _held_out(texts)
  train = [text for text in texts if text.id not in held_out]
  validation = [text for text in texts if text.id in held_out]
  for file_name, split in zip(_file_names(name), (train, validation), strict=True):
    lines = "".join(json.dumps(text._asdict(), ensure_ascii=False) + "\n" for text in split)
    # Neither a time nor a file name goes into the header: the bytes depend on the texts only.
    (folder / file_name).write_bytes(gzip.compress(lines.encode("utf-8"), mtime=0))


def _held_out(texts: list[_Text]) -> set[str]:
  """Returns the ids of the texts for validation: by hash, as long as they fit the share."""
  room = _VALIDATION_FRACTION * sum(len(text.text) for text in texts)
  held_out: set[str] = set()
  for text in sorted(texts, key=lambda text: _digest(text.id)):
    if len(text.text) <= room:
      room -= len(text.text)
      held_out.add(text.id)
  return held_out or {min(texts, key=lambda text: len(text.text)).id}


def _distinct(texts: Iterable[_Text]) -> list[_Text]:
  """Returns the texts without the paragraphs that shorter ones have, sorted by id.

  Licences quote each other and reference topics contain other topics, but a validation text
  must not be one that was trained on. A text that is mostly known is left out.
  """
  kept: list[_Text] = []
  seen: set[str] = set()
  for text in sorted(texts, key=lambda text: (len(text.text), text.id)):
    paragraphs = [(p, " ".join(p.split())) for p in text.text.split("\n\n")]
    new = [original for original, words in paragraphs if words not in seen]
    size = sum(map(len, new))
    if size and size >= _MIN_NEW * len(text.text):
      kept.append(text._replace(text="\n\n".join(new)))
      seen.update(words for _, words in paragraphs if len(words) >= _PARAGRAPH)
  return sorted(kept)


def _digest(name: str) -> bytes:
  return hashlib.blake2b(name.encode("utf-8"), digest_size=8).digest()


def _modules() -> Iterator[tuple[str, ast.Module]]:
  """Yields the standard library's modules of moderate size, with their relative names."""
  library = Path(sysconfig.get_path("stdlib"))
  for path in sorted(library.rglob("*.py")):
    relative = path.relative_to(library)
    generated = relative.name.startswith("_sysconfigdata")
    if generated or _SKIPPED_FOLDERS & {*relative.parts}:
      continue
    if _MODULE_BYTES[0] <= path.stat().st_size <= _MODULE_BYTES[1]:
      with warnings.catch_warnings():  # where warnings are errors, the corpus is the same
        warnings.simplefilter("ignore")
        yield relative.as_posix(), ast.parse(path.read_bytes())


def _documented(module: ast.Module) -> Iterator[tuple[Any, ast.Expr]]:
  """Yields every module, class and function that has a docstring, with that statement."""
  for node in ast.walk(module):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
      match node.body[:1]:
        case [ast.Expr(value=ast.Constant(value=str())) as first]:
          yield node, first


def _library() -> dict[str, list[_Text]]:
  """Returns the standard library's code without docstrings, and the docstrings."""
  code, docstrings = [], []
  for name, module in _modules():
    found = list(_documented(module))
    texts = [ast.get_docstring(node) or "" for node, _ in found]
    for node, docstring in found:
      node.body.remove(docstring)
      if not node.body and not isinstance(node, ast.Module):
        node.body.append(ast.Pass())
    code.append(_Text(name, ast.unparse(module)))
    docstrings.append(_Text(name, "\n\n".join(text for text in texts if text)))
  return {"python": code, "docstrings": docstrings}


def _reference() -> Iterator[_Text]:
  try:
    topics = importlib.import_module("pydoc_data.topics").topics
  except ModuleNotFoundError:  # some systems package it apart: the domain is empty
    return
  for name, text in topics.items():
    yield _Text(name, text)


def _distributions() -> dict[str, metadata.Distribution]:
  """Returns the installed distributions by name, jdc aside: its own README changes."""
  found: dict[str, metadata.Distribution] = {}
  for distribution in metadata.distributions():
    message = distribution.metadata
    name = re.sub(r"[-_.]+", "-", (message and message["Name"]) or "").lower()
    if name and name != "jdc":
      found.setdefault(name, distribution)
  return dict(sorted(found.items()))


def _readmes() -> Iterator[_Text]:
  for name, distribution in _distributions().items():
    message: Any = distribution.metadata  # an email.message.Message: the text is its body
    yield _Text(name, message.get_payload() or message["Description"] or "")


def _licences() -> Iterator[_Text]:
  library = Path(sysconfig.get_path("stdlib"))
  for path in (library / "LICENSE.txt", Path("/usr/share/doc/python3/copyright")):
    if path.is_file():
      yield _Text("python", path.read_text(encoding="utf-8"))
  for name, distribution in _distributions().items():
    for file in distribution.files or []:
      if ".dist-info" in file.parts[0] and _LICENCE.match(file.name):
        path = Path(str(distribution.locate_file(file)))
        if path.is_file():
          yield _Text(f"{name}/{'/'.join(file.parts[1:])}", path.read_text("utf-8", "replace"))
