"""How true are projected gradients? Their inner products beside exact ones, on a trained model.

  python launch/fidelity.py --run=RUN --targets=DIR --output=fidelity.json

RUN is a run directory of a decoder whose parameters were all trained, DIR holds a file a task,
such as `gsm8k.jsonl`. Inner products of the gradients of rows of the run's data with those of
the targets, and their cosines, are computed exactly, and from the features of each method and
size. The table tells by Spearman's rank correlation over rows, mean over targets, whether the
features order rows as the exact numbers of all parameters do, and which share of the best tenth
by LESS's score, the mean cosine, is the same: means over `--draws` of the projection, and the
lowest. The lines "exact" leave parameters out, as the Kronecker projection does, but project
nothing.
"""

import functools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from scipy import stats

from jdc.data.batch import RowInputs, inputs_and_targets
from jdc.models import subsets
from jdc.stats.gradients import LAYERS, Options, make_features
from jdc.stats.losses import make_example_losses
from jdc.stats.target_rows import TargetRows, choose_rows
from jdc.train import config as config_lib
from jdc.train import corpus, pretrained, process, sharding

RUN = flags.DEFINE_string("run", None, "A run directory.", required=True)
STEP = flags.DEFINE_integer("step", None, "Another checkpoint than the newest.")
TARGETS = flags.DEFINE_string("targets", None, "A folder, a file a task.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "The numbers, a new JSON file.", required=True)
ROWS = flags.DEFINE_integer("rows", 256, "Rows of the data, evenly spaced.", lower_bound=10)
NUM_TARGETS = flags.DEFINE_integer("num_targets", 32, "Rows of each task.", lower_bound=1)
DRAWS = flags.DEFINE_integer("draws", 3, "Projections of each kind and size.", lower_bound=1)
SIZES = flags.DEFINE_list("sizes", ["256", "1024", "4096", "8192"], "Of count sketches.")
SIGNS = flags.DEFINE_list("signs", ["256", "1024"], "Sizes of projections by Rademacher signs.")
RANKS = flags.DEFINE_list("ranks", ["4", "8", "16"], "Of the Kronecker projection of a map.")
DIRECTIONS = flags.DEFINE_list("directions", ["64"], "Numbers of random directions.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Rows at a time.", lower_bound=1)
_WANTED = frozenset({"gradient"})


class Method(NamedTuple):
  """A line of the table: features, or the exact products of some parameters."""

  name: str
  options: Options | None = None
  accepts: Callable[[str], bool] = lambda path: True  # paths whose products are exact
  top_layers: int = 0


class Products(NamedTuple):
  """Inner products of the gradients of N rows and M targets, and their squares."""

  rows_NxM: np.ndarray
  row_N: np.ndarray
  target_M: np.ndarray

  def cosines(self) -> np.ndarray:
    """Returns f64[N, M], 0 for a gradient of 0."""
    norms = np.sqrt(self.row_N[:, None] * self.target_M)
    return np.divide(self.rows_NxM, norms, out=np.zeros_like(self.rows_NxM), where=norms > 0)


def methods(num_maps: int, num_layers: int) -> list[Method]:
  """Returns the lines of the table."""
  top = num_layers // 2
  in_layers = lambda path: path.startswith(LAYERS) and path.endswith("/kernel")
  lines = [Method("exact, linear maps", accepts=in_layers)]
  if top:
    name = f"exact, linear maps of the last {top} layers"
    lines.append(Method(name, accepts=in_layers, top_layers=top))
  for kind, sizes in (("count_sketch", SIZES.value), ("rademacher", SIGNS.value)):
    lines += [Method(kind, Options(size=int(size), projection=kind)) for size in sizes]
  for rank in map(int, RANKS.value):
    lines.append(Method(f"kron {rank} x {rank}", Options("kron", size=num_maps * rank**2)))
  for rank in map(int, RANKS.value if top else ()):
    size = num_maps * top // num_layers * rank**2
    name = f"kron {rank} x {rank}, last {top} layers"
    lines.append(Method(name, Options("kron", top_layers=top, size=size)))
  return lines + [
    Method("directional", Options("directional", size=int(size))) for size in DIRECTIONS.value
  ]


def exact_products(
  losses: Callable, params: Any, rows: RowInputs, targets: RowInputs
) -> dict[str, Products]:
  """Returns those of each parameter by path; of layers as [L, N, M]."""
  gradient = jax.jit(
    lambda inputs: dict(
      subsets.leaves(
        jax.vmap(lambda row: jax.grad(_of_one(losses, row))(params))(inputs)
      )
    )
  )  # fmt: skip

  def by_layer(path: str, x: jax.Array) -> jax.Array:
    split = x.shape[1] if path.startswith(LAYERS) else 1
    return x.reshape(x.shape[0], split, -1)

  @jax.jit
  def with_targets(found: Any, held: Any) -> Any:
    one = lambda path: jnp.einsum(
      "blp,mlp->lbm", by_layer(path, found[path]), by_layer(path, held[path]),
      precision="highest",
    )  # fmt: skip
    return {path: one(path) for path in found}

  @jax.jit
  def squares(found: Any) -> Any:
    return {p: jnp.sum(jnp.square(by_layer(p, x)), axis=-1).T for p, x in found.items()}

  of_targets = [gradient(batch) for batch in _batches(targets)]
  held = {path: jnp.concatenate([x[path] for x in of_targets]) for path in of_targets[0]}
  target = jax.device_get(squares(held))
  parts = []
  for batch in _batches(rows):
    found = gradient(batch)
    parts.append(jax.device_get((with_targets(found, held), squares(found))))
  return {
    path: Products(
      np.concatenate([x[path] for x, _ in parts], axis=1).astype(np.float64),
      np.concatenate([x[path] for _, x in parts], axis=1).astype(np.float64),
      target[path].astype(np.float64),
    )
    for path in held
  }


def _of_one(losses: Callable, row: RowInputs) -> Callable:
  return lambda params: losses(params, jax.tree.map(lambda x: x[None], row))[0]


def _batches(inputs: RowInputs) -> list[RowInputs]:
  size, total = BATCH_SIZE.value, len(inputs.tokens)
  return [
    jax.tree.map(lambda x, at=at: x[at : at + size], inputs) for at in range(0, total, size)
  ]


def joined(exact: dict[str, Products], method: Method) -> Products:
  """Returns the sums over the parameters, and layers, of a line."""
  chosen = [products for path, products in exact.items() if method.accepts(path)]
  last = -method.top_layers if method.top_layers else 0
  sums = (sum(np.sum(x[last:], axis=0) for x in part) for part in zip(*chosen, strict=True))
  return Products(*(np.asarray(x) for x in sums))


def projected(
  model: Any, params: Any, options: Options, rows: RowInputs, targets: RowInputs
) -> list[Products]:
  """Returns inner products of the features, of each draw."""
  shapes = (jax.eval_shape(lambda: params), None)

  @jax.jit
  def compute(key: jax.Array, inputs: RowInputs) -> jax.Array:
    made = make_features(model, shapes, _WANTED, options, key)
    return made.compute((params, None), None, inputs)["gradient"]

  def of_draw(key: jax.Array) -> Products:
    row_NxR, target_MxR = (
      np.concatenate([np.asarray(compute(key, x), np.float64) for x in _batches(inputs)])
      for inputs in (rows, targets)
    )
    squares = lambda x: np.sum(np.square(x), axis=1)
    return Products(row_NxR @ target_MxR.T, squares(row_NxR), squares(target_MxR))

  return [of_draw(jax.random.key(draw)) for draw in range(DRAWS.value)]


def agreement(found: Products, right: Products) -> dict[str, float]:
  """Returns how alike two sets of products order the rows."""
  ranks = lambda x, y: float(
    np.mean([stats.spearmanr(x[:, m], y[:, m]).statistic for m in range(x.shape[1])])
  )
  tenth = len(found.row_N) // 10
  best = lambda x: set(np.argsort(-np.mean(x.cosines(), axis=1), kind="stable")[:tenth])
  return {
    "products": ranks(found.rows_NxM, right.rows_NxM),
    "cosines": ranks(found.cosines(), right.cosines()),
    "best_tenth": len(best(found) & best(right)) / tenth,
  }


def table(lines: list[dict[str, Any]]) -> str:
  """Returns the lines for people."""
  header = ["features", "numbers", "inner products", "cosines", "best tenth"]
  rows = [header, ["---"] * len(header)]
  for line in lines:
    shown = (line["draws"][name] for name in ("products", "cosines", "best_tenth"))
    rows.append([line["name"], str(line["size"]), *map(_shown, shown)])
  return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _shown(values: list[float]) -> str:
  mean = f"{np.mean(values):.3f}"
  return mean if len(values) == 1 else f"{mean} ({min(values):.3f})"


def run(folder: Path, targets_folder: Path, workdir: str) -> list[dict[str, Any]]:
  """Returns a line for each method; of every draw its agreement with the exact products."""
  opened = pretrained.open_model(folder, sharding.make_mesh(data=1), STEP.value)
  read = pretrained.corpus_of(folder)
  if read is None:
    raise ValueError(f"--run={folder} is no run directory")
  length, seed = opened.run["sequence_length"], opened.run["seed"]
  domains = corpus.prepare(opened.run["data"], read, length, seed, workdir)
  tasks = corpus.prepare_targets(str(targets_folder), read, length, workdir)
  pool = {name: domain.train for name, domain in domains.items()}
  rows = _inputs(choose_rows(pool, -(-ROWS.value // len(pool))))
  targets = _inputs(choose_rows(tasks, NUM_TARGETS.value, list(pool)))

  assert opened.model.linear_maps is not None
  shapes = jax.eval_shape(lambda: opened.params)
  num_maps = sum(one.num_layers for one in opened.model.linear_maps(shapes).values())
  chosen = methods(num_maps, opened.config.num_layers)
  made = lambda options: make_features(
    opened.model, (shapes, None), _WANTED, options, jax.random.key(0)
  )
  # What is wrong with a size comes before any gradient.
  config_lib.collect(*(functools.partial(made, x.options) for x in chosen if x.options))

  losses = make_example_losses(opened.model)
  exact = exact_products(losses, opened.params, rows, targets)
  right = joined(exact, Method("all"))
  lines = []
  for method in chosen:
    options, size = method.options, 0
    if options is None:
      found = [joined(exact, method)]
      size = _numbers(opened.params, method)
    else:
      size = options.size
      found = projected(opened.model, opened.params, options, rows, targets)
    each = [agreement(one, right) for one in found]
    draws_of = {name: [one[name] for one in each] for name in each[0]}
    lines.append({"name": method.name, "size": size, "draws": draws_of})
    print(table(lines[-1:]).splitlines()[-1], flush=True)
  return lines


def _inputs(rows: TargetRows) -> RowInputs:
  return inputs_and_targets(jnp.asarray(rows.tokens), jnp.asarray(rows.segments))


def _numbers(params: Any, method: Method) -> int:
  last = -method.top_layers if method.top_layers else 0
  return sum(x[last:].size for path, x in subsets.leaves(params) if method.accepts(path))


def main(argv: list[str]) -> None:
  process.log_to_terminal()
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  output = Path(OUTPUT.value)
  if output.exists():
    raise app.UsageError(f"--output={output} exists already")
  with tempfile.TemporaryDirectory() as workdir:
    lines = run(Path(RUN.value), Path(TARGETS.value), workdir)
  output.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
  print(table(lines))


if __name__ == "__main__":
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  app.run(main)
