"""What the benchmarks share: a model and a corpus of the size that flags name, and the timing.

Loops take turns in one process, so that what slows the machine down slows all of them down.
"""

import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Generator, Iterator
from typing import Any

import jax
import numpy as np
from absl import flags

from jdc.data.pack import Domain
from jdc.models.base import LanguageModel
from jdc.models.configs import DecoderConfig
from jdc.models.decoder import decoder
from jdc.train import config as c
from jdc.train import corpus, loop

DATA = flags.DEFINE_string("data", "python", "A folder of domains; default: the quickstart's.")
PAIRS = flags.DEFINE_integer("pairs", 200, "Interleaved pairs of steps.")
CPU_TIME = flags.DEFINE_bool(
  "cpu_time", False, "Time that the process computes, on all its cores, and not the wall's."
)
BATCH = flags.DEFINE_integer("batch_size", 8, "Rows of a step.")
LENGTH = flags.DEFINE_integer("sequence_length", 128, "Tokens of a row.")
WIDTH = flags.DEFINE_integer("width", 128, "Width of the decoder.")
LAYERS = flags.DEFINE_integer("layers", 4, "Layers of the decoder.")
VOCAB = flags.DEFINE_integer("vocab_size", 258, "Tokens of the model, 258 or more.")
DTYPE = flags.DEFINE_string("dtype", "float32", "Of activations.")
REMAT = flags.DEFINE_string("remat", "none", "none or layer.")

# Of the documents of each domain: what policies that look at a target set look at.
_TARGET_FRACTION = 0.05
WARMUP = 3  # steps of each loop that are not timed


def model_config(**changes: Any) -> DecoderConfig:
  """Returns a decoder of the size that the flags name."""
  heads = max(WIDTH.value // 64, 2)
  config = DecoderConfig(
    vocab_size=VOCAB.value,
    width=WIDTH.value,
    num_layers=LAYERS.value,
    num_heads=heads,
    num_kv_heads=heads,
    mlp_width=WIDTH.value * 11 // 4,
    dtype=DTYPE.value,
    remat=REMAT.value,
  )
  return dataclasses.replace(config, **changes)


def make_model() -> LanguageModel:
  """Returns the model of `model_config`."""
  return decoder(model_config())


def make_config(**changes: Any) -> c.TrainConfig:
  """Returns a run without an end, whose steps neither evaluate nor save."""
  config = c.TrainConfig(
    num_steps=10**6,
    batch_size=BATCH.value,
    sequence_length=LENGTH.value,
    evaluation=c.EvaluationConfig(max_rows=BATCH.value),
    checkpoint=c.CheckpointConfig(every_steps=10**6),
  )
  return dataclasses.replace(config, **changes)


def read_domains() -> dict[str, Domain]:
  """Returns the rows of the corpus, with a target split."""
  config = c.CorpusConfig(target_fraction=_TARGET_FRACTION)
  with tempfile.TemporaryDirectory() as folder:
    return corpus.prepare(DATA.value, config, LENGTH.value, 0, folder)


def steps(run: loop.Run, workdir: str) -> Generator[Any, None, None]:
  """Yields the state after each step of a run, in a folder of its own."""
  pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
  running = loop.steps(run, workdir)
  try:
    while True:
      yield next(running).state
  except StopIteration as end:
    raise RuntimeError(f"a run without an end has ended: {end.value.stopped}") from None
  finally:
    running.close()


def interleave(loops: dict[str, Iterator[Any]], pairs: int) -> dict[str, np.ndarray]:
  """Returns the seconds of one step of every loop in turn, each until its result is there."""
  now = time.process_time if CPU_TIME.value else time.perf_counter
  for running in loops.values():
    for _ in range(WARMUP):
      jax.block_until_ready(next(running))
  seconds: dict[str, list[float]] = {name: [] for name in loops}
  for pair in range(pairs):
    for name in loops if pair % 2 == 0 else reversed(loops):
      started = now()
      jax.block_until_ready(next(loops[name]))
      seconds[name].append(now() - started)
  return {name: np.asarray(values) for name, values in seconds.items()}


def ratio_of(values: np.ndarray, base: np.ndarray) -> tuple[float, float, float]:
  """Returns the median ratio of pairs and its bootstrapped 95 % interval."""
  ratios = values / base
  rng = np.random.default_rng(0)
  medians = np.median(rng.choice(ratios, (4000, len(ratios))), axis=1)
  low, high = np.percentile(medians, [2.5, 97.5])
  return float(np.median(ratios)), float(low), float(high)


def milliseconds(seconds: np.ndarray) -> str:
  """Returns the median and the least as text."""
  return f"median {1e3 * np.median(seconds):.1f} ms, min {1e3 * seconds.min():.1f}"
