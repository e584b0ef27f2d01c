"""What the plan draws: shares, epochs, caps, decisions in flight, queues, and its memory."""

import collections
import itertools
import json
import math

import numpy as np
import pytest

from jdc.data import plan
from jdc.data.draw import Plan
from jdc.data.plan import Exhausted, PlanSpec, RoundRows


def make_spec(sizes=(6, 4), batch_size=4, seed=0, mixed=True, **fields):
  names = tuple(f"domain{k}" for k in range(len(sizes)))
  return PlanSpec(names, tuple(sizes), batch_size, seed, mixed, **fields)


def log(p_K):
  with np.errstate(divide="ignore"):
    return np.log(np.asarray(p_K, np.float64)).astype(np.float32)


def softmax(logits_K):
  weight_K = np.exp(np.asarray(logits_K, np.float64) - np.max(logits_K))
  return weight_K / weight_K.sum()


def start(spec, p_K=None, arrange=None):
  num_domains = len(spec.domain_sizes)
  logits_K = np.zeros(num_domains) if p_K is None else log(p_K)
  return Plan(spec, arrange), plan.initial_state(spec, logits_K)


def draw(planner, state, num_steps):
  """Returns the rows of some steps, and the state after them."""
  batches = []
  for _ in range(num_steps):
    rows, state = planner.draw(state)
    batches.append(rows)
  return batches, state


def draw_all(planner, state):
  """Returns the rows of all steps until the plan is exhausted, and the last state."""
  batches = []
  while True:
    try:
      rows, state = planner.draw(state)
    except Exhausted:
      return batches, state
    batches.append(rows)


def ids(batches):
  return np.concatenate([rows.example_id for rows in batches])


def random_proportions(rng, num_domains):
  """Proportions over several orders of magnitude, about a third of them 0."""
  p_K = np.exp(3 * rng.normal(size=num_domains)) * (rng.random(num_domains) > 1 / 3)
  p_K[rng.integers(num_domains)] += 1.0
  return p_K / p_K.sum()


def assert_batches_equal(left, right):
  for a, b in zip(left, right, strict=True):
    for name, x, y in zip(a._fields, a, b, strict=True):
      np.testing.assert_array_equal(x, y, err_msg=name, strict=True)


# Shares.


@pytest.mark.parametrize("seed", range(12))
def test_every_batch_has_each_share_to_within_one_row(seed):
  rng = np.random.default_rng(seed)
  num_domains, batch_size = int(rng.integers(1, 51)), int(rng.integers(1, 70))
  p_K = random_proportions(rng, num_domains)
  spec = make_spec(rng.integers(1, 30, num_domains), batch_size, seed)
  planner, state = start(spec, p_K)
  asked_K = batch_size * softmax(log(p_K))
  batches, state = draw(planner, state, 40)
  for rows in batches:
    counts_K = np.bincount(rows.domain, minlength=num_domains)
    assert np.all(np.abs(counts_K - asked_K) < 1)
    assert not counts_K[p_K == 0].any()
    starts_K = np.cumsum([0, *spec.domain_sizes])
    assert np.all(rows.example_id >= starts_K[rows.domain])
    assert np.all(rows.example_id < starts_K[rows.domain + 1])
  np.testing.assert_allclose(state.asked_K, 40 * asked_K, rtol=1e-12)
  assert state.seen_K.tolist() == sum(
    np.bincount(rows.domain, minlength=num_domains) for rows in batches
  ).tolist()  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_shares_over_many_batches_stay_within_a_few_rows(seed):
  # A point that is drawn anew for every batch would stray by about sqrt(steps) / 2 = 11 rows.
  rng = np.random.default_rng(seed)
  p_K = random_proportions(rng, int(rng.integers(2, 20)))
  spec = make_spec([10] * len(p_K), batch_size=3, seed=seed)
  planner, state = start(spec, p_K)
  worst = 0.0
  for _ in range(500):
    _, state = planner.draw(state)
    worst = max(worst, np.abs(state.seen_K - state.asked_K).max())
  assert worst < 4


