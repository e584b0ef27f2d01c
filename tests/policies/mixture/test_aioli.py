"""Aioli: the equations, the edges, the behaviour."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.mixture import aioli

K = 3
SPEC = RunSpec(
  90, K, ("a", "b", "c"), (30,) * K, (0.2, 0.3, 0.5), num_steps=2000, steps_per_round=10
)
KEY = jax.random.key(0)


@functools.cache
def made(*args, **kwargs):
  """A policy whose update is compiled once for all tests."""
  policy = aioli(*args, **kwargs)
  return policy._replace(update=jax.jit(policy.update))


def as_stats(loss_K):
  return ExampleStats(domain_target_loss=jnp.float32(loss_K))


@functools.cache
def jitted(policy):
  return policy.update


def run(policy, rounds, spec=SPEC):
  """Returns the proportions of every round and the last state; `rounds` may be a function."""
  _, state = policy.init(spec, KEY)
  update, shares, loss_K = jitted(policy), [], np.full(spec.num_domains, 3.0)
  for number in range(rounds if isinstance(rounds, int) else len(rounds)):
    loss_K = loss_K if isinstance(rounds, int) else rounds[number]
    decision, state = update(as_stats(loss_K), state)
    shares.append(np.exp(np.float64(decision.logits)))
  return np.array(shares), state


def solve(drops, order, share):
  """A row of A from the equations there are; what they do not tell apart is alike."""
  W = np.full((K, K), (1 - share) / (K - 1)) + np.eye(K) * (share - (1 - share) / (K - 1))
  finite = np.isfinite(drops)
  there = [m for m in range(K) if np.any(finite & (order == m))]
  if not there:
    return np.zeros(K)
  D = np.array([np.mean(drops[finite & (order == m)]) for m in there])
  return D.mean() + np.linalg.lstsq(W[there], D - D.mean(), rcond=None)[0]


def reference(rounds, shares, period, sweeps, eta, share, normalise, ema):
  """The docstring's equations in float64, with the mixtures that were drawn."""
  p, A, previous, expected = np.ones(K), None, np.full(K, np.nan), []
  for number, loss_K in enumerate(rounds):
    position = number % period
    if position == 0:
      mixtures, drops = [], []
    elif position <= sweeps * K:
      mixtures.append(shares[number - 1])
      drops.append(previous - loss_K)
    previous = loss_K
    if position == sweeps * K:
      order = np.argmax(mixtures, axis=1)
      new = np.stack([solve(np.array(drops)[:, i], order, share) for i in range(K)])
      if normalise:
        new = new - min(new.min(), 0)
        new = new / new.sum()
      A = new if ema is None or A is None else (1 - ema) * new + ema * A
      p = (p if ema is None else np.ones(K)) * np.exp(eta * A.sum(axis=0))
      p = p / p.sum()
    expected.append(None if position < sweeps * K else p)
  return expected, A


CASES = [
  (8, 2, 0.2, 0.625, False, None),
  (4, 1, 1.0, 0.9, True, None),
  (10, 3, 2.0, 0.5, False, 0.5),
  (5, 1, 0.5, 1.0, True, 0.1),
]


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_equations(case):
  period, sweeps, eta, share, normalise, ema = case
  policy = made(*case)
  for seed in range(3):
    rng = np.random.default_rng(seed)
    rounds = np.cumsum(rng.normal(-0.02, 0.05, (3 * period, K)), axis=0) + 4
    rounds[rng.random(rounds.shape) < 0.1] = np.nan
    shares, state = run(policy, rounds)
    expected, A = reference(rounds, shares, period, sweeps, eta, share, normalise, ema)
    np.testing.assert_allclose(state.graph_KxK, A, atol=2e-5)  # of losses of 4
    assert state.num_solves == 3
    for number, (share_K, p) in enumerate(zip(shares, expected, strict=True)):
      if p is None:
        perturbed = sorted([share] + [(1 - share) / (K - 1)] * (K - 1))
        np.testing.assert_allclose(sorted(share_K), perturbed, rtol=1e-6)
      else:
        np.testing.assert_allclose(share_K, p, rtol=1e-5, atol=1e-5, err_msg=str(number))


def test_every_sweep_takes_every_domain_once_in_a_new_order():
  shares, _ = run(made(*CASES[2]), 40)
  learning = np.concatenate([shares[start : start + 9] for start in (0, 10, 20, 30)])
  orders = np.argmax(learning, axis=1).reshape(-1, K)
  assert np.sort(orders, axis=1).tolist() == [[0, 1, 2]] * 12
  assert len({tuple(order) for order in orders.tolist()}) > 3


def test_metrics_tell_what_a_round_is_for():
  policy = made(*CASES[0])
  decision, state = policy.init(SPEC, KEY)
  first = decision.logits
  told = []
  for _ in range(16):
    decision, state = jitted(policy)(as_stats([3.0] * K), state)
    told.append((int(decision.metrics["learning"]), int(decision.metrics["num_solves"])))
    if len(told) == 1:
      np.testing.assert_array_equal(decision.logits, first)
  assert told == [(1, 0)] * 6 + [(0, 1)] * 2 + [(1, 1)] * 6 + [(0, 2)] * 2


