"""k-means beside its matrix products alone; text scored, embedded and learnt from a second."""

import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from absl import flags
from bench_sweeps import ROUNDS

from jdc.prep.quality import classifier
from jdc.prep.semantic import hash_bow, kmeans, vectors

EMBEDDINGS = flags.DEFINE_integer(
  "embeddings", 200_000, "Of the embeddings that are clustered."
)
DIMENSION = flags.DEFINE_integer("dimension", 256, "Of the embeddings.")
ITERATIONS = flags.DEFINE_integer("iterations", 5, "Of k-means.")

_BYTES, _TEXT = 20_000_000, 2_000


def main() -> None:
  """Prints medians and the best of several rounds."""
  rng = np.random.default_rng(0)
  x = vectors.unit(rng.standard_normal((EMBEDDINGS.value, DIMENSION.value), np.float32))
  k = round(EMBEDDINGS.value**0.5)
  centre = jnp.asarray(x[:k])
  blocks = [jnp.asarray(rows) for rows, _ in kmeans._blocks([x])]
  product = jax.jit(lambda x_BxD, c_kxD: x_BxD @ c_kxD.T)
  steps: dict[str, Callable[[], object]] = {
    "products": lambda: _products(product, blocks, centre),
    "k-means": lambda: kmeans.fit(x, k, iterations=ITERATIONS.value),
  }
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  computed: dict[str, list[float]] = {name: [] for name in steps}  # of all cores
  for step in steps.values():  # compiles
    step()
  for round_ in range(ROUNDS.value):
    for name in steps if round_ % 2 == 0 else reversed(steps):
      begin, start = time.perf_counter(), time.process_time()
      steps[name]()
      computed[name].append((time.process_time() - start) / ITERATIONS.value)
      seconds[name].append((time.perf_counter() - begin) / ITERATIONS.value)
  flops = 2 * EMBEDDINGS.value * DIMENSION.value * k
  print(f"{EMBEDDINGS.value} x {DIMENSION.value} embeddings, {k} clusters, {jax.devices()}")
  for name, values in seconds.items():
    middle = float(np.median(values))
    print(
      f"{name:>10}: {middle:.3f} s an iteration, best {min(values):.3f} s, "
      f"{flops / middle / 1e9:.0f} GFLOP/s, {np.median(computed[name]):.3f} s of all cores"
    )
  for name, found in (("time", seconds), ("time of all cores", computed)):
    pairs = np.array(found["k-means"]) / np.array(found["products"])
    best = min(found["k-means"]) / min(found["products"])
    print(
      f"k-means over its products, {name}: {np.median(pairs):.2f}x, of the best {best:.2f}x"
    )
  _texts()


def _products(
  product: Callable[..., jax.Array], blocks: list[jax.Array], centre: jax.Array
) -> None:
  for _ in range(ITERATIONS.value):
    for block in blocks:
      found = product(block, centre)  # whose memory the next but one takes
    jax.block_until_ready(found)


def _texts() -> None:
  """Prints megabytes a second of the computing time of this process."""
  text = _sources()
  millions = sum(map(len, text.to_pylist())) / 1e6
  half = len(text) // 2
  labelled = classifier.Labelled(text.to_pylist(), np.arange(len(text)) < half)
  begin = time.perf_counter()
  made = classifier.fit(labelled)
  print(
    f"classifier: made of {len(text)} texts, {millions:.1f} MB, in "
    f"{time.perf_counter() - begin:.1f} s, {made.about['training']['iterations']} iterations"
  )
  steps: dict[str, Callable[[], object]] = {
    "classifier, scoring": lambda: made.score(text),
    "hash-bow embeddings": lambda: hash_bow.embed(text),
  }
  for name, step in steps.items():
    step()
    rates = []
    for _ in range(ROUNDS.value):
      start = time.process_time()
      step()
      rates.append(millions / (time.process_time() - start))
    print(f"{name}: {np.median(rates):.1f} MB/s, best {max(rates):.1f} MB/s of one core")


def _sources() -> pa.Array:
  """Returns the sources of Python's own library, in texts of 2,000 bytes."""
  read, size = [], 0
  for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
    read.append(path.read_bytes())
    size += len(read[-1])
    if size >= _BYTES:
      break
  data = b"".join(read)[:_BYTES].decode("ascii", "replace")
  return pa.array([data[i : i + _TEXT] for i in range(0, len(data), _TEXT)], pa.string())