def test_counts_are_unbiased_over_seeds():
  p_K, num_seeds, counts_K = np.array([0.05, 0.33, 0.62]), 2000, np.zeros(3)
  for seed in range(num_seeds):
    planner, state = start(make_spec((2, 2, 2), 2, seed), p_K)
    rows, _ = planner.draw(state._replace(step=np.int64(17)))
    counts_K += np.bincount(rows.domain, minlength=3)
  # A count is floor or ceil of 2 p, so its variance is at most 1 / 4.
  assert np.all(np.abs(counts_K / num_seeds - 2 * p_K) < 5 * 0.5 / math.sqrt(num_seeds))


def test_one_domain_a_step_in_proportion():
  p_K, num_steps = np.array([0.5, 0.0, 0.2, 0.3]), 2000
  planner, state = start(make_spec((50, 50, 50, 50), 2, domain_draw="one"), p_K)
  batches, state = draw(planner, state, num_steps)
  assert all(len(set(rows.domain)) == 1 for rows in batches)
  share_K = state.seen_K / state.seen_K.sum()
  assert share_K[1] == 0
  assert np.all(np.abs(share_K - p_K) < 5 * np.sqrt(p_K * (1 - p_K) / num_steps) + 1e-12)
  np.testing.assert_allclose(state.asked_K, 2 * num_steps * p_K, rtol=1e-6)


@pytest.mark.parametrize("logits_K", [(np.nan, 0), (np.inf, 0), (-np.inf, -np.inf), (0, 0, 0)])
def test_a_mixture_that_is_no_distribution_is_an_error(logits_K):
  planner, state = start(make_spec(decision_lag=0))
  _, state = planner.draw(state)
  with pytest.raises(ValueError, match="step 1: the mixture needs 2 logits, finite or -inf"):
    planner.draw(plan.push(state, np.float32(logits_K)))


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_batch_uses_the_decision_of_step_s_minus_1_minus_lag(lag):
  # The decision of step t is all of domain t + 1; the initial one is all of domain 0.
  num_steps = 8
  spec = make_spec([3] * (num_steps + 1), 2, decision_lag=lag)
  one_hot = np.eye(num_steps + 1)
  planner, state = start(spec, one_hot[0])
  for step in range(num_steps):
    rows, state = planner.draw(state)
    assert set(rows.domain) == {max(step - lag, 0)}
    state = plan.push(state, log(one_hot[step + 1]))


def test_a_held_decision_is_in_force_at_once():
  planner, state = start(make_spec(decision_lag=3), (1.0, 0.0))
  rows, state = planner.draw(state)
  assert set(rows.domain) == {0}
  rows, state = planner.draw(plan.hold(state, log((0.0, 1.0))))
  assert set(rows.domain) == {1}


def test_slices_of_a_batch_are_samples_of_all_domains():
  # Otherwise the microbatches of a step, and its devices, would see one domain each.
  planner, state = start(make_spec((100, 100), 20), (0.5, 0.5))
  batches, _ = draw(planner, state, 200)
  firsts = np.array([np.count_nonzero(rows.domain[:10] == 0) for rows in batches])
  assert 4.5 < firsts.mean() < 5.5
  assert firsts.std() > 0.5


# Epochs.


@pytest.mark.parametrize("mixed", [True, False])
def test_every_row_once_an_epoch_in_a_new_order(mixed):
  spec = make_spec((7, 12, 1), 5, mixed=mixed)
  planner, state = start(spec, (0.3, 0.6, 0.1))
  batches, state = draw(planner, state, 120)
  drawn, starts_G = ids(batches), np.cumsum([0, *spec.group_sizes])
  for group, size in enumerate(spec.group_sizes):
    mine = drawn[(drawn >= starts_G[group]) & (drawn < starts_G[group + 1])]
    # Batches permute their rows, so rows of two epochs mix within a batch only: count them.
    times = np.bincount(mine - starts_G[group], minlength=size)
    assert times.max() - times.min() <= 1
    assert times.sum() == state.drawn_G[group]


