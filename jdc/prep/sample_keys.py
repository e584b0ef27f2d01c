"""What samples of documents are decided by: their sizes, and numbers made of their ids."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jdc.data.tokenize import Tokenizer

UNITS = ("tokens", "words", "bytes")
# Scripts without spaces, of which every character is a word.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = rf"[{_UNSPACED}]|[^\s\p{{Z}}{_UNSPACED}]+"
_TEXTS = 512  # tokenized in one call


class Keys(NamedTuple):
  """What a mixture is decided by, of n documents; 16 bytes each beside the domain's name."""

  unit: str  # of the sizes
  seed: int
  number: np.ndarray  # u64[n], see `numbers`
  size: np.ndarray  # i64[n], in the unit
  domain: np.ndarray  # i32[n], place in `domains`
  domains: tuple[str, ...]

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns the table as arrays; `from_arrays` makes it of them."""
    names = np.array([name.encode() for name in self.domains], "S")
    return {"number": self.number, "size": self.size, "domain": self.domain, "domains": names}


def hash64(content: bytes, seed: int) -> int:
  """Returns blake2b(content) with the seed as its key, an integer in [0, 2^64).

  Example:
    >>> hash64(b"abc", 0) == hash64(b"abc", 0) != hash64(b"abc", 1)
    True
  """
  key = seed.to_bytes(8, "little")
  return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=key).digest(), "little")


def numbers(doc_ids: pa.Array, seed: int) -> np.ndarray:
  """Returns for each document u64[n], uniform in [0, 2^64): 2^64 times its number in [0, 1).

  Raises:
    ValueError: if the seed is not in [0, 2^64).
  """
  if not 0 <= seed < 1 << 64:
    raise ValueError(f"seed must be in [0, 2^64), got {seed}")
  ids = doc_ids.to_pylist()
  return np.fromiter((hash64(doc_id, seed) for doc_id in ids), np.uint64, len(ids))


def sizes(text: pa.Array, unit: str, tokenizer: Tokenizer | None = None) -> np.ndarray:
  """Measures texts, i64[n].

  "tokens" are those of the tokenizer, without boundary tokens; "words" are runs of what is no
  white space, where each character of Chinese, Japanese kana, Thai, Lao, Khmer and Burmese is a
  word; "bytes" are those of UTF-8.

  Raises:
    ValueError: if the unit is none of these, or the tokenizer is missing or not used.

  Example:
    >>> sizes(pa.array(["two words", "四个字呢", "é"]), "words").tolist()
    [2, 4, 1]
  """
  if unit not in UNITS or (unit == "tokens") != (tokenizer is not None):
    raise ValueError(
      f"unit must be one of {', '.join(UNITS)}, with a tokenizer for tokens and only then, got "
      f"{unit!r} with{'' if tokenizer else 'out'} one"
    )
  if unit == "bytes":
    return pc.binary_length(text).to_numpy(zero_copy_only=False).astype(np.int64)
  if tokenizer is None:
    found = pc.count_substring_regex(text, _WORD)
    return found.to_numpy(zero_copy_only=False).astype(np.int64)
  lengths = [
    len(ids)
    for start in range(0, len(text), _TEXTS)
    for ids, _ in tokenizer.mark_batch(text.slice(start, _TEXTS).to_pylist())
  ]
  return np.array(lengths, np.int64)


def keys(
  batch: pa.RecordBatch, unit: str, seed: int = 0, tokenizer: Tokenizer | None = None
) -> Keys:
  """Returns what a mixture needs to know of the documents of a batch.

  Args:
    batch: with the columns `doc_id`, `domain` and `text`.
    unit: as of `sizes`.
    seed: of the numbers, in [0, 2^64).
    tokenizer: for the unit "tokens".
  """
  domain = batch.column("domain").dictionary_encode()
  return Keys(
    unit,
    seed,
    numbers(batch.column("doc_id"), seed),
    sizes(batch.column("text"), unit, tokenizer),
    domain.indices.to_numpy(zero_copy_only=False).astype(np.int32),
    tuple(domain.dictionary.to_pylist()),
  )


def from_arrays(arrays: Mapping[str, np.ndarray], unit: str, seed: int) -> Keys:
  """Returns the table that `Keys.arrays` turned into arrays."""
  names = tuple(name.decode() for name in arrays["domains"].tolist())
  return Keys(unit, seed, arrays["number"], arrays["size"], arrays["domain"], names)


def join(tables: Sequence[Keys]) -> Keys:
  """Returns one table of several.

  Raises:
    ValueError: if they have different units or seeds, or there are none.
  """
  made = sorted({(table.unit, table.seed) for table in tables})
  if len(made) != 1:
    raise ValueError(f"tables must have one unit and one seed, got {made}")
  names = tuple(sorted({name for table in tables for name in table.domains}))
  place = {name: i for i, name in enumerate(names)}
  domains = [np.array([place[n] for n in t.domains], np.int32)[t.domain] for t in tables]
  return Keys(
    *made[0],
    np.concatenate([table.number for table in tables]),
    np.concatenate([table.size for table in tables]),
    np.concatenate(domains),
    names,
  )
