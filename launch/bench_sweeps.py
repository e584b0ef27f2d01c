"""Sweeps of a pool on one CPU core, beside bare forward passes, the peak and DataFlex.

A tiny Llama with adapters looks at random examples of lengths like those of Alpaca. A measure
is a whole sweep by `jdc.stats.pool`; all take turns, so that what slows the machine down slows
all of them down. With `--peer=PYTHON`, an interpreter that has `dataflex[less]`, DataFlex's own
selectors take their turns in a process on the same core. `--only=losses,DataFlex` picks the
measures whose name contains one of these.
"""

import contextlib
import os

import bench_peer
import jax
import numpy as np
from absl import flags
from bench_policies import ONLY
from bench_setup import CPU_TIME, ratio_of
from bench_sweep_measures import Cost, Records, draw_lengths, make_measures

from jdc.train import sharding

PEER = flags.DEFINE_string("peer", "", "A Python with dataflex[less]==1.1.0; empty: none.")
PEER_EXAMPLES = flags.DEFINE_integer("peer_examples", 32, "Of these for the peer's features.")
CORE = flags.DEFINE_integer("core", None, "The core to use; default: the last one allowed.")
EXAMPLES = flags.DEFINE_integer("examples", 192, "Examples of the pool.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Times that each measure takes its turn.")
MICROBATCH = flags.DEFINE_integer("microbatch_size", 8, "Examples of a microbatch.")

# What is asked of the speed, over that of DataFlex.
_ASKED = {
  "losses": 2.0,
  "exact, Adam, count sketch": 3.0,
  "kron, all layers": 3.5,
  "kron, top half": 6.0,
}


def main() -> None:
  """Prints a line a measure, and the ratios."""
  core = max(os.sched_getaffinity(0)) if CORE.value is None else CORE.value
  os.sched_setaffinity(0, {core})  # before the device counts the cores for its threads
  lengths, prompts = draw_lengths(EXAMPLES.value)
  print(f"{len(lengths)} examples of {lengths.min()} to {lengths.max()} tokens, mean "
        f"{lengths.mean():.0f}, of which {(lengths - prompts).mean():.0f} are targets; core "
        f"{core}, load {os.getloadavg()[0]:.1f}")  # fmt: skip
  with contextlib.ExitStack() as stack:
    mesh = sharding.make_mesh()
    stack.enter_context(jax.set_mesh(mesh))
    batches = sharding.batch_sharding(mesh)
    measures = make_measures(Records(lengths, prompts), batches, MICROBATCH.value)
    if PEER.value:
      setting = (PEER.value, lengths, prompts, PEER_EXAMPLES.value)
      measures |= stack.enter_context(bench_peer.dataflex(*setting))
    if ONLY.value:
      parts = (*ONLY.value, "peak")
      measures = {n: m for n, m in measures.items() if any(part in n for part in parts)}
    found: dict[str, list[Cost]] = {name: [] for name in measures}
    for name, measure in measures.items():
      print(f"compiling and warming up: {name}", flush=True)
      measure()
    for round_ in range(ROUNDS.value):
      for name in measures if round_ % 2 == 0 else reversed(measures):
        found[name].append(measures[name]())
  report(found)


def report(found: dict[str, list[Cost]]) -> None:
  """Prints what each measure did in a second, and the ratios that are asked for."""
  peak = max(cost.flops / cost.seconds for cost in found.pop("peak"))
  clock = "CPU time" if CPU_TIME.value else "wall time"
  print(f"peak: {peak / 1e9:.1f} GFLOP/s; {ROUNDS.value} rounds, {clock}, load "
        f"{os.getloadavg()[0]:.1f}")  # fmt: skip
  for name, costs in found.items():
    seconds, each = _per_example(costs), costs[0]
    median, best = 1 / np.median(seconds), 1 / seconds.min()
    line = f"{name:>30}: {median:6.1f} examples/s, best {best:6.1f}"
    if each.flops:
      flops = each.flops / each.examples
      line += (
        f", {median * each.positions / each.examples:7,.0f} positions/s, "
        f"{flops / 1e9:.2f} GFLOP an example, {100 * median * flops / peak:.0f} % of peak, "
        f"padding {100 * each.padding / each.positions:.1f} %"
      )
    print(line)
  _report_ratios(found)


def _report_ratios(found: dict[str, list[Cost]]) -> None:
  forward = found.get("bare forward, rows of 512")
  if forward and "losses" in found:
    pair = _per_position(forward), _per_position(found["losses"])
    _print_ratio("losses, positions/s of bare forward", *pair, 0.9)
  for name, asked in _ASKED.items():
    for peer in (name for name in found if name.startswith("DataFlex")):
      if name in found and ("loss" in peer) == (name == "losses"):
        pair = _per_example(found[peer]), _per_example(found[name])
        _print_ratio(f"{name} over {peer}", *pair, asked)


def _print_ratio(name: str, base: np.ndarray, values: np.ndarray, asked: float) -> None:
  ratio, low, high = ratio_of(base, values)
  print(f"{name}: {ratio:.2f}x  95 % interval [{low:.2f}, {high:.2f}], of minima "
        f"{base.min() / values.min():.2f}x; at least {asked:g} is asked")  # fmt: skip


def _per_example(costs: list[Cost]) -> np.ndarray:
  return np.array([cost.seconds / cost.examples for cost in costs])


def _per_position(costs: list[Cost]) -> np.ndarray:
  return np.array([cost.seconds / cost.positions for cost in costs])
