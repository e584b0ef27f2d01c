"""Embeddings of a sentence-transformers model, an optional package."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jdc.data.formats import import_extra


def embed(texts: Sequence[str], name: str, batch_size: int = 8) -> np.ndarray:
  """Returns the embeddings of texts, f32[n, D]; zeros for empty ones.

  Args:
    texts: n documents.
    name: a folder, or a model of the Hugging Face Hub.
    batch_size: texts in one call.

  Raises:
    ImportError: if the package `sentence_transformers` is not installed.
  """
  found = _open(name).encode(list(texts), batch_size=batch_size, show_progress_bar=False)
  out = np.array(found, np.float32).reshape(len(texts), -1)
  out[[n for n, text in enumerate(texts) if not text.strip()]] = 0
  return out


@functools.lru_cache(maxsize=1)
def _open(name: str) -> Any:
  package = import_extra("sentence_transformers", "embeddings")
  return package.SentenceTransformer(name)
