"""Streams of rows: shuffles, and the three draws by the logits of a round."""

import itertools

import numpy as np
import pytest

from jdc.data import inside, plan
from jdc.data.draw import Plan
from jdc.data.plan import PlanSpec, RoundRows

LOGITS = np.log(np.float32([4, 3, 2, 1]))


def make_spec(sizes, batch_size=1, seed=0, mixed=False, **fields):
  names = tuple(f"domain{k}" for k in range(len(sizes)))
  return PlanSpec(names, tuple(sizes), batch_size, seed, mixed, **fields)


def start_round(spec, logits_N, weights_N=None, round_=0):
  """A plan at the start of a round, whose domains are drawn alike."""
  planner = Plan(spec)
  state = plan.initial_state(spec, np.zeros(len(spec.domain_sizes)))
  state = state._replace(round=np.int64(round_))
  return planner, planner.start_round(state, RoundRows(np.float32(logits_N), weights_N))


def draw(planner, state, num_steps):
  batches = []
  for _ in range(num_steps):
    rows, state = planner.draw(state)
    batches.append(rows)
  ids = np.concatenate([rows.example_id for rows in batches])
  return ids, batches, state


def softmax(logits):
  weight = np.exp(np.asarray(logits, np.float64) - np.max(logits))
  return weight / weight.sum()


def assert_frequencies(counts, probability):
  """Asserts counts within 5 standard deviations, and 0 where the probability is 0."""
  counts, probability = np.asarray(counts), np.asarray(probability)
  num = counts.sum()
  deviation = np.sqrt(num * probability * (1 - probability))
  assert np.all(np.abs(counts - num * probability) <= 5 * deviation + 1e-9)


# Shuffles, in both of their forms.


@pytest.fixture(params=["kept", "computed"])
def form(request, monkeypatch):
  if request.param == "computed":
    monkeypatch.setattr(inside, "_KEPT_SIZE", 0)
  return request.param


def test_an_epoch_is_a_permutation_and_the_next_another(form):
  size = {"kept": 50, "computed": 3000}[form]
  epochs = inside.shuffled(size, (7,))(0, 4 * size).reshape(4, size)
  assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (4, 1)))
  for one, other in itertools.combinations(epochs, 2):
    assert np.count_nonzero(one == other) < size / 5


def test_any_stretch_of_the_stream_can_be_read(form):
  size = {"kept": 50, "computed": 3000}[form]
  whole = inside.shuffled(size, (7,))(0, 3 * size)
  reader = inside.shuffled(size, (7,))
  for first, count in [(2 * size + 5, 9), (0, 3), (size - 2, 4), (size, 0), (3, 2 * size + 1)]:
    assert reader(first, count).tolist() == whole[first : first + count].tolist()


def test_a_single_row_is_drawn_again_and_again(form):
  assert inside.shuffled(1, (7,))(10**9, 3).tolist() == [0, 0, 0]


def test_shuffles_are_uniform():
  size, num_streams, counts = 5, 1000, np.zeros((5, 5))
  for stream in range(num_streams):
    rows = inside.shuffled(size, (stream,))(size, size)
    counts[np.arange(size), rows] += 1
  expected = num_streams / size
  assert ((counts - expected) ** 2 / expected).sum() < 45  # p = 1e-4 at 16 degrees of freedom


