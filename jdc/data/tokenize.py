"""Tokenizers: bytes, and any Hugging Face tokenizer file."""

import difflib
import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jdc.data.byte_level import token_widths
from jdc.data.formats import import_extra

Encoded = tuple[np.ndarray, np.ndarray]  # ids i32[n], byte starts i32[n]
# Ids i32[n], and the byte starts of some tokens, given in rising order.
Marked = tuple[np.ndarray, Callable[[Sequence[int]], list[int]]]


class Tokenizer(NamedTuple):
  """Functions between text and token ids.

  `encode` returns (ids i32[n], byte_starts i32[n]). Token j covers the UTF-8 bytes of the text
  from byte_starts[j] up to the start of the next token; byte_starts[0] = 0 and the last token
  ends with the text, so that the tokens share out every byte. Names of special tokens in a
  text are text: no document can hold a boundary token. `decode` leaves special tokens out.
  `mark_batch` is `encode_batch` for who needs few of the byte starts: it computes those asked
  for. Of a character that several tokens make up, the last has all bytes, but that under
  byte-level BPE `mark_batch` gives each its own.
  """

  encode: Callable[[str], Encoded]
  encode_batch: Callable[[Sequence[str]], list[Encoded]]
  decode: Callable[[Sequence[int] | np.ndarray], str]
  vocab_size: int  # ids are below it
  bos_id: int | None
  eos_id: int | None
  fingerprint: str  # of everything that decides the ids
  mark_batch: Callable[[Sequence[str]], list[Marked]]


def byte_tokenizer() -> Tokenizer:
  r"""Returns the tokenizer whose tokens are the UTF-8 bytes, then BOS = 256 and EOS = 257.

  `decode` gives back the text exactly; bytes that are not valid UTF-8 come out as \xNN.

  Example:
    >>> tokenizer = byte_tokenizer()
    >>> ids, byte_starts = tokenizer.encode("né")
    >>> ids.tolist(), byte_starts.tolist()
    ([110, 195, 169], [0, 1, 2])
    >>> tokenizer.decode(ids)
    'né'
  """

  def encode(text: str) -> Encoded:
    ids = np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)
    return ids, np.arange(len(ids), dtype=np.int32)

  def encode_batch(texts: Sequence[str]) -> list[Encoded]:
    return [encode(text) for text in texts]

  def mark_batch(texts: Sequence[str]) -> list[Marked]:
    return [(encode(text)[0], list) for text in texts]

  def decode(ids: Sequence[int] | np.ndarray) -> str:
    ids = checked_ids(ids, 258)
    return ids[ids < 256].astype(np.uint8).tobytes().decode("utf-8", "backslashreplace")

  return Tokenizer(encode, encode_batch, decode, 258, 256, 257, "bytes-256-257", mark_batch)


