"""Where a plan stands and what it is told: the specification, the state, the decisions.

`jdc.data.draw` turns them into rows. The rows of a step are a function of the seed, a small
`PlanState` and the decision in force; nothing else is remembered.
"""

import dataclasses
import fractions
import json
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

Draw = Literal["shuffle", "top_k", "gumbel_top_k", "multinomial"]


class Exhausted(Exception):
  """The rows that `max_epochs` allows have been drawn."""


@dataclasses.dataclass(frozen=True)
class PlanSpec:
  """What stays fixed while a plan runs. Rows are numbered through all domains in order."""

  domain_names: tuple[str, ...]
  domain_sizes: tuple[int, ...]  # rows
  batch_size: int  # rows of a step, over all processes
  seed: int
  mixed: bool  # a mixture acts; otherwise the pool is drawn from as a whole
  ordered: bool = False  # an ordering acts: rows pass through a queue for each group
  # What is put in order at once: the rows that a round is expected to draw, those of an epoch,
  # or, again when each round begins, what remains of the epoch.
  queue: Literal["round", "epoch", "remainder"] = "round"
  draw: Draw = "shuffle"  # of rows inside a domain, or the pool
  top_k_fraction: float = 1.0  # of the rows with finite logits that draw="top_k" keeps
  domain_draw: Literal["systematic", "one"] = "systematic"
  steps_per_round: int = 1
  round_ends: Literal["steps", "exhausted"] = "steps"
  decision_lag: int = 1  # steps between a mixture decision and the first batch after the next
  max_epochs: tuple[float, ...] = ()  # per domain; empty: no limit
  on_exhausted: Literal["renormalise", "stop"] = "renormalise"
  # Records of the pool packed into a row at most, S; 0: a row of the pool is a row of a step.
  max_segments: int = 0
  row_tokens: int = 0  # of a packed row
  draw_size: int = 0  # records drawn at a time to fill packed rows, about those of a step

  def __post_init__(self) -> None:
    errors = []
    if len(self.domain_sizes) != len(self.domain_names) or not self.domain_sizes:
      errors.append(f"domain_sizes needs one size per domain, got {self.domain_sizes}")
    twice = sorted({n for n in self.domain_names if self.domain_names.count(n) > 1})
    if twice:
      errors.append(f"domain_names must differ, these occur more than once: {twice}")
    sizes = zip(self.domain_names, self.domain_sizes, strict=False)
    errors += [f"domain {name!r} has {size} rows" for name, size in sizes if size < 1]
    if sum(self.domain_sizes) >= 2**31:
      errors.append(f"the pool has {sum(self.domain_sizes)} rows; at most 2^31 - 1 fit")
    for field in ("batch_size", "steps_per_round"):
      if getattr(self, field) < 1:
        errors.append(f"{field} must be at least 1, got {getattr(self, field)}")
    for field in ("seed", "decision_lag"):
      if getattr(self, field) < 0:
        errors.append(f"{field} must be 0 or more, got {getattr(self, field)}")
    for field, known in (
      ("draw", ("shuffle", "top_k", "gumbel_top_k", "multinomial")),
      ("queue", ("round", "epoch", "remainder")),
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
    if self.queue != "round" and not self.ordered:
      errors.append(f"queue={self.queue!r} needs an ordering")
    if self.queue != "round" and self.draw != "shuffle":
      errors.append(
        f"queue={self.queue!r} needs draw='shuffle', got {self.draw!r}: under a selection, an "
        "epoch is no longer than a round"
      )
    if self.domain_draw == "one" and not self.mixed:
      errors.append("domain_draw='one' needs a mixture")
    errors += self._packing_errors()
    if errors:
      raise ValueError("; ".join(errors))

  def _packing_errors(self) -> list[str]:
    if not self.max_segments:
      return []
    errors = [
      f"{field} must be at least 1 where rows are packed, got {getattr(self, field)}"
      for field in ("max_segments", "row_tokens", "draw_size")
      if getattr(self, field) < 1
    ]
    # A step holds what was drawn before, and its number of records is not known beforehand.
    for field, value in (("domain_draw", "one"), ("round_ends", "exhausted")):
      if getattr(self, field) == value:
        errors.append(f"{field}={value!r} is not accepted where rows are packed")
    return errors

  @property
  def packed(self) -> bool:
    """Whether records are packed into rows after they were drawn."""
    return self.max_segments > 0

  @property
  def num_drawn(self) -> int:
    """Rows of the pool that are drawn at a time."""
    return self.draw_size if self.packed else self.batch_size

  @property
  def group_sizes(self) -> tuple[int, ...]:
    """Rows of each group that is drawn from: the domains, or the whole pool."""
    return self.domain_sizes if self.mixed else (sum(self.domain_sizes),)

  @property
  def capacity_K(self) -> np.ndarray:
    """Rows that may be drawn from each domain over the whole run, inf where unlimited."""
    epochs_K = self.max_epochs or (math.inf,) * len(self.domain_sizes)
    pairs = zip(epochs_K, self.domain_sizes, strict=True)
    return np.array([math.inf if math.isinf(e) else _whole_rows(e, n) for e, n in pairs])


class PlanState(NamedTuple):
  """Where a plan stands. G groups: the domains, or one for the whole pool."""

  step: np.ndarray  # i64[], the step to draw next
  draws: np.ndarray  # i64[], draws so far: one a step, but for packed rows
  round: np.ndarray  # i64[], its round
  round_step: np.ndarray  # i64[], steps already drawn in this round
  round_draws: np.ndarray  # i64[], draws so far in this round
  drawn_G: np.ndarray  # i64[G], rows drawn since the start of the run, queued ones included
  round_drawn_G: np.ndarray  # i64[G], rows drawn since the start of the round
  seen_K: np.ndarray  # i64[K], rows of each domain seen
  asked_K: np.ndarray  # f64[K], rows of each domain that the decisions asked for
  probability_K: np.ndarray  # f64[K], of each domain in the newest draw
  in_flight: tuple[Any, ...]  # decision_lag + 1 mixture decisions f32[K], oldest first
  queues: tuple["Queue", ...]  # of each group under an ordering, else none
  pending: "Rows | None"  # records drawn and not yet packed, oldest first


class Queue(NamedTuple):
  """Rows of a group that an ordering has put in line, the next one first."""

  rows: np.ndarray  # i64[n], numbered inside the group
  probabilities: np.ndarray  # f64[n], of each inside the group when it was drawn
  weights: np.ndarray  # f32[n], of the round in which it was drawn, else 1


class RoundRows(NamedTuple):
  """The decision of a round-scope selection about each row of the pool."""

  logits_N: np.ndarray  # f32[N], -inf: never drawn
  weights_N: np.ndarray | None = None  # f32[N], multipliers of the loss
  ids_C: np.ndarray | None = None  # i32[C], the rows that the decision was made about
  score_N: np.ndarray | None = None  # f32[N] or [N, S], where scores are kept for a while
  score_step_N: np.ndarray | None = None  # i32[N], the steps at which they were computed


class Rows(NamedTuple):
  """The rows of one step, [B]; of packed rows their records, [B, S]."""

  example_id: np.ndarray  # i32, -1: none
  domain: np.ndarray  # i32
  sampling_probability: np.ndarray  # f32
  domain_probability: np.ndarray  # f32
  weight: np.ndarray  # f32, from a round decision, else 1


NO_ROWS = Rows(*(np.zeros(0, t) for t in (np.int32, np.int32, *[np.float32] * 3)))
_EMPTY = Queue(np.zeros(0, np.int64), np.zeros(0, np.float64), np.zeros(0, np.float32))


def initial_state(spec: PlanSpec, mixture_logits: Sequence[float] | np.ndarray) -> PlanState:
  """Returns the state before the first step, under the initial mixture decision f32[K]."""
  num_domains, num_groups = len(spec.domain_sizes), len(spec.group_sizes)
  logits_K = np.asarray(mixture_logits, np.float32)
  if logits_K.shape != (num_domains,):
    raise ValueError(f"mixture logits must have shape ({num_domains},), got {logits_K.shape}")
  zero = np.zeros((), np.int64)
  return PlanState(
    step=zero,
    draws=zero,
    round=zero,
    round_step=zero,
    round_draws=zero,
    drawn_G=np.zeros(num_groups, np.int64),
    round_drawn_G=np.zeros(num_groups, np.int64),
    seen_K=np.zeros(num_domains, np.int64),
    asked_K=np.zeros(num_domains, np.float64),
    probability_K=np.zeros(num_domains, np.float64),
    in_flight=(logits_K,) * (spec.decision_lag + 1),
    queues=(_EMPTY,) * (num_groups if spec.ordered else 0),
    pending=NO_ROWS if spec.packed else None,
  )


def push(state: PlanState, mixture_logits: Any) -> PlanState:
  """Returns the state with the decision f32[K] of the newest step in flight.

  The decision may still be computed on a device: it is read when its batch is drawn.
  """
  return state._replace(in_flight=(*state.in_flight[1:], mixture_logits))


def hold(state: PlanState, mixture_logits: Any) -> PlanState:
  """Returns the state with one decision f32[K] in force at once, as a round begins."""
  return state._replace(in_flight=(mixture_logits,) * len(state.in_flight))


def to_json(state: PlanState) -> dict[str, Any]:
  """Returns the state as JSON values; float32 decisions are kept exactly.

  What changes its length, such as a queue, is one string: the structure stays the same in
  every step.
  """
  fields = state._asdict()
  in_flight = [np.asarray(logits).tolist() for logits in fields.pop("in_flight")]
  queues = [_to_string(queue) for queue in fields.pop("queues")]
  pending = fields.pop("pending")
  arrays = {name: value.tolist() for name, value in fields.items()}
  arrays |= {"in_flight": in_flight, "queues": queues}
  return arrays | {"pending": "" if pending is None else _to_string(pending)}


def from_json(values: dict[str, Any], like: PlanState) -> PlanState:
  """Reads a state of `to_json`; its shapes must be those of `like`.

  Raises:
    ValueError: if the state is of a plan of another shape.
  """
  arrays = {
    name: np.asarray(values[name], getattr(like, name).dtype)
    for name in PlanState._fields
    if name not in ("in_flight", "queues", "pending")
  }
  in_flight = tuple(np.asarray(logits, np.float32) for logits in values["in_flight"])
  queues = tuple(Queue(*_from_string(queue, _EMPTY)) for queue in values["queues"])
  pending = Rows(*_from_string(values["pending"], NO_ROWS)) if values["pending"] else None
  state = PlanState(**arrays, in_flight=in_flight, queues=queues, pending=pending)
  if _shapes(state) != _shapes(like):
    raise ValueError(f"the saved plan has {_shapes(state)}, this run needs {_shapes(like)}")
  return state


def _to_string(arrays: Sequence[np.ndarray]) -> str:
  # Probabilities and weights are mostly all the same, and a queue may hold a whole epoch.
  return json.dumps(
    [
      {"value": x[0].item(), "count": len(x)} if len(x) and np.all(x == x[0]) else x.tolist()
      for x in arrays
    ]
  )


def _from_string(string: str, like: Sequence[np.ndarray]) -> list[np.ndarray]:
  arrays = [[x["value"]] * x["count"] if isinstance(x, dict) else x for x in json.loads(string)]
  return [np.asarray(x, e.dtype) for x, e in zip(arrays, like, strict=True)]


def _shapes(state: PlanState) -> dict[str, Any]:
  fields = state._asdict()
  queues, in_flight = fields.pop("queues"), fields.pop("in_flight")
  packed = fields.pop("pending") is not None
  shapes = {name: np.shape(value) for name, value in fields.items()}
  in_flight = [np.shape(x) for x in in_flight]
  return {**shapes, "in_flight": in_flight, "queues": len(queues), "packed": packed}


def _whole_rows(epochs: float, size: int) -> int:
  # Of the decimal number that was written: 0.29 epochs of 100 rows are 29, not 28.99...
  return math.floor(fractions.Fraction(repr(float(epochs))) * size)