@pytest.mark.parametrize("mixed", [True, False])
def test_epochs_are_permutations_that_differ(mixed):
  # Batches of one row keep the order in which rows are drawn.
  spec = make_spec((13,), 1, mixed=mixed)
  planner, state = start(spec)
  batches, _ = draw(planner, state, 13 * 20)
  epochs = ids(batches).reshape(20, 13)
  assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(13), (20, 1)))
  assert len({tuple(epoch) for epoch in epochs.tolist()}) == 20


def test_domains_of_one_size_have_orders_of_their_own():
  planner, state = start(make_spec((40, 40), 2), (0.5, 0.5))
  batches, _ = draw(planner, state, 40)
  drawn = ids(batches)
  assert drawn[drawn < 40].tolist() != (drawn[drawn >= 40] - 40).tolist()


# Caps.


@pytest.mark.parametrize("domain_draw", ["systematic", "one"])
def test_a_spent_domain_leaves_its_share_to_the_others(domain_draw):
  spec = make_spec((8, 10, 50), 4, domain_draw=domain_draw, max_epochs=(0.5, 1.5, math.inf))
  planner, state = start(spec, (0.4, 0.4, 0.2))
  batches, state = draw(planner, state, 60)
  # Under "one" a domain needs a whole batch; 15 rows are three batches and a rest.
  assert state.seen_K[:2].tolist() == ([4, 15] if domain_draw == "systematic" else [4, 12])
  assert state.seen_K.sum() == 60 * 4
  np.testing.assert_allclose(batches[-1].domain_probability, 1.0)
  epoch = np.bincount(ids(batches), minlength=18)[8:18]
  assert set(epoch) <= {1, 2}


def test_the_share_of_a_spent_domain_goes_by_proportion():
  spec = make_spec((4, 500, 500), 10, max_epochs=(1.0, math.inf, math.inf))
  planner, state = start(spec, (0.4, 0.4, 0.2))
  _, state = draw(planner, state, 1)
  batches, state = draw(planner, state, 30)
  seen_K = np.bincount(np.concatenate([rows.domain for rows in batches]), minlength=3)
  np.testing.assert_allclose(seen_K, [0, 200, 100], atol=4)
  probability = np.where(batches[5].domain == 1, 2 / 3, 1 / 3)
  np.testing.assert_allclose(batches[5].domain_probability, probability, rtol=1e-6)


@pytest.mark.parametrize("domain_draw", ["systematic", "one"])
def test_the_end_of_all_domains_ends_the_plan(domain_draw):
  spec = make_spec((8, 12), 4, domain_draw=domain_draw, max_epochs=(1.0, 1.0))
  planner, state = start(spec, (0.5, 0.5))
  batches, state = draw(planner, state, 5)
  assert sorted(ids(batches)) == list(range(20))
  with pytest.raises(Exhausted, match=r"max_epochs=\(1.0, 1.0\).*'domain0': 0.*'domain1': 0"):
    planner.draw(state)


def test_a_rest_smaller_than_a_batch_is_left():
  planner, state = start(make_spec((6, 5), 4, max_epochs=(1.0, 1.0)), (0.5, 0.5))
  _, state = draw(planner, state, 2)
  with pytest.raises(Exhausted, match="leaves no batch of 4 rows"):
    planner.draw(state)


@pytest.mark.parametrize("domain_draw", ["systematic", "one"])
def test_stop_ends_the_plan_with_the_first_spent_domain(domain_draw):
  spec = make_spec(
    (8, 1000), 4, domain_draw=domain_draw, max_epochs=(1.0, 1.0), on_exhausted="stop"
  )
  planner, state = start(spec, (0.5, 0.5))
  _, state = draw_all(planner, state)
  assert state.seen_K[0] == 8
  if domain_draw == "systematic":
    assert state.seen_K.tolist() == [8, 8]


