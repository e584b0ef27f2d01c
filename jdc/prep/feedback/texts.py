"""Texts of documents, put together from the rows of token shards."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jdc.data import token_shards, tokenize


def texts_of(folder: str | Path, doc_ids: Iterable[str]) -> dict[str, str]:
  """Returns what training read of documents, by id; those that are not there are left out.

  Args:
    folder: of token shards.
    doc_ids: in hexadecimal; of documents in the split that is trained on.
  """
  wanted = set(doc_ids)
  manifest = token_shards.read_manifest(folder)
  found: dict[str, dict[int, np.ndarray]] = {}
  for domain in token_shards.open_folder(folder).values():
    for row in range(len(domain.train)):
      pieces = domain.train.documents(row)
      if not any(piece.doc_id in wanted for piece in pieces):
        continue
      tokens, start = domain.train[row]["tokens"], 0
      for piece in pieces:
        if piece.doc_id in wanted:
          part = tokens[start : start + piece.length]
          found.setdefault(piece.doc_id, {})[piece.offset] = part
        start += piece.length
  own = tokenize.byte_tokenizer()
  if manifest.tokenizer.name != "bytes":
    own = tokenize.from_file(Path(folder) / token_shards.TOKENIZER)
  return {doc_id: own.decode(_joined(parts)) for doc_id, parts in found.items()}


def _joined(parts: dict[int, np.ndarray]) -> list[int]:
  """Puts pieces together, which overlap by a token."""
  ids: list[int] = []
  for offset in sorted(parts):
    ids[offset:] = parts[offset].tolist()
  return ids
