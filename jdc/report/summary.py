"""The table and the picture that a run ends with, read from its directory."""

from pathlib import Path

from jdc import metrics as metrics_lib

Run = list[dict[str, float]]


def table(workdir: str | Path) -> str:
  """Returns a line for each domain: shares, epochs, validation loss before and after."""
  run = metrics_lib.read_metrics(workdir)
  split = evaluated_split(run)
  evaluations = [line for line in run if f"{split}/micro_loss" in line]
  if not evaluations:
    return "no split was evaluated"
  first, last = evaluations[0], evaluations[-1]
  header = ("domain", "asked", "seen", "epochs", "loss before", "loss after", "bits/byte")
  lines = [header]
  for name in domain_names(run):
    data, evaluated = f"data/domain/{name}", f"{split}/{name}"
    lines.append(
      (
        name,
        _percent(last.get(f"{data}/share_asked")),
        _percent(last.get(f"{data}/share_seen")),
        f"{last.get(f'{data}/epochs', 0.0):.2f}",
        f"{first[f'{evaluated}/loss']:.4f}",
        f"{last[f'{evaluated}/loss']:.4f}",
        f"{last[f'{evaluated}/bits_per_byte']:.4f}",
      )
    )
  lines.append(
    (
      "mean",
      "",
      "",
      "",
      f"{first[f'{split}/macro_loss']:.4f}",
      f"{last[f'{split}/macro_loss']:.4f}",
      f"{last[f'{split}/macro_bits_per_byte']:.4f}",
    )
  )
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
    for line in lines
  )


def plot(workdir: str | Path) -> Path:
  """Draws shares and losses over steps; returns the PNG."""
  import matplotlib as mpl
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  run = metrics_lib.read_metrics(workdir)
  names, split = domain_names(run), evaluated_split(run)
  figure = Figure(figsize=(12, 4), layout="constrained")
  FigureCanvasAgg(figure)
  panels = figure.subplots(1, 3)
  for axes, title, path in zip(
    panels,
    ("share of each batch", "training loss (nats per token)", f"{split} loss"),
    ("data/domain/{}/probability", "train/domain/{}/loss", f"{split}/{{}}/loss"),
    strict=True,
  ):
    for k, name in enumerate(names):
      points = [(line["step"], line[key]) for line in run if (key := path.format(name)) in line]
      if points:
        marker = "o" if len(points) < 5 else None
        color = mpl.color_sequences["tab10"][k % 10]
        axes.plot(*zip(*points, strict=True), label=name, marker=marker, color=color)
    axes.set(title=title, xlabel="step")
    axes.grid(alpha=0.3)
  panels[0].set_ylim(bottom=0)
  panels[0].legend(fontsize="small")
  file = Path(workdir) / "shares_and_losses.png"
  figure.savefig(file, dpi=120)
  return file


def domain_names(run: Run) -> list[str]:
  """Returns the domains that a run evaluated, or else those it drew from, in order."""
  split = evaluated_split(run)
  first = next((line for line in run if f"{split}/micro_loss" in line), None)
  if first is None:
    parts = [key.split("/") for line in run for key in line if key.startswith("data/domain/")]
    return list(dict.fromkeys("/".join(part[2:-1]) for part in parts))
  return [
    key.removeprefix(f"{split}/").removesuffix("/loss")
    for key in first
    if key.startswith(f"{split}/") and key.endswith("/loss")
  ]


def evaluated_split(run: Run) -> str:
  """Returns the split that a run evaluated, "validation" or "target"."""
  found = any("target/micro_loss" in line for line in run)
  return "target" if found else "validation"


def _percent(share: float | None) -> str:
  return "-" if share is None else f"{100 * share:.1f} %"