def test_stop_does_not_mind_a_spent_domain_that_is_not_asked_for():
  spec = make_spec((8, 1000), 4, max_epochs=(1.0, 1.0), on_exhausted="stop", decision_lag=0)
  planner, state = start(spec, (1.0, 0.0))
  _, state = draw(planner, state, 2)
  _, state = draw(planner, plan.hold(state, log((0.0, 1.0))), 3)
  assert state.seen_K.tolist() == [8, 12]


# Nothing but seed and state.

RUNS = {
  "mixed": {"max_epochs": (3.0, math.inf, math.inf)},
  "pool": {"mixed": False},
  "one": {"domain_draw": "one"},
  "ordered": {"ordered": True, "steps_per_round": 3},
  "top_k": {"draw": "top_k", "top_k_fraction": 0.5, "steps_per_round": 3},
  "gumbel_top_k": {"draw": "gumbel_top_k", "steps_per_round": 3},
  "gumbel_top_k ordered": {"draw": "gumbel_top_k", "steps_per_round": 3, "ordered": True},
  "multinomial": {"draw": "multinomial", "steps_per_round": 3, "mixed": False},
  "to the end": {"draw": "top_k", "top_k_fraction": 0.3, "round_ends": "exhausted"},
  "to the end, ordered": {"draw": "gumbel_top_k", "round_ends": "exhausted", "ordered": True},
}


class Run:
  """A plan whose mixture and rounds are decided by the rows that it has drawn."""

  def __init__(self, spec, saved=None):
    self.spec, arrange = spec, by_score if spec.ordered else None
    self.plan, self.state = start(spec, arrange=arrange)
    if saved is not None:
      self.state = plan.from_json(json.loads(saved), self.state)
      if spec.draw != "shuffle":
        # In the middle of a round, its decision is handed over again.
        self.plan.resume_round(self.state, self._round_rows())

  def save(self):
    return json.dumps(plan.to_json(self.state))

  def step(self):
    if self.spec.draw != "shuffle" and self.state.round_step == 0:
      self.state = self.plan.start_round(self.state, self._round_rows())
    rows, self.state = self.plan.draw(self.state)
    if self.spec.mixed:
      self.state = plan.push(
        self.state, np.float32(np.sin([1.0, 2.0, 3.0] * rows.example_id[:3]))
      )
    return rows

  def _round_rows(self):
    rng = np.random.default_rng(int(self.state.round))
    logits_N = rng.normal(size=sum(self.spec.domain_sizes)).astype(np.float32)
    logits_N[::5] = -np.inf
    return RoundRows(logits_N, rng.random(len(logits_N), np.float32))


def by_score(ids, stream):
  return np.argsort(scores(ids), kind="stable")


def scores(ids):
  return np.sin(np.asarray(ids, np.float64) * 12.9898)


@pytest.mark.parametrize("name", RUNS)
def test_a_saved_state_continues_as_if_nothing_had_happened(name):
  spec = make_spec((9, 14, 30), 4, seed=3, **RUNS[name])
  run, saved, batches = Run(spec), [], []
  for _ in range(16):
    saved.append(run.save())
    batches.append(run.step())
  for step, values in enumerate(saved):
    again = Run(spec, values)
    assert_batches_equal([again.step() for _ in range(16 - step)], batches[step:])
    assert again.save() == run.save()


@pytest.mark.parametrize("name", RUNS)
def test_another_seed_draws_other_rows(name):
  drawn = []
  for seed in (3, 4):
    run = Run(make_spec((9, 14, 30), 4, seed, **RUNS[name]))
    drawn.append(ids([run.step() for _ in range(4)]).tolist())
  assert drawn[0] != drawn[1]


