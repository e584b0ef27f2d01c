"""Rows inside a domain or the pool: endless streams, readable from any position."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from grain import experimental as grain_experimental

from jdc.data.plan import PlanSpec, RoundRows

# Purposes of random numbers, so that no two share a stream.
OFFSET, BATCH, ONE, SHUFFLE, ROUND, ORDER = range(6)

# (first, count) -> that many positions of an endless stream, i64[count]
Reader = Callable[[int, int], np.ndarray]

# Up to here an epoch's order is kept: computing it index by index, a cipher of 16 bits walks
# through 2^16 / size others on its way. This is 64 KiB a group, and at most 4 bytes a row.
_KEPT_SIZE = 1 << 14
_FEISTEL_ROUNDS = 4


class Drawn(NamedTuple):
  """Rows of a group, the probability of each inside it, and its weight."""

  rows: np.ndarray  # i64[n], numbered inside the group
  probabilities: np.ndarray  # f64[n]
  weights: np.ndarray  # f32[n], multipliers of the loss


def shuffled(size: int, stream: tuple[int, ...]) -> Reader:
  """Returns a reader of epochs of `size` rows, each in a random order of its own."""
  if size > _KEPT_SIZE:
    return lambda first, count: _permuted(first, count, size, stream)
  return Epochs(size, lambda epoch: generator(*stream, epoch).random(size)).read


class Epochs:
  """An endless series of orders of the same rows; keeps the one in hand.

  Args:
    size: the number of rows.
    keys: returns the keys f64[size] by which an epoch is sorted.
  """

  def __init__(self, size: int, keys: Callable[[int], np.ndarray]):
    self._size, self._keys = size, keys
    self._epoch, self._order = -1, np.zeros(0, np.int32)

  def read(self, first: int, count: int) -> np.ndarray:
    """Returns positions `first` to `first + count`, counted through all epochs."""
    parts = [np.zeros(0, np.int64)]
    while count > 0:
      epoch, start = divmod(first, self._size)
      if epoch != self._epoch:
        order = np.argsort(self._keys(epoch), kind="stable").astype(np.int32)
        self._epoch, self._order = epoch, order
      parts.append(self._order[start : start + count].astype(np.int64))
      first, count = first + len(parts[-1]), count - len(parts[-1])
    return np.concatenate(parts)


class RoundDraw:
  """Draws inside each group by the logits of one round."""

  def __init__(self, spec: PlanSpec, round_: int, starts_G: np.ndarray, rows: RoundRows):
    num_rows = int(starts_G[-1])
    if rows.logits_N.shape != (num_rows,):
      raise ValueError(f"round logits need shape ({num_rows},), got {rows.logits_N.shape}")
    if np.any(np.isnan(rows.logits_N)) or np.any(rows.logits_N == np.inf):
      raise ValueError("round logits must be finite or -inf")
    if rows.weights_N is not None and rows.weights_N.shape != (num_rows,):
      raise ValueError(f"round weights need shape ({num_rows},), got {rows.weights_N.shape}")
    self._rows = rows
    self._spec, self._round, self._starts_G = spec, round_, starts_G
    self._eligible = [self._keep(group) for group in range(len(starts_G) - 1)]
    self.sizes_G = np.array([len(ids) for ids in self._eligible])
    self._probability = [self._probabilities(group) for group in range(len(self._eligible))]
    self._readers: dict[int, Reader] = {}

  def _logits(self, group: int) -> np.ndarray:
    return self._rows.logits_N[self._starts_G[group] : self._starts_G[group + 1]]

  def _keep(self, group: int) -> np.ndarray:
    logits = self._logits(group)
    finite = np.flatnonzero(np.isfinite(logits))
    if self._spec.draw != "top_k" or self._spec.top_k_fraction == 1:
      return finite
    kept = math.ceil(self._spec.top_k_fraction * len(finite))
    return np.sort(finite[np.argsort(-logits[finite], kind="stable")[:kept]])

  def _probabilities(self, group: int) -> np.ndarray:
    ids = self._eligible[group]
    if self._spec.draw == "top_k" or not len(ids):
      return np.full(len(ids), 1.0 / max(len(ids), 1))
    return softmax(self._logits(group)[ids])

  def domain_shares(self, starts_K: np.ndarray) -> np.ndarray:
    """The probability of each domain when the pool is one group."""
    domain = np.searchsorted(starts_K, self._eligible[0], side="right") - 1
    return np.bincount(domain, self._probability[0], minlength=len(starts_K) - 1)

  def draw(self, group: int, first: int, count: int) -> Drawn:
    """Reads `count` rows of a group from position `first` of the round."""
    eligible, probability = self._eligible[group], self._probability[group]
    if not len(eligible):
      name = f"domain {self._spec.domain_names[group]!r}" if self._spec.mixed else "the pool"
      raise ValueError(f"round {self._round}: the selection left no row of {name} to draw")
    if group not in self._readers:
      self._readers[group] = self._reader(group)
    chosen = self._readers[group](first, count)
    weights = np.ones(count, np.float32)
    if self._rows.weights_N is not None:
      weights = self._rows.weights_N[self._starts_G[group] + eligible[chosen]]
    return Drawn(eligible[chosen], probability[chosen], weights.astype(np.float32))

  def _reader(self, group: int) -> Reader:
    """A reader of positions among the eligible rows of a group."""
    size = len(self._eligible[group])
    stream = (self._spec.seed, ROUND, self._round, group)
    if self._spec.draw == "top_k":
      return shuffled(size, stream)
    if self._spec.draw == "gumbel_top_k":
      logits = self._logits(group)[self._eligible[group]].astype(np.float64)
      return Epochs(size, lambda epoch: _gumbel_keys(logits, (*stream, epoch))).read
    return _with_replacement(self._probability[group], stream)


def _gumbel_keys(logits: np.ndarray, stream: tuple[int, ...]) -> np.ndarray:
  """Keys whose rising order is that of draws without replacement from softmax(logits)."""
  uniform = generator(*stream).random(len(logits))
  with np.errstate(divide="ignore"):  # a uniform of exactly 0 sorts last
    return np.log(-np.log(uniform)) - logits


def _with_replacement(probability: np.ndarray, stream: tuple[int, ...]) -> Reader:
  """Returns a reader of independent draws; `sampling.multinomial` with its sums kept."""
  edge = np.cumsum(probability)
  edge[np.flatnonzero(probability)[-1] :] = 1.0  # whatever the rounding, an item of p > 0
  return lambda first, count: np.searchsorted(
    edge, generator(*stream, first).random(count), side="right"
  )


def generator(*stream: int) -> np.random.Generator:
  """Random numbers that depend on nothing but `stream`."""
  return np.random.Generator(np.random.Philox(np.random.SeedSequence(stream)))


def _permuted(first: int, count: int, size: int, stream: tuple[int, ...]) -> np.ndarray:
  """Elements `first`, `first + 1`, ... of an endless series of permutations of `size` rows."""
  rows = np.empty(count, np.int64)
  epoch_seed: dict[int, int] = {}
  for i in range(count):
    epoch, position = divmod(first + i, size)
    if epoch not in epoch_seed:
      epoch_seed[epoch] = int(np.random.SeedSequence((*stream, epoch)).generate_state(1)[0])
    rows[i] = grain_experimental.index_shuffle(
      position, max_index=size - 1, seed=epoch_seed[epoch], rounds=_FEISTEL_ROUNDS
    )
  return rows


def softmax(logits: np.ndarray) -> np.ndarray:
  """Returns exp(logits) normalised to sum 1, in float64."""
  logits = np.asarray(logits, np.float64)
  weights = np.exp(logits - logits.max())
  return weights / weights.sum()