def test_computed_shuffles_are_uniform(monkeypatch):
  # In tenths of the rows: each part of an epoch holds its share of each part of the rows.
  size, counts = 40_000, np.zeros((10, 10))
  assert size > inside._KEPT_SIZE
  reader = inside.shuffled(size, (3,))
  for part in range(10):
    rows = reader(part * 4000, 1000)
    counts[part] = np.bincount(rows // 4000, minlength=10)
  assert ((counts - 100) ** 2 / 100).sum() < 160  # p < 1e-4 at 90 degrees of freedom


# top_k.


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_top_k_keeps_the_highest_of_the_finite_logits(seed, mixed):
  rng = np.random.default_rng(seed)
  sizes, fraction = (7, 15, 24), 0.3
  logits_N = rng.integers(0, 4, 46).astype(np.float32)  # many ties
  logits_N[rng.random(46) < 0.3] = -np.inf
  spec = make_spec(sizes, 2, seed, mixed, draw="top_k", top_k_fraction=fraction,
                   steps_per_round=10**6)  # fmt: skip
  planner, state = start_round(spec, logits_N)
  ids, batches, state = draw(planner, state, 120)
  starts_G = np.cumsum([0, *spec.group_sizes])
  for group in range(len(spec.group_sizes)):
    rows = range(starts_G[group], starts_G[group + 1])
    finite = [row for row in rows if np.isfinite(logits_N[row])]
    ranked = sorted(finite, key=lambda row: (-logits_N[row], row))  # ties to the lower index
    kept = ranked[: int(np.ceil(fraction * len(finite)))]
    mine = ids[np.isin(ids, rows)]
    times = np.array([np.count_nonzero(mine == row) for row in kept])
    assert times.sum() == len(mine)
    assert times.max() - times.min() <= 1  # in epochs
    share = 1 / len(spec.group_sizes) / len(kept)
    for batch in batches[:3]:
      drawn = np.isin(batch.example_id, rows)
      np.testing.assert_allclose(batch.sampling_probability[drawn], share, rtol=1e-6)


def test_top_k_shuffles_every_epoch_and_every_round_anew():
  spec = make_spec((12,), draw="top_k", top_k_fraction=0.75, steps_per_round=27)
  planner, state = start_round(spec, np.arange(12))
  orders = []
  for _ in range(2):
    ids, _, state = draw(planner, state, 27)
    orders += [tuple(epoch) for epoch in ids.reshape(3, 9).tolist()]
    state = planner.start_round(state, RoundRows(np.arange(12, dtype=np.float32)))
  assert all(sorted(order) == list(range(3, 12)) for order in orders)
  assert len(set(orders)) == 6


# gumbel_top_k.


def test_the_first_pick_of_gumbel_top_k_has_the_probabilities_of_softmax():
  counts, pairs = np.zeros(4), np.zeros((4, 4))
  for seed in range(3000):
    spec = make_spec((4,), seed=seed, draw="gumbel_top_k", steps_per_round=9)
    planner, state = start_round(spec, LOGITS)
    ids, _, _ = draw(planner, state, 2)
    counts[ids[0]] += 1
    pairs[tuple(ids)] += 1
  p = softmax(LOGITS)
  assert_frequencies(counts, p)
  # The second is drawn from what is left: p_i p_j / (1 - p_i).
  assert_frequencies(
    pairs.ravel(), (p[:, None] * p / (1 - p[:, None]) * (1 - np.eye(4))).ravel()
  )


@pytest.mark.parametrize("mixed", [True, False])
def test_gumbel_top_k_repeats_no_row_before_all_were_drawn(mixed):
  logits_N = np.random.default_rng(0).normal(size=20).astype(np.float32) * 5
  logits_N[[3, 4, 17]] = -np.inf
  spec = make_spec((8, 12), 1, mixed=mixed, draw="gumbel_top_k", steps_per_round=10**6)
  planner, state = start_round(spec, logits_N)
  ids, _, _ = draw(planner, state, 90)
  for rows in (range(8), range(8, 20)) if mixed else (range(20),):
    mine = ids[np.isin(ids, rows)].tolist()
    eligible = sorted(row for row in rows if np.isfinite(logits_N[row]))
    epochs = [mine[i : i + len(eligible)] for i in range(0, len(mine), len(eligible))]
    assert len(epochs) > 2
    assert all(sorted(epoch) == eligible for epoch in epochs[:-1])
    assert epochs[0] != epochs[1]


def test_gumbel_top_k_differs_by_round():
  spec = make_spec((30,), draw="gumbel_top_k", steps_per_round=30)
  orders = []
  for round_ in range(2):
    planner, state = start_round(spec, np.zeros(30), round_=round_)
    orders.append(draw(planner, state, 30)[0].tolist())
  assert orders[0] != orders[1]


# multinomial.


def test_multinomial_has_the_probabilities_of_softmax():
  logits_N = np.concatenate([[-np.inf], LOGITS, [-np.inf], LOGITS[::-1], [-np.inf]])
  spec = make_spec((5, 6), 50, mixed=True, draw="multinomial", steps_per_round=10**6)
  planner, state = start_round(spec, logits_N)
  ids, batches, _ = draw(planner, state, 200)
  p_N = np.concatenate([softmax(logits_N[:5]), softmax(logits_N[5:])])
  counts = np.bincount(ids, minlength=11)
  assert_frequencies(counts[:5], p_N[:5])
  assert_frequencies(counts[5:], p_N[5:])
  for rows in batches[:3]:
    np.testing.assert_allclose(rows.domain_probability, 0.5, rtol=1e-6)
    expected = 0.5 * p_N[rows.example_id]
    np.testing.assert_allclose(rows.sampling_probability, expected, rtol=1e-5)


def test_multinomial_never_draws_an_item_that_underflows(monkeypatch):
  class Edges:
    """A generator of the largest numbers below 1."""

    def random(self, size):
      return np.full(size, np.nextafter(1.0, 0.0))

  spec = make_spec((11,), 4, draw="multinomial", steps_per_round=10)
  logits_N = np.float32([0.0] * 10 + [-3e38])  # ten times 0.1 add up to less than 1
  round_draw = inside.RoundDraw(spec, 0, np.array([0, 11]), RoundRows(logits_N))
  monkeypatch.setattr(inside, "generator", lambda *stream: Edges())
  assert round_draw.draw(0, 0, 4).rows.tolist() == [9, 9, 9, 9]


# Whatever the draw.

DRAWS = ("top_k", "gumbel_top_k", "multinomial")


@pytest.mark.parametrize("draw_name", DRAWS)
@pytest.mark.parametrize("mixed", [True, False])
def test_weights_travel_with_rows(draw_name, mixed):
  rng = np.random.default_rng(0)
  weights_N = rng.random(30).astype(np.float32)
  spec = make_spec((10, 20), 6, mixed=mixed, draw=draw_name, steps_per_round=5)
  planner, state = start_round(spec, rng.normal(size=30), weights_N)
  _, batches, _ = draw(planner, state, 5)
  for rows in batches:
    np.testing.assert_array_equal(rows.weight, weights_N[rows.example_id], strict=True)


@pytest.mark.parametrize("draw_name", DRAWS)
def test_domain_probability_of_a_pool_is_what_its_rows_add_up_to(draw_name):
  logits_N = np.random.default_rng(1).normal(size=30).astype(np.float32)
  logits_N[::4] = -np.inf
  spec = make_spec((10, 20), 64, draw=draw_name, steps_per_round=5)
  planner, state = start_round(spec, logits_N)
  _, (rows,), state = draw(planner, state, 1)
  p_N = np.isfinite(logits_N) / np.isfinite(logits_N).sum()
  p_N = p_N if draw_name == "top_k" else softmax(logits_N)
  expected_K = np.array([p_N[:10].sum(), p_N[10:].sum()])
  np.testing.assert_allclose(rows.domain_probability, expected_K[rows.domain], rtol=1e-5)
  np.testing.assert_allclose(rows.sampling_probability, p_N[rows.example_id], rtol=1e-5)
  np.testing.assert_allclose(state.asked_K, 64 * expected_K, rtol=1e-6)


@pytest.mark.parametrize("draw_name", DRAWS)
def test_a_domain_without_an_eligible_row_is_an_error_once_it_is_asked_for(draw_name):
  logits_N = np.float32([0, 0, -np.inf, -np.inf])
  spec = make_spec((2, 2), 2, mixed=True, draw=draw_name)
  with pytest.raises(ValueError, match="round 3: the selection left no row to draw of domain1"):
    start_round(spec, logits_N, round_=3)
  planner, initial = Plan(spec), plan.initial_state(spec, np.float32([0, -np.inf]))
  state = planner.start_round(initial, plan.RoundRows(logits_N))
  assert set(planner.draw(state)[0].example_id) <= {0, 1}
  with pytest.raises(
    ValueError, match="round 0: the selection left no row of domain 'domain1'"
  ):
    planner.draw(plan.hold(state, np.zeros(2, np.float32)))


def test_a_round_of_a_shuffle_is_an_error():
  spec = make_spec((4,))
  with pytest.raises(ValueError, match="draw='shuffle' takes no round decision"):
    start_round(spec, np.zeros(4))


@pytest.mark.parametrize("draw_name", DRAWS)
def test_a_draw_without_a_round_is_an_error(draw_name):
  spec = make_spec((4,), draw=draw_name)
  with pytest.raises(ValueError, match=f"draw='{draw_name}' needs start_round"):
    Plan(spec).draw(plan.initial_state(spec, [0.0]))


@pytest.mark.parametrize(
  ("rows", "words"),
  [
    (RoundRows(np.zeros(3, np.float32)), r"logits need shape \(4,\), got \(3,\)"),
    (RoundRows(np.float32([0, np.nan, 0, 0])), "finite or -inf"),
    (RoundRows(np.float32([0, np.inf, 0, 0])), "finite or -inf"),
    (RoundRows(np.zeros(4, np.float32), np.ones(3, np.float32)), r"weights need shape \(4,\)"),
  ],
)
def test_wrong_round_decisions_are_errors(rows, words):
  spec = make_spec((4,), draw="top_k")
  planner = Plan(spec)
  with pytest.raises(ValueError, match=words):
    planner.start_round(plan.initial_state(spec, [0.0]), rows)


def test_a_round_may_start_before_the_last_one_ended():
  spec = make_spec((12,), 2, draw="top_k", steps_per_round=9)
  planner, state = start_round(spec, np.zeros(12))
  first, _, state = draw(planner, state, 3)
  state = planner.start_round(state, RoundRows(np.zeros(12, np.float32)))
  assert (state.step, state.round, state.round_step) == (3, 0, 0)
  assert set(draw(planner, state, 3)[0]) == set(first)  # from its first row on
  assert state.drawn_G.tolist() == [6]


# The end of a round.


def test_a_round_of_steps_ends_after_them():
  spec = make_spec((30,), 2, draw="top_k", steps_per_round=4)
  planner, state = start_round(spec, np.zeros(30))
  rounds = []
  for _ in range(9):
    rounds.append((int(state.round), int(state.round_step)))
    _, _, state = draw(planner, state, 1)
  assert rounds == [(r, s) for r in range(3) for s in range(4)][:9]


@pytest.mark.parametrize("draw_name", ["top_k", "gumbel_top_k"])
@pytest.mark.parametrize("ordered", [True, False])
def test_an_exhausted_round_ends_when_every_kept_row_was_drawn(draw_name, ordered):
  spec = make_spec((6, 20), 4, mixed=True, draw=draw_name, round_ends="exhausted",
                   ordered=ordered, steps_per_round=2)  # fmt: skip
  arranged = []

  def arrange(ids, stream):
    arranged.append(set(ids.tolist()))
    return np.argsort(-ids)

  planner = Plan(spec, arrange if ordered else None)
  state = plan.initial_state(spec, np.log([0.5, 0.5]))
  logits_N = np.zeros(26, np.float32)
  logits_N[[0, 10, 11, 12]] = -np.inf
  for round_ in range(3):
    state, steps = planner.start_round(state, RoundRows(logits_N)), []
    arranged.clear()
    while state.round == round_:
      ids, _, state = draw(planner, state, 1)
      steps.append(ids)
    assert state.round == round_ + 1
    assert state.round_step == 0
    seen = np.concatenate(steps)
    # 17 rows of the larger domain, two a step.
    assert len(steps) == 9
    assert set(np.flatnonzero(np.isfinite(logits_N))) == set(seen)
    # The last step was needed.
    assert set(np.concatenate(steps[:-1])) != set(seen)
    counts = np.bincount(seen, minlength=26)
    assert counts[6:].sum() == 18
    assert not state.round_drawn_G.any()
    if ordered:  # the whole round of a domain at once, whatever the last one left
      kept = set(np.flatnonzero(np.isfinite(logits_N)).tolist())
      assert arranged[:2] == [
        {row for row in kept if row < 6},
        {row for row in kept if row > 5},
      ]


def test_an_exhausted_round_in_order_leaves_little_behind():
  spec = make_spec((21,), 4, draw="top_k", round_ends="exhausted", ordered=True)
  planner = Plan(spec, lambda ids, stream: np.argsort(ids))
  state = planner.start_round(
    plan.initial_state(spec, [0.0]), RoundRows(np.zeros(21, np.float32))
  )
  ids, _, state = draw(planner, state, 5)
  # The whole round is one queue, in order, and no row of it meets the next decision.
  assert [sorted(step) for step in ids.reshape(5, 4).tolist()] == np.arange(20).reshape(
    5, 4
  ).tolist()
  assert state.round == 0
  ids, _, state = draw(planner, state, 1)
  assert 20 in ids
  assert state.round == 1
  assert len(state.queues[0].rows) == 0


def test_an_exhausted_round_does_not_wait_for_a_domain_that_is_not_drawn():
  spec = make_spec((4, 100), 4, mixed=True, draw="top_k", round_ends="exhausted")
  planner = Plan(spec)
  state = plan.initial_state(spec, np.float32([0, -np.inf]))
  state = planner.start_round(state, RoundRows(np.zeros(104, np.float32)))
  _, _, state = draw(planner, state, 1)
  assert state.round == 1
