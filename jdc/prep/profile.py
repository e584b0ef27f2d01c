"""What a plan should know of data: a sample of it measured."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jdc.prep import exact_dedup, near_dedup, readers, sampling
from jdc.prep.batches import BadRecord
from jdc.prep.kernels import signals as kernel
from jdc.prep.links import cause_kind
from jdc.prep.readers import files, streams
from jdc.prep.spec import InputSpec

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
_TAG = r"</?(?:p|div|span|a|br|li|ul|table|td|tr|h[1-6]|body|html|script|style)\b[^<>]*>"
_EXAMPLES = 5


def profile(
  spec: InputSpec,
  *,
  root: str | Path = ".",
  sample: int = 5000,
  seed: int = 0,
  most_mb: float = 1024.0,
) -> dict[str, Any]:
  """Measures a sample of an input.

  All of it is read if it has at most `most_mb` MiB, else shard tasks that are drawn by the
  seed; the share is in the result. Bad records are counted in what is read.

  Args:
    spec: what to read.
    root: the folder that relative paths start at.
    sample: most documents that are measured; all together at most 8 MiB of text.
    seed: of the sample.
    most_mb: most MiB that are read.

  Returns:
    `files`, `read`, `bad_lines` with examples, `columns`, `domains`, and what `measure` gives.
  """
  held = sampling.Sample(sample, seed)
  accounts = read_input(spec, held.add, root=root, seed=seed, most_mb=most_mb)
  table = held.table()
  return {
    **accounts,
    "columns": columns(table.column("fields").to_pylist()),
    **measure(table),
  }


def read_input(
  spec: InputSpec,
  each: Callable[[pa.RecordBatch], None],
  *,
  root: str | Path = ".",
  seed: int = 0,
  most_mb: float = 1024.0,
) -> dict[str, Any]:
  """Passes documents of an input to a function, a batch at a time, as `profile` reads them.

  Returns:
    `files`, `share_read`, `read`, `bad_lines` and `domains`.
  """
  found = files.find(spec, Path(root).absolute())
  files.check_readable(found, spec)
  indexes = [files.index(file, spec) for file in found]
  sizes = {piece: size for held in indexes for piece, size in held.pieces}
  shards = files.shards(indexes, spec)
  chosen = _drawn([sum(sizes[p] for p in shard) for shard in shards], most_mb * (1 << 20), seed)
  bad: Counter[str] = Counter()
  examples: dict[str, list[str]] = defaultdict(list)

  def refuse(record: BadRecord) -> None:
    kind = cause_kind(record.cause)
    bad[kind] += 1
    if len(examples[kind]) < _EXAMPLES:
      examples[kind].append(str(record))

  counts: dict[str, int] = {}
  domains: Counter[str] = Counter()
  rows = 0
  for number in chosen:
    for piece in shards[number]:
      for batch in readers.read(piece, spec, refuse, counts):
        each(batch)
        rows += batch.num_rows
        for value in pc.value_counts(batch.column("domain")).to_pylist():
          domains[value["values"]] += value["counts"]
  streams.close_resting()
  total = sum(sizes.values())
  return {
    "files": [
      {"source": i.file.source, "format": i.file.format, "bytes": i.size, "damage": i.damage}
      for i in indexes
    ],
    "share_read": sum(sizes[p] for n in chosen for p in shards[n]) / total if total else 1.0,
    "read": {"documents": rows, **counts},
    "bad_lines": {
      kind: {"count": bad[kind], "examples": examples[kind]} for kind in sorted(bad)
    },
    "domains": dict(sorted(domains.items())),
  }


def _drawn(sizes: list[int], most: float, seed: int) -> list[int]:
  """Returns the shards that are read, in order."""
  if sum(sizes) <= most:
    return list(range(len(sizes)))
  order = np.random.default_rng(seed).permutation(len(sizes))
  taken: list[int] = []
  total = 0.0
  for number in order.tolist():
    if taken and total + sizes[number] > most:
      break
    taken.append(number)
    total += sizes[number]
  return sorted(taken)


def columns(fields: list[str]) -> dict[str, dict[str, Any]]:
  """Returns of each field beside the text the share of records without it, and its types."""
  types: dict[str, Counter[str]] = defaultdict(Counter)
  for value in fields:
    for name, held in json.loads(value).items():
      types[name][type(held).__name__] += 1
  size = max(len(fields), 1)
  return {
    name: {
      "null_rate": 1 - (sum(held.values()) - held["NoneType"]) / size,
      "types": {kind: held[kind] for kind in sorted(held) if kind != "NoneType"},
    }
    for name, held in sorted(types.items())
  }


def signals_of(table: pa.Table) -> dict[str, np.ndarray]:
  """Returns all signals of documents, none of no documents."""
  text = [*table.column("text").chunks]
  return kernel.signals(pa.concat_arrays(text)) if table.num_rows else {}


def measure(table: pa.Table, signals: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
  """Measures documents, whose signals may be there already.

  Returns:
    `documents`; `length`, quantiles in bytes; `signals`, quantiles of each; `languages`,
    shares; `exact_dup_rate` and `near_dup_rate` of the sample, which are below those of all
    documents;
    `html_rate`; `encoding_fault_rate`, documents that `fix_unicode` changes; `unspaced_rate`,
    documents mostly in scripts without spaces; and `pii_*_per_million`, pieces of personal
    data a million documents.
  """
  from jdc.prep.text.language import language
  from jdc.prep.text.pii import mask_pii
  from jdc.prep.text.unicode import fix_unicode

  size = table.num_rows
  if not size:
    return {"documents": 0}
  text = pa.concat_arrays(table.column("text").chunks)
  signals = signals_of(table) if signals is None else signals
  langs = Counter(language(text)["lang"].tolist())
  fixed = fix_unicode(text)
  _, found = mask_pii(text, ssn=True, street=True, name=True)
  html = pc.match_substring_regex(text, _TAG, ignore_case=True)
  return {
    "documents": size,
    "length": quantiles(pc.binary_length(text).to_numpy(zero_copy_only=False)),
    "signals": {name: quantiles(values) for name, values in signals.items()},
    "languages": {name: count / size for name, count in langs.most_common()},
    **duplicate_rates(text),
    "html_rate": pc.sum(html).as_py() / size,
    "encoding_fault_rate": pc.sum(pc.not_equal(text, fixed)).as_py() / size,
    "unspaced_rate": float(np.mean(signals["unspaced"] > 0.5)),
    **{f"{name}_per_million": float(v.sum()) / size * 1e6 for name, v in found.items()},
  }


def duplicate_rates(text: pa.StringArray) -> dict[str, float]:
  """Returns the shares of documents that exact and near deduplication would drop."""
  exact = exact_dedup.decide([exact_dedup.keys(text)])
  keep = np.ones(len(text), bool)
  keep[exact.row] = False
  rest = text.filter(pa.array(keep))
  near, _ = near_dedup.decide([near_dedup.keys(rest)], lambda rows: [rest.take(pa.array(rows))])
  size = len(text)
  return {"exact_dup_rate": len(exact.row) / size, "near_dup_rate": len(near.row) / size}


def quantiles(values: np.ndarray) -> dict[str, float] | None:
  """Returns quantiles of numbers, those that are not defined left out; `None` of none.

  >>> quantiles(np.array([1.0, 3.0, np.nan]))["0.5"]
  2.0
  """
  known = np.asarray(values, np.float64)
  known = known[~np.isnan(known)]
  if not len(known):
    return None
  found = np.quantile(known, QUANTILES)
  return {f"{q:g}": float(v) for q, v in zip(QUANTILES, found, strict=True)}


def summary(value: Mapping[str, Any]) -> str:
  """Returns a profile as text for a terminal."""
  lines = [f"{len(value['files'])} files, {value['read']['documents']} documents read"]
  lines[0] += f" ({value['share_read']:.0%} of the input), {value['documents']} measured"
  for kind, held in value["bad_lines"].items():
    lines.append(f"  bad: {held['count']} x {kind}, as {held['examples'][0]}")
  for name, held in value["columns"].items():
    types = ", ".join(held["types"])
    lines.append(f"  field {name}: {types or 'null'}, {held['null_rate']:.1%} null")
  if value["documents"]:
    shown = ", ".join(f"{q}: {v:.0f}" for q, v in value["length"].items())
    lines.append(f"  bytes of text, quantiles: {shown}")
    top = list(value["languages"].items())[:5]
    lines.append("  languages: " + ", ".join(f"{n} {share:.1%}" for n, share in top))
    names = [n for n in value if n.endswith(("_rate", "_per_million"))]
    lines += [f"  {name}: {value[name]:.4g}" for name in names]
  return "\n".join(lines)
