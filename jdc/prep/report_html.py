"""The report of a run as one page of HTML that needs nothing else."""

import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from jdc.prep.kernels import signals as kernel

_STYLE = """
body { font: 15px/1.45 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; } td, th { padding: .15em .8em; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr:nth-child(even) { background: #f4f4f4; }
svg { max-width: 100%; height: auto; } pre { background: #f4f4f4; padding: .8em; }
.no { color: #b00; font-weight: bold; }
"""
_SHOWN = (
  "n_words",
  "mean_len",
  "stop_en",
  "alpha",
  "line_punct",
  "short_line",
  "dup_line_c",
  "top2",
  "dup5",
  "nl_ratio",
  "hash_ratio",
  "compression",
)
_BEFORE, _AFTER = "#999999", "#0b6fa4"


def page(
  manifest: Mapping[str, Any], report: Mapping[str, Any], before: pa.Table, after: pa.Table
) -> str:
  """Returns the page.

  Args:
    manifest: of the run.
    report: what `report.write` measured.
    before: a sample of the documents as they came.
    after: a sample of the output.
  """
  plan = manifest["plan"]
  parts = [
    f"<h1>{html.escape(plan.get('goal') or 'Data preparation')}</h1>",
    f"<p>plan {manifest['plan_hash'][:16]}, output {manifest['output_hash'][:16]}</p>",
    _expectations(report["expectations"]),
    "<h2>Where the documents went</h2>",
    _flow(manifest["accounts"]),
    "<h2>Length</h2>",
    _lengths(report["lengths"]),
    f"<h2>Signals of samples</h2><p>{before.num_rows} documents as they came (grey) and "
    f"{after.num_rows} of the output (blue), share of documents.</p>",
    _signals(before, after),
    "<h2>Measured on these samples</h2>",
    _measured(report),
    "<h2>Stages</h2>",
    _stages(report["stages"]),
  ]
  body = "\n".join(parts)
  return (
    "<!doctype html><html lang=en><meta charset=utf-8><title>Data preparation</title>"
    f"<style>{_STYLE}</style><body>{body}</body></html>\n"
  )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  cells = ["<tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in head) + "</tr>"]
  cells += ["<tr>" + "".join(f"<td>{_shown(v)}</td>" for v in row) + "</tr>" for row in rows]
  return "<table>" + "\n".join(cells) + "</table>"


def _shown(value: Any) -> str:
  if isinstance(value, float):
    return f"{value:.4g}"
  if isinstance(value, int) and not isinstance(value, bool):
    return f"{value:,}"
  return html.escape(str(value))


def _expectations(held: Sequence[Mapping[str, Any]]) -> str:
  if not held:
    return ""
  rows = [
    (h["name"], f"{h['min']} to {h['max']}", h["value"], "holds" if h["holds"] else "fails")
    for h in held
  ]
  table = _table(("expected", "range", "measured", ""), rows)
  return "<h2>Expectations</h2>" + table.replace("<td>fails", "<td class=no>fails")


def _flow(accounts: Mapping[str, Any]) -> str:
  read = max(accounts["read"] + accounts["made"], 1)
  rows: list[tuple[Any, ...]] = [("read", accounts["read"], 1.0)]
  for group in ("quarantined", "dropped"):
    ordered = sorted(accounts[group].items(), key=lambda item: (-item[1], item[0]))
    rows += [(f"{group}: {reason}", count, count / read) for reason, count in ordered]
  rows.append(("kept", accounts["kept"], accounts["kept"] / read))
  return _table(("", "documents", "share"), rows)


def _measured(report: Mapping[str, Any]) -> str:
  names = [
    name for name in report["before"] if name.endswith(("_rate", "_per_million", "documents"))
  ]
  rows = [(n, report["before"].get(n, ""), report["after"].get(n, "")) for n in names]
  return _table(("", "before", "after"), rows)


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
  head = ("stage", "tasks", "documents in", "out", "CPU seconds", "bytes written")
  keys = ("name", "tasks", "rows_in", "rows_out", "cpu_s", "bytes_written")
  return _table(head, [[stage.get(key, "") for key in keys] for stage in stages])


def _figure(columns: int, rows: int, height: float) -> tuple[Any, Any]:
  import matplotlib.figure

  # Margins in inches: an automatic layout measures all texts, which takes longer than to draw.
  figure = matplotlib.figure.Figure(figsize=(10, height))
  edges = {"left": 0.08, "right": 0.98, "bottom": 0.75 / height, "top": 1 - 0.3 / height}
  axes = figure.subplots(rows, columns, squeeze=False, gridspec_kw=edges | {"hspace": 0.9})
  return figure, axes


def _svg(figure: Any) -> str:
  import matplotlib

  # Without dates and random ids, the same numbers give the same picture.
  with matplotlib.rc_context({"svg.hashsalt": "jdc", "svg.fonttype": "none"}):
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
  text = buffer.getvalue()
  return text[text.index("<svg") :]


def _lengths(lengths: Mapping[str, Sequence[int]]) -> str:
  figure, axes = _figure(1, 1, 2.6)
  axis = axes[0][0]
  used = [i for held in lengths.values() for i, count in enumerate(held) if count]
  if not used:
    return "<p>no documents</p>"
  low, high = min(used), max(used) + 1
  places = np.arange(low, high)
  for shift, (name, colour) in enumerate((("before", _BEFORE), ("after", _AFTER))):
    held = list(lengths[name]) + [0] * high
    axis.bar(places + 0.4 * shift, held[low:high], 0.4, color=colour, label=name)
  axis.set_xticks(places, [f"{2 ** max(i - 1, 0):,}" for i in range(low, high)], rotation=45)
  axis.set_xlabel("bytes of text, at least")
  axis.set_ylabel("documents")
  axis.legend()
  return _svg(figure)


def _signals(before: pa.Table, after: pa.Table) -> str:
  held = [(_measure(before), _BEFORE), (_measure(after), _AFTER)]
  figure, axes = _figure(4, 3, 5.5)
  for axis, name in zip(axes.flat, _SHOWN, strict=True):
    known = [values[name][~np.isnan(values[name])] for values, _ in held if name in values]
    joined = np.concatenate([np.zeros(0), *known])
    axis.set_title(name, fontsize=9)
    axis.tick_params(labelsize=7)
    if not len(joined):
      continue
    low, high = np.quantile(joined, [0, 0.99])
    edges = np.linspace(low, high if high > low else low + 1, 25)
    for values, (_, colour) in zip(known, held, strict=False):
      share = np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / max(len(values), 1)
      axis.stairs(share, edges, color=colour)
  return _svg(figure)


def _measure(table: pa.Table) -> dict[str, np.ndarray]:
  if not table.num_rows:
    return {}
  text = pa.concat_arrays(table.column("text").chunks)
  found = kernel.signals(text, _SHOWN)
  return {name: values.astype(np.float64) for name, values in found.items()}
