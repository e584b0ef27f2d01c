"""The plan where records are packed: every record once, decisions, rounds, queues, the end."""

import itertools
import json
import math

import numpy as np
import pytest

from jdc.data import plan
from jdc.data.draw import Plan
from jdc.data.fill import wanted_tokens
from jdc.data.plan import PlanSpec, RoundRows

SIZES, ROW_TOKENS = (40, 25, 15), 20
STARTS = np.concatenate([[0], np.cumsum(SIZES)])
N = STARTS[-1]
LENGTHS = np.random.default_rng(3).integers(2, 13, N)


def make_spec(**fields):
  defaults = {
    "batch_size": 3, "seed": 5, "mixed": True, "max_segments": 4, "row_tokens": ROW_TOKENS,
    "draw_size": 8, "steps_per_round": 4,
  }  # fmt: skip
  return PlanSpec(tuple("abc"[: len(SIZES)]), SIZES, **defaults | fields)


def by_length(ids, stream):
  return np.argsort(LENGTHS[ids], kind="stable")


def make_plan(spec):
  arrange = by_length if spec.ordered else None
  return Plan(spec, arrange, lambda ids: LENGTHS[ids])


def start(spec, p_K=(0.5, 0.3, 0.2)):
  with np.errstate(divide="ignore"):
    return plan.initial_state(spec, np.log(np.float32(p_K)))


