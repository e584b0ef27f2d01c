"""Small runs on fixed mixtures, whose losses on the target split are kept as they finish."""

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jdc.data import token_shards
from jdc.policies import mixture
from jdc.train import checks, corpus, model_parts, process, setup, sharding
from jdc.train.config import TrainConfig, build_policies, collect, policy, to_json
from jdc.train.loop import Result
from jdc.train.optimizer import make_optimizer

_LOG = logging.getLogger("jdc")

# (config, workdir) -> how the run ended; it continues what the workdir holds
Train = Callable[[TrainConfig, str], Result]

# What may differ from the file's: it changes no loss; and the mixture, which is kept by run.
_FREE = ("mesh.", "checkpoint.", "logging.", "corpus.cache_dir", "mixture.")


class Data(NamedTuple):
  """What a recipe knows about the data before its first run."""

  tokens: dict[str, int]  # to train on, by domain in the order of the runs
  num_examples: int
  fingerprints: dict[str, str]  # by domain and split


class Losses(NamedTuple):
  """Of R runs, by domain of the target split: nats per token."""

  before: np.ndarray  # f64[R, K]
  after: np.ndarray  # f64[R, K]


def read_data(config: TrainConfig, workdir: str) -> Data:
  """Tokenizes and packs the data of a run, or opens what is in the cache."""
  found = corpus.with_tokenizer_of(config.weights.folder, config.corpus)
  Path(workdir).mkdir(parents=True, exist_ok=True)
  domains = corpus.prepare(config.data, found, config.sequence_length, config.seed, workdir)
  return Data(
    tokens={name: _num_tokens(domain.train) for name, domain in domains.items()},
    num_examples=sum(len(domain.train) for domain in domains.values()),
    fingerprints=setup.fingerprints(domains),
  )


def on_data(config: TrainConfig, data: str) -> TrainConfig:
  """Returns the config of a run on other data; token shards bring their target split."""
  found = config.corpus
  if token_shards.is_folder(Path(data).expanduser()):
    found = dataclasses.replace(found, target_fraction=0.0)
  return dataclasses.replace(config, data=data, corpus=found)


def on_mixture(config: TrainConfig, proportions: Sequence[float]) -> TrainConfig:
  """Returns the config of a run on fixed proportions, by domain in the order of the run."""
  fixed = tuple(float(p) for p in proportions)
  return dataclasses.replace(config, mixture=policy(mixture.static, proportions=fixed))


def on_target(config: TrainConfig) -> TrainConfig:
  """Returns the config of a run from which a policy learns: validation stays unseen."""
  evaluation = dataclasses.replace(config.evaluation, split="target")
  return dataclasses.replace(config, evaluation=evaluation)


def losses(
  base: TrainConfig,
  mixtures: Mapping[str, Sequence[float]],
  data: Data,
  workdir: str,
  train: Train,
) -> Losses | None:
  """Trains one run a mixture and returns their losses on the target split.

  Each run has a folder in `workdir/proxies` and continues from its newest checkpoint. The
  losses of those that have finished are in `workdir/proxies.json`; these are not trained, or
  opened, again.

  Args:
    base: of all runs; mixture and evaluated split are set here. A checkpoint folder of its own
      gets a folder a run.
    mixtures: proportions of the domains by name of the run.
    data: of all runs.
    workdir: a local folder.
    train: trains one run.

  Returns:
    The losses in the order of the mixtures; `None` after a signal to stop.

  Raises:
    ValueError: if `proxies.json` is of other settings, data or mixtures, naming what differs;
      if a run ended before its last step.
    FloatingPointError: naming the run whose loss is not finite.
  """
  record = _Record(Path(workdir) / "proxies.json", on_target(base), data)
  record.check(mixtures)
  with process.sigterm(sharding.make_mesh(**dataclasses.asdict(base.mesh))) as told_to_stop:
    for number, (name, proportions) in enumerate(mixtures.items(), start=1):
      if name in record.runs:
        continue
      shown = ", ".join(f"{d} {p:.3f}" for d, p in zip(data.tokens, proportions, strict=True))
      _LOG.info("proxy %s, %d of %d: %s", name, number, len(mixtures), shown)
      config = _of_its_own(on_mixture(on_target(base), proportions), name)
      try:
        result = train(config, f"{workdir}/proxies/{name}")
      except FloatingPointError as error:
        raise FloatingPointError(f"proxy {name}: {error}") from error
      if result.stopped == "SIGTERM":
        return None
      record.add(name, proportions, result)
      if told_to_stop():  # too late for that run, or between two
        return None
  kept = [record.runs[name] for name in mixtures]
  before, after = (
    [[run[when][domain] for domain in data.tokens] for run in kept]
    for when in ("before", "after")
  )
  return Losses(np.asarray(before, np.float64), np.asarray(after, np.float64))


