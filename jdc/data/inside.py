"""Rows inside a domain or the pool: endless streams, readable from any position."""

import math
from typing import NamedTuple

import numpy as np
from grain import experimental as grain_experimental

from jdc.data.plan import PlanSpec, RoundRows
from jdc.policies import sampling

# Purposes of random numbers, so that no two share a stream.
OFFSET, BATCH, ONE, SHUFFLE, ROUND, ORDER = range(6)

_FEISTEL_ROUNDS = 4


class Drawn(NamedTuple):
  """Rows of a group, the probability of each inside it, and its weight."""

  rows: np.ndarray  # i64[n], numbered inside the group
  probabilities: np.ndarray  # f64[n]
  weights: np.ndarray  # f32[n], multipliers of the loss


def shuffled(spec: PlanSpec, group: int, first: int, count: int) -> Drawn:
  """Reads `count` rows of a group from position `first` of its epochs, each shuffled anew."""
  size = spec.group_sizes[group]
  rows = _permuted(first, count, size, (spec.seed, SHUFFLE, group))
  return Drawn(rows, np.full(count, 1.0 / size), np.ones(count, np.float32))


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
    self._order: dict[int, tuple[int, np.ndarray]] = {}

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
    seed = (self._spec.seed, ROUND, self._round, group)
    if self._spec.draw == "top_k":
      chosen = _permuted(first, count, len(eligible), seed)
    elif self._spec.draw == "gumbel_top_k":
      chosen = self._gumbel(group, first, count, seed)
    else:
      uniforms = generator(*seed, first).random(count)
      chosen = np.asarray(sampling.multinomial(uniforms, self._logits(group)[eligible]))
    return Drawn(eligible[chosen], probability[chosen], self._weights(group, eligible[chosen]))

  def _weights(self, group: int, ids: np.ndarray) -> np.ndarray:
    if self._rows.weights_N is None:
      return np.ones(len(ids), np.float32)
    return self._rows.weights_N[self._starts_G[group] + ids].astype(np.float32)

  def _gumbel(self, group: int, first: int, count: int, seed: tuple[int, ...]) -> np.ndarray:
    """Positions `first` to `first + count` of successive draws without replacement."""
    size, parts = len(self._eligible[group]), []
    while count > 0:
      epoch, start = divmod(first, size)
      order = self._gumbel_order(group, epoch, seed)
      parts.append(order[start : start + count])
      first, count = first + len(parts[-1]), count - len(parts[-1])
    return np.concatenate(parts)

  def _gumbel_order(self, group: int, epoch: int, seed: tuple[int, ...]) -> np.ndarray:
    cached = self._order.get(group)
    if cached is None or cached[0] != epoch:
      logits = self._logits(group)[self._eligible[group]].astype(np.float64)
      uniform = generator(*seed, epoch).random(len(logits))
      with np.errstate(divide="ignore"):  # a uniform of exactly 0 sorts last
        keys = logits - np.log(-np.log(uniform))
      self._order[group] = (epoch, np.argsort(-keys, kind="stable"))
    return self._order[group][1]


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
