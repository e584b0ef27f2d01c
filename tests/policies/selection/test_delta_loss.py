"""Delta-Loss: its window, the rows that it leaves out, and how it walks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec, after, every
from jdc.policies.selection import delta_loss

KEY = jax.random.key(0)
UPDATE = jax.jit(delta_loss().update)  # arguments act in `init`, but for `outside`


def start(size, **arguments):
  spec = RunSpec(size, 1, ("web",), (size,), (1.0,), sweep_size=size)
  return delta_loss(**arguments).init(spec, KEY)[1]


def swept(loss, ids=None):
  ids = np.arange(len(loss)) if ids is None else ids
  return ExampleStats(example_id=jnp.asarray(ids), score=jnp.float32(loss))


def decide(losses, update=UPDATE, **arguments):
  """The decisions of one update after another."""
  state, decisions = start(len(losses[0]), **arguments), []
  for loss in losses:
    decision, state = update(swept(loss), state)
    decisions.append(decision)
  return decisions


def reference(initial, loss, u, window=0.2, steepness=10.0, outside=0.025, update_times=1):
  """The sheet's equations for update u, in float64, row by row; probabilities."""
  size, times = len(loss), update_times - 1
  delta = np.float64(initial) - np.float64(loss)
  finite = np.isfinite(delta)
  if u == 1:
    return finite / max(finite.sum(), 1)
  order = sorted(range(size), key=lambda i: (not finite[i], -delta[i] if finite[i] else 0, i))
  s = (u - 1) / times if times else 0.0
  sigmoid = 1 / (1 + math.exp(-steepness * (s - 0.5)))
  width = window * size
  first, end = int(sigmoid * (size - width)), int(sigmoid * (size - width) + width)
  for place, i in enumerate(order):
    if finite[i] and delta[i] < 0:
      end = min(end, place)
      break
  weight = np.full(size, outside)
  weight[order[first:end]] = 1.0
  weight[~finite] = 0.0
  return weight / weight.sum()


@pytest.mark.parametrize(
  "arguments",
  [
    {"update_times": 5},
    {"update_times": 2, "window": 0.5, "outside": 0.3},
    {"update_times": 7, "window": 0.03, "steepness": 3.0},
    {"update_times": 4, "window": 1.0, "steepness": 0.0},
  ],
  ids=str,
)
def test_agrees_with_the_sheet(arguments):
  update, times = jax.jit(delta_loss(**arguments).update), arguments["update_times"]
  for seed in range(40):
    rng = np.random.default_rng(seed)
    falling = rng.choice([0.0, 0.1, 0.5])
    losses = rng.gamma(4.0, 0.5, (times, 41)) - falling * np.arange(times)[:, None]
    if seed % 2:
      losses = np.round(losses * 8) / 8  # ties, exact in any precision
    losses = losses.astype(np.float32)
    losses[rng.random(losses.shape) < 0.05] = rng.choice([np.nan, np.inf, -np.inf])
    for u, decision in enumerate(decide(losses, update, **arguments), 1):
      with np.errstate(invalid="ignore"):
        expected = reference(losses[0], losses[u - 1], u, **arguments)
      np.testing.assert_allclose(jax.nn.softmax(decision.logits), expected, atol=1e-6)
      np.testing.assert_array_equal(np.isneginf(decision.logits), expected == 0)
      assert decision.metrics["num_eligible"] == np.sum(expected > 0)
      assert decision.metrics["num_nonfinite"] == np.sum(expected == 0)


def test_the_window_walks_from_the_most_to_the_least_improved():
  """Row i improves by i / 100 of its first loss, so the window should walk down the rows."""
  size, times = 100, 11
  first = np.full(size, 3.0)
  losses = [first] + [first * (1 - np.arange(size) / size * u / times) for u in range(1, times)]
  decisions = decide(losses, update_times=times)
  assert np.ptp(decisions[0].logits) == 0
  inside = [np.flatnonzero(np.asarray(d.logits) == 0) for d in decisions[1:]]
  assert all(decision.metrics["num_inside"] == 20 for decision in decisions[1:])
  assert all(rows.size == 20 and np.ptp(rows) == 19 for rows in inside)
  middle = np.array([rows.mean() for rows in inside])
  assert np.all(np.diff(middle) < 0)
  assert middle[0] > 88
  assert middle[-1] == 10.5  # rows 1 to 20: the sigmoid ends below 1
  # Half of the way in half of the updates, slow at both ends.
  assert middle[4] == 49.5
  np.testing.assert_allclose(decisions[-1].logits[1:21], 0.0)
  np.testing.assert_allclose(decisions[-1].logits[21:], math.log(0.025), rtol=1e-6)


def test_rows_whose_loss_rose_are_not_inside():
  risen = np.where(np.arange(50) % 5 < 2, 0.5, -0.5)  # 20 of 50
  decisions = decide([np.full(50, 2.0)] + [2.0 + risen] * 10, update_times=11)
  for decision in decisions[1:]:
    inside = np.asarray(decision.logits) == 0
    assert not np.any(inside & (risen > 0)) or np.ptp(decision.logits) == 0
  # In the end the window lies among risen rows only: all count alike.
  assert np.ptp(decisions[-1].logits) == 0
  assert decisions[-1].metrics["num_inside"] == 0
  assert decisions[1].metrics["num_inside"] > 0


def test_an_unchanged_loss_has_not_risen():
  decisions = decide([np.full(10, 2.0)] * 2, update_times=1)
  assert decisions[1].metrics["num_inside"] == 2
  assert np.flatnonzero(np.asarray(decisions[1].logits) == 0).tolist() == [0, 1]


