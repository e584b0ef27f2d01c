"""Folders of token shards, as `jdc.prep` writes them: tokenized, packed, ready to draw from."""

from collections.abc import Mapping
from pathlib import Path

from jdc.data.pack import Domain
from jdc.data.token_manifest import TOKENIZER as TOKENIZER
from jdc.data.token_manifest import Manifest, ShardFile
from jdc.data.token_manifest import file_digest as file_digest
from jdc.data.token_manifest import is_folder as is_folder
from jdc.data.token_manifest import read as read_manifest
from jdc.data.token_table import DocumentPiece, TokenTable


def open_folder(folder: str | Path) -> dict[str, Domain[TokenTable]]:
  """Opens the domains of a folder of token shards, sorted by name.

  Only files that the manifest lists are read, and they must have the sizes that it states.

  Raises:
    ValueError: lists what is wrong with all domains.
  """
  manifest = read_manifest(folder)
  domains: dict[str, Domain[TokenTable]] = {}
  problems = []
  for name in sorted(manifest.domains):
    splits = manifest.domains[name]
    if not splits.get("train"):
      problems.append(f"{folder}: domain {name!r} has no rows to train on")
      continue
    try:
      tables = {
        split: _table(Path(folder), manifest, shards) for split, shards in splits.items()
      }
    except ValueError as error:
      problems.append(str(error))
      continue
    held_out = {split: tables.get(split) for split in ("validation", "target")}
    domains[name] = Domain(name, tables["train"], num_bad_records=0, **held_out)
  if problems:
    raise ValueError("\n".join(problems))
  return domains


def trace(
  domains: Mapping[str, Domain], example_id: int
) -> tuple[str, int, list[DocumentPiece]]:
  """Returns the domain, its row and the documents of an example that a run trained on.

  Args:
    domains: of the run, such as `open_folder` returns.
    example_id: as `jdc.metrics.read_example_ids` returns them.

  Raises:
    IndexError: if no row has the id.
  """
  row = example_id
  for name, domain in domains.items():
    if 0 <= row < len(domain.train):
      return name, row, domain.train.documents(row)
    row -= len(domain.train)
  total = sum(len(domain.train) for domain in domains.values())
  raise IndexError(f"example ids must be in [0, {total}), got {example_id}")


def verify(folder: str | Path) -> list[str]:
  """Reads every shard and returns the files that are not what was written."""
  problems = []
  for splits in read_manifest(folder).domains.values():
    for shard in (shard for shards in splits.values() for shard in shards):
      named = ((shard.file, shard.file_digest), (shard.index_file, shard.index_digest))
      for name, digest in named:
        path = Path(folder) / name
        if not path.is_file() or file_digest(path) != digest:
          problems.append(str(path))
  return problems


def _table(folder: Path, manifest: Manifest, shards: list[ShardFile]) -> TokenTable:
  return TokenTable(
    folder, shards, manifest.sequence_length, manifest.tokenizer.vocab_size, manifest.dtype,
    manifest.packing,
  )  # fmt: skip