def from_file(
  path: str | Path, bos_token: str | None = None, eos_token: str | None = None
) -> Tokenizer:
  """Opens a Hugging Face `tokenizer.json`; needs the extra `tokenizers`.

  Truncation, padding and special tokens that the file would add are switched off: text is
  tokenized whole, and boundary tokens are those named here.

  Args:
    path: the file.
    bos_token: the token that starts a document, such as "<s>"; none where `None`.
    eos_token: the token that ends a document.

  Raises:
    ValueError: if the file is missing or no tokenizer file, or if a token is not in its
      vocabulary (near ones are listed).
    ImportError: if the package `tokenizers` is not installed.
  """
  tokenizers = import_extra("tokenizers", "tokenizers")
  path = Path(path)
  if not path.is_file():
    raise ValueError(f"{path}: no such tokenizer file")
  content = path.read_bytes()
  try:
    model = tokenizers.Tokenizer.from_buffer(content)
  except Exception as error:  # the library raises no narrower type
    raise ValueError(f"{path}: not a Hugging Face tokenizer.json: {error}") from error
  vocabulary = model.get_vocab(with_added_tokens=True)
  added = model.get_added_tokens_decoder().values()
  special = sorted(token.content for token in added if token.special)
  names = {"bos_token": bos_token, "eos_token": eos_token}
  problems = [
    f"{path}: {field} {token!r} is not in the vocabulary; near: {_near(token, vocabulary)}; "
    f"special tokens: {special}"
    for field, token in names.items()
    if token is not None and token not in vocabulary
  ]
  if problems:
    raise ValueError("\n".join(problems))
  model.no_truncation()
  model.no_padding()
  model.post_processor = None  # it would also cut spaces off the offsets
  model.encode_special_tokens = True
  vocab_size = max(vocabulary.values()) + 1
  widths = token_widths(model, vocabulary)

  def encode_batch(texts: Sequence[str]) -> list[Encoded]:
    encodings = model.encode_batch(list(texts), add_special_tokens=False)
    return [encoded(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]

  def mark_batch(texts: Sequence[str]) -> list[Marked]:
    # Without offsets the library takes a fifth less time.
    encode_all = model.encode_batch if widths is None else model.encode_batch_fast
    encodings = encode_all(list(texts), add_special_tokens=False)
    if widths is None:
      return [marked(text, found) for text, found in zip(texts, encodings, strict=True)]
    again = lambda text: marked(text, model.encode(text, add_special_tokens=False))
    fits = zip(texts, _by_widths(encodings, widths), strict=True)
    return [
      (ids, starts) if size == len(text.encode("utf-8")) else again(text)
      for text, (ids, starts, size) in fits
    ]

  def encode(text: str) -> Encoded:
    return encoded(text, model.encode(text, add_special_tokens=False))

  def decode(ids: Sequence[int] | np.ndarray) -> str:
    return model.decode(checked_ids(ids, vocab_size).tolist())

  bos_id = None if bos_token is None else vocabulary[bos_token]
  eos_id = None if eos_token is None else vocabulary[eos_token]
  digest = hashlib.blake2b(content + f"|{bos_id}|{eos_id}".encode(), digest_size=16)
  return Tokenizer(
    encode, encode_batch, decode, vocab_size, bos_id, eos_id, digest.hexdigest(), mark_batch
  )


def boundary_tokens(folder: Path) -> dict[str, str]:
  """Returns `bos_token` and `eos_token` of a Hugging Face folder, those that it names."""
  path = folder / "tokenizer_config.json"
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    return {}
  except ValueError as error:
    raise ValueError(f"{path} is not JSON: {error}") from error
  found = {name: content.get(name) for name in ("bos_token", "eos_token")}
  return {
    name: token["content"] if isinstance(token, dict) else token
    for name, token in found.items()
    if token is not None
  }


def encoded(text: str, encoding: Any) -> Encoded:
  """Returns the ids and byte starts of an encoding of the package `tokenizers`."""
  ids = np.array(encoding.ids, np.int32)
  if not len(ids):
    return ids, ids
  starts = np.array(encoding.offsets, np.int64)[:, 0]
  starts[0] = 0  # what the tokenizer drops before the first token counts for that token
  if not text.isascii():
    starts = char_byte_starts(text)[starts]
  return ids, np.maximum.accumulate(starts).astype(np.int32)


def marked(text: str, encoding: Any) -> Marked:
  """Returns the ids of an encoding of the package `tokenizers`, and what finds byte starts.

  They are those of `encoded`, but that only the tokens asked for are kept from going back.
  """

  def byte_starts(tokens: Sequence[int]) -> list[int]:
    found, char, byte = [], 0, 0
    for token in tokens:
      start = encoding.token_to_chars(token)[0] if token else 0
      if start > char:
        byte += len(text[char:start].encode("utf-8"))
        char = start
      found.append(byte)
    return found

  return _ids(encoding), byte_starts


def _ids(encoding: Any) -> np.ndarray:
  # Unsigned, which takes half the time of signed numbers and a third of a list's.
  return np.asarray(array("I", encoding.ids)).view(np.int32)


def _by_widths(
  encodings: Sequence[Any], widths: np.ndarray
) -> Iterator[tuple[np.ndarray, Callable[[Sequence[int]], list[int]], int]]:
  """Yields ids, what finds byte starts, and bytes, of tokens of `widths[id]` bytes each."""
  parts = [_ids(encoding) for encoding in encodings]
  ends = np.cumsum(widths[np.concatenate(parts)]) if parts else np.zeros(0, np.int64)
  first = before = 0  # tokens of the texts before, and their bytes
  for ids in parts:
    here = ends[first : first + len(ids)]
    last = int(here[-1]) if len(ids) else before
    yield ids, _starts(here, before), last - before
    first, before = first + len(ids), last


def _starts(ends: np.ndarray, before: int) -> Callable[[Sequence[int]], list[int]]:
  return lambda tokens: [int(ends[token - 1]) - before if token else 0 for token in tokens]


def char_byte_starts(text: str) -> np.ndarray:
  """Returns the byte offset of every character, and the number of bytes at the end."""
  chars = np.frombuffer(text.encode("utf-32-le"), np.uint32)
  num_bytes = 1 + (chars >= 0x80).astype(np.int64) + (chars >= 0x800) + (chars >= 0x10000)
  return np.concatenate([[0], np.cumsum(num_bytes)])


def checked_ids(ids: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
  """Returns the ids as i64[n]; ValueError where one is not in the vocabulary."""
  ids = np.asarray(ids, np.int64).reshape(-1)
  if bad := sorted({*ids[(ids < 0) | (ids >= vocab_size)].tolist()}):
    raise ValueError(f"token ids must be in [0, {vocab_size}), got {bad[:10]}")
  return ids


def _near(token: str, vocabulary: dict[str, int]) -> list[str]:
  folded = {name.lower(): name for name in vocabulary}
  close = difflib.get_close_matches(token.lower(), folded, n=5, cutoff=0.5)
  return [folded[name] for name in close]
