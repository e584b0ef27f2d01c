"""A set of texts that neither the preparation nor the training may read."""

import gzip
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jdc.data import domains, formats

_MARKS = re.compile(r"[\W_]+")


class Text(NamedTuple):
  """One document of the set."""

  domain: str  # the name of its file
  text: str


def text_hash(text: str) -> str:
  """Returns a hash of the letters and digits of a text, whatever its case and spacing.

  Example:
    >>> text_hash("It's a test.") == text_hash("its  A TEST") != text_hash("its a text")
    True
  """
  plain = _MARKS.sub("", unicodedata.normalize("NFKC", text).casefold())
  return hashlib.blake2b(plain.encode(), digest_size=16).hexdigest()


class HeldOut:
  """The texts of a folder: `NAME.jsonl` or `.jsonl.gz`, one record with a `text` a line.

  Args:
    folder: holds nothing else.

  Raises:
    ValueError: if there is no such file, or one cannot be read; all are named.
  """

  def __init__(self, folder: str | Path):
    self.folder = Path(folder).expanduser().resolve()
    files = sorted([*self.folder.glob("*.jsonl"), *self.folder.glob("*.jsonl.gz")])
    if not files:
      raise ValueError(f"held-out set: {folder} holds no *.jsonl or *.jsonl.gz")
    self.texts = [text for path in files for text in _read(path)]
    digest = hashlib.sha256(json.dumps(self.texts).encode())
    self.fingerprint = digest.hexdigest()

  def refuse_paths(self, paths: Mapping[str, Any]) -> None:
    """Raises a ValueError that names what lies in the folder, or is one that it lies in.

    Args:
      paths: by what they are for; values that are no paths of existing files are passed over.
    """
    wrong = []
    for name, value in paths.items():
      for path in [value] if isinstance(value, str | Path) else list(value):
        if not str(path) or not os.path.exists(path):
          continue
        real = Path(path).resolve()
        if real == self.folder or self.folder in real.parents or real in self.folder.parents:
          wrong.append(f"{name}={str(path)!r}")
    if wrong:
      raise ValueError(
        f"{self.folder} is held out: {', '.join(wrong)} must not be read by the preparation or "
        "the training"
      )

  def refuse_copies(self, name: str, folder: str | Path, text_field: str) -> None:
    """Raises a ValueError that names records with texts of the set, in a folder of tasks.

    Args:
      name: of the field that names the folder.
      folder: a file a task, in any format that training reads.
      text_field: of their records; a record without a text there is passed over.
    """
    known = {text_hash(text.text) for text in self.texts}
    found = [
      record.where
      for task in domains.find_tasks(Path(folder).expanduser()).values()
      for source in task.train
      for record in formats.records(str(source), text_field)
      if text_hash(_plain(record.fields.get(text_field))) in known
    ]
    if found:
      raise ValueError(
        f"{name}={str(folder)!r}: {len(found)} texts of the held-out set, in "
        f"{', '.join(found[:5])}: they must not be read by the preparation or the training"
      )

  def write_hashes(self, path: Path) -> None:
    """Writes the hashes of the texts, for the operator `refuse_texts`."""
    hashes = sorted({text_hash(text.text) for text in self.texts})
    path.write_text("\n".join(hashes) + "\n", encoding="ascii")

  def holds(self, texts: Iterable[str]) -> list[int]:
    """Returns the places of texts that are in the set."""
    known = {text_hash(text.text) for text in self.texts}
    return [i for i, text in enumerate(texts) if text_hash(text) in known]


def _plain(value: Any) -> str:
  return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def _read(path: Path) -> list[Text]:
  name, content = path.name.partition(".")[0], path.read_bytes()
  if path.suffix == ".gz":
    content = gzip.decompress(content)
  found = []
  for number, line in enumerate(content.decode("utf-8").split("\n"), start=1):
    if not line.strip():
      continue
    try:
      found.append(Text(name, str(json.loads(line)["text"])))
    except (ValueError, KeyError, TypeError) as error:
      raise ValueError(f"{path}:{number}: no record with a text: {error}") from error
  return found
