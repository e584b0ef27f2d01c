"""Finished runs of several policies compared: paired differences and what they cost."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Of Student's t, two-sided 95 %, by degrees of freedom; SciPy is not among our dependencies.
_T95 = (
  12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
  2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
  2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


class Interval(NamedTuple):
  """A mean and its 95 % confidence interval; NaN where one value is all there is."""

  mean: float
  low: float
  high: float


class Row(NamedTuple):
  """One policy of a comparison, over its seeds."""

  name: str
  seeds: tuple[int, ...]
  bits_per_byte: float  # on validation, mean of the domains, mean of the seeds
  differences: dict[str, Interval]  # by control: this minus it, of the same seed
  worst_domain: str
  worst_bits_per_byte: float
  seconds: float  # of the run and those before it, median of the seeds
  extra_forward: float  # FLOPs of extra forward passes over those of the run's own
  extra_backward: float
  train_tokens: int


def paired_interval(values: Sequence[float], control: Sequence[float]) -> Interval:
  """Returns the mean of the differences of pairs and its interval by Student's t.

  Example:
    >>> [round(x, 3) for x in paired_interval([1.0, 2.0, 3.0], [0.5, 1.0, 3.5])]
    [0.333, -1.564, 2.231]
  """
  difference = np.asarray(values, np.float64) - np.asarray(control, np.float64)
  count = len(difference)
  mean = float(difference.mean())
  if count < 2:
    return Interval(mean, math.nan, math.nan)
  half = _t95(count - 1) * float(difference.std(ddof=1)) / math.sqrt(count)
  return Interval(mean, mean - half, mean + half)


def _t95(degrees: int) -> float:
  if degrees <= len(_T95):
    return _T95[degrees - 1]
  # Cornish and Fisher's expansion about the normal quantile, here right to four digits.
  z = 1.959964
  return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def rows(
  results: Mapping[str, Mapping[int, Mapping[str, Any]]], controls: Sequence[str]
) -> list[Row]:
  """Returns a row a policy, the best first; one whose score is not finite comes last.

  Args:
    results: of the finished runs.
    controls: the policies that every other one is compared with.

  Raises:
    ValueError: if the runs did not train on the same number of tokens.
  """
  tokens = {
    f"{name}, seed {seed}": int(result["train_tokens"])
    for name, by_seed in results.items()
    for seed, result in by_seed.items()
  }
  if len(set(tokens.values())) > 1:
    raise ValueError(f"runs trained on different numbers of tokens: {tokens}")
  found = []
  for name, by_seed in results.items():
    seeds = sorted(by_seed)
    runs = [by_seed[seed] for seed in seeds]
    score = [run["bits_per_byte"] for run in runs]
    differences = {}
    for control in controls:
      shared = [seed for seed in seeds if seed in results.get(control, {})]
      if control != name and shared:
        differences[control] = paired_interval(
          [by_seed[seed]["bits_per_byte"] for seed in shared],
          [results[control][seed]["bits_per_byte"] for seed in shared],
        )
    domains = {
      domain: float(np.mean([run["domains"][domain] for run in runs]))
      for domain in runs[0]["domains"]
    }
    worst = max(domains, key=lambda name: (math.isnan(domains[name]), domains[name]))
    found.append(
      Row(
        name,
        tuple(seeds),
        float(np.mean(score)),
        differences,
        worst,
        domains[worst],
        float(np.median([run["seconds"] for run in runs])),
        float(np.mean([run["extra_forward"] for run in runs])),
        float(np.mean([run["extra_backward"] for run in runs])),
        next(iter(tokens.values())),
      )
    )
  return sorted(
    found, key=lambda row: (not math.isfinite(row.bits_per_byte), row.bits_per_byte)
  )


def write(found: Sequence[Row], controls: Sequence[str], folder: str | Path) -> dict[str, Path]:
  """Writes the table as CSV and Markdown and draws it; returns the files."""
  folder = Path(folder)
  files = {kind: folder / f"comparison.{kind}" for kind in ("csv", "md", "png")}
  with open(files["csv"], "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(_csv_header(controls))
    writer.writerows(_csv_line(row, controls) for row in found)
  files["md"].write_text(markdown(found, controls) + "\n", encoding="utf-8")
  _plot(found, controls, files["png"])
  return files


def markdown(found: Sequence[Row], controls: Sequence[str]) -> str:
  """Returns the table for people."""
  header = ["policy", "bits/byte", *(f"against {c} [95 %]" for c in controls)]
  header += ["worst domain", "time", "extra forward", "extra backward"]
  base = next((row.seconds for row in found if row.name == controls[0]), math.nan)
  lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
  for row in found:
    cells = [f"`{row.name}`", f"{row.bits_per_byte:.4f}"]
    cells += [_difference(row.differences.get(control)) for control in controls]
    cells += [
      f"{row.worst_domain} {row.worst_bits_per_byte:.3f}",
      f"{row.seconds / base:.2f}x",
      f"{100 * row.extra_forward:.0f} %",
      f"{100 * row.extra_backward:.0f} %",
    ]
    lines.append("| " + " | ".join(cells) + " |")
  seeds = sorted({seed for row in found for seed in row.seeds})
  lines.append("")
  lines.append(
    f"Seeds {', '.join(map(str, seeds))}; {found[0].train_tokens:,} positions trained in each "
    "run; time is of steps, rounds and earlier runs, over that of the first control."
  )
  partial = [row.name for row in found if set(row.seeds) != set(seeds)]
  if partial:
    lines.append(
      f"Not of all seeds, and so not comparable by their means: {', '.join(partial)}."
    )
  return "\n".join(lines)


def _difference(interval: Interval | None) -> str:
  if interval is None:
    return ""
  if math.isnan(interval.low):
    return f"{interval.mean:+.4f}"
  return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"


def _csv_header(controls: Sequence[str]) -> list[str]:
  columns = ["policy", "seeds", "bits_per_byte"]
  for control in controls:
    columns += [f"against_{control}", f"against_{control}_low", f"against_{control}_high"]
  return [
    *columns, "worst_domain", "worst_bits_per_byte", "seconds", "extra_forward",
    "extra_backward", "train_tokens",
  ]  # fmt: skip


def _csv_line(row: Row, controls: Sequence[str]) -> list[Any]:
  cells: list[Any] = [row.name, len(row.seeds), row.bits_per_byte]
  for control in controls:
    cells += list(row.differences.get(control, ("", "", "")))
  return [
    *cells, row.worst_domain, row.worst_bits_per_byte, row.seconds,
    row.extra_forward, row.extra_backward, row.train_tokens,
  ]  # fmt: skip


def _plot(found: Sequence[Row], controls: Sequence[str], path: Path) -> None:
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  control = controls[0]
  shown = [row for row in found if control in row.differences][::-1]
  figure = Figure(figsize=(8, 1 + 0.35 * len(shown)), layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.subplots()
  for place, row in enumerate(shown):
    mean, low, high = row.differences[control]
    axes.plot([low, high], [place, place], color="tab:gray")
    axes.plot([mean], [place], "o", color="tab:blue")
  axes.axvline(0.0, color="black", linewidth=0.8)
  axes.set_yticks(range(len(shown)), [row.name for row in shown])
  axes.set_xlabel(f"validation bits per byte minus that of {control}, 95 % interval")
  figure.savefig(path, dpi=120)


def read(folder: str | Path) -> dict[str, dict[int, dict[str, Any]]]:
  """Returns the results of the finished runs in a folder, by policy and seed."""
  results: dict[str, dict[int, dict[str, Any]]] = {}
  for path in sorted(Path(folder).glob("*/seed-*/result.json")):
    seed = int(path.parent.name.removeprefix("seed-"))
    results.setdefault(path.parent.parent.name, {})[seed] = json.loads(path.read_text("utf-8"))
  return results