@pytest.mark.parametrize("draw_name", ["shuffle", "top_k", "gumbel_top_k", "multinomial"])
@pytest.mark.parametrize("mixed", [True, False])
def test_the_order_inside_a_domain_depends_on_the_seed(draw_name, mixed):
  drawn = []
  for seed in (3, 4):
    planner, state = start(make_spec((40,), 1, seed, mixed, draw=draw_name, steps_per_round=40))
    if draw_name != "shuffle":
      state = planner.start_round(state, RoundRows(np.zeros(40, np.float32)))
    drawn.append(ids(draw(planner, state, 10)[0]).tolist())
  assert drawn[0] != drawn[1]


def test_draws_of_one_state_are_equal():
  planner, state = start(make_spec((9, 14), 4))
  _, state = draw(planner, state, 5)
  assert_batches_equal([planner.draw(state)[0]], [planner.draw(state)[0]])


# Probabilities and weights.


def test_probabilities_of_a_shuffle_are_those_of_the_domain_over_its_size():
  p_K = np.array([0.3, 0.2, 0.5])
  spec = make_spec((6, 4, 10), 8)
  planner, state = start(spec, p_K)
  rows, _ = planner.draw(state)
  np.testing.assert_allclose(rows.domain_probability, p_K[rows.domain], rtol=1e-6)
  size_B = np.array(spec.domain_sizes)[rows.domain]
  np.testing.assert_allclose(rows.sampling_probability, p_K[rows.domain] / size_B, rtol=1e-6)
  np.testing.assert_array_equal(rows.weight, np.ones(8, np.float32), strict=True)


def test_probabilities_of_a_pool_are_those_of_its_size():
  planner, state = start(make_spec((6, 4, 10), 8, mixed=False), (0.3, 0.2, 0.5))
  rows, _ = planner.draw(state)
  np.testing.assert_allclose(rows.sampling_probability, 1 / 20, rtol=1e-6)
  share_B = np.array([0.3, 0.2, 0.5])[rows.domain]  # of the rows of the pool
  np.testing.assert_allclose(rows.domain_probability, share_B, rtol=1e-6)


# Queues.


def ordered(spec, p_K):
  return start(spec, p_K, arrange=by_score)


def of_group(spec, batches, group):
  """The rows drawn from a group, step by step."""
  starts_G = np.cumsum([0, *spec.group_sizes])
  return [
    rows.example_id[
      (rows.example_id >= starts_G[group]) & (rows.example_id < starts_G[group + 1])
    ]
    for rows in batches
  ]


@pytest.mark.parametrize("mixed", [True, False])
def test_a_round_is_in_order_inside_each_group(mixed):
  # Shares that the batch size divides, so that every queue ends with its round.
  spec = make_spec((90, 60), 4, mixed=mixed, ordered=True, steps_per_round=6)
  planner, state = ordered(spec, (0.5, 0.5))
  for _ in range(4):
    batches, state = draw(planner, state, 6)
    for group in range(len(spec.group_sizes)):
      steps = of_group(spec, batches, group)
      assert sum(map(len, steps)) == 24 // len(spec.group_sizes)
      # A batch permutes its rows, so that only steps are in order.
      for earlier, later in itertools.pairwise(steps):
        assert scores(earlier).max() <= scores(later).min()
    assert [len(queue.rows) for queue in state.queues] == [0] * len(spec.group_sizes)


def test_a_queue_begins_with_what_the_last_round_left():
  # 0.3 * 4 * 3 = 3.6 rows a round: 4 are queued, and 3 or 4 of them drawn.
  spec = make_spec((50, 50), 4, ordered=True, steps_per_round=3)
  planner, state = ordered(spec, (0.3, 0.7))
  num_left = 0
  for _ in range(20):
    left = [set((50 * group + queue.rows).tolist()) for group, queue in enumerate(state.queues)]
    num_left += sum(map(len, left))
    assert max(map(len, left)) <= 3  # a round is filled up, not added
    batches, state = draw(planner, state, 3)
    for group, waiting in enumerate(left):
      for rows in of_group(spec, batches, group):
        first = waiting.intersection(rows.tolist())
        assert len(first) == min(len(waiting), len(rows))
        waiting -= first
  assert num_left > 0


