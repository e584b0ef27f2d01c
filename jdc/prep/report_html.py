"""The report of a run as one page of HTML that needs nothing else."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jdc.prep import report_svg as svg

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
Signals = Mapping[str, np.ndarray]
_BEFORE, _AFTER = "#999999", "#0b6fa4"


def page(
  manifest: Mapping[str, Any], report: Mapping[str, Any], before: Signals, after: Signals
) -> str:
  """Returns the page.

  Args:
    manifest: of the run.
    report: what `report.write` measured.
    before: signals of a sample of the documents as they came, none where it is empty.
    after: those of a sample of the output.
  """
  plan = manifest["plan"]
  parts = [
    f"<h1>{html.escape(plan.get('goal') or 'Data preparation')}</h1>",
    f"<p>plan {manifest['plan_hash'][:16]}, output {manifest['output_hash'][:16]}</p>",
    _expectations(report["expectations"]),
    "<h2>Where the documents went</h2>",
    _flow(manifest["accounts"]),
    "<h2>Length</h2><p>Documents as they came (grey) and of the output (blue).</p>",
    _lengths(report["lengths"]),
    f"<h2>Signals of samples</h2><p>{report['before']['documents']} documents as they came "
    f"(grey) and {report['after']['documents']} of the output (blue), share of documents.</p>",
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


def _lengths(lengths: Mapping[str, Sequence[int]]) -> str:
  used = [i for held in lengths.values() for i, count in enumerate(held) if count]
  if not used:
    return "<p>no documents</p>"
  low, high = min(used), max(used) + 1
  padded = {name: np.array([*held, *[0] * high]) for name, held in lengths.items()}
  heights = {_BEFORE: padded["before"][low:high], _AFTER: padded["after"][low:high]}
  ticks = [(i + 0.5, f"{2 ** max(i - 1, 0):,}") for i in range(low, high)]
  panel = svg.Panel(
    "documents, by bytes of text: at least", np.arange(low, high + 1), heights, ticks
  )
  return svg.draw([panel], 1, 960, 250)


def _signals(before: Signals, after: Signals) -> str:
  held = {_BEFORE: before, _AFTER: after}
  return svg.draw([_shares(name, held) for name in _SHOWN], 4, 240, 175)


def _shares(name: str, held: Mapping[str, Signals]) -> svg.Panel:
  """Returns what share of the documents has which values of a signal, up to a percentile."""
  known = {
    colour: np.asarray(found[name], np.float64)[~np.isnan(found[name])]
    for colour, found in held.items()
    if found
  }
  joined = np.concatenate([np.zeros(0), *known.values()])
  low, high = np.quantile(joined, [0, 0.99]) if len(joined) else (0.0, 0.0)
  edges = np.linspace(low, high if high > low else low + 1, 25)
  heights = {
    colour: np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] / max(len(values), 1)
    for colour, values in known.items()
  }
  ticks = [(edge, f"{edge:.3g}") for edge in edges[::12].tolist()]
  return svg.Panel(name, edges, heights, ticks)