def not_shared(stages: Mapping[str, TrainConfig]) -> list[str]:
  """Returns a sentence for each field in which the data of a recipe's stages differ.

  The seed is among them, since it chooses the documents that are held out: with another one a
  stage would learn from what the last one is validated on.
  """
  flat = {name: to_json(config) for name, config in stages.items()}
  fields = [
    name
    for name in next(iter(flat.values()))
    if name in ("data", "seed") or name.startswith("corpus.")
    if name != "corpus.cache_dir"
  ]
  values = {field: {name: flat[name][field] for name in flat} for field in fields}
  return [
    f"the runs must share {field}, got {found}"
    for field, found in values.items()
    if len(set(found.values())) > 1
  ]


def faults(stages: Mapping[str, TrainConfig]) -> list[str]:
  """Returns a sentence for each stage whose config is wrong whatever the data hold.

  The last stage is known to be right before the first is trained.
  """
  errors = []
  for name, config in stages.items():
    try:
      _check(config)
    except ValueError as error:
      errors.append(f"{name}: {error}")
  return errors


def _check(config: TrainConfig) -> None:
  collect(
    lambda: checks.check_plan(config, build_policies(config)),
    lambda: model_parts.build(config, reads_weights=False),
    lambda: make_optimizer(config.optimizer, config.num_steps),
  )


def write_json(path: Path, content: Any) -> None:
  """Writes a file at once, in the first process: a reader sees the old one or the new one."""
  if jax.process_index() != 0:
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + ".partial")
  partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
  os.replace(partial, path)


class _Record:
  """The finished runs of a recipe, in a file."""

  def __init__(self, path: Path, base: TrainConfig, data: Data):
    self._path, self._data = path, data
    described = {name: x for name, x in to_json(base).items() if not name.startswith(_FREE)}
    self._shared = {"config": json.loads(json.dumps(described)), "data": data.fingerprints}
    self.runs: dict[str, Any] = {}

  def check(self, mixtures: Mapping[str, Sequence[float]]) -> None:
    """Reads the file, if there is one; raises a ValueError if it is of other runs."""
    if not self._path.exists():
      return
    saved = json.loads(self._path.read_text(encoding="utf-8"))
    changed = [
      f"{'' if part == 'config' else 'data of domain '}{name}: {old.get(name)!r} -> "
      f"{new.get(name)!r}"
      for part, new in self._shared.items()
      for old in [saved[part]]
      for name in sorted(old.keys() | new.keys())
      if old.get(name) != new.get(name)
    ]
    given = {name: self._by_domain(proportions) for name, proportions in mixtures.items()}
    moved = [n for n in given if n in saved["runs"] and saved["runs"][n]["mixture"] != given[n]]
    if moved:
      first = moved[0]
      changed.append(
        f"the mixtures of {len(moved)} runs, the first {first}: "
        f"{saved['runs'][first]['mixture']} -> {given[first]}"
      )
    if changed:
      raise ValueError(
        f"{self._path} is of other runs, choose another workdir or restore: "
        + "; ".join(changed)
      )
    self.runs = saved["runs"]

  def add(self, name: str, proportions: Sequence[float], result: Result) -> None:
    """Adds a run that has ended and writes the file."""
    if result.stopped != "finished" or result.after is None:
      raise ValueError(f"proxy {name} ended before its last step: {result.stopped}")
    found = {"mixture": self._by_domain(proportions)}
    for when, metrics in (("before", result.before), ("after", result.after)):
      found[when] = {domain: metrics[f"target/{domain}/loss"] for domain in self._data.tokens}
      wrong = [domain for domain, loss in found[when].items() if not np.isfinite(loss)]
      if wrong:
        raise FloatingPointError(
          f"proxy {name}: the loss {when} training is not finite on {', '.join(wrong)}"
        )
    self.runs[name] = found
    write_json(self._path, self._shared | {"runs": self.runs})

  def _by_domain(self, proportions: Sequence[float]) -> dict[str, float]:
    return {d: float(p) for d, p in zip(self._data.tokens, proportions, strict=True)}


def _of_its_own(config: TrainConfig, name: str) -> TrainConfig:
  folder = config.checkpoint.folder
  if not folder:
    return config
  own = dataclasses.replace(config.checkpoint, folder=f"{folder}/proxies/{name}")
  return dataclasses.replace(config, checkpoint=own)


def _num_tokens(table: Any) -> int:
  lengths = getattr(table, "lengths", None)  # of records; rows of documents are full
  return len(table) * table.sequence_length if lengths is None else int(np.sum(lengths))
