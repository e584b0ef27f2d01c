"""From the model's fields of a config to what a run starts from."""

import dataclasses
import logging
from collections.abc import Callable

import jax

from jdc.models import attention, hf, subsets
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.train import config as config_lib
from jdc.train import pretrained
from jdc.train.config import TrainConfig, WeightsConfig
from jdc.train.state import Start

_LOG = logging.getLogger("jdc")


def build(config: TrainConfig, *, reads_weights: bool = True) -> tuple[TrainConfig, Start]:
  """Returns the config with its decoder filled in, and the model, its weights, what is trained.

  Args:
    config: of the run.
    reads_weights: `False` leaves the weights out; of their folder, `config.json` alone is read.

  Raises:
    ValueError: if the config has both a model and weights or neither, if the weights are of
      another kind of model, or if a pattern matches no parameter.
  """
  resolved = dataclasses.replace(config, model=decoder_config(config))
  assert resolved.model is not None
  model = decoder(resolved.model, lora=config.lora)
  kind = attention.choose(resolved.model, jax.default_backend())
  _LOG.info("attention: %s", kind)
  folder, weights = config.weights.folder, None
  trainable = _trainable(resolved)
  if folder and reads_weights:
    weights = pretrained.weights(folder, resolved.model)
  return resolved, Start(model, weights, trainable)


def decoder_config(config: TrainConfig) -> DecoderConfig:
  """Returns the decoder that a config describes, or names by the weights to start from."""
  given = config.weights
  if (config.model is None) == (not given.folder):
    both = "both" if config.model is not None else "neither"
    raise ValueError(
      "the config must have either a model (config.model, a DecoderConfig) or weights "
      f"(config.weights.folder), it has {both}"
    )
  if config.model is not None:
    if given != WeightsConfig():
      raise ValueError(
        f"config.weights is not read where the config has a model, got {given}; config.model "
        "has these fields itself"
      )
    return config.model
  computes = {f.name: getattr(given, f.name) for f in dataclasses.fields(given)}
  del computes["folder"]
  return hf.from_hf_config(given.folder, **computes)


def _trainable(config: TrainConfig) -> Callable[[str], bool] | None:
  patterns = config_lib.trainable_patterns(config_lib.to_json(config))
  if not patterns:
    return None
  assert config.model is not None
  init = decoder(config.model, lora=config.lora).init
  shapes, trainable = jax.eval_shape(init, jax.random.key(0)), subsets.matcher(patterns)
  try:
    subsets.check_patterns(patterns, shapes)
  except ValueError as error:
    raise ValueError(f"config.trainable: {error}") from error
  adapters = filter(subsets.matcher(config_lib.ADAPTERS), subsets.paths(shapes))
  if idle := [path for path in adapters if not trainable(path)]:
    raise ValueError(
      f"config.trainable={patterns} leaves adapters untrained: {', '.join(idle)}; add "
      f"{config_lib.ADAPTERS[0]!r}, or choose other lora.targets"
    )
  return trainable
