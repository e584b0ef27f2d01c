"""A pool whose sources are known to nobody but the reader of the table, and picks from it."""

import dataclasses
import gzip
import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdc.policies import sampling
from jdc.policies.base import DataPolicy
from jdc.recipes import runs
from jdc.report.right_data import Picked
from jdc.stats.gradients import passes
from jdc.train import command, kept_features, offline
from jdc.train import config as c
from jdc.train.config import TrainConfig
from jdc.train.cost import Cost
from jdc.train.features import FIELDS, options

ONE_IN = 10  # rows is picked
END = "<|end|>"  # of a response
TEXTS = ("instruction", "input", "output")
HELD_OUT = (
  "held_out"  # folder of rows that nothing picks from, as many as the pool or what is left
)
FEATURES = "features"  # folder of the gradients that are kept, gigabytes of them
UNTARGETED = "untargeted"
_LOG = logging.getLogger("jdc")


class Method(NamedTuple):
  """How rows are picked."""

  selection: Any = None  # of `config.policy`; None: by `match`
  draw: str = "top_k"  # by the logits, or "gumbel_top_k"
  targeted: bool = True
  tasks: str = "one"  # for each task by itself; "all" at once; "any": both
  features: Mapping[str, Any] = {}  # fields of `FeaturesConfig`
  responses: Mapping[str, Any] = {}  # fields of `ResponsesConfig`, where it observes rewards
  since_first_quarter: bool = False  # also sees the checkpoint after a quarter of the steps
  probes: int = 0  # rows that a step is tried on, where it observes these
  # (texts of the pool, texts of the target) -> f64[N], the larger the better
  match: Callable[[Sequence[str], Sequence[str]], np.ndarray] | None = None

  def targets(self, tasks: Sequence[str]) -> list[str]:
    """Returns what it picks for: tasks, and all of them joined by "+"."""
    single = [] if self.tasks == "all" else list(tasks)
    joined = [] if self.tasks == "one" else ["+".join(tasks)]
    return list(dict.fromkeys([*single, *joined]))


class Staged(NamedTuple):
  """A pool and its targets as runs read them."""

  folder: Path  # holds `data/`, `targets/TARGET/` and `tokenizer.json`
  records: list[dict[str, str]]  # of the pool
  targets: dict[str, list[dict[str, str]]]  # by task
  sources: list[str]  # of the records, for the table alone
  num_rows: int  # of the whole pool

  @property
  def tokenizer(self) -> Path:
    return self.folder / "tokenizer.json"


def stage(
  data: Path, folder: Path, tasks: Sequence[str], num_rows: int, vocab_size: int
) -> Staged:
  """Copies the texts of a pool and its targets, and trains a tokenizer on the pool.

  Copied are the three text fields alone, since an id may tell the source; in random order, so
  that ties, which go to the first row, favour no source.

  Args:
    data: holds `pool.jsonl.gz` and a file `target_TASK.dev.jsonl.gz` a task.
    folder: receives the copies.
    tasks: that are asked for.
    num_rows: of the pool; 0 for all.
    vocab_size: tokens, at most.

  Raises:
    ValueError: naming tasks without a file, or a copy of other data.
  """
  pool = _read(data / "pool.jsonl.gz")
  order = np.random.default_rng(0).permutation(len(pool))
  order, others = order[: num_rows or None], order[num_rows or None :][:num_rows]
  records = [_texts(pool[row]) for row in order]
  targets = {
    path.name.removeprefix("target_").removesuffix(".dev.jsonl.gz"): [*map(_texts, _read(path))]
    for path in sorted(data.glob("target_*.dev.jsonl.gz"))
  }
  if missing := [task for task in tasks if task not in targets]:
    raise ValueError(f"{data} has no target_TASK.dev.jsonl.gz for {', '.join(missing)}")
  files = {
    "data/pool.train.jsonl": records,
    # The loss on these tells how far the model has come; nothing is chosen by it.
    "data/pool.val.jsonl": [record for dev in targets.values() for record in dev],
  }
  if rest := [_texts(pool[row]) for row in others]:
    files[f"{HELD_OUT}/pool.train.jsonl"] = rest
    files[f"{HELD_OUT}/pool.val.jsonl"] = files["data/pool.val.jsonl"]
  for target in (*tasks, "+".join(tasks)):
    files |= {f"targets/{target}/{task}.jsonl": targets[task] for task in target.split("+")}
  for name, lines in files.items():
    _copy(lines, folder / name)
  sources = [pool[row]["source"] for row in order]
  staged = Staged(folder, records, targets, sources, len(pool))
  if not staged.tokenizer.exists():
    texts = [text for record in records for text in record.values()]
    _train_tokenizer(texts, vocab_size, staged.tokenizer)
  return staged


def _read(path: Path) -> list[dict[str, Any]]:
  with gzip.open(path, "rt", encoding="utf-8") as lines:
    return [json.loads(line) for line in lines]


def _texts(record: Mapping[str, Any]) -> dict[str, str]:
  return {name: record[name] for name in TEXTS}


def _copy(records: Sequence[Mapping[str, str]], path: Path) -> None:
  content = "".join(json.dumps(record) + "\n" for record in records).encode()
  if path.exists():
    if path.read_bytes() != content:
      raise ValueError(f"{path} is of other data, choose another workdir")
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix(".partial")
  partial.write_bytes(content)
  os.replace(partial, path)


def _train_tokenizer(texts: Sequence[str], vocab_size: int, path: Path) -> None:
  import tokenizers
  from tokenizers import decoders, models, pre_tokenizers, trainers

  found = tokenizers.Tokenizer(models.BPE())
  found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  found.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[END],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  found.train_from_iterator(texts, trainer)
  partial = path.with_suffix(".partial")
  found.save(str(partial))
  os.replace(partial, path)


