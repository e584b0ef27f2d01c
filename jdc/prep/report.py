"""What a run measured: `report.json`, and `report.html` with plots of before and after."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from jdc.prep import expect, sampling, store, tables

if TYPE_CHECKING:
  from jdc.prep.runner import Run

_SAMPLE = 2000  # documents that are measured
_GROUPS = 16  # row groups that the sample of the output is drawn from


def write(run: "Run", manifest: dict[str, Any], seconds: float) -> dict[str, Any]:
  """Measures samples of what was read and of what was written, and writes the report.

  Returns:
    `accounts`; `expectations`; `measured`, by name; where samples are measured `before` and
    `after`, as `profile.measure` gives them; `lengths`, histograms of bytes of text; `stages`;
    `engine`; `seconds`.
  """
  value: dict[str, Any] = {"accounts": manifest["accounts"]}
  size = sum(file["text_bytes"] for file in manifest["output"])
  measured = expect.counted(manifest["accounts"], size)
  signals: list[dict[str, np.ndarray]] = []
  if run.report or expect.needs_sample(run.plan.expect):
    from jdc.prep import profile  # which loads all kernels

    samples = _samples(run)
    signals = [profile.signals_of(sample) for sample in samples]
    value["before"], value["after"] = map(profile.measure, samples, signals)
    measured |= expect.sampled(value["after"], run.plan.expect)
  value["measured"] = measured
  value["expectations"] = expect.judge(expect.of_run(run.plan.expect), measured)
  value["lengths"] = _lengths(run.records)
  value["stages"] = manifest["stages"]
  value["engine"], value["seconds"] = manifest["engine"], round(seconds, 2)
  store.replace_text(run.folder / "report.json", json.dumps(value, indent=1) + "\n")
  if run.report:
    from jdc.prep import report_html

    page = report_html.page(manifest, value, *signals)
    store.replace_text(run.folder / "report.html", page)
  _card(run, manifest, value)
  return value


def _samples(run: "Run") -> tuple[pa.Table, ...]:
  """Returns samples of the documents as they came, and of the output."""
  return sampling.sample_of(_came(run), _SAMPLE), sampling.sample_of(_drawn(run), _SAMPLE)


def _came(run: "Run") -> Iterator[pa.RecordBatch]:
  """Yields the samples of the shards, each down to the bound of the one with the lowest.

  A shard keeps its documents with the smallest numbers; those below a bound that all of them
  have reached are a sample of all documents.
  """
  files = [
    (run.folder / record["files"]["sample"][0], record["info"]["rows_in"])
    for record in run.records
    if "sample" in record["files"]
  ]
  bound = np.uint64(2**64 - 1)
  for path, rows in files:
    kept = [_numbers(batch) for batch in _batches(path, ["doc_id"])]
    if 0 < sum(map(len, kept)) < rows:
      bound = min(bound, max(part.max() for part in kept))
  for path, _ in files:
    for batch in _batches(path):
      yield batch.filter(pa.array(_numbers(batch) <= bound))


def _numbers(batch: pa.RecordBatch) -> np.ndarray:
  return sampling.numbers(sampling.id_bytes(batch.column("doc_id")))


def _batches(path: Path, columns: list[str] | None = None) -> list[pa.RecordBatch]:
  return parquet.read_table(path, columns=columns, use_threads=False).to_batches()


def _drawn(run: "Run") -> Iterator[pa.RecordBatch]:
  """Yields documents of the output, of row groups that are spread evenly over all shards."""
  views = [shard.view for shard in run.shards if shard.view is not None]
  places = [
    (view, group)
    for view in views
    for group in range(parquet.read_metadata(run.folder / view.text.path).num_row_groups)
  ]
  chosen = np.linspace(0, len(places) - 1, min(_GROUPS, len(places))).astype(int)
  for number in np.unique(chosen).tolist():
    view, group = places[number]
    yield tables.read_group(run.folder, view, group, sampling.COLUMNS)


def _lengths(records: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
  """Returns how many documents have 0, 1, 2 to 3, 4 to 7, ... bytes, before and after."""
  sums = {"before": np.zeros(0, np.int64), "after": np.zeros(0, np.int64)}
  for record in records:
    held = record["info"].get("length_histogram")
    if held and record["link_kind"] == "tally":
      sums["after"] = _added(sums["after"], held)
    elif held and "quarantined" in record["info"]:
      sums["before"] = _added(sums["before"], held)
  return {name: values.tolist() for name, values in sums.items()}


def _added(total: np.ndarray, more: list[int]) -> np.ndarray:
  return np.asarray(more) + (total if len(total) else 0)


def _card(run: "Run", manifest: dict[str, Any], value: dict[str, Any]) -> None:
  """Writes the dataset card beside the data."""
  from jdc.prep.sinks import card

  card.write_card(manifest, value, run.folder)
