"""What `bench_prep.py` measures of jdc: steps of data preparation over a Parquet file.

  python bench_prep_measures.py 'tokens: jdc, packed' corpus.parquet SCRATCH

Each is a process of its own, as those of other libraries are: what one leaves in memory makes
the next up to a tenth slower. Prints JSON in the last line.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_TOKENIZER = "tokenizer.json"
_RULES: dict[str, dict[str, float]] = {
  "gopher_quality": {},
  "gopher_repetition": {},
  "fineweb_lines": {},
}
_PLAN = """jdc_pipeline = 1
[input]
paths = ["{corpus}/raw-*.jsonl"]
[[step]]
op = "fix_unicode"
[[step]]
op = "normalize_whitespace"
[[step]]
op = "filter"
rules = {{ gopher_quality = {{}}, gopher_repetition = {{}}, fineweb_lines = {{}} }}
[[step]]
op = "language"
[[step]]
op = "mask_pii"
[[step]]
op = "exact_dedup"
[[step]]
op = "minhash_dedup"
[output]
format = "parquet"
"""


# What a measure does to the documents of a file, with a folder for temporary files and that of
# `train_tokenizer`; what it returns is printed beside the speed.
STEPS: dict[str, Callable[[pathlib.Path, pathlib.Path], str]] = {
  "read: jdc": lambda path, _: read(path),
  "filters: jdc, Parquet to Parquet": lambda path, scratch: filters(path, scratch),
  "exact: jdc": lambda path, _: exact(path),
  "MinHash: jdc, keys alone": lambda path, _: keys_alone(path),
  "MinHash: jdc, unverified": lambda path, _: minhash(path, verify=False),
  "MinHash: jdc": lambda path, _: minhash(path),
  "lines: jdc": lambda path, _: lines(path),
  "tokens: jdc, packed": lambda path, scratch: tokens(path, scratch),
  "tokens: bare tokenizers": lambda path, scratch: bare_tokens(path, scratch),
  "pipeline: jdc, once started": lambda path, scratch: started_pipeline(path, scratch),
}


def main() -> None:
  """Prints what a measure cost; the first few documents, which compile, are not timed."""
  name, parquet, scratch = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
  some, step = scratch / "some.parquet", STEPS[name]
  table = pq.ParquetFile(parquet).read_row_group(0).slice(0, 500)
  pq.write_table(table, some)
  with open(scratch / "raw-some.jsonl", "w", encoding="utf-8") as file:
    file.writelines(json.dumps({"text": text}) + "\n" for text in table["text"].to_pylist())
  step(some, scratch)
  begin = cpu()
  note = step(parquet, scratch)
  seconds = cpu() - begin
  documents, size = text_size(parquet)
  print(json.dumps({"seconds": seconds, "documents": documents, "size": size, "note": note}))


def cpu() -> float:
  """Returns the seconds that this process and its children have computed."""
  return sum(os.times()[:4])


def text_size(path: pathlib.Path) -> tuple[int, int]:
  """Returns the documents of a file, and the bytes of their text."""
  sizes = [sum(batch.column("text").nbytes for batch in pq.ParquetFile(path).iter_batches())]
  return pq.read_metadata(path).num_rows, sum(sizes)


def batches(path: pathlib.Path) -> Iterator[pa.RecordBatch]:
  """Yields the documents of a file as the runner would."""
  with pq.ParquetFile(path) as file:
    yield from file.iter_batches(batch_size=8192, use_threads=False)


def texts(path: pathlib.Path) -> Iterator[pa.StringArray]:
  """Yields their texts."""
  with pq.ParquetFile(path) as file:
    for batch in file.iter_batches(batch_size=8192, columns=["text"], use_threads=False):
      yield batch.column("text")


def read(path: pathlib.Path) -> str:
  """Reads texts, and does nothing else."""
  return f"{sum(len(text) for text in texts(path)):,} rows"


def filters(path: pathlib.Path, scratch: pathlib.Path) -> str:
  """Filters by the rules of Gopher and FineWeb, and writes what is left."""
  from jdc.prep import predicates
  from jdc.prep.kernels import signals

  bounds = predicates.bounds_of(_RULES)
  names, kept = predicates.signals_of(bounds), 0
  with pq.ParquetWriter(
    scratch / "out.parquet", pq.read_schema(path), compression="zstd"
  ) as writer:
    for batch in batches(path):
      keep = predicates.decide(signals.signals(batch.column("text"), names), bounds).keep
      writer.write_batch(batch.filter(pa.array(keep)))
      kept += int(keep.sum())
  return f"{kept:,} kept"


def exact(path: pathlib.Path) -> str:
  """Finds exact duplicates."""
  from jdc.prep import exact_dedup

  found = exact_dedup.decide([exact_dedup.keys(text) for text in texts(path)])
  return f"{len(found.row):,} go"


def keys_alone(path: pathlib.Path) -> str:
  """Computes MinHash keys."""
  from jdc.prep import near_dedup

  return f"{sum(near_dedup.keys(text).bands.nbytes for text in texts(path)):,} bytes of keys"


def minhash(path: pathlib.Path, verify: bool = True) -> str:
  """Finds near duplicates; texts of candidates are read a second time."""
  from jdc.prep import near_dedup

  def fetch(rows: np.ndarray) -> Iterator[pa.StringArray]:
    begin = 0
    for text in texts(path):
      low, high = np.searchsorted(rows, (begin, begin + len(text)))
      yield text.take(pa.array(rows[low:high] - begin))
      begin += len(text)

  tables = [near_dedup.keys(text) for text in texts(path)]
  found, counts = near_dedup.decide(tables, fetch, verify=verify)
  refuted = f", {counts.refuted} of {counts.compared:,} pairs refuted" if verify else ""
  return f"{len(found.row):,} go{refuted}{recall(path, found)}"


def recall(path: pathlib.Path, found: "tuple[np.ndarray, ...]") -> str:
  """Says how many of the planted copies were found, by their edits."""
  if not (path.parent / "truth.parquet").exists():
    return ""
  truth = pq.read_table(path.parent / "truth.parquet")
  original, rate = (truth[name].to_numpy() for name in ("original", "rate"))
  kind = np.array(truth["kind"].to_pylist())
  row, kept = found[0], found[1]
  right = original[row] == original[kept]
  copies = np.isin(kind, ("exact", "near"))
  cluster = np.arange(len(kind))
  cluster[row] = kept
  joined = cluster == cluster[original]
  parts = [f"exact {joined[kind == 'exact'].mean():.3f}"]
  parts += [f"{100 * r:g} % {joined[rate == r].mean():.3f}" for r in np.unique(rate[rate > 0])]
  other = int((~right).sum())
  share = right.sum() / copies.sum()
  return (
    f", recall {share:.3f} (with the original: {', '.join(parts)}), {other} of other groups"
  )


def lines(path: pathlib.Path) -> str:
  """Counts lines, and drops the frequent ones in a second pass."""
  from jdc.prep import line_dedup

  often = line_dedup.frequent([line_dedup.count_lines(text) for text in texts(path)])
  gone = sum(int(line_dedup.drop_lines(text, often)[1].sum()) for text in texts(path))
  return f"{gone:,} lines go"


def train_tokenizer(parquet: pathlib.Path, scratch: pathlib.Path) -> None:
  """Writes a byte-level BPE of 16,000 tokens of the corpus's own first documents."""
  import tokenizers

  model = tokenizers.ByteLevelBPETokenizer()
  some = next(texts(parquet)).slice(0, 4000).to_pylist()
  model.train_from_iterator(some, 16_000, special_tokens=["<eos>"], show_progress=False)
  model.save(str(scratch / _TOKENIZER))


