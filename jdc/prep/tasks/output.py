"""The task that writes a file of training data."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jdc.prep import links, tables
from jdc.prep.batches import ID_BYTES
from jdc.prep.links import Place, Record
from jdc.prep.spec import OutputSpec, content_hash
from jdc.prep.store import Written, hash_file
from jdc.prep.tables import View


@dataclasses.dataclass(frozen=True)
class OutputTask:
  """Writes one file of training data, or of token shards a file for each split.

  Attributes:
    root: the folder of the run.
    domain: whose documents.
    number: of the file, within the domain.
    spec: how it is written.
    parts: (view, first document, number of documents) counted over those of the domain.
    size: bytes of their texts.
    code: hash of what writes, and of the tokenizer.
    keep_dropped: whether texts of documents without tokens are kept.
  """

  root: str
  domain: str
  number: int
  spec: OutputSpec
  parts: tuple[tuple[View, int, int], ...]
  size: int
  code: str
  keep_dropped: bool = False

  @property
  def key(self) -> str:
    """Returns the key of the file."""
    held = [[view.hashes, first, count] for view, first, count in self.parts]
    spec = self.spec.model_dump(mode="json", exclude={"shard_mb"})
    spec["tokens"] = {k: v for k, v in spec["tokens"].items() if k != "tokenizer"}
    if spec["format"] == "tokens":
      spec["keep_dropped"] = self.keep_dropped
    return content_hash(["output", self.domain, self.number, spec, held, self.code])

  def run(self) -> Record:
    """Returns the record of the file."""
    begin = time.process_time()
    rows = sum(count for _, _, count in self.parts)
    info = {"domain": self.domain, "rows_in": rows, "rows_out": rows, "bytes_out": self.size}
    files = self._write_tokens(info) if self.spec.format == "tokens" else self._write()
    return {
      "key": self.key,
      "name": "output",
      "shard": self.number,
      "files": files,
      "info": info,
      "cpu_s": round(time.process_time() - begin, 4),
    }

  def _write(self) -> dict[str, Written]:
    from jdc.prep.sinks import documents

    pattern = f"data/{self.domain}/part-{self.number:05d}-{{sha}}"
    batches = (batch.drop_columns(["domain"]) for batch in self._batches())
    return {"data": documents.write(Path(self.root), pattern, batches, self.spec)}

  def _write_tokens(self, info: dict[str, Any]) -> dict[str, Written]:
    """Packs token shards; what their manifest says of them is in `info`."""
    from jdc.prep.sinks import tokens

    folder = Path(self.root) / "data"
    name = f"part-{self.number:05d}-{self.key[:8]}"
    options = tokens.TokenOptions(**self.spec.tokens)
    packed = tokens.pack_shard(self._batches(), name, folder, options)
    info["splits"] = {k: v._asdict() for k, v in packed.files.get(self.domain, {}).items()}
    files = {}
    for split, held in info["splits"].items():
      for what in ("file", "index_file"):
        path = folder / held[what]
        size = path.stat().st_size
        files[f"{split}.{what}"] = Written(f"data/{held[what]}", hash_file(path), size)
    return {**files, **self._drop(packed.without_tokens, info)}

  def _drop(self, without_tokens: Sequence[str], info: dict[str, Any]) -> dict[str, Written]:
    """Writes which documents became no token, and takes them off what was kept."""
    if not without_tokens:
      return {}
    gone = pa.array([bytes.fromhex(i) for i in without_tokens], pa.binary(ID_BYTES))
    dropped = links.DroppedFile(
      Place(Path(self.root), self.number), f"tokens-{self.domain}", self.keep_dropped
    )
    try:
      for batch in self._batches():
        batch = batch.filter(pc.is_in(batch.column("doc_id"), gone))
        if batch.num_rows:
          dropped.add(batch, pa.array(["no_tokens"] * batch.num_rows))
          info["bytes_out"] -= int(links.byte_lengths(batch).sum())
      files = dropped.finish()
    except BaseException:
      dropped.discard()
      raise
    info["dropped"] = dict(dropped.reasons)
    info["rows_out"] -= dropped.reasons.total()
    return files

  def _batches(self) -> Iterator[pa.RecordBatch]:
    columns = ["doc_id", "source", "offset", "domain", "text"]
    columns += ["fields"] if self.spec.fields and self.spec.format != "tokens" else []
    domain = pa.scalar(self.domain)
    for view, first, count in self.parts:
      seen = 0
      for batch, _ in tables.read_view(Path(self.root), view, columns):
        batch = batch.filter(pc.equal(batch.column("domain"), domain))
        low, high = max(first - seen, 0), min(first + count - seen, batch.num_rows)
        if low < high:
          yield batch.slice(low, high - low)
        seen += batch.num_rows
        if seen >= first + count:
          break
