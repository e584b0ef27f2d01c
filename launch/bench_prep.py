"""Data preparation on one CPU core: documents for each second that is computed, beside others.

The corpus is that of `bench_corpus.py`, made in `--corpus` unless it is there. A measure starts
from Parquet and is timed by the process's user and system time, its children's included;
compiling is not counted. With `--peer=PYTHON`, or several divided by commas, the libraries that
this interpreter can import are measured by `bench_peer_prep.py`, on fewer documents.
`--only=filters,MinHash` picks measures by parts of their names.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from bench_policies import ONLY
from bench_sweeps import CORE, PEER, ROUNDS

CORPUS = flags.DEFINE_string("corpus", "", "Folder of the corpus; default: a temporary one.")
DOCUMENTS = flags.DEFINE_integer("documents", 200_000, "Documents of a corpus that is made.")
PEER_DOCUMENTS = flags.DEFINE_integer("peer_documents", 2_000, "Of these for slow peers.")


class Cost(NamedTuple):
  """What a measure took: CPU seconds, documents, bytes of their text; and what it found."""

  seconds: float
  documents: int
  size: int
  note: str = ""


def main() -> None:
  """Prints a line a measure, then the ratios that are asked for."""
  core = max(os.sched_getaffinity(0)) if CORE.value is None else CORE.value
  os.sched_setaffinity(0, {core})
  os.environ |= {"TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1"}
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(CORPUS.value or f"{scratch}/corpus")
    if not (folder / "truth.parquet").exists():
      script = pathlib.Path(__file__).with_name("prep_corpus.py")
      command = [
        sys.executable,
        str(script),
        f"--output={folder}",
        f"--documents={DOCUMENTS.value}",
      ]
      subprocess.run(command, check=True)
    measures = own_measures(folder, pathlib.Path(scratch)) | peer_measures(folder)
    print(f"core {core}, load {os.getloadavg()[0]:.1f}, {folder}")
    found: dict[str, list[Cost]] = {name: [] for name in measures}
    for round_ in range(ROUNDS.value):
      for name in measures if round_ % 2 == 0 else reversed(measures):
        found[name].append(Cost(**measures[name]()))
        print(f"round {round_}: {_line(name, found[name][-1:])}", flush=True)
  report(found)


def report(found: dict[str, list[Cost]]) -> None:
  """Prints medians over the rounds, and how much faster jdc is than others of one kind."""
  print(f"medians of {ROUNDS.value} rounds, CPU time, load {os.getloadavg()[0]:.1f}")
  rates = {}
  for name, costs in found.items():
    print(_line(name, costs))
    rates[name] = float(np.median([cost.documents / cost.seconds for cost in costs]))
  for name, rate in rates.items():
    kind, _, what = name.partition(": ")
    for peer, other in rates.items():
      other_kind, _, library = peer.partition(": ")
      if kind == other_kind and what.startswith("jdc") and not library.startswith("jdc"):
        print(f"{name} over {library}: {rate / other:.2f}x")


def _line(name: str, costs: list[Cost]) -> str:
  rates = [cost.documents / cost.seconds for cost in costs]
  speed = np.median([cost.size / cost.seconds for cost in costs]) / 1e6
  note = f", {costs[-1].note}" if costs[-1].note else ""
  return (
    f"{name:>42}: {np.median(rates):9,.0f} documents/s, best {max(rates):9,.0f}, "
    f"{speed:6.1f} MB/s of {costs[0].documents:,} documents{note}"
  )


def own_measures(
  folder: pathlib.Path, scratch: pathlib.Path
) -> dict[str, Callable[[], dict[str, Any]]]:
  """Returns what measures jdc on the corpus of a folder, by name."""
  import bench_prep_measures as own  # needs the extra `prep`

  parquet = folder / "corpus.parquet"
  names = [name for name in own.STEPS if _chosen(name)]
  if any(name.startswith("tokens") for name in names):
    own.train_tokenizer(parquet, scratch)
  command = [sys.executable, own.__file__]
  found: dict[str, Callable[[], dict[str, Any]]] = {
    name: functools.partial(_ask, [*command, name, str(parquet), str(scratch)])
    for name in names
  }
  if _chosen("pipeline: jdc"):
    found["pipeline: jdc"] = functools.partial(own.pipeline, folder, scratch)
  return found


def peer_measures(folder: pathlib.Path) -> dict[str, Callable[[], dict[str, Any]]]:
  """Returns what the interpreters of `--peer` can measure, by name."""
  script = str(pathlib.Path(__file__).with_name("bench_peer_prep.py"))
  found: dict[str, Callable[[], dict[str, Any]]] = {}
  for python in PEER.value.split(",") if PEER.value else ():
    for name, documents in _ask([python, script, "--list"]).items():
      count = str(documents or PEER_DOCUMENTS.value)
      command = [python, script, name, str(folder / "corpus.parquet"), count]
      if _chosen(name):
        found[name] = functools.partial(_ask, command)
  return found


def _chosen(name: str) -> bool:
  return any(part in name for part in ONLY.value or [""])


def _ask(command: list[str]) -> dict[str, Any]:
  environment = os.environ | {"OMP_NUM_THREADS": "1"}
  if command[0] != sys.executable:  # paths of this interpreter are of no use to another
    environment.pop("PYTHONPATH", None)
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
  return json.loads(done.stdout.strip().splitlines()[-1])
