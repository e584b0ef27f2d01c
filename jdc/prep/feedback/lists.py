"""Lists of documents to drop: a line for each, its id in hexadecimal, a tab, a reason."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

_LINE = re.compile(r"([0-9a-f]{32})\t([a-z][a-z0-9_]*)")


def read(path: str | Path) -> dict[str, str]:
  """Returns the reason of each document of a list, by id.

  Raises:
    ValueError: naming the lines that are none of a list, and documents that stand there twice.
  """
  found: dict[str, str] = {}
  wrong: list[str] = []
  lines = Path(path).read_text(encoding="utf-8").splitlines()
  for number, line in enumerate(lines, start=1):
    match = _LINE.fullmatch(line)
    if line.startswith("#") or not line:
      continue
    if match is None:
      wrong.append(f"line {number}: {line[:60]!r} is no id, tab and reason")
    elif match[1] in found:
      wrong.append(f"line {number}: {match[1]} is listed twice")
    else:
      found[match[1]] = match[2]
  if wrong:
    raise ValueError(f"{path}: " + "; ".join(wrong[:10]))
  return found


def write(path: Path, reasons: Mapping[str, str], comment: str) -> str:
  """Writes a list, sorted by id, at once; returns the SHA-256 of the file.

  Args:
    path: of the file.
    reasons: by id.
    comment: what the list is, a line.
  """
  lines = [f"# {comment}", *(f"{doc}\t{reason}" for doc, reason in sorted(reasons.items()))]
  content = ("\n".join(lines) + "\n").encode()
  partial = path.with_name(f".{path.name}.partial")
  partial.write_bytes(content)
  os.replace(partial, path)
  return hashlib.sha256(content).hexdigest()