def pick(
  name: str, method: Method, target: str, base: TrainConfig, staged: Staged, folder: Path,
  count: int, sample: int = 0,
) -> Picked:  # fmt: skip
  """Returns what a method picks, from its file where it has picked before.

  Args:
    name: of the method.
    method: how it picks.
    target: tasks joined by "+".
    base: the run whose checkpoints tell the parameters.
    staged: the pool.
    folder: of that run; receives the file.
    count: rows to pick; fewer where fewer may be drawn.
    sample: rows of the pool drawn at random that are scored, where a model scores; 0: all.
  """
  own = target if method.targeted else UNTARGETED
  path = folder / "picked" / own / f"{name}.json"
  config = _scoring(method, target, base, staged, sample)
  key = _key(config, method, target, staged, count)
  if path.exists():
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept.pop("key") == key:
      return Picked(**kept | {"rows": tuple(kept["rows"]), "target": target})
  _LOG.info("seed %d, %s: %s", base.seed, own, name)
  begin, cost = time.monotonic(), (0.0, 0.0)
  if method.selection is None:
    logits = match(method, staged, target)
    lines = np.arange(len(logits))
  else:
    sweeps = str(path.with_suffix(".sweeps"))
    logits, lines, cost = _score(method, config, base, folder, sweeps)
  noise = jax.random.fold_in(jax.random.key(base.seed), zlib.crc32(f"{name} {own}".encode()))
  rows = sorted(lines[draw(logits, method.draw, count, noise)].tolist())
  found = Picked(name, target, base.seed, tuple(rows), time.monotonic() - begin, *cost)
  runs.write_json(path, {"key": key} | found._asdict())
  return found


def draw(logits_N: np.ndarray, how: str, count: int, key: jax.Array) -> np.ndarray:
  """Returns the rows drawn, at most `count`; none whose logit is not finite.

  "top_k" takes the largest logits, of equal ones the first; "gumbel_top_k" draws without
  replacement.
  """
  logits_N = np.where(np.isfinite(logits_N), logits_N, -np.inf)
  if how == "gumbel_top_k":
    rows, _ = sampling.gumbel_top_k(key, jnp.asarray(logits_N), min(count, len(logits_N)))
    return np.asarray(rows)[np.asarray(rows) >= 0]
  order = np.argsort(-logits_N, kind="stable")[:count]
  return order[np.isfinite(logits_N[order])]


def match(method: Method, staged: Staged, target: str) -> np.ndarray:
  """Returns what the texts of the pool's records say about their use for the target, f64[N]."""
  assert method.match is not None
  texts = lambda records: ["\n".join(record.values()) for record in records]
  dev = [record for task in target.split("+") for record in staged.targets[task]]
  return method.match(texts(staged.records), texts(dev))


def _key(config: TrainConfig, method: Method, target: str, staged: Staged, count: int) -> str:
  """A hash of everything that decides what is picked, but the code."""
  places = ("data", "target.folder", "corpus.cache_dir", "corpus.tokenizer")
  fields = {name: value for name, value in c.to_json(config).items() if name not in places}
  target = target if method.targeted else ""
  dev = [staged.targets[task] for task in target.split("+")] if target else []
  tokenizer = staged.tokenizer.read_text(encoding="utf-8")
  content = [fields, method.draw, count, target, dev, staged.records, tokenizer]
  return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _scoring(
  method: Method, target: str, base: TrainConfig, staged: Staged, sample: int
) -> TrainConfig:
  """The run whose selection scores the pool."""
  changes: dict[str, Any] = {
    "selection": method.selection,
    "plan": c.PlanConfig(draw=method.draw, sweep_batch_size=base.batch_size, sweep_rows=sample),
    "features": c.FeaturesConfig(**{"size": 8192} | dict(method.features)),
  }
  if method.responses:
    changes["responses"] = c.ResponsesConfig(**method.responses)
  if method.probes:
    changes["probe"] = c.ProbeConfig(rows=-(-method.probes // 2))  # of each half
  if method.targeted:
    folder = str(staged.folder / "targets" / target)
    changes["target"] = c.TargetConfig(folder=folder, rows=1_000_000)
  return dataclasses.replace(base, **changes)


def _score(
  method: Method, config: TrainConfig, base: TrainConfig, folder: Path, workdir: str
) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
  """Logits of the rows that a model can read, their lines in the pool, and the cost.

  Gradients are kept for other targets and methods; the cost is that without them.
  """
  built = command.build_run(config, workdir)
  steps = [base.num_steps // 4, base.num_steps] if method.since_first_quarter else []
  policy = built.policies.selection
  assert policy is not None
  features = hashlib.sha256(repr(config.features).encode()).hexdigest()[:16]
  kept = None
  if (policy.observes | policy.observes_pool) & kept_features.NAMES:
    kept = str(folder / FEATURES / features)
  scored = offline.score(built, workdir, str(folder / "checkpoints"), steps, kept)
  (table,) = (domain.train for domain in built.domains.values())
  lines = [int(table.where(row).rpartition(":")[2]) - 1 for row in range(len(table))]
  cost = scored.cost.plus(spared(config, policy, scored.rows_read))
  return scored.columns["score"], np.array(lines), (cost.forward, cost.backward)


def spared(config: TrainConfig, policy: DataPolicy, rows: int) -> Cost:
  """Returns the passes over so many rows whose features were read and not computed."""
  if not (policy.observes | policy.observes_pool) & FIELDS:
    return Cost(rows, 0)
  forward, backward = passes(options(config))
  return Cost(rows * forward, rows * backward)