PLANTED = np.array([[0.05, 0.0, 0.2], [0.0, 0.03, 0.1], [-0.02, 0.0, 0.1]])


def train(policy, effect, num_rounds):
  """Losses fall by A p in every round."""
  _, state = policy.init(SPEC, KEY)
  update, loss_K, shares = jitted(policy), np.full(K, 9.0), []
  for _ in range(num_rounds):
    decision, state = update(as_stats(loss_K), state)
    shares.append(np.exp(np.float64(decision.logits)))
    loss_K = loss_K - effect @ shares[-1]
  return shares, state


@pytest.mark.parametrize("sweeps", [1, 3])
def test_recovers_a_planted_effect_and_follows_the_domain_that_helps_most(sweeps):
  policy = made(period=6 * sweeps, lp_rounds=sweeps, learning_rate=2.0, normalise=False)
  shares, state = train(policy, PLANTED, 24 * sweeps)
  np.testing.assert_allclose(state.graph_KxK, PLANTED, atol=1e-5)  # of losses of 9
  after = [shares[(6 * period + 3) * sweeps] for period in range(4)]
  assert all(np.argmax(share_K) == 2 for share_K in after)
  raised = [share_K[2] for share_K in after]
  assert sorted(raised) == raised
  assert raised[-1] > 0.9


def test_without_any_fall_proportions_stay_equal():
  for case in CASES[:2]:
    shares, state = run(made(*case), 16)
    np.testing.assert_allclose(shares[7::8], 1 / K, rtol=1e-6)
    assert not np.any(np.isnan(state.graph_KxK))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_a_loss_that_is_not_usable_leaves_out_the_drops_before_and_after_it(bad):
  policy = made(*CASES[0])
  _, state = policy.init(SPEC, KEY)
  loss_K, spoilt = np.full(K, 3.0), {0: 0, 2: 1}  # round: domain
  for number in range(7):
    given = loss_K.copy()
    if number in spoilt:
      given[spoilt[number]] = bad
    decision, state = policy.update(as_stats(given), state)
    assert decision.metrics["num_nonfinite"] == (number in spoilt)
    loss_K = loss_K - PLANTED @ np.exp(np.float64(decision.logits))
  assert np.asarray(state.counts_KxK).sum(axis=1).tolist() == [5, 4, 6]
  # The other sweep has all of them.
  np.testing.assert_allclose(state.graph_KxK, PLANTED, atol=1e-5)


def test_without_a_drop_a_mixture_is_taken_to_do_as_the_others_do():
  policy = made(period=6, lp_rounds=1, learning_rate=2.0, normalise=False)
  _, state = policy.init(SPEC, KEY)
  raised, nan = [], np.nan
  # The drops are 0.1, ?, ? of domain 0, all ? of domain 1 and 0, 0.2, 0.1 of domain 2.
  for loss_K in ([3.0, 3.0, 3.0], [2.9, nan, 3.0], [nan, 3.0, 2.8], [2.0, nan, 2.7]):
    decision, state = policy.update(as_stats(loss_K), state)
    raised.append(np.argmax(decision.logits))
  np.testing.assert_allclose(state.graph_KxK[0], 0.1, atol=1e-5)
  np.testing.assert_array_equal(state.graph_KxK[1], 0.0)
  drops, order = np.array([0.0, 0.2, 0.1]), np.array(raised[:3])
  np.testing.assert_allclose(state.graph_KxK[2], solve(drops, order, 0.625), atol=1e-5)


@pytest.mark.parametrize(
  ("arguments", "change", "match"),
  [
    ({}, {"num_domains": 1}, "at least 2 domains"),
    ({"share": 0.3}, {}, "share must be more than 1 / 3"),
    ({"period": 12}, {}, "period must be more than .* = 12, got 12"),
    ({}, {"num_steps": 120}, "more than .* = 12 rounds.*num_steps=120"),
    ({}, {"steps_per_round": 0}, "rounds to solve once.*steps_per_round=0"),
    ({"share": 0.3, "period": 12}, {"num_steps": 0}, "share.*period.*rounds"),
  ],
)
def test_the_run_must_fit(arguments, change, match):
  with pytest.raises(ValueError, match=match):
    aioli(**arguments).init(SPEC._replace(**change), KEY)


def test_one_solve_is_enough():
  aioli().init(SPEC._replace(num_steps=121), KEY)


@pytest.mark.parametrize(
  "argument",
  [
    {"period": 1},
    {"period": 10.0},
    {"lp_rounds": 0},
    {"learning_rate": 0.0},
    {"learning_rate": np.nan},
    {"share": 0.0},
    {"share": 1.1},
    {"normalise": None},
    {"ema": 1.0},
    {"ema": -0.1},
  ],
)
def test_rejects(argument):
  with pytest.raises(ValueError, match=next(iter(argument))):
    aioli(**argument)
