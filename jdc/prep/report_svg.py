"""Histograms as SVG, which takes less time than to load a library for plots of all kinds."""

import html
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 22, 30  # around the axes, pixels


class Panel(NamedTuple):
  """One pair of axes with histograms.

  Attributes:
    title: above.
    edges: f64[B + 1], of the bins, ascending.
    heights: of B bins, by colour.
    ticks: (place, label) along the bins.
  """

  title: str
  edges: np.ndarray
  heights: Mapping[str, np.ndarray]
  ticks: Sequence[tuple[float, str]]


def draw(panels: Sequence[Panel], columns: int, width: int, height: int) -> str:
  """Returns panels in rows as one picture; the same numbers give the same picture.

  Args:
    panels: what is drawn.
    columns: panels of a row.
    width: pixels of a panel.
    height: likewise.
  """
  rows = -(-len(panels) // columns)
  parts = [
    f'<g transform="translate({i % columns * width} {i // columns * height})">'
    f"{_panel(panel, width - _LEFT - _RIGHT, height - _TOP - _BOTTOM)}</g>"
    for i, panel in enumerate(panels)
  ]
  head = (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {columns * width} {rows * height}"'
  )
  style = 'font-family="sans-serif" font-size="11" fill="none"'
  return f"{head} {style}>{''.join(parts)}</svg>"


def _panel(panel: Panel, width: int, height: int) -> str:
  top = max((float(held.max(initial=0)) for held in panel.heights.values()), default=0.0)
  low, high = float(panel.edges[0]), float(panel.edges[-1])
  across = lambda value: round(_LEFT + width * (value - low) / (high - low), 1)
  up = lambda value: round(_TOP + height * (1 - value / (top or 1.0)), 1)
  parts = [_text(_LEFT + width / 2, _TOP - 8, panel.title, "middle")]
  parts.append(f'<path stroke="#444" d="M{_LEFT} {_TOP}V{_TOP + height}H{_LEFT + width}"/>')
  parts += [
    _text(_LEFT - 5, up(value) + 4, f"{value:.3g}", "end") for value in (0.0, top / 2, top)
  ]
  parts += [
    _text(across(place), _TOP + height + 15, label, "middle") for place, label in panel.ticks
  ]
  for colour, held in panel.heights.items():
    steps = [
      f"V{up(value)}H{across(edge)}"
      for value, edge in zip(held.tolist(), panel.edges[1:].tolist(), strict=True)
    ]
    path = f"M{across(low)} {up(0)}{''.join(steps)}V{up(0)}"
    parts.append(f'<path stroke="{colour}" stroke-width="1.5" d="{path}"/>')
  return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str) -> str:
  return f'<text x="{x}" y="{y}" fill="#222" text-anchor="{anchor}">{html.escape(text)}</text>'
