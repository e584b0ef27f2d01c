"""Draws the rows that another run has drawn, as its log tells them."""

import numpy as np

from jdc.data.draw import Plan
from jdc.data.plan import Exhausted, PlanSpec, PlanState, Rows
from jdc.metrics import Decisions
from jdc.policies.base import RunSpec


def check(recorded: Decisions, spec: RunSpec, num_steps: int) -> None:
  """Raises a ValueError that lists why a run cannot replay the decisions."""
  (steps, rows), problems = recorded.ids_SxB.shape, []
  if rows != spec.batch_size:
    problems.append(f"its steps have {rows} examples, those of this run {spec.batch_size}")
  if recorded.max_segments != spec.max_segments:
    problems.append(
      f"its rows hold max_segments={recorded.max_segments}, those of this run "
      f"{spec.max_segments}"
    )
  if steps < num_steps:
    problems.append(f"it has {steps} steps, this run num_steps={num_steps}")
  if recorded.data_fingerprint != spec.data_fingerprint:
    problems.append(
      f"it drew from data {recorded.data_fingerprint!r}, this run has {spec.data_fingerprint!r}"
    )
  if recorded.token_weights:
    problems.append("it weighted tokens, of which its log does not tell")
  if problems:
    raise ValueError(f"plan.replay: the recorded run does not fit: {'; '.join(problems)}")


class Replay(Plan):
  """Draws in each step the rows that the recorded run trained, with their weights.

  The probabilities of rows and domains are those of the whole pool: no decision is made by
  which they were drawn.

  Example:
    >>> from jdc.data.plan import initial_state
    >>> recorded = Decisions(np.array([[3, 0], [9, 3]]), None, "", False)
    >>> spec = PlanSpec(("a", "b"), (6, 4), batch_size=2, seed=0, mixed=False)
    >>> plan, state = Replay(spec, recorded), initial_state(spec, np.zeros(2))
    >>> rows, state = plan.draw(state)
    >>> plan.draw(state)[0].domain.tolist()
    [1, 0]
  """

  def __init__(self, spec: PlanSpec, recorded: Decisions):
    lengths = (lambda rows: rows) if spec.packed else None  # rows are filled as they were
    super().__init__(spec, lengths=lengths)
    self._recorded = recorded

  def draw(self, state: PlanState) -> tuple[Rows, PlanState]:
    """Returns the rows of the next step and the state after it.

    Raises:
      Exhausted: after the last recorded step.
    """
    spec, step = self.spec, int(state.step)
    ids_SxB, weights_SxB, *_ = self._recorded
    if step >= len(ids_SxB):
      raise Exhausted(f"the recorded run has {len(ids_SxB)} steps")
    ids_B = ids_SxB[step].astype(np.int32)
    ones_B = np.ones(ids_B.shape, np.float32)
    sizes_K = np.asarray(spec.domain_sizes)
    share_K = sizes_K / sizes_K.sum()
    domain_B = np.searchsorted(np.cumsum(sizes_K), np.maximum(ids_B, 0), side="right")
    real_B = ids_B >= 0
    rows = Rows(
      example_id=ids_B,
      domain=np.where(real_B, domain_B, 0).astype(np.int32),
      sampling_probability=np.where(real_B, 1 / sizes_K.sum(), 1).astype(np.float32),
      domain_probability=np.where(real_B, share_K[domain_B], 1).astype(np.float32),
      weight=ones_B if weights_SxB is None else weights_SxB[step],
    )
    if spec.packed:
      rows = Rows(*(x.reshape(spec.batch_size, spec.max_segments) for x in rows))
    counts_K = np.bincount(domain_B[real_B], minlength=len(sizes_K))
    state = state._replace(
      draws=state.draws + 1,
      round_draws=state.round_draws + 1,
      asked_K=state.asked_K + counts_K,
      probability_K=share_K,
    )
    return rows, self._advance(state, rows, np.ones(len(spec.group_sizes)))
