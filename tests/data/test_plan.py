"""The specification of a plan and its state: what is refused, and the way through JSON."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jdc.data import plan
from jdc.data.plan import PlanSpec, Queue

RIGHT = {
  "domain_names": ("a", "b"),
  "domain_sizes": (6, 4),
  "batch_size": 4,
  "seed": 0,
  "mixed": True,
}

WRONG = {
  "no domain": ({"domain_names": (), "domain_sizes": ()}, ["domain_sizes"]),
  "a size too few": ({"domain_sizes": (6,)}, ["domain_sizes", "(6,)"]),
  "a size too many": ({"domain_sizes": (6, 4, 2)}, ["domain_sizes", "(6, 4, 2)"]),
  "an empty domain": ({"domain_sizes": (6, 0)}, ["'b' has 0 rows"]),
  "one name twice": ({"domain_names": ("a", "a")}, ["domain_names", "['a']"]),
  "ids beyond int32": ({"domain_sizes": (2**31 - 1, 1)}, ["2147483648 rows"]),
  "no batch": ({"batch_size": 0}, ["batch_size", "got 0"]),
  "a negative seed": ({"seed": -1}, ["seed", "got -1"]),
  "a round of no step": ({"steps_per_round": 0}, ["steps_per_round", "got 0"]),
  "a negative lag": ({"decision_lag": -1}, ["decision_lag", "got -1"]),
  "an unknown draw": ({"draw": "topk"}, ["draw", "'topk'", "gumbel_top_k"]),
  "an unknown domain draw": ({"domain_draw": "two"}, ["domain_draw", "'two'", "systematic"]),
  "an unknown end": ({"round_ends": "never"}, ["round_ends", "'never'", "exhausted"]),
  "an unknown reaction": ({"on_exhausted": "wait"}, ["on_exhausted", "'wait'", "renormalise"]),
  "nothing kept": ({"draw": "top_k", "top_k_fraction": 0.0}, ["top_k_fraction", "0.0"]),
  "more than all kept": ({"draw": "top_k", "top_k_fraction": 1.1}, ["top_k_fraction", "1.1"]),
  "a share that is NaN": ({"draw": "top_k", "top_k_fraction": math.nan}, ["top_k_fraction"]),
  "a share of a shuffle": ({"top_k_fraction": 0.5}, ["draw='top_k'", "'shuffle'"]),
  "a shuffle to its end": ({"round_ends": "exhausted"}, ["round_ends", "'shuffle'"]),
  "draws with replacement to their end": (
    {"round_ends": "exhausted", "draw": "multinomial"},
    ["round_ends", "'multinomial'"],
  ),
  "a cap too few": ({"max_epochs": (1.0,)}, ["max_epochs", "(1.0,)"]),
  "a cap of nothing": ({"max_epochs": (1.0, 0.0)}, ["max_epochs", "(1.0, 0.0)"]),
  "a cap that is NaN": ({"max_epochs": (1.0, math.nan)}, ["max_epochs", "nan"]),
  "caps without a mixture": ({"max_epochs": (1.0, 1.0), "mixed": False}, ["max_epochs"]),
  "one domain of no mixture": ({"domain_draw": "one", "mixed": False}, ["domain_draw"]),
}


@pytest.mark.parametrize(("fields", "words"), WRONG.values(), ids=WRONG)
def test_rejects(fields, words):
  with pytest.raises(ValueError) as error:
    PlanSpec(**RIGHT | fields)
  assert not [word for word in words if word not in str(error.value)]


def test_reports_everything_that_is_wrong_at_once():
  wrong = {
    "domain_sizes": (6, 0), "batch_size": 0, "seed": -1, "steps_per_round": 0,
    "decision_lag": -1, "draw": "topk", "domain_draw": "two", "round_ends": "never",
    "on_exhausted": "wait", "top_k_fraction": 2.0, "max_epochs": (0.0, 1.0), "mixed": False,
  }  # fmt: skip
  with pytest.raises(ValueError) as error:
    PlanSpec(**RIGHT | wrong)
  names = set(wrong) - {"domain_sizes", "mixed"}
  assert not [name for name in ("'b' has 0 rows", *names) if name not in str(error.value)]


@pytest.mark.parametrize(
  ("epochs", "sizes", "expected"),
  [
    ((0.5, 1.5), (5, 4), (2, 6)),  # no part of a row
    ((0.29, 0.57), (100, 100), (29, 57)),  # 0.29 * 100 < 29 in floating point
    ((math.inf, 2), (5, 4), (math.inf, 8)),
    ((), (5, 4), (math.inf, math.inf)),
  ],
)
def test_capacity_is_whole_rows(epochs, sizes, expected):
  spec = PlanSpec(**RIGHT | {"domain_sizes": sizes, "max_epochs": epochs})
  assert tuple(spec.capacity_K) == expected


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize(("mixed", "num_groups"), [(True, 2), (False, 1)])
def test_initial_state_has_the_shapes_of_the_plan(lag, mixed, num_groups):
  spec = PlanSpec(**RIGHT | {"decision_lag": lag, "mixed": mixed, "ordered": True})
  state = plan.initial_state(spec, [0.0, -math.inf])
  assert state.step == state.round == state.round_step == 0
  assert state.drawn_G.tolist() == state.round_drawn_G.tolist() == [0] * num_groups
  assert state.seen_K.tolist() == state.asked_K.tolist() == [0, 0]
  assert [logits.tolist() for logits in state.in_flight] == [[0.0, -math.inf]] * (lag + 1)
  assert [len(queue.rows) for queue in state.queues] == [0] * num_groups
  assert plan.initial_state(PlanSpec(**RIGHT), [0.0, 0.0]).queues == ()


def test_initial_logits_of_another_number_of_domains_are_an_error():
  with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
    plan.initial_state(PlanSpec(**RIGHT), np.zeros(3))


def test_a_decision_takes_its_place_behind_those_in_flight():
  spec = PlanSpec(**RIGHT | {"decision_lag": 2})
  state = plan.initial_state(spec, [0.0, 0.0])
  for step in (1.0, 2.0):
    state = plan.push(state, np.float32([step, step]))
  assert [logits[0] for logits in state.in_flight] == [0.0, 1.0, 2.0]
  held = plan.hold(state, np.float32([7.0, 7.0]))
  assert [logits[0] for logits in held.in_flight] == [7.0, 7.0, 7.0]


def awkward_state(spec):
  """A state whose numbers have no short decimal form, with decisions still on a device."""
  rng = np.random.default_rng(0)
  queue = Queue(
    rng.integers(0, 2**40, 5), rng.random(5) / 3, rng.random(5, np.float32) / np.float32(3)
  )
  return plan.initial_state(spec, [0.0, 0.0])._replace(
    step=np.int64(2**53 + 1),
    asked_K=rng.random(2) * 1e15,
    drawn_G=np.array([2**62 + 1, 3]),
    in_flight=(np.float32([-math.inf, 1 / 3]), jnp.log(jnp.float32([0.1, 0.9]))),
    queues=(queue, plan.initial_state(spec, [0.0, 0.0]).queues[1]),
  )


def test_json_keeps_every_bit():
  spec = PlanSpec(**RIGHT | {"ordered": True})
  state = awkward_state(spec)
  values = json.loads(json.dumps(plan.to_json(state)))
  found = plan.from_json(values, plan.initial_state(spec, [0.0, 0.0]))
  flat = [
    np.asarray(x)
    for s in (state, found)
    for x in (*s[:-2], *s.in_flight, *(y for queue in s.queues for y in queue))
  ]
  half = len(flat) // 2
  for before, after in zip(flat[:half], flat[half:], strict=True):
    assert before.dtype == after.dtype
    assert before.shape == after.shape
    assert before.tobytes() == after.tobytes()
  assert plan.to_json(found) == plan.to_json(state)


@pytest.mark.parametrize(
  "other",
  [
    {"domain_names": ("a", "b", "c"), "domain_sizes": (6, 4, 2)},
    {"decision_lag": 3},
    {"mixed": False},
    {"ordered": False},
  ],
  ids=lambda fields: next(iter(fields)),
)
def test_a_state_of_another_plan_is_an_error(other):
  spec, changed = PlanSpec(**RIGHT | {"ordered": True}), RIGHT | {"ordered": True} | other
  values = plan.to_json(plan.initial_state(spec, [0.0, 0.0]))
  needed = plan.initial_state(PlanSpec(**changed), np.zeros(len(changed["domain_sizes"])))
  with pytest.raises(ValueError, match="the saved plan has"):
    plan.from_json(values, needed)