def tokens(path: pathlib.Path, scratch: pathlib.Path) -> str:
  """Tokenizes and packs documents into shards for training."""
  from jdc.prep.sinks import tokens as sink

  options = sink.TokenOptions(tokenizer=str(scratch / _TOKENIZER), eos_token="<eos>")
  with tempfile.TemporaryDirectory(dir=scratch) as folder:
    shard = sink.pack_shard(_documents(path), "part", pathlib.Path(folder), options)
  return f"{len(shard.files)} domains"


def _documents(path: pathlib.Path) -> Iterator[pa.RecordBatch]:
  begin = 0
  for text in texts(path):
    rows = range(begin, begin + len(text))
    columns = {
      "doc_id": pa.array([row.to_bytes(16, "big") for row in rows], pa.binary(16)),
      "source": pa.array([path.name] * len(text)),
      "offset": pa.array(rows, pa.int64()),
      "domain": pa.array(["web"] * len(text)),
      "text": text,
    }
    yield pa.RecordBatch.from_pydict(columns)
    begin += len(text)


def bare_tokens(path: pathlib.Path, scratch: pathlib.Path) -> str:
  """Tokenizes documents with the library and drops the tokens."""
  import tokenizers

  model, count = tokenizers.Tokenizer.from_file(str(scratch / _TOKENIZER)), 0
  for text in texts(path):
    for begin in range(0, len(text), 512):
      found = model.encode_batch_fast(text.slice(begin, 512).to_pylist())
      count += sum(len(encoding.ids) for encoding in found)
  return f"{count:,} tokens"


def started_pipeline(path: pathlib.Path, scratch: pathlib.Path) -> str:
  """Runs a whole plan over the JSON lines beside a file."""
  from jdc.prep import runner, spec

  plan = scratch / "started.toml"
  plan.write_text(_PLAN.format(corpus=path.parent.resolve()))
  with tempfile.TemporaryDirectory(dir=scratch) as output:
    made = runner.run(spec.PlanSpec.read(plan), output)
  return f"{made['accounts']['kept']:,} kept"


def pipeline(folder: pathlib.Path, scratch: pathlib.Path) -> dict[str, Any]:
  """Runs a whole plan in a process of its own, whose start is included."""
  with tempfile.TemporaryDirectory(dir=scratch) as work:
    plan, output = pathlib.Path(work) / "pipeline.toml", pathlib.Path(work) / "out"
    plan.write_text(_PLAN.format(corpus=folder.resolve()))
    script = pathlib.Path(__file__).with_name("prep.py")
    command = [sys.executable, str(script), "run", str(plan), f"--output={output}"]
    begin, blocks = cpu(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_oublock
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = cpu() - begin
    wrote = 512 * (resource.getrusage(resource.RUSAGE_CHILDREN).ru_oublock - blocks)
    left = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
  given = sum(path.stat().st_size for path in folder.glob("raw-*.jsonl"))
  documents, size = text_size(folder / "corpus.parquet")
  note = f"{wrote / given:.2f} bytes written for each one of input, {left / given:.2f} left"
  return {"seconds": seconds, "documents": documents, "size": size, "note": note}


if __name__ == "__main__":
  main()
