"""Removes documents whose text another document has, as it is or but for case and spacing."""

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from jdc.prep.duplicates import Duplicates
from jdc.prep.kernels import bands
from jdc.prep.kernels.hashes import composed, fold_table
from jdc.prep.kernels.hashes_normal import normal_text
from jdc.prep.text.buffers import to_buffers

KEY_BYTES = 16


def keys(text: pa.StringArray, *, normalize: bool = True) -> np.ndarray:
  """Returns a 128-bit BLAKE2b hash of each text, u8[n, 16].

  Two of N different texts share a key with a probability below N^2 / 2^129, so that equal keys
  count as equal texts. A key takes 16 bytes of memory until all documents have been read.

  Args:
    text: n documents.
    normalize: hash the text in Unicode's normal form C, case-folded (one code point for one),
      with a space for each run of white space and none at the ends.

  Raises:
    ValueError: if `text` is no array of strings, or has nulls.

  Example:
    >>> one, two, three = keys(pa.array(["A fig,\\n  ripe", "a FIG, ripe ", "a fig ripe"]))
    >>> bool(np.all(one == two)), bool(np.all(one == three))
    (True, False)
  """
  if normalize:
    offsets, data = normal_text(*composed(text), fold_table())
  else:
    offsets, data = to_buffers(text)
  view, ends = data.data, offsets.tolist()
  digests = [
    hashlib.blake2b(view[start:end], digest_size=KEY_BYTES).digest()
    for start, end in itertools.pairwise(ends)
  ]
  return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, KEY_BYTES)


def decide(
  tables: Sequence[np.ndarray], *, doc_ids: Sequence[np.ndarray] | None = None
) -> Duplicates:
  """Returns which rows have the key of one that takes precedence.

  Args:
    tables: keys of all documents, in parts u8[., 16].
    doc_ids: ids of the same, in the same parts u8[., 16]: of equal texts that of the least id
      stays, whatever the order of the parts. None: the first in the input stays.

  Returns:
    Rows counted over all parts; neighbours are the rows kept, of similarity 1.

  Raises:
    ValueError: if tables or ids have other shapes.

  Example:
    >>> decide([keys(pa.array(["b", "a", "B", "b"]))]).kept.tolist()
    [0, 0]
  """
  check_tables("tables", tables, KEY_BYTES)
  check_ids(doc_ids, [len(table) for table in tables])
  halves = [np.ascontiguousarray(table).view("<u8") for table in tables]
  both = np.concatenate([np.zeros((0, 2), np.uint64), *halves])
  rows, group = bands.shared(both[:, 0])
  order = np.argsort(rows)  # `precedence` takes rows in ascending order
  place = np.empty(len(rows), np.int64)
  place[order[bands.precedence(rows[order], doc_ids)]] = np.arange(len(rows))
  rest = both[rows, 1]
  order = np.lexsort((place, rest, group))
  rows, group, rest = rows[order], group[order], rest[order]
  new = (np.diff(group, prepend=-1) != 0) | np.concatenate(
    [np.ones(min(len(rest), 1), bool), rest[1:] != rest[:-1]]
  )
  kept = rows[np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))]
  gone = np.flatnonzero(~new)
  gone = gone[np.argsort(rows[gone])]
  return Duplicates(rows[gone], kept[gone], kept[gone], np.ones(len(gone)))


def check_tables(name: str, tables: Sequence[np.ndarray], width: int) -> None:
  """Raises ValueError unless all parts are u8[., width]."""
  bad = [
    f"{name}[{i}] is {table.dtype}{list(table.shape)}"
    for i, table in enumerate(tables)
    if table.dtype != np.uint8 or table.ndim != 2 or table.shape[1] != width
  ]
  if bad:
    raise ValueError(f"{name} must be uint8[., {width}]: {', '.join(bad)}")


def check_ids(doc_ids: Sequence[np.ndarray] | None, lengths: Sequence[int]) -> None:
  """Raises ValueError unless there are no ids, or one for each row of each part."""
  if doc_ids is None:
    return
  check_tables("doc_ids", doc_ids, 16)
  if [len(part) for part in doc_ids] != list(lengths):
    raise ValueError(
      f"doc_ids must have the lengths of the tables, {list(lengths)}, "
      f"got {[len(part) for part in doc_ids]}"
    )