def test_what_is_left_keeps_its_order():
  spec = make_spec((90, 90), 4, ordered=True, steps_per_round=6)
  planner, state = ordered(spec, (0.5, 0.5))
  _, state = draw(planner, state, 1)
  _, state = draw(planner, plan.hold(state, log((0.25, 0.75))), 5)
  left = state.queues[0].rows.tolist()
  assert len(left) == 12 - 2 - 5
  batches, _ = draw(planner, state, 5)
  assert np.concatenate(of_group(spec, batches, 0)).tolist() == left


@pytest.mark.parametrize("mixed", [True, False])
def test_an_ordering_draws_the_rows_of_the_unordered_plan(mixed):
  fields = {"sizes": (11, 7), "mixed": mixed, "steps_per_round": 3}
  spec = make_spec(**fields, batch_size=4, ordered=True)
  planner, state = ordered(spec, (0.3, 0.7))
  batches, state = draw(planner, state, 40)
  found = collections.Counter(ids(batches).tolist())
  expected = collections.Counter()
  starts_G = np.cumsum([0, *spec.group_sizes])
  for group, (count, queue) in enumerate(zip(state.drawn_G, state.queues, strict=True)):
    found.update((starts_G[group] + queue.rows).tolist())
    # As many rows of the group, without queues.
    plain, at = start(make_spec(**fields, batch_size=1), np.eye(2)[group])
    expected.update(ids(draw(plain, at, count)[0]).tolist())
  assert found == expected
  assert state.seen_K.sum() == 160


def test_a_queue_does_not_change_the_shares():
  p_K = np.array([0.15, 0.85])
  drawn = []
  for is_ordered in (False, True):
    spec = make_spec((11, 7), 4, ordered=is_ordered, steps_per_round=3)
    planner, state = start(spec, p_K, by_score if is_ordered else None)
    batches, _ = draw(planner, state, 20)
    drawn.append([np.bincount(rows.domain, minlength=2).tolist() for rows in batches])
  assert drawn[0] == drawn[1]


def test_caps_count_rows_in_queues_once():
  spec = make_spec((8, 30), 4, ordered=True, steps_per_round=5, max_epochs=(1.0, 1.0))
  planner, state = ordered(spec, (0.6, 0.4))
  batches, _ = draw_all(planner, state)
  counts = np.bincount(ids(batches), minlength=38)
  assert counts.max() == 1
  assert counts.sum() == 36
  assert counts[:8].sum() == 8


def test_queued_rows_keep_probability_and_weight_of_their_round():
  spec = make_spec((40, 40), 4, ordered=True, steps_per_round=3, draw="multinomial")
  planner, state = ordered(spec, (0.3, 0.7))
  rng, logits, num_carried = np.random.default_rng(0), [], 0
  for round_ in range(8):
    logits.append(rng.normal(size=80).astype(np.float32))
    # A row's weight tells in which round it was queued.
    weights_N = np.full(80, round_, np.float32)
    state = planner.start_round(state, RoundRows(logits[-1], weights_N))
    left_K = [len(queue.rows) for queue in state.queues]
    batches, state = draw(planner, state, 3)
    carried = np.concatenate([rows.domain[rows.weight < round_] for rows in batches])
    assert np.bincount(carried, minlength=2).tolist() == left_K
    num_carried += len(carried)
    for rows in batches:
      for row, k, origin, got in zip(
        rows.example_id, rows.domain, rows.weight, rows.sampling_probability, strict=True
      ):
        inside = softmax(logits[int(origin)][40 * k :][:40])[row - 40 * k]
        assert got == pytest.approx((0.3, 0.7)[k] * inside, rel=1e-5)
  assert num_carried > 0


@pytest.mark.parametrize("wrong", [True, False])
def test_an_arrangement_is_needed_if_and_only_if_the_plan_is_ordered(wrong):
  with pytest.raises(ValueError, match="arrange"):
    Plan(make_spec(ordered=wrong), None if wrong else by_score)
