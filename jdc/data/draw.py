"""The stateless sampler: which rows the next step trains on.

Memory is O(K) for K domains: the order inside a large domain is a permutation computed one
index at a time. Under an ordering, queues of up to an epoch come on top, 20 bytes a row. Every
process computes the same global draw.
"""

import math
from collections.abc import Callable

import numpy as np

from jdc.data import inside
from jdc.data.fill import fill, wanted_tokens
from jdc.data.plan import NO_ROWS, Exhausted, PlanSpec, PlanState, Queue, RoundRows, Rows
from jdc.policies import sampling

_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2

# (rows of the pool i64[n], seed of the order) -> a permutation i64[n] of their positions
Arrange = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
Lengths = Callable[[np.ndarray], np.ndarray]  # records of the pool i64[n] -> tokens i64[n]


class Plan:
  """Draws rows step by step; holds nothing that its state does not determine.

  Args:
    spec: what stays fixed.
    arrange: under an ordering, puts the rows of a queue in order.
    lengths: where records are packed into rows, their tokens.

  Example:
    >>> from jdc.data.plan import initial_state
    >>> spec = PlanSpec(("a", "b"), (6, 4), batch_size=4, seed=0, mixed=True)
    >>> state = initial_state(spec, np.log([0.75, 0.25]))
    >>> rows, state = Plan(spec).draw(state)
    >>> sorted(rows.domain.tolist())
    [0, 0, 0, 1]
  """

  def __init__(
    self, spec: PlanSpec, arrange: Arrange | None = None, lengths: Lengths | None = None
  ):
    if spec.ordered != (arrange is not None):
      raise ValueError("a plan needs `arrange` if and only if it is ordered")
    if spec.packed != (lengths is not None):
      raise ValueError("a plan needs `lengths` if and only if its rows are packed")
    self.spec = spec
    self._arrange, self._lengths = arrange, lengths
    self._starts_K = np.concatenate([[0], np.cumsum(spec.domain_sizes)])
    self._starts_G = self._starts_K if spec.mixed else self._starts_K[[0, -1]]
    self._phase = inside.generator(spec.seed, inside.OFFSET).random()
    self._shuffled_G = [
      inside.shuffled(size, (spec.seed, inside.SHUFFLE, group))
      for group, size in enumerate(spec.group_sizes)
    ]
    self._round: inside.RoundDraw | None = None

  def start_round(self, state: PlanState, rows: RoundRows) -> PlanState:
    """Puts a round decision in force and returns the state at the start of its round.

    Raises:
      ValueError: naming all domains that the mixture asks for and the decision leaves empty.
    """
    if self.spec.draw == "shuffle":
      raise ValueError("draw='shuffle' takes no round decision; choose another draw")
    started = state._replace(
      round_step=np.zeros_like(state.round_step),
      round_draws=np.zeros_like(state.round_draws),
      round_drawn_G=np.zeros_like(state.round_drawn_G),
    )
    self.resume_round(started, rows)
    assert self._round is not None
    if self.spec.mixed:
      empty_K = (self._mixture(started) > 0) & (self._round.sizes_G == 0)
      if empty_K.any():
        names = [self.spec.domain_names[k] for k in np.flatnonzero(empty_K)]
        raise ValueError(
          f"round {int(state.round)}: the selection left no row to draw of {', '.join(names)}, "
          "of which the mixture draws; plan.draw='top_k' with plan.top_k_fraction keeps a "
          "share of each domain"
        )
    return started

  def resume_round(self, state: PlanState, rows: RoundRows) -> None:
    """Puts the decision of the round in which `state` stands in force again."""
    self._round = inside.RoundDraw(self.spec, int(state.round), self._starts_G, rows)

  def draw(self, state: PlanState) -> tuple[Rows, PlanState]:
    """Returns the rows of the next step and the state after it.

    Packed rows are filled from the records that were drawn and not yet placed, and as many more
    as that takes; a new decision reaches the records that are drawn from then on.

    Raises:
      Exhausted: when `max_epochs` leaves too few rows for a batch.
      ValueError: if a round decision is missing or leaves no row of a domain that is drawn, or
        the mixture decision is no distribution.
    """
    if self.spec.draw != "shuffle" and self._round is None:
      raise ValueError(f"draw={self.spec.draw!r} needs start_round before the first draw")
    if self.spec.packed:
      rows, state, p_G = self._draw_packed(state)
    else:
      rows, state, p_G = self._draw_rows(state)
    return rows, self._advance(state, rows, p_G)

  def _draw_packed(self, state: PlanState) -> tuple[Rows, PlanState, np.ndarray]:
    spec, lengths = self.spec, self._lengths
    assert lengths is not None
    assert state.pending is not None
    pending, p_G = state.pending, np.ones(len(spec.group_sizes))
    num_carried = len(pending.example_id)
    wanted = wanted_tokens(spec.batch_size, spec.row_tokens)
    length_n = lengths(pending.example_id)
    while length_n.sum() < wanted:
      try:
        drawn, state, p_G = self._draw_rows(state)
      except Exhausted:
        if not len(length_n):
          raise
        break  # what is left fills the last rows
      pending = Rows(*map(np.concatenate, zip(pending, drawn, strict=True)))
      length_n = np.concatenate([length_n, lengths(drawn.example_id)])
    size = (spec.batch_size, spec.max_segments)
    filled = fill(length_n, size[0], spec.row_tokens, size[1], num_carried)
    placed = filled.row >= 0
    empty = Rows(*(np.zeros(size, x.dtype) for x in NO_ROWS))
    empty.example_id[:] = -1
    for field in empty[2:]:  # probabilities and weights that can be divided by
      field[:] = 1
    for packed, values in zip(empty, pending, strict=True):
      packed[filled.row[placed], filled.segment[placed]] = values[placed]
    state = state._replace(pending=Rows(*(x[~placed] for x in pending)))
    return empty, state, p_G

  def _draw_rows(self, state: PlanState) -> tuple[Rows, PlanState, np.ndarray]:
    spec = self.spec
    if spec.mixed:
      asked_K = self._mixture(state)
      counts_G, p_G = self._domain_counts(state, asked_K)
      p_K = p_G
    else:
      counts_G, p_G = np.array([spec.num_drawn]), np.ones(1)
      asked_K = p_K = self._pool_probabilities()
    parts, state = self._draw_groups(state, counts_G, p_G)
    drawn = inside.Drawn(*map(np.concatenate, zip(*(x for _, x in parts), strict=True)))
    group_B = np.repeat([group for group, _ in parts], [len(x.rows) for _, x in parts])
    ids_B = self._starts_G[group_B] + drawn.rows
    probability_B, weight_B = p_G[group_B] * drawn.probabilities, drawn.weights
    rows = self._rows(int(state.draws), ids_B, probability_B, weight_B, p_K)
    state = state._replace(
      draws=state.draws + 1,
      round_draws=state.round_draws + 1,
      asked_K=state.asked_K + len(ids_B) * asked_K,
      probability_K=asked_K,
    )
    return rows, state, p_G

  def _mixture(self, state: PlanState) -> np.ndarray:
    """The probabilities f64[K] that the oldest decision in flight asks for."""
    logits_K = np.asarray(state.in_flight[0], np.float64)
    usable = np.isfinite(logits_K) | (logits_K == -np.inf)
    num_domains = len(self.spec.domain_names)
    right = logits_K.shape == (num_domains,) and np.all(usable)
    if not right or not np.any(np.isfinite(logits_K)):
      raise ValueError(
        f"step {int(state.step)}: the mixture needs {num_domains} logits, finite or -inf and "
        f"not all -inf, got {logits_K.tolist()}"
      )
    return inside.softmax(logits_K)

  def _draw_groups(
    self, state: PlanState, counts_G: np.ndarray, p_G: np.ndarray
  ) -> tuple[list[tuple[int, inside.Drawn]], PlanState]:
    if self.spec.ordered:
      return self._draw_queues(state, counts_G, p_G)
    groups = np.flatnonzero(counts_G).tolist()
    parts = [(group, self._read(state, group, int(counts_G[group]))) for group in groups]
    return parts, _drawn(state, counts_G)

  def _draw_queues(
    self, state: PlanState, counts_G: np.ndarray, p_G: np.ndarray
  ) -> tuple[list[tuple[int, inside.Drawn]], PlanState]:
    parts = []
    ends = self._round_ends(state, p_G, counts_G)
    for group, share in enumerate(p_G):
      count = int(counts_G[group])
      if int(state.round_draws) == 0 and share > 0:
        state = self._begin_queue(state, group, share)
      while (missing := count - len(state.queues[group].rows)) > 0:
        # Nothing that outlives a round whose every row has been drawn.
        state = self._fill(state, group, missing if ends else self._refill(group, share))
      queue = state.queues[group]
      if count:
        parts.append((group, inside.Drawn(*(x[:count] for x in queue))))
        state = _with_queue(state, group, Queue(*(x[count:] for x in queue)))
    return parts, state

  def _begin_queue(self, state: PlanState, group: int, share: float) -> PlanState:
    """Does to the queue of a group what the start of a round asks for."""
    queue = state.queues[group]
    if self.spec.queue == "round":
      # What the last round left heads the queue, and is part of a round of fixed length.
      left = len(queue.rows) if self.spec.round_ends == "steps" else 0
      return self._fill(state, group, self._round_rows(group, share) - left)
    if self.spec.queue == "epoch" or not len(queue.rows):
      return state
    return _with_queue(state, group, self._ordered(state, group, queue, int(state.round) + 1))

  def _refill(self, group: int, share: float) -> int:
    """Rows to put in line where a queue is empty."""
    if self.spec.queue == "round":
      return max(self._round_rows(group, share), 1)
    return self.spec.group_sizes[group]  # so that an epoch begins with every queue

  def _round_rows(self, group: int, share: float) -> int:
    """Rows of a group that a round is expected to take."""
    if self.spec.round_ends == "steps":
      return math.ceil(share * self.spec.num_drawn * self.spec.steps_per_round)
    assert self._round is not None
    return int(self._round.sizes_G[group]) if share > 0 else 0

  def _round_ends(self, state: PlanState, p_G: np.ndarray, counts_G: np.ndarray | int) -> bool:
    """Whether `counts_G` more rows end a round that lasts until every kept row was drawn."""
    if self.spec.round_ends == "steps":
      return False
    assert self._round is not None
    used_G = state.round_drawn_G + counts_G
    used_G -= np.array([len(queue.rows) for queue in state.queues] or 0)
    return bool(np.all((used_G >= self._round.sizes_G) | (p_G == 0)))

  def _fill(self, state: PlanState, group: int, count: int) -> PlanState:
    if self.spec.mixed:
      # Never draw ahead of what max_epochs allows.
      allowed = self.spec.capacity_K[group] - state.drawn_G[group]
      count = int(min(count, allowed))
    if count <= 0:
      return state
    before = state
    drawn, state = self._pull(state, group, count)
    ordered = self._ordered(before, group, Queue(*drawn))
    queued = zip(state.queues[group], ordered, strict=True)
    return _with_queue(state, group, Queue(*map(np.concatenate, queued)))

  def _ordered(self, state: PlanState, group: int, queue: Queue, *number: int) -> Queue:
    """Puts rows in order; `number` tells orders of the same rows apart."""
    stream = (self.spec.seed, inside.ORDER, group, int(state.drawn_G[group]), *number)
    assert self._arrange is not None
    order = self._arrange(self._starts_G[group] + queue.rows, stream)
    return Queue(*(x[order] for x in queue))

  def _pull(self, state: PlanState, group: int, count: int) -> tuple[inside.Drawn, PlanState]:
    """Takes the next rows of a group's stream."""
    more_G = np.zeros_like(state.drawn_G)
    more_G[group] = count
    return self._read(state, group, count), _drawn(state, more_G)

  def _read(self, state: PlanState, group: int, count: int) -> inside.Drawn:
    """The next rows of a group's stream."""
    if self._round is not None:
      return self._round.draw(group, int(state.round_drawn_G[group]), count)
    rows = self._shuffled_G[group](int(state.drawn_G[group]), count)
    share = 1.0 / self.spec.group_sizes[group]
    return inside.Drawn(rows, np.full(count, share), np.ones(count, np.float32))

  def _rows(
    self,
    draw: int,
    ids_B: np.ndarray,
    probability_B: np.ndarray,
    weight_B: np.ndarray,
    p_K: np.ndarray,
  ) -> Rows:
    # Domains are interleaved, so that every slice of the batch is a sample of all of them.
    noise_B = inside.generator(self.spec.seed, inside.BATCH, draw).random(len(ids_B))
    order_B = np.argsort(noise_B, kind="stable")
    ids_B = ids_B[order_B]
    domain_B = np.searchsorted(self._starts_K, ids_B, side="right") - 1
    return Rows(
      example_id=ids_B.astype(np.int32),
      domain=domain_B.astype(np.int32),
      sampling_probability=probability_B[order_B].astype(np.float32),
      domain_probability=p_K[domain_B].astype(np.float32),
      weight=weight_B[order_B],
    )

  def _pool_probabilities(self) -> np.ndarray:
    """The share of each domain when the pool is drawn from as a whole."""
    if self._round is not None:
      return self._round.domain_shares(self._starts_K)
    sizes_K = np.asarray(self.spec.domain_sizes, np.float64)
    return sizes_K / sizes_K.sum()

  def _advance(self, state: PlanState, rows: Rows, p_G: np.ndarray) -> PlanState:
    spec = self.spec
    round_step = state.round_step + 1
    full = spec.round_ends == "steps" and int(round_step) == spec.steps_per_round
    ended = full or self._round_ends(state, p_G, counts_G=0)
    domain = rows.domain[rows.example_id >= 0]
    seen_K = np.bincount(domain, minlength=len(spec.domain_sizes))
    return state._replace(
      step=state.step + 1,
      round=state.round + 1 if ended else state.round,
      round_step=np.zeros_like(round_step) if ended else round_step,
      round_draws=np.zeros_like(round_step) if ended else state.round_draws,
      round_drawn_G=np.zeros_like(state.drawn_G) if ended else state.round_drawn_G,
      seen_K=state.seen_K + seen_K,
    )

  def _domain_counts(self, state: PlanState, p_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows to draw from each domain, and the probabilities in force, f64[K]."""
    spec, size = self.spec, self.spec.num_drawn
    left_K = spec.capacity_K - state.drawn_G
    left_K += [len(queue.rows) for queue in state.queues] or 0
    if spec.domain_draw == "one":
      p_K = self._open_only(p_K, left_K >= size, left_K)
      uniform = inside.generator(spec.seed, inside.ONE, int(state.draws)).random(1)
      with np.errstate(divide="ignore"):  # a probability of 0 is never drawn
        domain = sampling.multinomial(uniform, np.log(p_K))
      return np.bincount(domain, minlength=len(p_K)) * size, p_K
    p_K = self._open_only(p_K, left_K > 0, left_K)
    # A low-discrepancy phase makes the shares over many steps as even as those of one batch.
    offset = (self._phase + int(state.draws) * _GOLDEN_RATIO) % 1.0
    counts_K, rest_K = np.zeros(len(p_K), np.int64), p_K
    renormalises = spec.on_exhausted == "renormalise"
    while (missing := size - int(counts_K.sum())) > 0:
      if renormalises and spec.packed and not np.any((left_K > counts_K) & (p_K > 0)):
        break  # the last rows take what is left
      rest_K = self._open_only(rest_K, left_K > counts_K, left_K)
      asked_K = np.asarray(sampling.systematic_counts(rest_K, missing, offset), np.int64)
      counts_K += np.minimum(asked_K, left_K - counts_K).astype(np.int64)
    return counts_K, p_K

  def _open_only(self, p_K: np.ndarray, open_K: np.ndarray, left_K: np.ndarray) -> np.ndarray:
    """Renormalises over the domains that have rows left."""
    if np.all(open_K | (p_K == 0)):
      return p_K
    kept_K = np.where(open_K, p_K, 0.0)
    if self.spec.on_exhausted == "stop" or kept_K.sum() == 0:
      raise Exhausted(self._exhausted_message(left_K))
    return kept_K / kept_K.sum()

  def _exhausted_message(self, left_K: np.ndarray) -> str:
    left = dict(zip(self.spec.domain_names, left_K.tolist(), strict=True))
    what = "draw of {} records" if self.spec.packed else "batch of {} rows"
    return (
      f"max_epochs={self.spec.max_epochs} leaves no {what.format(self.spec.num_drawn)}; "
      f"rows left by domain: {left}"
    )


def _with_queue(state: PlanState, group: int, queue: Queue) -> PlanState:
  queues = (*state.queues[:group], queue, *state.queues[group + 1 :])
  return state._replace(queues=queues)


def _drawn(state: PlanState, counts_G: np.ndarray) -> PlanState:
  return state._replace(
    drawn_G=state.drawn_G + counts_G, round_drawn_G=state.round_drawn_G + counts_G
  )
