"""Other libraries on the corpus of `bench_corpus.py`; runs in an environment of theirs.

  PYTHON bench_peer_prep.py --list
  PYTHON bench_peer_prep.py 'MinHash: Daft' corpus.parquet 2000

Needs pyarrow and whatever is to be measured; prints JSON in the last line. Imports and a first
few documents are not timed.
"""

import importlib
import importlib.util
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Step = Callable[[pa.Table], Any]
_INPUT = "in.jsonl"


def daft_minhash(bands: int) -> Step:
  """Daft's function alone, or with keys of bands and a sort of each, by NumPy."""
  import daft

  daft.set_runner_native()

  def run(table: pa.Table) -> Any:
    minhash = daft.col("text").minhash(num_hashes=112, ngram_size=5, hash_function="xxhash3_64")
    found = daft.from_arrow(table).select(minhash).to_arrow().column(0).combine_chunks()
    if not bands:
      return None
    hashes = found.flatten().to_numpy().reshape(len(found), bands, -1).astype(np.uint64)
    powers = np.uint64(0x9E3779B97F4A7C15) ** np.arange(hashes.shape[2], dtype=np.uint64)
    keys = (hashes * powers).sum(axis=2)
    return [np.unique(keys[:, band], return_inverse=True) for band in range(bands)]

  return run


def datatrove_filters() -> Step:
  """Gopher's and FineWeb's filters with the library's own tokenizer for English."""
  document = importlib.import_module("datatrove.data").Document
  filters = importlib.import_module("datatrove.pipeline.filters")
  chain = [
    filters.GopherRepetitionFilter(),
    filters.GopherQualityFilter(),
    filters.FineWebQualityFilter(),
  ]

  def run(table: pa.Table) -> int:
    kept = 0
    for number, text in enumerate(table["text"].to_pylist()):
      one = document(text=text, id=str(number))
      kept += all(step.filter(one) is True for step in chain)
    return kept

  return run


def data_juicer_minhash() -> Step:
  """`document_minhash_deduplicator` of 14 x 8 over words."""
  dataset = importlib.import_module("data_juicer.core.data").NestedDataset
  folder = "data_juicer.ops.deduplicator"
  module = importlib.import_module(f"{folder}.document_minhash_deduplicator")

  def run(table: pa.Table) -> Any:
    step = module.DocumentMinhashDeduplicator(
      tokenization="space", window_size=5, num_permutations=112, num_bands=14,
      num_rows_per_band=8, jaccard_threshold=0.7,
    )  # fmt: skip
    data = dataset.from_list([{"text": text} for text in table["text"].to_pylist()])
    return step.process(data.map(step.compute_hash))

  return run


def dataflow(name: str, **parameters: Any) -> Step:
  """An operator of DataFlow, on a file of JSON lines as its storage has them."""
  general_text = importlib.import_module("dataflow.operators.general_text")

  def run(table: pa.Table) -> Any:
    with tempfile.TemporaryDirectory() as folder:
      operator = getattr(general_text, name)(**parameters)
      return operator.run(dataflow_storage(table, "text", folder).step(), input_key="text")

  return run


def dataflow_pipeline() -> Step:
  """The pipeline for pretraining text that DataFlow ships for CPUs, with its own parameters."""
  folder_of = "dataflow.statics.pipelines.cpu_pipelines"
  pipelines = importlib.import_module(f"{folder_of}.text_pt_filter")

  def run(table: pa.Table) -> str:
    with tempfile.TemporaryDirectory() as folder:
      pipeline = pipelines.PTTextFilter_CPUPipeline()
      pipeline.storage = dataflow_storage(table, "raw_content", folder)
      pipeline.forward()
      sizes = {path.name: path.stat().st_size for path in pathlib.Path(folder).iterdir()}
    given = sizes.pop(_INPUT)
    return f"{sum(sizes.values()) / given:.1f} bytes written for each one of input"

  return run


def dataflow_storage(table: pa.Table, column: str, folder: str) -> Any:
  """Returns DataFlow's storage of these texts in a file of JSON lines in a folder."""
  storages = importlib.import_module("dataflow.utils.storage")
  path = pathlib.Path(folder, _INPUT)
  with path.open("w", encoding="utf-8") as file:
    file.writelines(json.dumps({column: t}) + "\n" for t in table["text"].to_pylist())
  return storages.FileStorage(
    first_entry_file_name=str(path), cache_path=folder, file_name_prefix="s", cache_type="jsonl"
  )


# What a measure needs, how it is made, and of how many documents: 0 is what the caller says.
PEERS: dict[str, tuple[str, Callable[[], Step], int]] = {
  "MinHash: Daft, signatures alone": ("daft", lambda: daft_minhash(0), 200_000),
  "MinHash: Daft, signatures and bands": ("daft", lambda: daft_minhash(14), 200_000),
  "filters: datatrove": ("datatrove", datatrove_filters, 0),
  "MinHash: data-juicer": ("data_juicer", data_juicer_minhash, 0),
  "MinHash: DataFlow": (
    "dataflow",
    lambda: dataflow("MinHashDeduplicateFilter", num_perm=112, threshold=0.7),
    0,
  ),
  "pipeline: DataFlow": ("dataflow", dataflow_pipeline, 0),
}


def main() -> None:
  """Prints the measures that can be made here, or the cost of one."""
  if sys.argv[1] == "--list":
    here = {n: p[2] for n, p in PEERS.items() if importlib.util.find_spec(p[0])}
    print(json.dumps(here))
    return
  name, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
  step = PEERS[name][1]()
  step(read(path, 20))
  begin, started = sum(os.times()[:4]), time.monotonic()
  table = read(path, count)
  found = step(table)
  seconds = sum(os.times()[:4]) - begin
  note = f"{time.monotonic() - started:.1f} s of wall time"
  note += f", {found}" if isinstance(found, str) else ""
  size = sum(len(text.encode()) for text in table["text"].to_pylist())
  print(json.dumps({"seconds": seconds, "documents": len(table), "size": size, "note": note}))


def read(path: str, count: int) -> pa.Table:
  """Returns the first documents."""
  with pq.ParquetFile(path) as file:
    return pa.Table.from_batches([next(file.iter_batches(count, columns=["text"]))])


if __name__ == "__main__":
  main()
