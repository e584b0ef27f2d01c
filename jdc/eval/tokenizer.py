"""The tokenizer of a checkpoint, with the boundary tokens that its own config asks for."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from jdc.data import tokenize
from jdc.data.formats import import_extra


class OwnTokenizer(NamedTuple):
  """A tokenizer as its checkpoint uses it."""

  # `bos_id` and `eos_id` are the tokens that it puts around a text by itself, if any.
  tokenizer: tokenize.Tokenizer
  stop_ids: tuple[int, ...]  # tokens that end a text in generation
  start_id: int | None  # BOS or else EOS, put there or not: what may stand before any text
  source: str  # the file, or "bytes"


def open_tokenizer(name: str, folder: str | Path | None = None) -> OwnTokenizer:
  """Opens the tokenizer of a checkpoint.

  Which tokens are put before and after a text is what the post-processor of tokenizer.json
  says, as in transformers 5, which does not read `add_bos_token` and `add_eos_token` of
  tokenizer_config.json where there is a tokenizer.json.

  Args:
    name: "bytes", for the UTF-8 bytes between BOS and EOS; a tokenizer.json, whose config lies
      beside it; "" for the tokenizer.json of `folder`.
    folder: the checkpoint.

  Raises:
    ValueError: if there is no such tokenizer, its config names a token that it does not have,
      or its post-processor adds more than one token on a side.
    ImportError: if the package `tokenizers` is not installed.
  """
  if name == "bytes":
    return of_training(tokenize.byte_tokenizer(), "bytes")
  path = Path(name) if name or folder is None else Path(folder, "tokenizer.json")
  if not path.is_file():
    raise ValueError(
      f"{path}: no such tokenizer file; give --tokenizer=bytes or the path of a tokenizer.json"
    )
  config = read_json(path.with_name("tokenizer_config.json"))
  named = tokenize.from_file(path, _token(config, "bos_token"), _token(config, "eos_token"))
  before, after = _boundaries(path)
  tokenizer = tokenize.from_file(path, bos_token=before, eos_token=after)
  ends = {*_generation_stops(path), *([] if named.eos_id is None else [named.eos_id])}
  start_id = named.eos_id if named.bos_id is None else named.bos_id
  start_id = start_id if tokenizer.bos_id is None else tokenizer.bos_id
  return OwnTokenizer(tokenizer, tuple(sorted(ends)), start_id, str(path))


def of_training(tokenizer: tokenize.Tokenizer, source: str) -> OwnTokenizer:
  """Returns a tokenizer that puts its BOS and EOS around a text, as rows for training have."""
  start_id = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
  stop_ids = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
  return OwnTokenizer(tokenizer, stop_ids, start_id, source)


def read_json(path: Path) -> dict[str, Any]:
  """Returns the object in a JSON file, {} where there is no such file."""
  if not path.is_file():
    return {}
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{path} is not JSON: {error}") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
  return content


def _boundaries(path: Path) -> tuple[str | None, str | None]:
  """Returns the tokens before and after a text, `None` for none."""
  tokenizers = import_extra("tokenizers", "tokenizers")
  model = tokenizers.Tokenizer.from_file(str(path))
  model.no_truncation()
  model.no_padding()
  encoding = model.encode("a", add_special_tokens=True)
  mask = encoding.special_tokens_mask
  text = [i for i, special in enumerate(mask) if not special]
  first, last = (text[0], text[-1] + 1) if text else (len(mask), len(mask))
  before, after = encoding.tokens[:first], encoding.tokens[last:]
  if len(before) > 1 or len(after) > 1:
    raise ValueError(
      f"{path}: puts {before} before a text and {after} after it; accepted: one token each"
    )
  return (before[0] if before else None), (after[0] if after else None)


def _generation_stops(path: Path) -> list[int]:
  """Returns the EOS ids of generation_config.json, or else of config.json."""
  for name in ("generation_config.json", "config.json"):
    ids = read_json(path.with_name(name)).get("eos_token_id")
    if ids is not None:
      return ids if isinstance(ids, list) else [ids]
  return []


def _token(config: dict[str, Any], name: str) -> str | None:
  value = config.get(name)  # a string, or an object with its content
  return value.get("content") if isinstance(value, dict) else value
