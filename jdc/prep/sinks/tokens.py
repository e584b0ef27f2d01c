"""From documents to token shards that `jdc.data.token_shards` opens for training."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from jdc.data import token_manifest
from jdc.data.token_manifest import Manifest, ShardFile
from jdc.prep.sample_keys import hash64
from jdc.prep.sinks import token_documents
from jdc.prep.sinks.arrayrecord import sync
from jdc.prep.sinks.token_documents import COLUMNS
from jdc.prep.sinks.token_options import Opened, TokenOptions, open_tokenizer
from jdc.prep.sinks.token_writer import Layout, ShardWriter
from jdc.prep.spec import DOMAIN

__all__ = [
  "COLUMNS",
  "PackedShard",
  "TokenOptions",
  "open_tokenizer",
  "pack_shard",
  "read_documents",
  "tokenize_pack",
  "write_manifest",
]

_ROWS = 4096  # read of Parquet at a time


class PackedShard(NamedTuple):
  """What became of the documents of one shard."""

  files: dict[str, dict[str, ShardFile]]  # by domain and split
  without_tokens: list[str]  # doc ids, in hexadecimal, of which nothing was written


def pack_shard(
  batches: Iterable[pa.RecordBatch],
  name: str,
  folder: Path,
  options: TokenOptions,
  opened: Opened | None = None,
  split: str = "",
) -> PackedShard:
  """Tokenizes and packs the documents of one shard, and writes a file a domain and split.

  The files depend on the documents, their order, the name and the options, not on the batches.
  They are written under hidden names and renamed when they are whole; nothing reads them before
  `write_manifest` lists them.

  Args:
    batches: with the columns `COLUMNS`.
    name: of the shard, different for each of a folder.
    folder: of all domains.
    options: how.
    opened: the tokenizer, where it is open already.
    split: "train", "validation" or "target" for all documents; empty: by hash.

  Raises:
    ValueError: if columns are missing, or a domain cannot name a folder.
    OSError: if a file cannot be written whole.
  """
  opened = opened or _opened_before(options)
  writers: dict[tuple[str, str], ShardWriter] = {}
  without_tokens: list[str] = []
  try:
    for batch in batches:
      for part in token_documents.parts(batch):
        for row, document in token_documents.documents(part, opened):
          if document is None:
            without_tokens.append(row[0].hex())
            continue
          key = (row[3], split or _split_of(row[4], options))
          if key not in writers:
            writers[key] = _writer(folder, *key, name, opened.layout)
          writers[key].add(document)
    files: dict[str, dict[str, ShardFile]] = {}
    for (domain, of), writer in sorted(writers.items()):
      if shard := writer.finish():
        files.setdefault(domain, {})[of] = shard
    return PackedShard(files, without_tokens)
  finally:
    for writer in writers.values():
      writer.abort()


def write_manifest(
  folder: Path,
  shards: Sequence[PackedShard],
  options: TokenOptions,
  opened: Opened | None = None,
) -> Manifest:
  """Makes the files of these shards a folder that can be trained on.

  Args:
    folder: of `pack_shard`.
    shards: in the order in which rows are numbered.
    options: those of the shards.
    opened: the tokenizer, where it is open already.

  Raises:
    ValueError: if no document has tokens.
  """
  opened = opened or open_tokenizer(options)
  domains: dict[str, dict[str, list[ShardFile]]] = {}
  for shard in shards:
    for domain, splits in shard.files.items():
      for split, file in splits.items():
        domains.setdefault(domain, {}).setdefault(split, []).append(file)
  if not domains:
    raise ValueError(f"{folder}: no document of {len(shards)} shards has tokens")
  layout = opened.layout
  ordered = {name: dict(sorted(domains[name].items())) for name in sorted(domains)}
  manifest = Manifest(
    options.seq_len, layout.packing, layout.format, str(layout.dtype), opened.info, ordered
  )
  if opened.file is not None:
    _place(folder / token_manifest.TOKENIZER, opened.file.read_bytes())
  text = json.dumps(token_manifest.to_json(manifest), indent=1)
  _place(folder / token_manifest.FILE, text.encode())
  return manifest


def tokenize_pack(
  inputs: Sequence[Path], folder: Path, options: TokenOptions, workers: int = 1
) -> Manifest:
  """Makes token shards of Parquet files of documents, one shard a file.

  Every file is a task; the result is the same for any number of workers. An earlier manifest in
  the folder is removed first, so that a run that was interrupted is no data set.

  Args:
    inputs: files with the columns `COLUMNS`, where the name of its folder stands in for a
      missing `domain`; `NAME.val.parquet` and `NAME.target.parquet` go to that split whole.
    folder: made where missing.
    options: how.
    workers: processes.

  Raises:
    ValueError: if there is no input, a file lacks a column, or an option is wrong.
  """
  if not inputs or workers < 1:
    raise ValueError(f"inputs and workers must be at least 1, got {len(inputs)} and {workers}")
  opened = open_tokenizer(options)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / token_manifest.FILE).unlink(missing_ok=True)
  tasks = [(path, f"part-{i:05d}", folder, options) for i, path in enumerate(inputs)]
  if workers == 1:
    shards = [_pack_file(task, opened) for task in tasks]
  else:
    with ProcessPoolExecutor(workers, get_context("spawn"), _one_thread) as pool:
      shards = list(pool.map(_pack_file, tasks))
  return write_manifest(folder, shards, options, opened)


def _pack_file(
  task: tuple[Path, str, Path, TokenOptions], opened: Opened | None = None
) -> PackedShard:
  path, name, folder, options = task
  tags = {tag: split for split, tag in token_manifest.TAGS.items()}
  split = tags.get(path.name.removesuffix(".parquet").rpartition(".")[2], "")
  batches = read_documents(path)
  return pack_shard(batches, name, folder, options, opened, split)


def read_documents(path: Path) -> Iterator[pa.RecordBatch]:
  """Yields the documents of a Parquet file with the columns `COLUMNS`.

  Files without the column `domain` are of the domain that their folder is named after.
  """
  file = pq.ParquetFile(path)
  names = file.schema_arrow.names
  if missing := [column for column in COLUMNS if column not in (*names, "domain")]:
    raise ValueError(f"{path}: no column {', '.join(missing)}; has {', '.join(names)}")
  columns = [column for column in COLUMNS if column in names]
  for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
    if "domain" not in names:
      domain = pa.array([path.parent.name] * batch.num_rows, pa.string())
      batch = batch.append_column("domain", domain)
    yield batch


def _opened_before(options: TokenOptions) -> Opened:
  """The tokenizer of a process that packs shard after shard."""
  path = Path(options.tokenizer).expanduser()
  files = sorted(path.glob("*.json")) if path.is_dir() else [path]
  digests = tuple(token_manifest.file_digest(file) for file in files if file.is_file())
  return _open_content(options, digests)


@lru_cache(maxsize=1)
def _open_content(options: TokenOptions, digests: tuple[str, ...]) -> Opened:
  del digests
  return open_tokenizer(options)


def _one_thread() -> None:
  os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _writer(folder: Path, domain: str, split: str, name: str, layout: Layout) -> ShardWriter:
  if not re.fullmatch(DOMAIN, domain):
    raise ValueError(f"domain {domain!r} must match {DOMAIN}, to name a folder")
  return ShardWriter(folder, domain, name, token_manifest.TAGS[split], layout)


def _split_of(text: str, options: TokenOptions) -> str:
  if not options.validation_fraction and not options.target_fraction:
    return "train"
  number = hash64(text.encode("utf-8"), options.seed) / 2**64
  if number < options.validation_fraction:
    return "validation"
  is_target = number < options.validation_fraction + options.target_fraction
  return "target" if is_target else "train"


def _place(path: Path, content: bytes) -> None:
  """Writes a file whole or not at all."""
  temporary = path.with_name(f".{path.name}.tmp")
  with open(temporary, "wb") as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)
  sync(path.parent)
