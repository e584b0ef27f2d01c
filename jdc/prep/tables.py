"""Files of a run in `work/`: documents with signals as Parquet, masks and keys as arrays."""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from jdc.prep.store import AtomicFile, Written, disk_errors

META = ("doc_id", "source", "offset", "domain", "num_bytes")
_PLAIN = ("text", "fields")
_DICTIONARY = ["source", "domain"]


class View(NamedTuple):
  """The documents of a shard at some point of a plan.

  Attributes:
    text: the Parquet file with all of them.
    mask: bool[rows], which of them are left; `None`: all.
  """

  text: Written
  mask: Written | None = None

  @property
  def hashes(self) -> list[str]:
    """What determines the documents."""
    return [self.text.sha256, self.mask.sha256 if self.mask else ""]


class TableFile:
  """A Parquet file that appears when it is whole; every batch is a row group.

  Args:
    root: the folder of the run.
    pattern: its path, with `{sha}`.
    schema: of all batches.
    codec: `zstd`, `lz4`, `snappy` or `none`.
    level: of zstd.
  """

  def __init__(
    self,
    root: Path,
    pattern: str,
    schema: pa.Schema,
    *,
    codec: str = "zstd",
    level: int | None = 1,
    digits: int = 8,
  ):
    self._atomic = AtomicFile(root, pattern, digits)
    self._path = root / pattern
    self.rows = 0
    self._sink = pa.PythonFile(self._atomic.file, mode="w")
    self._writer = parquet.ParquetWriter(
      self._sink,
      schema,
      compression=codec,
      compression_level=level if codec == "zstd" else None,
      use_dictionary=[name for name in _DICTIONARY if name in schema.names],
      write_statistics=False,
      data_page_version="1.0",
      store_schema=True,
    )

  def write(self, batch: pa.RecordBatch | pa.Table) -> None:
    """Adds a row group."""
    with disk_errors(self._path):
      table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
      self._writer.write_table(table, row_group_size=max(1, table.num_rows))
    self.rows += batch.num_rows

  def commit(self) -> Written:
    """Makes the file appear."""
    with disk_errors(self._path):
      self._writer.close()
    return self._atomic.commit()

  def discard(self) -> None:
    """Leaves nothing behind."""
    with contextlib.suppress(Exception):  # the disk may be full
      self._writer.close()
    self._atomic.discard()


def save_array(root: Path, pattern: str, values: np.ndarray) -> Written:
  """Writes an array that `load_array` maps into memory."""
  atomic = AtomicFile(root, pattern, digits=16)
  try:
    header = io.BytesIO()
    values = np.ascontiguousarray(values)
    np.lib.format.write_array_header_1_0(
      header, np.lib.format.header_data_from_array_1_0(values)
    )
    with disk_errors(root / pattern):
      atomic.file.write(header.getvalue())
      if values.size:
        atomic.file.write(values.reshape(-1).view(np.uint8))
    return atomic.commit()
  except BaseException:
    atomic.discard()
    raise


def load_array(root: Path, written: Sequence[Any]) -> np.ndarray:
  """Returns an array of `save_array`, mapped where it is not empty."""
  path = root / written[0]
  values = np.load(path, mmap_mode="r", allow_pickle=False)
  return np.asarray(values)


def load_mask(root: Path, view: View) -> np.ndarray | None:
  """Returns which documents of the text are left, `None`: all."""
  return None if view.mask is None else load_array(root, view.mask)


def read_view(
  root: Path, view: View, columns: Sequence[str] | None = None
) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
  """Yields (documents that are left, their rows in the file), a row group at a time.

  Args:
    root: the folder of the run.
    view: what to read.
    columns: names, or the beginning `signal:` for all signals; `None` is all columns.
  """
  mask = load_mask(root, view)
  with parquet.ParquetFile(root / view.text.path) as file:
    names = expand(file.schema_arrow.names, columns)
    begin = 0
    for group in range(file.metadata.num_row_groups):
      size = file.metadata.row_group(group).num_rows
      rows = np.arange(begin, begin + size)
      begin += size
      kept = None if mask is None else mask[rows]
      if kept is not None and not kept.any():
        continue
      table = file.read_row_group(group, columns=names, use_threads=False)
      batch = single_batch(table)
      if kept is not None and not kept.all():
        batch, rows = batch.filter(pa.array(kept)), rows[kept]
      yield batch, rows


def read_group(root: Path, view: View, group: int, columns: Sequence[str]) -> pa.RecordBatch:
  """Returns the documents that are left of a row group."""
  mask = load_mask(root, view)
  with parquet.ParquetFile(root / view.text.path) as file:
    sizes = [file.metadata.row_group(g).num_rows for g in range(group + 1)]
    first = sum(sizes[:-1])
    batch = single_batch(file.read_row_group(group, columns=list(columns), use_threads=False))
  if mask is not None:
    batch = batch.filter(pa.array(mask[first : first + sizes[-1]]))
  return batch


def expand(names: Sequence[str], columns: Sequence[str] | None) -> list[str]:
  """Returns those of a file's columns that are asked for."""
  if columns is None:
    return list(names)
  return [
    name
    for name in names
    if name in columns or ("signal:" in columns and name.startswith("signal:"))
  ]


def single_batch(table: pa.Table) -> pa.RecordBatch:
  """Returns a table as one batch."""
  table = table.combine_chunks()
  batches = table.to_batches()
  if batches:
    return batches[0]
  arrays = [pa.array([], field.type) for field in table.schema]
  return pa.RecordBatch.from_arrays(arrays, schema=table.schema)


def signals_of(batch: pa.RecordBatch) -> Mapping[str, pa.Array]:
  """Returns the columns of signals."""
  return {name: batch.column(name) for name in batch.schema.names if name.startswith("signal:")}
