"""What a folder of token shards says of itself: tokenizer, packing, and every file."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

FILE = "tokens.json"
TOKENIZER = "tokenizer.json"
FORMAT_VERSION = 1
INDEX_SUFFIX = ".index.safetensors"
TAGS = {"train": "train", "validation": "val", "target": "target"}  # of file names, by split


class ShardFile(NamedTuple):
  """A shard as the manifest of its folder lists it; paths are relative to the folder."""

  file: str
  index_file: str
  file_size: int  # bytes, as the next one
  index_size: int
  file_digest: str  # blake2b, 16 bytes, as the next two
  index_digest: str
  fingerprint: str  # of the tokens, whatever the format of the file
  num_rows: int
  num_documents: int
  num_tokens: int
  num_target_tokens: int  # that are predicted
  num_target_bytes: int  # UTF-8 bytes of these


class TokenizerInfo(NamedTuple):
  """The tokenizer of a folder."""

  name: str  # "bytes", or the path of the file that was copied into the folder
  content: str  # digest of that file, or what stands for bytes
  vocab_size: int
  bos_token: str  # at the start of each document; empty: none, or that of bytes
  eos_token: str  # at its end
  bos_id: int | None
  eos_id: int | None


class Manifest(NamedTuple):
  """What a folder says of itself in `tokens.json`, which is written last."""

  sequence_length: int  # T: a row has at most T + 1 tokens
  packing: str  # "best-fit" or "none"
  format: str  # of the files, "array_record" or "parquet"
  dtype: str  # of the tokens
  tokenizer: TokenizerInfo
  domains: Mapping[str, Mapping[str, list[ShardFile]]]  # by name and split


def is_folder(folder: str | Path) -> bool:
  """Whether a folder holds token shards.

  Raises:
    ValueError: if there are shards but no manifest: their preparation has not ended.
  """
  folder = Path(folder)
  if (folder / FILE).is_file():
    return True
  if any(folder.glob(f"*/*{INDEX_SUFFIX}")):
    raise ValueError(
      f"{folder}: token shards without {FILE}, whose preparation has not ended; run it again"
    )
  return False


def read(folder: str | Path) -> Manifest:
  """Reads what a folder of token shards says of itself.

  Raises:
    ValueError: if it is missing, not readable, or of another format.
  """
  path = Path(folder) / FILE
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
    version = content["format_version"]
    if version != FORMAT_VERSION:
      raise ValueError(f"format_version {version}; accepted: {FORMAT_VERSION}")
    fields = {name: content[name] for name in Manifest._fields}
    fields["tokenizer"] = TokenizerInfo(**content["tokenizer"])
    fields["domains"] = {
      name: {
        split: [ShardFile(**shard) for shard in shards] for split, shards in splits.items()
      }
      for name, splits in content["domains"].items()
    }
    return Manifest(**fields)
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
    raise ValueError(f"{path}: not the manifest of token shards: {error!r}") from error


def file_digest(path: Path) -> str:
  """Returns the digest by which a manifest knows a file."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def to_json(manifest: Manifest) -> dict[str, Any]:
  """Returns a manifest as `read` reads it."""
  domains = {
    name: {split: [shard._asdict() for shard in shards] for split, shards in splits.items()}
    for name, splits in manifest.domains.items()
  }
  fields = {**manifest._asdict(), "tokenizer": manifest.tokenizer._asdict(), "domains": domains}
  return {"format_version": FORMAT_VERSION, **fields}