def test_one_update_stays_at_the_start():
  losses = [np.full(40, 3.0), 3.0 - np.arange(40) / 40]
  decision = decide(losses, update_times=1)[1]
  expected = reference(*losses, u=2, update_times=1)
  np.testing.assert_allclose(jax.nn.softmax(decision.logits), expected, atol=1e-6)
  assert np.flatnonzero(np.asarray(decision.logits) == 0).tolist() == list(range(32, 40))


def test_updates_after_the_last_keep_its_window():
  losses = [np.full(40, 3.0)] + [3.0 - np.arange(40) / 40] * 5
  decisions = decide(losses, update_times=3)
  for decision in decisions[3:]:
    np.testing.assert_array_equal(decision.logits, decisions[2].logits)


def test_rows_without_a_finite_delta_are_never_drawn():
  first = np.array([1.0, np.nan, 2.0, np.inf, 3.0, 1.0])
  later = np.array([0.5, 1.0, np.nan, 1.0, 1.0, -np.inf])
  decisions = decide([first, later, np.full(6, 0.1)], update_times=9, window=0.5)
  never = [np.flatnonzero(np.isneginf(d.logits)).tolist() for d in decisions]
  assert never == [[1, 3], [1, 2, 3, 5], [1, 3]]
  assert [int(d.metrics["num_nonfinite"]) for d in decisions] == [2, 4, 2]
  # Most improved first: the NaN that DataFlex puts there is not inside.
  assert np.asarray(decisions[1].logits)[[0, 4]].tolist() == [0.0, 0.0]
  assert decisions[1].metrics["num_inside"] == 2


def test_no_finite_loss_leaves_no_row():
  for decision in decide([np.full(5, np.nan)] * 2, update_times=2):
    assert np.all(np.isneginf(decision.logits))
    assert decision.metrics == {"num_nonfinite": 5, "num_eligible": 0, "num_inside": 0}


def test_losses_are_kept_by_row_not_by_place():
  rng = np.random.default_rng(0)
  losses, order = rng.gamma(4.0, 0.5, (3, 30)), rng.permutation(30)
  state = start(30, update_times=4)
  plain = decide(losses, update_times=4)
  for loss, expected in zip(losses, plain, strict=True):
    decision, state = UPDATE(swept(loss[order], order), state)
    np.testing.assert_array_equal(decision.logits, expected.logits[order])
    order = rng.permutation(30)


def test_the_first_loss_of_a_row_swept_later_is_that():
  """Where sweeps are sampled and scores kept, rows come in one after another; -1 pads."""
  state = start(6, update_times=3, window=0.5)
  decision, state = UPDATE(swept([3.0, 3.0, 3.0, 9.0, 9.0, 9.0], [0, 1, 2, -1, -1, -1]), state)
  assert decision.logits.tolist() == [0.0] * 3 + [-np.inf] * 3
  decision, state = UPDATE(swept([2.0, 3.5, 2.5, 5.0, 0.0, 0.0], [0, 1, 2, 3, -1, -1]), state)
  assert state.initial_N.tolist() == [3.0, 3.0, 3.0, 5.0, np.inf, np.inf]
  assert decision.metrics == {"num_nonfinite": 0, "num_eligible": 4, "num_inside": 2}


def test_the_rounds_of_a_run_are_its_updates():
  for num_steps, steps_per_round, expected in [(100, 10, 10), (101, 10, 11), (5, 10, 1)]:
    spec = RunSpec(9, 1, ("web",), (9,), (1.0,), sweep_size=9)
    spec = spec._replace(num_steps=num_steps, steps_per_round=steps_per_round)
    _, state = delta_loss().init(spec, KEY)
    assert state.start_U.shape == state.end_U.shape == (expected,)
    assert delta_loss(update_times=3).init(spec, KEY)[1].start_U.shape == (3,)


def test_goes_through_combinators():
  spec = RunSpec(10, 1, ("web",), (10,), (1.0,), sweep_size=10)
  policy = after(2, every(2, delta_loss(update_times=3)))
  decision, state = policy.init(spec, KEY)
  update = jax.jit(policy.update)
  for step in range(4):
    decision, state = update(swept(5.0 - np.arange(10) * step / 10), state)
  assert np.flatnonzero(np.asarray(decision.logits) == 0).tolist() == [4, 5]


@pytest.mark.parametrize(
  "argument",
  [
    {"window": 0.0},
    {"window": 1.1},
    {"steepness": -1.0},
    {"steepness": np.inf},
    {"outside": 0.0},
    {"outside": np.nan},
    {"update_times": 0},
    {"update_times": 2.0},
  ],
  ids=str,
)
def test_rejects(argument):
  with pytest.raises(ValueError, match=f"^{next(iter(argument))} must be"):
    delta_loss(**argument)


def test_rejects_runs_that_do_not_sweep_the_pool():
  run = RunSpec(9, 1, ("web",), (9,), (1.0,), num_steps=9, steps_per_round=3)
  for size in (0, 8):
    with pytest.raises(ValueError, match=rf"sweep_size {size} must be num_examples 9"):
      delta_loss().init(run._replace(sweep_size=size), KEY)
  with pytest.raises(ValueError, match=r"sweep_size .*update_times is None"):
    delta_loss().init(run._replace(num_steps=0), KEY)
  with pytest.raises(ValueError, match=r"window .*steepness .*outside .*update_times "):
    delta_loss(2, -1, 0, 0)
