"""Queues that span an epoch: every row once, in an order made once or in every round."""

import itertools
import json

import numpy as np
import pytest

from jdc.data import plan
from jdc.data.draw import Plan
from jdc.data.plan import Exhausted, PlanSpec

SIZES = (11, 7, 30)
STARTS = np.cumsum([0, *SIZES])


def make_spec(queue="remainder", mixed=True, **fields):
  defaults = {"batch_size": 4, "seed": 3, "steps_per_round": 3, "ordered": True}
  return PlanSpec(("a", "b", "c"), SIZES, mixed=mixed, queue=queue, **defaults | fields)


class Orders:
  """An arrangement by scores of its own in every call, which it keeps."""

  def __init__(self):
    self.streams, self.rows = [], []

  def __call__(self, ids, stream):
    order = np.random.default_rng(stream).permutation(len(ids))
    self.streams.append(stream)
    self.rows.append(ids[order])
    return order


def start(spec, p_K=(0.3, 0.2, 0.5)):
  with np.errstate(divide="ignore"):
    return plan.initial_state(spec, np.log(np.float32(p_K)))


def run(spec, num_steps, p_K=(0.3, 0.2, 0.5)):
  """Returns the ids of every step, the orders made before each, and the last state."""
  orders = Orders()
  planner, state, drawn, made = Plan(spec, orders), start(spec, p_K), [], []
  for _ in range(num_steps):
    rows, state = planner.draw(state)
    drawn.append(rows.example_id)
    made.append(list(zip(orders.streams, orders.rows, strict=True)))
    orders.streams, orders.rows = [], []
  return drawn, made, state


def of_groups(spec, ids):
  """The rows of each group, in the order in which they were drawn."""
  starts_G = np.cumsum([0, *spec.group_sizes])
  return [
    ids[(ids >= low) & (ids < high)].tolist() for low, high in itertools.pairwise(starts_G)
  ]


@pytest.mark.parametrize("queue", ["epoch", "remainder"])
@pytest.mark.parametrize("mixed", [True, False])
def test_an_epoch_holds_every_row_once(queue, mixed):
  spec = make_spec(queue, mixed)
  drawn, _, state = run(spec, 60)
  counts_N = np.zeros(STARTS[-1], int)
  for ids in drawn:
    counts_N += np.bincount(ids, minlength=STARTS[-1])
    for group in np.split(counts_N, np.cumsum(spec.group_sizes)[:-1]):
      assert group.max() - group.min() <= 1
  assert counts_N.min() >= 2
  # What was drawn and not seen is in the queues.
  assert state.drawn_G.sum() == 240 + sum(len(queue.rows) for queue in state.queues)


@pytest.mark.parametrize("mixed", [True, False])
def test_an_epoch_is_drawn_in_one_order(mixed):
  spec = make_spec("epoch", mixed)
  drawn, made, _ = run(spec, 60)
  queued = {group: [] for group in range(len(spec.group_sizes))}
  for stream, rows in itertools.chain(*made):
    assert len(rows) == spec.group_sizes[stream[2]]
    queued[stream[2]] += rows.tolist()
  for step in range(1, 61):
    for group, mine in enumerate(of_groups(spec, np.concatenate(drawn[:step]))):
      # A batch permutes its rows.
      assert sorted(mine) == sorted(queued[group][: len(mine)])


@pytest.mark.parametrize("mixed", [True, False])
def test_a_round_orders_what_remains_and_takes_the_first_of_it(mixed):
  spec = make_spec("remainder", mixed)
  drawn, made, _ = run(spec, 60)
  waiting, num_reordered = [[] for _ in spec.group_sizes], 0
  for step, (ids, orders) in enumerate(zip(drawn, made, strict=True)):
    begins = {group for group, rows in enumerate(waiting) if step % 3 == 0 and rows}
    for (_, _, group, *_), rows in orders:
      if group in begins:  # the same rows in a new order
        assert sorted(rows) == sorted(waiting[group])
        waiting[group], num_reordered = rows.tolist(), num_reordered + 1
        begins.remove(group)
      else:  # the next epoch, as the last one ran out
        assert len(rows) == spec.group_sizes[group]
        waiting[group] += rows.tolist()
    assert not begins
    for group, mine in enumerate(of_groups(spec, ids)):
      first, waiting[group] = waiting[group][: len(mine)], waiting[group][len(mine) :]
      assert sorted(first) == sorted(mine)
  assert num_reordered >= 15
  streams = [stream for stream, _ in itertools.chain(*made)]
  assert len(set(streams)) == len(streams)  # so that no two orders share random numbers


