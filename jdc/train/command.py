"""A whole run from its config: what `launch/train.py` and the recipes call."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from jax.experimental.compilation_cache import compilation_cache as cache_lib

from jdc.data import pack
from jdc.eval import rewards
from jdc.train import checks, corpus, loop, model_parts, pretrained
from jdc.train import config as config_lib
from jdc.train.config import collect
from jdc.train.optimizer import adam_of, make_optimizer
from jdc.train.responses import Responses
from jdc.train.state import Reference


def parse_flags(argv: list[str]) -> list[str]:
  """Parses the flags of a script with `--config`; of its fields, unknown ones are named."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError, TypeError) as error:  # an unknown field, hardly named
    overrides = [arg for arg in argv if arg.lstrip("-").startswith("config.")]
    sys.argv = [arg for arg in argv if arg not in overrides]
    app.parse_flags_with_usage(sys.argv)
    paths = [arg.lstrip("-").partition("=")[0].removeprefix("config.") for arg in overrides]
    known: Any = flags.FLAGS["config"].value
    problems = config_lib.unknown_overrides(known, paths) or [str(error)]
    sys.exit(f"FATAL Flags parsing error: {'; '.join(problems)}")


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
    compilation_cache: of JAX; empty: none; `None`: what JAX is set to, by
      $JAX_COMPILATION_CACHE_DIR or before in this process, else beside the rows.
    profile: writes a trace of a few steps to the workdir.

  Raises:
    ValueError: before any compilation, listing what is wrong with the config; further as
      `loop.fit`.
  """
  return loop.fit(build_run(config, workdir, compilation_cache), workdir, profile=profile)


def build_run(
  config: config_lib.TrainConfig, workdir: str, compilation_cache: str | None = None
) -> loop.Run:
  """Returns the run that a config describes, its data read; arguments as of `train`.

  Raises:
    ValueError: before any compilation, listing what is wrong with the config.
  """
  # Token shards name their tokenizer, and the run's config is to tell it too.
  tokenizer = corpus.with_tokenizer_of_shards(config.data, config.corpus)
  config = dataclasses.replace(config, corpus=tokenizer)

  # Everything that can be wrong without looking at the data.
  policies, parts, (optimizer, learning_rate), corpus_config, reference, responses, _ = collect(
    lambda: config_lib.build_policies(config),
    lambda: model_parts.build(config),
    lambda: make_optimizer(config.optimizer, config.num_steps),
    lambda: _corpus(config),
    lambda: _reference(config),
    lambda: _responses(config),
    lambda: _check_local(workdir),
  )
  config, start = parts
  checks.check_plan(config, policies)

  # Text to packed rows, from the cache where they are there already.
  cache_dir = corpus.cache_dir(corpus_config)
  _keep_programs(compilation_cache, cache_dir / "xla")
  Path(workdir).mkdir(parents=True, exist_ok=True)
  domains = corpus.prepare(
    config.data, corpus_config, config.sequence_length, config.seed, workdir
  )
  scores = _scores(config.scores, domains) if config.scores else None
  tasks = None
  if config.target.folder:
    tasks = corpus.prepare_targets(
      config.target.folder, corpus_config, config.sequence_length, workdir
    )

  return loop.Run(
    start.model,
    optimizer,
    learning_rate,
    policies,
    domains,
    config,
    scores=scores,
    weights=start.weights,
    trainable=start.trainable,
    reference=reference,
    tasks=tasks,
    adam=adam_of(config.optimizer),
    responses=responses,
  )


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
  _check_tokenizer(config, pretrained.corpus_of(given.folder))
  if given.losses == "step":
    return found
  return found._replace(cache=str(corpus.cache_dir(config.corpus) / "reference"))


def _responses(config: config_lib.TrainConfig) -> Responses | None:
  given = config.responses
  if not given.reward:
    return None
  reward = rewards.find(given.reward)
  if config.corpus.format == "text":
    raise ValueError(
      "responses.reward needs instruction data, whose prompts are responded to; corpus.format "
      "is 'text'"
    )
  frozen = None
  if given.folder:
    frozen = pretrained.reference(given.folder)
    _check_tokenizer(config, pretrained.corpus_of(given.folder), "responses")
  found = corpus.with_tokenizer_of(config.weights.folder, config.corpus)
  chat = corpus.chat(found)

  def decode(ids: Sequence[int]) -> str:
    # A model may write ids that its tokenizer has not, where its vocabulary was rounded up.
    return chat.decode([i for i in ids if i < chat.vocab_size])

  return Responses(reward, decode, chat.stop_ids, frozen)


def _check_tokenizer(
  config: config_lib.TrainConfig,
  other: config_lib.CorpusConfig | None,
  field: str = "reference",
) -> None:
  """Raises a ValueError if another model was trained on other tokens than the run will be."""
  own = corpus.with_tokenizer_of(config.weights.folder, config.corpus)
  fields = ("tokenizer", "bos_token", "eos_token")
  if other is None or all(getattr(own, name) == getattr(other, name) for name in fields):
    return
  if corpus.tokenizer(own).fingerprint != corpus.tokenizer(other).fingerprint:
    shown = [", ".join(f"{n}={getattr(c, n)!r}" for n in fields) for c in (other, own)]
    raise ValueError(
      f"{field}.folder={getattr(config, field).folder!r} was trained with another tokenizer "
      f"({shown[0]}) than corpus names ({shown[1]})"
    )


def _scores(path: str, domains: Mapping[str, pack.Domain]) -> np.ndarray:
  """The scores of all training rows, in order; every domain that does not fit is named."""
  try:
    with np.load(Path(path).expanduser()) as held:
      arrays = {name: held[name] for name in held.files}
  except (OSError, ValueError) as error:
    raise ValueError(f"scores={path!r} is no readable .npz: {error}") from error
  shapes = {name: (len(domain.train),) for name, domain in domains.items()}
  wrong = [
    f"{name}: {arrays[name].shape if name in arrays else 'absent'}, not {shape}"
    for name, shape in shapes.items()
    if name not in arrays or arrays[name].shape != shape
  ]
  wrong += [f"{name}: no such domain" for name in arrays if name not in shapes]
  if wrong:
    raise ValueError(f"scores={path!r} needs an array for each domain; {'; '.join(wrong)}")
  return np.concatenate([arrays[name].astype(np.float32) for name in domains])


def _keep_programs(folder: str | None, default: Path) -> None:
  """Sets JAX's folder of compiled programs; `None`: what it is set to, else the default."""
  settings: Any = jax.config
  given = settings.jax_compilation_cache_dir
  wanted = (given or str(default) if folder is None else folder) or None
  if wanted != given:
    jax.config.update("jax_compilation_cache_dir", wanted)
    cache_lib.reset_cache()  # which stays with the folder that it was opened with


def _check_local(workdir: str) -> None:
  if "://" in workdir:
    raise ValueError(
      f"--workdir={workdir} must be a local folder; checkpoints alone can go elsewhere, with "
      "--config.checkpoint.folder=gs://..."
    )
