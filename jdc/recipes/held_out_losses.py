"""Losses of a run's model on texts that it may not train on, and their paired comparison."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jdc.data.batch import inputs_and_targets
from jdc.prep.feedback.held_out import Text
from jdc.train import config as config_lib
from jdc.train import corpus, pretrained, sharding
from jdc.train.config import CorpusConfig

_RESAMPLES = 2000


class Losses(NamedTuple):
  """Of D texts, in order."""

  nats: np.ndarray  # f64[D], sums over the tokens after the first
  num_bytes: np.ndarray  # i64[D]
  domain: np.ndarray  # str[D]

  def bits_per_byte(self) -> dict[str, float]:
    """Returns sum of nats / (sum of bytes ln 2) by domain."""
    found = {}
    for name in np.unique(self.domain).tolist():
      of = self.domain == name
      found[name] = float(self.nats[of].sum() / (self.num_bytes[of].sum() * math.log(2)))
    return found

  def macro(self) -> float:
    """Returns the mean of that over domains."""
    return float(np.mean(list(self.bits_per_byte().values())))


class Comparison(NamedTuple):
  """Bits per byte of a challenger less those of what it would replace; below 0 is better."""

  difference: float
  low: float
  high: float


def losses(run: str | Path, texts: Sequence[Text], batch_size: int) -> Losses:
  """Evaluates the newest checkpoint of a run on texts, each cut into rows of its own.

  Args:
    run: a run directory.
    texts: the held-out set.
    batch_size: rows in one pass.
  """
  opened = pretrained.open_model(run, sharding.make_mesh(data=1, fsdp=-1))
  length = int(opened.run["sequence_length"])
  own = corpus.tokenizer(config_lib.from_json(opened.run, CorpusConfig, "corpus."))
  rows, owners = [], []
  for number, text in enumerate(texts):
    ids = own.encode(text.text)[0]
    for start in range(0, max(len(ids) - 1, 1), length):
      row = np.zeros(length + 1, np.int32)
      part = ids[start : start + length + 1]
      row[: len(part)] = part
      rows.append((row, len(part)))
      owners.append(number)
  nats = np.zeros(len(texts))
  forward = jax.jit(opened.model.token_losses)
  for start in range(0, len(rows), batch_size):
    chosen = rows[start : start + batch_size]
    tokens = np.zeros((batch_size, length + 1), np.int32)
    segments = np.zeros_like(tokens)
    for k, (row, count) in enumerate(chosen):
      tokens[k], segments[k, :count] = row, 1
    inputs = inputs_and_targets(tokens, segments)
    found = np.asarray(forward(opened.params, *inputs[:4]), np.float64)
    sums = np.where(inputs.mask, found, 0.0).sum(axis=1)
    np.add.at(nats, owners[start : start + batch_size], sums[: len(chosen)])
  num_bytes = np.array([len(text.text.encode()) for text in texts])
  return Losses(nats, num_bytes, np.array([text.domain for text in texts]))


def compare(challenger: Losses, incumbent: Losses, seed: int = 0) -> Comparison:
  """Compares two models on the same texts.

  The difference is that of the macro means. Its interval, 95 % of two sides, is from resamples
  of the texts of each domain, the same for both models. It tells what other texts would have
  said, not what another seed of the training would have.
  """
  rng = np.random.default_rng(seed)
  differences = []
  for name in np.unique(challenger.domain).tolist():
    at = np.flatnonzero(challenger.domain == name)
    chosen = rng.choice(at, (_RESAMPLES, len(at)))
    delta = (challenger.nats - incumbent.nats)[chosen].sum(axis=1)
    differences.append(delta / (challenger.num_bytes[chosen].sum(axis=1) * math.log(2)))
  low, high = np.percentile(np.mean(differences, axis=0), [2.5, 97.5])
  return Comparison(challenger.macro() - incumbent.macro(), float(low), float(high))


def to_json(found: Losses) -> dict[str, Any]:
  """Returns losses as JSON values, exactly."""
  return {name: values.tolist() for name, values in found._asdict().items()}


def from_json(value: dict[str, Any]) -> Losses:
  """Returns the losses of `to_json`."""
  return Losses(*(np.array(value[name]) for name in Losses._fields))
