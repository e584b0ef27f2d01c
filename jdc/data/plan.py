"""The stateless sampler: which rows the next step trains on.

The rows of a step are a function of the seed, a small `PlanState` and the decision in force;
nothing else is remembered. Memory is O(K) for K domains: the order inside a domain is a
permutation computed one index at a time. Every process computes the same global draw.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from grain import experimental as grain_experimental

from jdc.policies import sampling

Draw = Literal["shuffle", "top_k", "gumbel_top_k", "multinomial"]

# Streams of random numbers, so that no two purposes share one.
_OFFSET, _BATCH, _ONE, _SHUFFLE, _ROUND = range(5)
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
_FEISTEL_ROUNDS = 4


class Exhausted(Exception):
  """The rows that `max_epochs` allows have been drawn."""


@dataclasses.dataclass(frozen=True)
class PlanSpec:
  """What stays fixed while a plan runs. Rows are numbered through all domains in order."""

  domain_names: tuple[str, ...]
  domain_sizes: tuple[int, ...]  # rows
  batch_size: int  # rows drawn in a step, over all processes
  seed: int
  mixed: bool  # a mixture acts; otherwise the pool is drawn from as a whole
  draw: Draw = "shuffle"  # of rows inside a domain, or the pool
  top_k_fraction: float = 1.0  # of the rows with finite logits that draw="top_k" keeps
  domain_draw: Literal["systematic", "one"] = "systematic"
  steps_per_round: int = 1
  round_ends: Literal["steps", "exhausted"] = "steps"
  decision_lag: int = 1  # steps between a mixture decision and the first batch after the next
  max_epochs: tuple[float, ...] = ()  # per domain; empty: no limit
  on_exhausted: Literal["renormalise", "stop"] = "renormalise"

  def __post_init__(self) -> None:
    errors = []
    if len(self.domain_sizes) != len(self.domain_names) or not self.domain_sizes:
      errors.append(f"domain_sizes needs one size per domain, got {self.domain_sizes}")
    sizes = zip(self.domain_names, self.domain_sizes, strict=False)
    errors += [f"domain {name!r} has {size} rows" for name, size in sizes if size < 1]
    if sum(self.domain_sizes) >= 2**31:
      errors.append(f"the pool has {sum(self.domain_sizes)} rows; at most 2^31 - 1 fit")
    for field in ("batch_size", "steps_per_round"):
      if getattr(self, field) < 1:
        errors.append(f"{field} must be at least 1, got {getattr(self, field)}")
    if self.decision_lag < 0:
      errors.append(f"decision_lag must be 0 or more, got {self.decision_lag}")
    for field, known in (
      ("draw", ("shuffle", "top_k", "gumbel_top_k", "multinomial")),
      ("domain_draw", ("systematic", "one")),
      ("round_ends", ("steps", "exhausted")),
      ("on_exhausted", ("renormalise", "stop")),
    ):
      if getattr(self, field) not in known:
        errors.append(f"{field} must be one of {known}, got {getattr(self, field)!r}")
    if not 0 < self.top_k_fraction <= 1:
      errors.append(f"top_k_fraction must be in (0, 1], got {self.top_k_fraction}")
    if self.top_k_fraction != 1 and self.draw != "top_k":
      errors.append(f"top_k_fraction needs draw='top_k', got draw={self.draw!r}")
    if self.round_ends == "exhausted" and self.draw not in ("top_k", "gumbel_top_k"):
      errors.append(
        f"round_ends='exhausted' needs draw 'top_k' or 'gumbel_top_k', got {self.draw!r}"
      )
    if self.max_epochs and len(self.max_epochs) != len(self.domain_sizes):
      errors.append(
        f"max_epochs needs one number for each of {self.domain_names}, got {self.max_epochs}"
      )
    if any(not epochs > 0 for epochs in self.max_epochs):
      errors.append(f"max_epochs must be positive, got {self.max_epochs}")
    if self.max_epochs and not self.mixed:
      errors.append("max_epochs limits domains and needs a mixture, such as mixture.by_size()")
    if self.domain_draw == "one" and not self.mixed:
      errors.append("domain_draw='one' needs a mixture")
    if errors:
      raise ValueError("; ".join(errors))

  @property
  def group_sizes(self) -> tuple[int, ...]:
    """Rows of each group that is drawn from: the domains, or the whole pool."""
    return self.domain_sizes if self.mixed else (sum(self.domain_sizes),)

  @property
  def capacity_K(self) -> np.ndarray:
    """Rows that may be drawn from each domain over the whole run, inf where unlimited."""
    epochs_K = self.max_epochs or (math.inf,) * len(self.domain_sizes)
    pairs = zip(epochs_K, self.domain_sizes, strict=True)
    return np.array([e if math.isinf(e) else math.floor(e * n) for e, n in pairs])


class PlanState(NamedTuple):
  """Where a plan stands. G groups: the domains, or one for the whole pool."""

  step: np.ndarray  # i64[], the step to draw next
  round: np.ndarray  # i64[], its round
  round_step: np.ndarray  # i64[], steps already drawn in this round
  drawn_G: np.ndarray  # i64[G], rows drawn since the start of the run
  round_drawn_G: np.ndarray  # i64[G], rows drawn since the start of the round
  seen_K: np.ndarray  # i64[K], rows of each domain seen
  asked_K: np.ndarray  # f64[K], rows of each domain that the decisions asked for
  in_flight: tuple[Any, ...]  # decision_lag + 1 mixture decisions f32[K], oldest first


class RoundRows(NamedTuple):
  """The decision of a round-scope selection about each row of the pool."""

  logits_N: np.ndarray  # f32[N], -inf: never drawn
  weights_N: np.ndarray | None = None  # f32[N], multipliers of the loss


class Rows(NamedTuple):
  """The rows of one step."""

  example_id: np.ndarray  # i32[B]
  domain: np.ndarray  # i32[B]
  sampling_probability: np.ndarray  # f32[B]
  domain_probability: np.ndarray  # f32[B]
  weight: np.ndarray  # f32[B], from a round decision, else 1


def initial_state(spec: PlanSpec, mixture_logits: Sequence[float] | np.ndarray) -> PlanState:
  """Returns the state before the first step, under the initial mixture decision f32[K]."""
  num_domains, num_groups = len(spec.domain_sizes), len(spec.group_sizes)
  logits_K = np.asarray(mixture_logits, np.float32)
  if logits_K.shape != (num_domains,):
    raise ValueError(f"mixture logits must have shape ({num_domains},), got {logits_K.shape}")
  zero = np.zeros((), np.int64)
  return PlanState(
    step=zero,
    round=zero,
    round_step=zero,
    drawn_G=np.zeros(num_groups, np.int64),
    round_drawn_G=np.zeros(num_groups, np.int64),
    seen_K=np.zeros(num_domains, np.int64),
    asked_K=np.zeros(num_domains, np.float64),
    in_flight=(logits_K,) * (spec.decision_lag + 1),
  )


def push(state: PlanState, mixture_logits: Any) -> PlanState:
  """Returns the state with the decision f32[K] of the newest step in flight.

  The decision may still be computed on a device: it is read when its batch is drawn.
  """
  return state._replace(in_flight=(*state.in_flight[1:], mixture_logits))


def hold(state: PlanState, mixture_logits: Any) -> PlanState:
  """Returns the state with one decision f32[K] in force at once, as a round begins."""
  return state._replace(in_flight=(mixture_logits,) * len(state.in_flight))


class Plan:
  """Draws rows step by step; holds nothing that its state does not determine.

  Args:
    spec: what stays fixed.

  Example:
    >>> spec = PlanSpec(("a", "b"), (6, 4), batch_size=4, seed=0, mixed=True)
    >>> state = initial_state(spec, np.log([0.75, 0.25]))
    >>> rows, state = Plan(spec).draw(state)
    >>> sorted(rows.domain.tolist())
    [0, 0, 0, 1]
  """

  def __init__(self, spec: PlanSpec):
    self.spec = spec
    self._starts_K = np.concatenate([[0], np.cumsum(spec.domain_sizes)])
    self._starts_G = self._starts_K if spec.mixed else self._starts_K[[0, -1]]
    # A float, so that the phase of the systematic draw is uniform over seeds.
    self._phase = _generator(spec.seed, _OFFSET).random()
    self._round: _RoundDraw | None = None

  def start_round(self, state: PlanState, rows: RoundRows) -> PlanState:
    """Puts a round decision in force and returns the state at the start of its round."""
    if self.spec.draw == "shuffle":
      raise ValueError("draw='shuffle' takes no round decision; choose another draw")
    started = state._replace(
      round_step=np.zeros_like(state.round_step),
      round_drawn_G=np.zeros_like(state.round_drawn_G),
    )
    self.resume_round(started, rows)
    return started

  def resume_round(self, state: PlanState, rows: RoundRows) -> None:
    """Puts the decision of the round in which `state` stands in force again."""
    self._round = _RoundDraw(self.spec, int(state.round), self._starts_G, rows)

  def draw(self, state: PlanState) -> tuple[Rows, PlanState]:
    """Returns the rows of the next step and the state after it.

    Raises:
      Exhausted: when `max_epochs` leaves too few rows for a batch.
    """
    if self.spec.draw != "shuffle" and self._round is None:
      raise ValueError(f"draw={self.spec.draw!r} needs start_round before the first draw")
    if self.spec.mixed:
      counts_G, p_G = self._domain_counts(state, _softmax(np.asarray(state.in_flight[0])))
      p_K = p_G
    else:
      counts_G, p_G = np.array([self.spec.batch_size]), np.ones(1)
      p_K = self._pool_probabilities()
    ids_parts, inner_parts = [], []
    for group in np.flatnonzero(counts_G):
      local, inner = self._draw_inside(int(group), state, int(counts_G[group]))
      ids_parts.append(local + self._starts_G[group])
      inner_parts.append(inner)
    ids_B, inner_B = np.concatenate(ids_parts), np.concatenate(inner_parts)
    group_B = np.repeat(np.arange(len(counts_G)), counts_G)
    rows = self._rows(state, ids_B, inner_B * p_G[group_B], p_K)
    return rows, self._advance(state, counts_G, rows, p_K)

  def _rows(
    self, state: PlanState, ids_B: np.ndarray, probability_B: np.ndarray, p_K: np.ndarray
  ) -> Rows:
    # Domains are interleaved, so that every slice of the batch is a sample of all of them.
    noise_B = _generator(self.spec.seed, _BATCH, int(state.step)).random(len(ids_B))
    order_B = np.argsort(noise_B, kind="stable")
    ids_B, probability_B = ids_B[order_B], probability_B[order_B]
    domain_B = np.searchsorted(self._starts_K, ids_B, side="right") - 1
    weights_N = self._round.rows.weights_N if self._round is not None else None
    weight_B = np.ones(len(ids_B), np.float32) if weights_N is None else weights_N[ids_B]
    return Rows(
      example_id=ids_B.astype(np.int32),
      domain=domain_B.astype(np.int32),
      sampling_probability=probability_B.astype(np.float32),
      domain_probability=p_K[domain_B].astype(np.float32),
      weight=weight_B.astype(np.float32),
    )

  def _pool_probabilities(self) -> np.ndarray:
    """The share of each domain when the pool is drawn from as a whole."""
    if self._round is not None:
      return self._round.domain_shares(self._starts_K)
    sizes_K = np.asarray(self.spec.domain_sizes, np.float64)
    return sizes_K / sizes_K.sum()

  def _advance(
    self, state: PlanState, counts_G: np.ndarray, rows: Rows, p_K: np.ndarray
  ) -> PlanState:
    spec = self.spec
    num_domains = len(spec.domain_sizes)
    round_drawn_G = state.round_drawn_G + counts_G
    round_step = state.round_step + 1
    if spec.round_ends == "steps":
      ended = int(round_step) == spec.steps_per_round
    else:
      assert self._round is not None
      ended = bool(np.any(round_drawn_G >= self._round.sizes_G))
    return PlanState(
      step=state.step + 1,
      round=state.round + 1 if ended else state.round,
      round_step=np.zeros_like(round_step) if ended else round_step,
      drawn_G=state.drawn_G + counts_G,
      round_drawn_G=np.zeros_like(round_drawn_G) if ended else round_drawn_G,
      seen_K=state.seen_K + np.bincount(rows.domain, minlength=num_domains),
      asked_K=state.asked_K + spec.batch_size * p_K,
      in_flight=state.in_flight,
    )

  def _domain_counts(self, state: PlanState, p_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows to draw from each domain, and the probabilities in force, f64[K]."""
    spec = self.spec
    left_K = spec.capacity_K - state.drawn_G
    p_K = self._renormalise(p_K, left_K, spec.batch_size)
    if spec.domain_draw == "one":
      uniform = _generator(spec.seed, _ONE, int(state.step)).random()
      domain = int(np.searchsorted(np.cumsum(p_K), uniform * p_K.sum(), side="right"))
      counts_K = np.zeros(len(p_K), np.int64)
      counts_K[domain] = spec.batch_size
      if counts_K[domain] > left_K[domain]:
        raise Exhausted(self._exhausted_message(left_K))
      return counts_K, p_K
    # A low-discrepancy phase makes the shares over many steps as even as those of one batch.
    offset = (self._phase + int(state.step) * _GOLDEN_RATIO) % 1.0
    counts_K = np.zeros(len(p_K), np.int64)
    rest_K = p_K
    while (missing := spec.batch_size - int(counts_K.sum())) > 0:
      asked_K = np.asarray(sampling.systematic_counts(rest_K, missing, offset), np.int64)
      granted_K = np.minimum(asked_K, left_K - counts_K).astype(np.int64)
      if spec.on_exhausted == "stop" and np.any(granted_K < asked_K):
        raise Exhausted(self._exhausted_message(left_K))
      counts_K += granted_K
      if counts_K.sum() < spec.batch_size:
        rest_K = self._renormalise(rest_K, left_K - counts_K, missing)
    return counts_K, p_K

  def _renormalise(self, p_K: np.ndarray, left_K: np.ndarray, missing: int) -> np.ndarray:
    open_K = left_K > 0
    if np.all(open_K | (p_K == 0)):
      return p_K
    if self.spec.on_exhausted == "stop" or left_K[p_K > 0].clip(0).sum() < missing:
      raise Exhausted(self._exhausted_message(left_K))
    kept_K = np.where(open_K, p_K, 0.0)
    return kept_K / kept_K.sum()

  def _exhausted_message(self, left_K: np.ndarray) -> str:
    spent = [n for n, left in zip(self.spec.domain_names, left_K, strict=True) if left <= 0]
    return (
      f"max_epochs={self.spec.max_epochs} leaves no full batch; domains with no rows left: "
      f"{spent or 'none, but fewer than a batch in the rest'}"
    )

  def _draw_inside(
    self, group: int, state: PlanState, count: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Local rows i64[count] of a group, and the probability of each inside it."""
    if self._round is not None:
      return self._round.draw(group, int(state.round_drawn_G[group]), int(state.step), count)
    size = self.spec.group_sizes[group]
    first = int(state.drawn_G[group])
    rows = _permuted(first, count, size, (self.spec.seed, _SHUFFLE, group))
    return rows, np.full(count, 1.0 / size)


class _RoundDraw:
  """Draws inside each group by the logits of one round."""

  def __init__(self, spec: PlanSpec, round_: int, starts_G: np.ndarray, rows: RoundRows):
    num_rows = int(starts_G[-1])
    if rows.logits_N.shape != (num_rows,):
      raise ValueError(f"round logits need shape ({num_rows},), got {rows.logits_N.shape}")
    if np.any(np.isnan(rows.logits_N)) or np.any(rows.logits_N == np.inf):
      raise ValueError("round logits must be finite or -inf")
    self.rows = rows
    self._spec, self._round, self._starts_G = spec, round_, starts_G
    self._eligible = [self._keep(group) for group in range(len(starts_G) - 1)]
    self.sizes_G = np.array([len(ids) for ids in self._eligible])
    empty = [
      spec.domain_names[g] if spec.mixed else "the pool"
      for g in np.flatnonzero(self.sizes_G == 0)
    ]
    if empty:
      raise ValueError(f"round {round_}: no row has a finite logit in {', '.join(empty)}")
    self._probability = [self._probabilities(group) for group in range(len(self._eligible))]
    self._order: dict[int, tuple[int, np.ndarray]] = {}

  def _logits(self, group: int) -> np.ndarray:
    return self.rows.logits_N[self._starts_G[group] : self._starts_G[group + 1]]

  def _keep(self, group: int) -> np.ndarray:
    logits = self._logits(group)
    finite = np.flatnonzero(np.isfinite(logits))
    if self._spec.draw != "top_k" or self._spec.top_k_fraction == 1:
      return finite
    kept = math.ceil(self._spec.top_k_fraction * len(finite))
    return np.sort(finite[np.argsort(-logits[finite], kind="stable")[:kept]])

  def _probabilities(self, group: int) -> np.ndarray:
    ids = self._eligible[group]
    if self._spec.draw == "top_k":
      return np.full(len(ids), 1.0 / len(ids))
    return _softmax(self._logits(group)[ids])

  def domain_shares(self, starts_K: np.ndarray) -> np.ndarray:
    """The probability of each domain when the pool is one group."""
    domain = np.searchsorted(starts_K, self._eligible[0], side="right") - 1
    return np.bincount(domain, self._probability[0], minlength=len(starts_K) - 1)

  def draw(
    self, group: int, first: int, step: int, count: int
  ) -> tuple[np.ndarray, np.ndarray]:
    eligible, probability = self._eligible[group], self._probability[group]
    seed = (self._spec.seed, _ROUND, self._round, group)
    if self._spec.draw == "top_k":
      chosen = _permuted(first, count, len(eligible), seed)
    elif self._spec.draw == "gumbel_top_k":
      chosen = self._gumbel(group, first, count, seed)
    else:
      uniforms = _generator(*seed, step).random(count)
      chosen = np.asarray(sampling.multinomial(uniforms, self._logits(group)[eligible]))
    return eligible[chosen], probability[chosen]

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
      uniform = _generator(*seed, epoch).random(len(logits))
      with np.errstate(divide="ignore"):  # a uniform of exactly 0 sorts last
        keys = logits - np.log(-np.log(uniform))
      self._order[group] = (epoch, np.argsort(-keys, kind="stable"))
    return self._order[group][1]


def _generator(*stream: int) -> np.random.Generator:
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


def _softmax(logits: np.ndarray) -> np.ndarray:
  logits = np.asarray(logits, np.float64)
  weights = np.exp(logits - logits.max())
  return weights / weights.sum()


def to_json(state: PlanState) -> dict[str, Any]:
  """Returns the state as JSON values; float32 decisions are kept exactly."""
  fields = state._asdict()
  in_flight = [np.asarray(logits).tolist() for logits in fields.pop("in_flight")]
  return {name: value.tolist() for name, value in fields.items()} | {"in_flight": in_flight}


def from_json(values: dict[str, Any], like: PlanState) -> PlanState:
  """Reads a state of `to_json`; its shapes must be those of `like`."""
  in_flight = tuple(np.asarray(logits, np.float32) for logits in values["in_flight"])
  arrays = {
    name: np.asarray(values[name], getattr(like, name).dtype)
    for name in PlanState._fields
    if name != "in_flight"
  }
  state = PlanState(**arrays, in_flight=in_flight)
  shapes = [np.shape(x) for x in (*state[:-1], *state.in_flight)]
  expected = [np.shape(x) for x in (*like[:-1], *like.in_flight)]
  if shapes != expected:
    raise ValueError(f"the saved plan has shapes {shapes}, this run needs {expected}")
  return state
