"""A whole run from its config: what `launch/train.py` and the recipes call."""

from pathlib import Path

import jax

from jdc.train import checks, corpus, loop, model_parts, pretrained
from jdc.train import config as config_lib
from jdc.train.config import collect
from jdc.train.optimizer import make_optimizer
from jdc.train.state import Reference


def train(
  config: config_lib.TrainConfig,
  workdir: str,
  compilation_cache: str | None = None,
  *,
  profile: bool = False,
) -> loop.Result:
  """Builds what the config describes and trains it, or continues what the workdir holds.

  Args:
    config: of the run.
    workdir: a local folder, where the run is kept.
    compilation_cache: of JAX; empty: none, `None`: beside the rows.
    profile: writes a trace of a few steps to the workdir.

  Raises:
    ValueError: before any compilation, listing what is wrong with the config; further as
      `loop.fit`.
  """
  # Everything that can be wrong without looking at the data.
  policies, parts, (optimizer, learning_rate), corpus_config, reference, _ = collect(
    lambda: config_lib.build_policies(config),
    lambda: model_parts.build(config),
    lambda: make_optimizer(config.optimizer, config.num_steps),
    lambda: _corpus(config),
    lambda: _reference(config),
    lambda: _check_local(workdir),
  )
  config, start = parts
  checks.check_plan(config, policies)

  # Text to packed rows, from the cache where they are there already.
  cache_dir = corpus.cache_dir(corpus_config)
  cache = str(cache_dir / "xla") if compilation_cache is None else compilation_cache
  if cache:
    jax.config.update("jax_compilation_cache_dir", cache)
  Path(workdir).mkdir(parents=True, exist_ok=True)
  domains = corpus.prepare(
    config.data, corpus_config, config.sequence_length, config.seed, workdir
  )
  tasks = None
  if config.target.folder:
    tasks = corpus.prepare_targets(
      config.target.folder, corpus_config, config.sequence_length, workdir
    )

  run = loop.Run(
    start.model,
    optimizer,
    learning_rate,
    policies,
    domains,
    config,
    weights=start.weights,
    trainable=start.trainable,
    reference=reference,
    tasks=tasks,
  )
  return loop.fit(run, workdir, profile=profile)


def _corpus(config: config_lib.TrainConfig) -> config_lib.CorpusConfig:
  found = corpus.with_tokenizer_of(config.weights.folder, config.corpus)
  corpus.check(config.data, found)
  return found


def _reference(config: config_lib.TrainConfig) -> Reference | None:
  given = config.reference
  if given.losses not in ("step", "cached"):
    raise ValueError(f"reference.losses must be 'step' or 'cached', got {given.losses!r}")
  if not given.folder:
    return None
  found = pretrained.reference(given.folder)
  if given.losses == "step":
    return found
  return found._replace(cache=str(corpus.cache_dir(config.corpus) / "reference"))


def _check_local(workdir: str) -> None:
  if "://" in workdir:
    raise ValueError(
      f"--workdir={workdir} must be a local folder; checkpoints alone can go elsewhere, with "
      "--config.checkpoint.folder=gs://..."
    )
