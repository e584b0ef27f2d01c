"""From documents to token shards that `jdc.data.token_shards` opens for training."""

import dataclasses
import json
import os
import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jdc.data import token_manifest, tokenize
from jdc.data.token_manifest import Manifest, ShardFile, TokenizerInfo
from jdc.data.tokenize import Marked, Tokenizer
from jdc.prep.sample import hash64
from jdc.prep.sinks.arrayrecord import sync
from jdc.prep.sinks.token_writer import SUFFIXES, Document, Layout, ShardWriter
from jdc.prep.spec import DOMAIN

PACKINGS = ("best-fit", "none")
DTYPES = ("auto", "uint16", "uint32")
COLUMNS = ("doc_id", "source", "offset", "domain", "text")
_BATCH_BYTES, _BATCH_DOCUMENTS = 1 << 21, 512  # tokenized in one call
_PART_CHARS = 1 << 22  # of a text; the tokenizer needs some 30 times as much memory
_ROWS = 4096  # read of Parquet at a time


@dataclasses.dataclass(frozen=True)
class TokenOptions:
  """How documents become token shards.

  A document is [BOS] tokens [EOS], each boundary token where there is one. A row has at most
  T + 1 tokens, T = `seq_len` of which can be predicted. Longer documents are cut, with an
  overlap of one token (`best_fit.cut`). A text of more than 2^22 characters is tokenized in
  parts, each of which ends with a line or else a word, so that memory is bounded.

  Attributes:
    tokenizer: a Hugging Face tokenizer.json or a folder that holds one, or "bytes".
    seq_len: T; the `sequence_length` of a run that trains on the shards.
    pack: "best-fit" fills rows with several documents (`best_fit.best_fit`); "none" makes each
      document, or piece of one, a row.
    eos: whether documents end with the tokenizer's EOS, and rows thus say where they end.
    dtype: of the tokens; "auto" is uint16 up to a vocabulary of 65,536 and then uint32.
    format: of the files, "array_record" or "parquet".
    bos_token: starts a document; empty: what the folder's tokenizer_config.json names, if any.
    eos_token: ends a document; empty: what the folder's tokenizer_config.json names.
    validation_fraction: the share v of texts held out from training: those whose hash of
      (seed, text), as a number in [0, 1), is below v. Equal texts fall on one side.
    target_fraction: the share u set apart for policies to observe: hashes in [v, v + u).
    seed: of the split.
  """

  tokenizer: str
  seq_len: int = 2048
  pack: str = "best-fit"
  eos: bool = True
  dtype: str = "auto"
  format: str = "array_record"
  bos_token: str = ""
  eos_token: str = ""
  validation_fraction: float = 0.05
  target_fraction: float = 0.0
  seed: int = 0

  def __post_init__(self) -> None:
    if wrong := _wrong_types(self):
      raise ValueError("\n".join(wrong))
    accepted = {"pack": PACKINGS, "dtype": DTYPES, "format": tuple(SUFFIXES)}
    problems = [
      f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
      for name, known in accepted.items()
      if getattr(self, name) not in known
    ]
    if not 1 <= self.seq_len < 1 << 24:
      problems.append(f"seq_len must be in [1, {1 << 24}), got {self.seq_len}")
    shares = {n: getattr(self, n) for n in ("validation_fraction", "target_fraction")}
    problems += [f"{n} must be in [0, 1), got {v}" for n, v in shares.items() if not 0 <= v < 1]
    if sum(shares.values()) >= 1:
      problems.append(f"{' + '.join(shares)} must be below 1, got {sum(shares.values())}")
    if not 0 <= self.seed < 1 << 64:
      problems.append(f"seed must be in [0, 2^64), got {self.seed}")
    if self.eos_token and not self.eos:
      problems.append(f"eos_token={self.eos_token!r} needs eos=true")
    if self.tokenizer == "bytes" and (self.bos_token or self.eos_token):
      problems.append("bos_token and eos_token are for tokenizer files, got tokenizer='bytes'")
    if problems:
      raise ValueError("\n".join(problems))


def _wrong_types(options: TokenOptions) -> list[str]:
  accepted = {str: "a string", bool: "true or false", int: "an integer", float: "a number"}
  held = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
  found = []
  for name, kind in typing.get_type_hints(TokenOptions).items():
    fits = int | float if kind is float else kind
    if not isinstance(held[name], fits) or (kind is not bool and isinstance(held[name], bool)):
      found.append(f"{name} must be {accepted[kind]}, got {held[name]!r}")
  return found


Row = tuple[bytes, str, int, str, str]  # of `COLUMNS`


class Opened(NamedTuple):
  """A tokenizer, and what its shards say of it."""

  tokenizer: Tokenizer
  info: TokenizerInfo
  layout: Layout
  file: Path | None  # that is copied beside the shards


class PackedShard(NamedTuple):
  """What became of the documents of one shard."""

  files: dict[str, dict[str, ShardFile]]  # by domain and split
  without_tokens: list[str]  # doc ids, in hexadecimal, of which nothing was written


