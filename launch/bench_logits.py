"""What the statistics of whole rows' logits, which UDS observes, cost over a forward pass.

Both take the same candidates in turns, in microbatches as a step scores them. One pass gives
the losses of tokens, the other what a policy observes, with what that needs of the output
matrix, and no losses: where nothing reads these, the compiler leaves them out of the step too.
The claim is about large vocabularies, `--vocab_size=32768` and up.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from bench_setup import (
  BATCH,
  CPU_TIME,
  LAYERS,
  LENGTH,
  PAIRS,
  VOCAB,
  WIDTH,
  make_model,
  milliseconds,
  ratio_of,
)

from jdc.data.batch import inputs_and_targets
from jdc.data.loader import Batch
from jdc.models.base import LanguageModel
from jdc.stats import logits
from jdc.train.gradients import splitter
from jdc.train.passes import Microbatch, make_passes
from jdc.train.state import Fixed, Params

_MOST = 1.2  # times a forward pass, as the project asks
_MICROBATCHES = 2  # of a step's candidates: twice as many as are kept


def main() -> None:
  """Prints the time of the forward pass, and of each statistic over it."""
  model = make_model()
  params = jax.jit(model.init)(jax.random.key(0))
  candidates = _candidates()
  forward = functools.partial(_told(model, frozenset({"token_loss"})), params, candidates)
  for wanted in (logits.FIELDS, *(frozenset({field}) for field in sorted(logits.FIELDS))):
    passes = {
      "forward": forward,
      "told": functools.partial(_told(model, wanted), params, candidates),
    }
    seconds = _interleaved(passes)
    ratio, low, high = ratio_of(seconds["told"], seconds["forward"])
    asked = f", at most {_MOST} is asked" if wanted == logits.FIELDS else ""
    name = " and ".join(sorted(wanted))
    print(f"{name:>39}: {ratio:.3f}x  95 % interval [{low:.3f}, {high:.3f}]{asked}", flush=True)
  print(
    f"forward pass with losses: {milliseconds(seconds['forward'])}; {BATCH.value} rows of "
    f"{LENGTH.value} tokens, width {WIDTH.value}, {LAYERS.value} layers, {VOCAB.value} tokens "
    "of vocabulary"
  )


def _candidates() -> Batch:
  rng = np.random.default_rng(0)
  shape, each = (BATCH.value, LENGTH.value + 1), np.zeros(BATCH.value, np.int32)
  return Batch(
    tokens=rng.integers(0, VOCAB.value, shape).astype(np.int32),
    segments=np.ones(shape, np.int32),
    example_id=np.arange(BATCH.value, dtype=np.int32),
    domain=each,
    sampling_probability=each + 1.0,
    domain_probability=each + 1.0,
    weight=each + 1.0,
  )


def _told(model: LanguageModel, wanted: frozenset[str]) -> Callable[..., dict[str, Any]]:
  """Returns what a step's candidates are scored by, and nothing else that the pass tells."""
  passes = make_passes(model, None, wanted & logits.FIELDS)

  @jax.jit
  def told(params: Any, candidates: Batch) -> dict[str, Any]:
    shared = passes.share(Params(params, None), Fixed(), None, None)

    def of_part(part: Microbatch) -> dict[str, Any]:
      return passes.look(params, part, shared)[0]._asdict()

    split, join = splitter(_MICROBATCHES)
    rows = Microbatch(candidates, inputs_and_targets(candidates.tokens, candidates.segments))
    seen = join(jax.lax.map(of_part, split(rows)))
    return {name: seen[name] for name in wanted}

  return told


def _interleaved(passes: Mapping[str, Callable[[], Any]]) -> dict[str, np.ndarray]:
  now = time.process_time if CPU_TIME.value else time.perf_counter
  for run in passes.values():
    jax.block_until_ready(run())
  seconds: dict[str, list[float]] = {name: [] for name in passes}
  for pair in range(PAIRS.value):
    for name in list(passes)[:: 1 if pair % 2 == 0 else -1]:
      started = now()
      jax.block_until_ready(passes[name]())
      seconds[name].append(now() - started)
  return {name: np.asarray(values) for name, values in seconds.items()}
