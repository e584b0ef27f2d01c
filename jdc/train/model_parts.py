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
from jdc.train.config import TrainConfig
from jdc.train.state import Start

_LOG = logging.getLogger("jdc")


def build(config: TrainConfig) -> tuple[TrainConfig, Start]:
  """Returns the config with its decoder filled in, and the model, its weights, what is trained.

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
  if folder:
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
  try:
    subsets.check_patterns(patterns, jax.eval_shape(init, jax.random.key(0)))
  except ValueError as error:
    raise ValueError(f"config.trainable: {error}") from error
  return subsets.matcher(patterns)