def open_tokenizer(options: TokenOptions) -> Opened:
  """Opens the tokenizer that the options name.

  Raises:
    ValueError: if there is no such tokenizer, no EOS for eos=true, or the vocabulary does not
      fit `dtype`.
    ImportError: if the package `tokenizers` is needed and not installed.
  """
  file, bos, eos = None, options.bos_token, options.eos_token
  if options.tokenizer == "bytes":
    tokenizer, name, content = tokenize.byte_tokenizer(), "bytes", "bytes-256-257"
    tokenizer = tokenizer if options.eos else tokenizer._replace(eos_id=None)
  else:
    path = Path(options.tokenizer).expanduser()
    named = tokenize.boundary_tokens(path) if path.is_dir() else {}
    file = path / token_manifest.TOKENIZER if path.is_dir() else path
    bos = bos or named.get("bos_token", "")
    eos = (eos or named.get("eos_token", "")) if options.eos else ""
    tokenizer = tokenize.from_file(file, bos or None, eos or None)
    name, content = path.name, token_manifest.file_digest(file)
    if options.eos and not eos:
      raise ValueError(
        f"{file}: eos=true needs eos_token, for no tokenizer_config.json beside it names one; "
        "accepted: a token of its vocabulary, or eos=false"
      )
  size = tokenizer.vocab_size
  if options.dtype == "uint16" and size > 1 << 16:
    raise ValueError(f"dtype='uint16' holds 65,536 tokens, the tokenizer has {size:,}")
  dtype = options.dtype if options.dtype != "auto" else ("uint32", "uint16")[size <= 1 << 16]
  return Opened(
    tokenizer,
    TokenizerInfo(name, content, size, bos, eos, tokenizer.bos_id, tokenizer.eos_id),
    Layout(options.seq_len, options.pack, options.format, np.dtype(dtype)),
    file,
  )


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
      for part in _parts(batch):
        for row, document in _documents(part, opened):
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


def _documents(batch: pa.RecordBatch, opened: Opened) -> Iterator[tuple[Row, Document | None]]:
  rows: list[Row] = list(zip(*(batch.column(c).to_pylist() for c in COLUMNS), strict=True))
  if batch.num_rows > 1:
    yield from zip(rows, _short_documents(rows, opened), strict=True)
    return
  for row in rows:  # which may be long: its parts are tokenized one at a time
    parts = _cut_text(row[4])
    yield row, _document(row, (opened.tokenizer.mark_batch([p])[0] for p in parts), opened)


def _short_documents(rows: Sequence[Row], opened: Opened) -> Iterator[Document | None]:
  """Yields what `_document` makes of texts of one part each, with fewer calls for each."""
  tokenizer, step = opened.tokenizer, opened.layout.sequence_length
  found = tokenizer.mark_batch([row[4] for row in rows])
  before, after = (
    np.array([] if token is None else [token], np.int32)
    for token in (tokenizer.bos_id, tokenizer.eos_id)
  )
  parts = [part for ids, _ in found for part in (before, ids, after)]
  tokens = np.concatenate(parts, dtype=opened.layout.dtype, casting="unsafe")
  begin = 0
  for (doc_id, source, offset, _, text), (ids, byte_starts) in zip(rows, found, strict=True):
    size = len(before) + len(ids) + len(after)
    marks = byte_starts(range(1 - len(before), len(ids), step))
    missing = max(-(-(size - 1) // step), 1) + 1 - len(marks)
    marks += [len(text.encode("utf-8"))] * missing
    document = Document(doc_id, source, offset, tokens[begin : begin + size], marks)
    yield document if len(ids) else None
    begin += size


def _document(row: Row, encoded: Iterable[Marked], opened: Opened) -> Document | None:
  """Puts the tokens of the parts of a text together; `None` without any.

  Piece k begins at token k T of [BOS] ids [EOS]; what it predicts begins at token k T + 1, and
  so do the bytes of these tokens.
  """
  doc_id, source, offset, _, text = row
  tokenizer, step = opened.tokenizer, opened.layout.sequence_length
  before = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
  after = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
  parts: list[Any] = []
  marks: list[int] = []
  num_ids = num_bytes = 0
  place = 1 - len(before)  # among the ids, of the next mark
  for part, (ids, byte_starts) in zip(_cut_text(text), encoded, strict=True):
    places = range(place, num_ids + len(ids), step)
    marks += [num_bytes + start for start in byte_starts([p - num_ids for p in places])]
    place += step * len(places)
    parts.append(ids)
    num_ids += len(ids)
    num_bytes += len(part.encode("utf-8"))
  if not num_ids:
    return None
  tokens = np.concatenate([np.array(before, np.int32), *parts, np.array(after, np.int32)])
  num_pieces = max(-(-(len(tokens) - 1) // step), 1)
  marks += [num_bytes] * (num_pieces + 1 - len(marks))
  return Document(doc_id, source, offset, tokens.astype(opened.layout.dtype), marks)


def _cut_text(text: str) -> list[str]:
  """Returns parts of at most 2^22 characters that end with a line, or else with a space."""
  parts = []
  while len(text) > _PART_CHARS:
    end = text.rfind("\n", 0, _PART_CHARS) + 1 or text.rfind(" ", 0, _PART_CHARS) + 1
    parts.append(text[: end or _PART_CHARS])
    text = text[end or _PART_CHARS :]
  return [*parts, text]


def _parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
  """Yields slices of a bounded size of text."""
  ends = np.cumsum(pc.binary_length(batch.column("text")).to_numpy(zero_copy_only=False))
  start = 0
  while start < batch.num_rows:
    limit = _BATCH_BYTES + (ends[start - 1] if start else 0)
    stop = max(int(np.searchsorted(ends, limit)), start + 1)
    stop = min(stop, start + _BATCH_DOCUMENTS)
    yield batch.slice(start, stop - start)
    start = stop


def _place(path: Path, content: bytes) -> None:
  """Writes a file whole or not at all."""
  temporary = path.with_name(f".{path.name}.tmp")
  with open(temporary, "wb") as file:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)
  sync(path.parent)