def test_a_domain_that_is_not_drawn_is_not_ordered():
  spec, orders = make_spec(decision_lag=0), Orders()
  planner, state = Plan(spec, orders), start(spec)
  for _ in range(3):
    _, state = planner.draw(state)
  assert {stream[2] for stream in orders.streams} == {0, 1, 2}
  orders.streams.clear()
  with np.errstate(divide="ignore"):
    state = plan.hold(state, np.log(np.float32([0, 0.2, 0.8])))
  for _ in range(6):
    _, state = planner.draw(state)
  assert {stream[2] for stream in orders.streams} == {1, 2}


@pytest.mark.parametrize("queue", ["epoch", "remainder"])
def test_caps_hold(queue):
  spec = make_spec(queue, max_epochs=(1.5, 1.0, 2.0))
  planner, state, ids = Plan(spec, Orders()), start(spec), []
  for _ in range(83 // 4):
    rows, state = planner.draw(state)
    ids += rows.example_id.tolist()
  with pytest.raises(Exhausted):
    planner.draw(state)
  counts = np.bincount(ids, minlength=STARTS[-1])
  assert [counts[low:high].max() for low, high in itertools.pairwise(STARTS)] == [2, 1, 2]


@pytest.mark.parametrize("queue", ["epoch", "remainder"])
@pytest.mark.parametrize("fields", [{}, {"mixed": False}, {"domain_draw": "one"}])
def test_a_saved_state_continues_as_if_nothing_had_happened(queue, fields):
  spec = make_spec(queue, **fields)
  planner, state, saved, drawn = Plan(spec, Orders()), start(spec), [], []
  for _ in range(20):
    saved.append(json.dumps(plan.to_json(state)))
    rows, state = planner.draw(state)
    drawn.append(rows)
  for step, values in enumerate(saved):
    again = plan.from_json(json.loads(values), start(spec))
    assert json.dumps(plan.to_json(again)) == values
    planner = Plan(spec, Orders())
    for expected in drawn[step:]:
      rows, again = planner.draw(again)
      for found, wanted in zip(rows, expected, strict=True):
        np.testing.assert_array_equal(found, wanted, strict=True)


def test_a_long_queue_is_kept_in_few_characters():
  spec = PlanSpec(("a",), (1000,), 4, 0, True, ordered=True, queue="epoch")
  _, state = Plan(spec, Orders()).draw(plan.initial_state(spec, [0.0]))
  assert len(json.dumps(plan.to_json(state)["queues"])) < 5.5 * 1000


def test_packed_records_come_off_an_epoch():
  lengths = np.random.default_rng(0).integers(2, 9, STARTS[-1])
  spec = make_spec(max_segments=3, row_tokens=16, draw_size=6)
  planner = Plan(spec, Orders(), lambda ids: lengths[ids])
  state, ids = start(spec), []
  for _ in range(20):
    rows, state = planner.draw(state)
    ids += rows.example_id[rows.example_id >= 0].tolist()
  ids += state.pending.example_id.tolist()
  counts_K = np.array([len(mine) for mine in of_groups(spec, np.array(ids))])
  for k, (low, high) in enumerate(itertools.pairwise(STARTS)):
    seen = np.bincount(ids, minlength=STARTS[-1])[low:high]
    assert counts_K[k] > SIZES[k]
    assert seen.max() - seen.min() <= 1


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"ordered": False}, "queue='remainder' needs an ordering"),
    ({"draw": "top_k"}, "queue='remainder' needs draw='shuffle', got 'top_k'"),
    ({"queue": "pool"}, r"queue must be one of \('round', 'epoch', 'remainder'\), got 'pool'"),
  ],
)
def test_what_does_not_fit_is_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    make_spec(**fields)