def round_rows(round_):
  """A decision that drops a third of the rows, a different one every round."""
  rng = np.random.default_rng((7, round_))
  logits_N = rng.normal(size=N).astype(np.float32)
  logits_N[rng.permutation(N)[: N // 3]] = -np.inf
  return RoundRows(logits_N, rng.random(N).astype(np.float32))


def draw(planner, state):
  """Draws a step, after the round decision that it may need; returns what was drawn too."""
  if planner.spec.draw != "shuffle" and int(state.round_step) == 0:
    state = planner.start_round(state, round_rows(int(state.round)))
  before = state
  rows, state = planner.draw(state)
  return rows, state, drawn_in(before, rows, state)


def ids_of(rows):
  return rows.example_id[rows.example_id >= 0]


def drawn_in(before, rows, after):
  """The ids that a step drew: those it placed or left pending, but for what was pending."""
  have = np.bincount(ids_of(rows), minlength=N)
  have += np.bincount(after.pending.example_id, minlength=N)
  have -= np.bincount(before.pending.example_id, minlength=N)
  assert have.min() >= 0
  return np.repeat(np.arange(N), have)


def domain_of(ids):
  return np.searchsorted(STARTS, ids, side="right") - 1


VARIANTS = {
  "pool": {"mixed": False},
  "mixed": {},
  "few segments": {"max_segments": 2},
  "long lag": {"decision_lag": 3},
  "ordered": {"ordered": True},
  "ordered pool": {"ordered": True, "mixed": False},
  "top_k": {"draw": "top_k", "top_k_fraction": 0.5},
  "gumbel_top_k": {"draw": "gumbel_top_k"},
  "gumbel_top_k of the pool": {"draw": "gumbel_top_k", "mixed": False},
  "multinomial": {"draw": "multinomial"},
  "ordered selection": {"draw": "gumbel_top_k", "ordered": True},
  "capped": {"max_epochs": (1.0, 2.0, math.inf)},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_rows_hold_what_fits(name):
  planner = make_plan(make_spec(**VARIANTS[name]))
  state = start(planner.spec)
  for _ in range(20):
    rows, state, _ = draw(planner, state)
    real = rows.example_id >= 0
    assert real.shape == (3, planner.spec.max_segments)
    assert (np.diff(real.astype(int), axis=1) <= 0).all()  # segments from the first one on
    assert (np.where(real, LENGTHS[rows.example_id], 0).sum(axis=1) <= ROW_TOKENS).all()
    np.testing.assert_array_equal(rows.domain[real], domain_of(rows.example_id[real]))
    assert not rows.domain[~real].any()
    for field in (rows.sampling_probability, rows.domain_probability, rows.weight):
      assert field.dtype == np.float32
      assert (field[~real] == 1).all()
      assert np.isfinite(field).all()


@pytest.mark.parametrize("name", VARIANTS)
def test_all_that_is_drawn_is_placed_once_and_soon(name):
  planner = make_plan(make_spec(**VARIANTS[name]))
  state, waiting, totals = start(planner.spec), [], np.zeros(N, int)
  for _ in range(40):
    rows, state, drawn = draw(planner, state)
    totals += np.bincount(drawn, minlength=N)
    waiting += drawn.tolist()
    for record in ids_of(rows).tolist():
      waiting.remove(record)  # fails where something is placed twice
    assert sorted(waiting) == sorted(state.pending.example_id.tolist())
    # No more is drawn than what fills the rows, and a draw at most besides.
    assert LENGTHS[state.pending.example_id].sum() < wanted_tokens(3, ROW_TOKENS) + 8 * 13
  queued = sum(len(queue.rows) for queue in state.queues)
  assert totals.sum() + queued == state.drawn_G.sum()
  np.testing.assert_array_equal(
    state.seen_K + np.bincount(state.pending.domain, minlength=3),
    np.bincount(domain_of(np.repeat(np.arange(N), totals)), minlength=3),
  )


def test_a_shuffled_pool_is_drawn_in_epochs():
  planner = make_plan(make_spec(mixed=False))
  state, totals = start(planner.spec), np.zeros(N, int)
  for _ in range(60):
    rows, state, drawn = draw(planner, state)
    totals += np.bincount(drawn, minlength=N)
    assert totals.max() - totals.min() <= 1
    real = rows.example_id >= 0
    np.testing.assert_allclose(rows.sampling_probability[real], 1 / N, rtol=1e-6)
    shares = np.array(SIZES) / N
    np.testing.assert_allclose(rows.domain_probability[real], shares[rows.domain[real]])
  assert totals.min() >= 3


def test_probabilities_are_those_of_the_mixture():
  planner = make_plan(make_spec())
  state, p_K = start(planner.spec), np.array([0.5, 0.3, 0.2])
  for _ in range(10):
    rows, state, _ = draw(planner, state)
    real = rows.example_id >= 0
    domain = rows.domain[real]
    np.testing.assert_allclose(rows.domain_probability[real], p_K[domain], rtol=1e-6)
    expected = p_K[domain] / np.array(SIZES)[domain]
    np.testing.assert_allclose(rows.sampling_probability[real], expected, rtol=1e-6)


@pytest.mark.parametrize("name", VARIANTS)
def test_shares_asked_and_seen(name):
  planner = make_plan(make_spec(**VARIANTS[name]))
  state = start(planner.spec)
  for _ in range(60):
    state = draw(planner, state)[1]
  assert state.asked_K.sum() == pytest.approx(int(state.draws) * 8)
  if planner.spec.mixed:
    asked_K = state.asked_K / state.asked_K.sum()
    np.testing.assert_allclose(asked_K, (0.5, 0.3, 0.2), rtol=1e-6)
  if name != "capped":
    drawn_K = state.seen_K + np.bincount(state.pending.domain, minlength=3)
    # Systematic draws; those of a pool are random.
    assert np.abs(drawn_K - state.asked_K).max() < (2 if planner.spec.mixed else 25)
    assert state.seen_K.sum() > 300


# Decisions.


def decision(step):
  return np.log(np.float32([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]][step % 3]))


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_decision_reaches_what_is_drawn_from_its_step_on(lag):
  planner = make_plan(make_spec(decision_lag=lag, draw_size=10))
  state, num_draws, probability_of = start(planner.spec), 0, {}
  for step in range(40):
    draws = int(state.draws)
    rows, state, drawn = draw(planner, state)
    repeats = int(state.draws) - draws
    decided = step - 1 - lag
    p_K = np.array([0.5, 0.3, 0.2]) if decided < 0 else np.exp(decision(decided))
    found_K = np.bincount(domain_of(drawn), minlength=3)
    assert np.abs(found_K - 10 * repeats * p_K).max() < max(1, repeats)
    num_draws += repeats
    # What was drawn before keeps the probability under which it was drawn.
    for record in drawn.tolist():
      probability_of.setdefault(record, []).append(p_K[domain_of(record)])
    real = rows.example_id >= 0
    found = rows.domain_probability[real]
    for record, probability in zip(rows.example_id[real], found, strict=True):
      assert min(abs(p - probability) for p in probability_of[int(record)]) < 1e-6
    state = plan.push(state, decision(step))
  assert num_draws > 20


def test_a_held_decision_is_in_force_at_once():
  planner = make_plan(make_spec())
  state = draw(planner, start(planner.spec))[1]
  state = plan.hold(state, np.log(np.float32([1.0, 1e-9, 1e-9])))
  for _ in range(5):
    _, state, drawn = draw(planner, state)
    assert not domain_of(drawn).any()


@pytest.mark.parametrize("draw_", ["top_k", "gumbel_top_k", "multinomial"])
@pytest.mark.parametrize("mixed", [True, False])
def test_a_round_decision_reaches_what_is_drawn_in_the_round(draw_, mixed):
  planner = make_plan(make_spec(draw=draw_, mixed=mixed))
  state, weight_of = start(planner.spec), {}
  for step in range(30):
    assert int(state.round) == step // 4
    decided = round_rows(int(state.round))
    rows, state, drawn = draw(planner, state)
    assert np.isfinite(decided.logits_N[drawn]).all()
    for record in drawn.tolist():
      weight_of.setdefault(record, set()).add(float(decided.weights_N[record]))
    # Weights travel with the record, also into the next round.
    real = rows.example_id >= 0
    for record, weight in zip(rows.example_id[real], rows.weight[real], strict=True):
      assert float(weight) in weight_of[int(record)]
  assert int(state.round) == 7


def test_what_is_pending_at_the_end_of_a_round_keeps_its_weight():
  planner = make_plan(make_spec(draw="top_k", steps_per_round=1))
  state = draw(planner, start(planner.spec))[1]
  pending = state.pending
  expected = round_rows(0).weights_N[pending.example_id]
  np.testing.assert_array_equal(pending.weight, expected)
  rows, state, _ = draw(planner, state)
  heads = rows.example_id[:, 0]
  np.testing.assert_array_equal(heads, pending.example_id[:3])
  np.testing.assert_array_equal(rows.weight[:, 0], expected[:3])


@pytest.mark.parametrize("mixed", [True, False])
def test_what_is_drawn_comes_off_ordered_queues(mixed):
  spec = make_spec(ordered=True, mixed=mixed)
  queued_G = {}  # by group, everything that was queued, in order

  def arrange(ids, stream):
    order = by_length(ids, stream)
    queued_G.setdefault(stream[2], []).extend(ids[order].tolist())
    return order

  planner, state = Plan(spec, arrange, lambda ids: LENGTHS[ids]), start(spec)
  drawn_G = {group: [] for group in range(len(spec.group_sizes))}
  for step in range(24):
    if step % 4 == 0:
      sizes = {group: len(queue) for group, queue in queued_G.items()}
    _, state, drawn = draw(planner, state)
    for group, mine in drawn_G.items():
      mine += drawn[domain_of(drawn) == group].tolist() if mixed else drawn.tolist()
      assert sorted(mine) == sorted(queued_G[group][: len(mine)])
    if step % 4 == 0 and step:  # a round's queue is long enough for most of it
      grown = {group: len(queued_G[group]) - sizes[group] for group in sizes}
      assert all(0 <= count <= 4 * 8 for count in grown.values())
  assert all(len(mine) > 12 for mine in drawn_G.values())


# State.


@pytest.mark.parametrize("name", VARIANTS)
def test_resumes_from_json_at_every_step(name):
  spec = make_spec(**VARIANTS[name])
  planner, state, saved, expected = make_plan(spec), start(spec), [], []
  for step in range(14):
    if step % 4 or spec.draw == "shuffle":  # a round begins with a decision
      saved.append((step, json.dumps(plan.to_json(state))))
    rows, state, _ = draw(planner, state)
    expected.append(rows)
    state = plan.push(state, decision(step))
  for step, text in saved:
    again = make_plan(spec)
    state = plan.from_json(json.loads(text), start(spec))
    assert json.dumps(plan.to_json(state)) == text
    if spec.draw != "shuffle":
      again.resume_round(state, round_rows(int(state.round)))
    for later in range(step, 14):
      rows, state, _ = draw(again, state)
      for found, wanted in zip(rows, expected[later], strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
      state = plan.push(state, decision(later))


def test_the_state_has_one_structure_and_another_one_is_refused():
  spec = make_spec()
  planner, state = make_plan(spec), start(spec)
  structure = {name: type(value) for name, value in plan.to_json(state).items()}
  for _ in range(5):
    state = draw(planner, state)[1]
    found = plan.to_json(state)
    assert {name: type(value) for name, value in found.items()} == structure
    assert len(state.pending.example_id)
  unpacked = make_spec(max_segments=0, row_tokens=0, draw_size=0)
  with pytest.raises(ValueError, match="packed"):
    plan.from_json(plan.to_json(state), start(unpacked))
  with pytest.raises(ValueError, match="packed"):
    plan.from_json(plan.to_json(start(unpacked)), start(spec))


# The end of the data.


def run_to_the_end(spec, limit=200):
  planner, state, placed = make_plan(spec), start(spec), []
  for _ in range(limit):
    try:
      rows, state, _ = draw(planner, state)
    except plan.Exhausted as end:
      return np.bincount(np.concatenate(placed), minlength=N), state, str(end)
    assert len(ids_of(rows))  # a step without a record trains on nothing
    placed.append(ids_of(rows))
  raise AssertionError(f"no end after {limit} steps")


@pytest.mark.parametrize("draw_size", [1, 7, 8, 33, 500])
@pytest.mark.parametrize("ordered", [False, True])
def test_an_epoch_holds_every_record_once(draw_size, ordered):
  spec = make_spec(max_epochs=(1.0, 1.0, 1.0), draw_size=draw_size, ordered=ordered)
  counts, state, message = run_to_the_end(spec)
  assert (counts == 1).all()
  assert not len(state.pending.example_id)
  assert state.seen_K.tolist() == list(SIZES)
  assert "max_epochs=(1.0, 1.0, 1.0)" in message
  assert "'a': 0" in message


def test_caps_of_domains_are_met_exactly():
  counts, state, _ = run_to_the_end(make_spec(max_epochs=(0.5, 2.0, 1.6)))
  assert state.seen_K.tolist() == [20, 50, 24]
  assert counts[:40].max() == 1
  assert (counts[40:65] == 2).all()
  assert set(counts[65:]) == {1, 2}


def test_stop_ends_with_the_first_domain_and_places_what_was_drawn():
  spec = make_spec(max_epochs=(1.0, 1.0, 1.0), on_exhausted="stop")
  counts, state, message = run_to_the_end(spec)
  assert counts.max() == 1
  assert counts.sum() == state.drawn_G.sum()
  assert not len(state.pending.example_id)
  left = {name: int(n) for name, n in zip("abc", np.array(SIZES) - state.seen_K, strict=True)}
  assert min(left.values()) < 8  # the domain that could not give its share of another draw
  for name, count in left.items():
    assert f"'{name}': {count}" in message


def test_capped_runs_resume_in_their_last_steps():
  spec = make_spec(max_epochs=(1.0, 1.0, 1.0))
  planner, state, states = make_plan(spec), start(spec), []
  for _ in itertools.count():
    states.append(json.dumps(plan.to_json(state)))
    try:
      state = draw(planner, state)[1]
    except plan.Exhausted:
      break
  for text in states[-4:]:
    resumed = plan.from_json(json.loads(text), start(spec))
    for later in states[states.index(text) + 1 :]:
      resumed = draw(make_plan(spec), resumed)[1]
      assert json.dumps(plan.to_json(resumed)) == later


# What is refused.


def test_refuses_what_packing_does_not_have_all_at_once():
  wrong = {"domain_draw": "one", "round_ends": "exhausted", "row_tokens": 0, "draw_size": 0}
  with pytest.raises(ValueError) as error:
    make_spec(**wrong, draw="top_k")
  for words in (
    "domain_draw='one'", "round_ends='exhausted'", "row_tokens must be at least 1",
    "draw_size must be at least 1",
  ):  # fmt: skip
    assert words in str(error.value)
  with pytest.raises(ValueError, match="max_segments must be at least 1"):
    make_spec(max_segments=-1)


def test_a_plan_needs_lengths_if_and_only_if_it_packs():
  with pytest.raises(ValueError, match="`lengths`"):
    Plan(make_spec())
  with pytest.raises(ValueError, match="`lengths`"):
    Plan(make_spec(max_segments=0), None, lambda ids: LENGTHS[ids])
