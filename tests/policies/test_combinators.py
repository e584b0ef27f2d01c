"""The combinators that change what a policy decides, and `after`."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc import policies
from jdc.policies import DataPolicy, Decision, ExampleStats, RunSpec, mixture, selection
from jdc.policies.weighting import loss_reweighting

SPEC = RunSpec(
  100, 3, ("a", "b", "c"), (50, 30, 20), (0.5, 0.25, 0.25), batch_size=4, sweep_size=5
)
KEY = jax.random.key(0)


class ReplayState(NamedTuple):
  number: jax.Array


def replay(*rows):
  """A mixture that decides the given logits one after another, first in `init`."""
  table = np.asarray(rows, np.float32)

  def decide(number):
    return Decision(logits=jnp.asarray(table)[number], metrics={"number": number})

  def update(stats, state):
    return decide(state.number + 1), ReplayState(state.number + 1)

  init = lambda spec, key: (decide(jnp.int32(0)), ReplayState(jnp.int32(0)))
  return DataPolicy(init, update, frozenset(), "step")


def play(policy, num, spec=SPEC):
  decision, state = policy.init(spec, KEY)
  decisions = [decision]
  for _ in range(num):
    decision, state = jax.jit(policy.update)(ExampleStats(), state)
    decisions.append(decision)
  return decisions, state


def probabilities(decision):
  return np.asarray(jax.nn.softmax(np.float64(decision.logits)))


ROWS = np.log([[0.2, 0.3, 0.5], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]])


def test_after_keeps_the_initial_decision_while_the_state_learns():
  decisions, state = play(policies.after(2, replay(*ROWS)), 3)
  for decision, row in zip(decisions, [0, 0, 0, 3], strict=True):
    np.testing.assert_allclose(decision.logits, ROWS[row], rtol=1e-6)
  assert [int(d.metrics["number"]) for d in decisions] == [0, 1, 2, 3]
  assert state.inner.number == 3


def test_after_nothing_changes_nothing():
  decisions, _ = play(policies.after(0, replay(*ROWS)), 1)
  np.testing.assert_allclose(decisions[1].logits, ROWS[1], rtol=1e-6)


@pytest.mark.parametrize("tau", [0.5, 3.0])
def test_temperature_is_a_power_of_every_decision(tau):
  decisions, _ = play(policies.temperature(tau, replay(*ROWS)), 2)
  for decision, row in zip(decisions, ROWS, strict=False):
    power = np.exp(row) ** (1 / tau)
    np.testing.assert_allclose(probabilities(decision), power / power.sum(), rtol=1e-5)


def test_floor_lifts_eligible_entries_and_no_others():
  rows = [[0.0, -200.0, 1.0], [0.0, -np.inf, 1.0], [-np.inf] * 3]
  decisions, _ = play(policies.floor(0.1, replay(*rows)), 2)
  for decision, row in zip(decisions[:2], rows, strict=False):
    p = np.exp(row) / np.sum(np.exp(row))
    eligible = np.isfinite(row)
    expected = np.where(eligible, (1 - eligible.sum() * 0.1) * p + 0.1, 0)
    np.testing.assert_allclose(np.exp(decision.logits), expected, rtol=1e-5)
  assert decisions[2].logits.tolist() == [-np.inf] * 3


def test_floor_of_one_over_n_is_uniform():
  decisions, _ = play(policies.floor(1 / 3, replay(*ROWS)), 1)
  np.testing.assert_allclose(probabilities(decisions[1]), [1 / 3] * 3, rtol=1e-5)
  with pytest.raises(ValueError, match=r"at most 1 / 3, the number of logits, got 0\.4"):
    policies.floor(0.4, replay(*ROWS)).init(SPEC, KEY)


def test_ema_averages_log_probabilities():
  decisions, _ = play(policies.ema(0.8, replay(*(ROWS + np.array([[5], [-3], [9], [0]])))), 3)
  average = ROWS[0]
  for decision, row in zip(decisions[1:], ROWS[1:], strict=True):
    average = 0.8 * average + 0.2 * row  # the added constants are immaterial
    expected = np.exp(average) / np.exp(average).sum()
    np.testing.assert_allclose(probabilities(decision), expected, rtol=1e-5)


def test_ema_excludes_at_once_and_resumes_its_average():
  half, third = np.log([0.5, 0.5]), np.log([1 / 3] * 3)
  rows = [[*half, -np.inf], third, [*half, -np.inf], np.log([0.2, 0.2, 0.6])]
  decisions, _ = play(policies.ema(0.5, replay(*rows)), 3)
  assert [d.logits[2] == -np.inf for d in decisions] == [True, False, True, False]
  np.testing.assert_allclose(decisions[1].logits[2], np.log(1 / 3), rtol=1e-6)
  resumed = (np.log(1 / 3) + np.log(0.6)) / 2
  np.testing.assert_allclose(decisions[3].logits[2], resumed, rtol=1e-6)


def test_ema_rejects_logits_of_changing_rows():
  with pytest.raises(ValueError, match="got 5 logits"):
    policies.ema(0.9, selection.loss()).init(SPEC, KEY)
  policies.ema(0.9, selection.random()).init(SPEC, KEY)


@pytest.mark.parametrize(
  "make",
  [
    lambda p: policies.temperature(2.0, p),
    lambda p: policies.floor(0.1, p),
    lambda p: policies.ema(0.5, p),
  ],
)
def test_changing_logits_needs_logits(make):
  with pytest.raises(ValueError, match="decides none"):
    make(loss_reweighting()).init(SPEC, KEY)


def drawn(num):
  """A batch of rows drawn from another mixture than the base one."""
  rng = np.random.default_rng(0)
  p_K = np.array([0.1, 0.3, 0.6])
  domain_B = rng.choice(3, num, p=p_K)
  return ExampleStats(
    example_id=jnp.arange(num),
    domain=jnp.asarray(domain_B),
    num_tokens=jnp.full(num, 5),
    loss=jnp.float32(rng.gamma(3.0, 1.0, num) + domain_B),
    sampling_probability=jnp.float32((p_K / np.array([50, 30, 20]))[domain_B]),
  )


def test_importance_correction_recovers_the_base_proportions():
  spec, stats = SPEC._replace(batch_size=20_000), drawn(20_000)
  policy = policies.importance_corrected(mixture.static())
  first, state = policy.init(spec, KEY)
  assert first.weights.tolist() == [1.0] * 20_000
  decision, _ = policy.update(stats, state)
  mass = np.bincount(stats.domain, np.asarray(decision.weights), 3) / 20_000
  np.testing.assert_allclose(mass, SPEC.proportions, atol=0.02)
  np.testing.assert_allclose(probabilities(decision), SPEC.proportions, rtol=1e-6)


def test_importance_correction_multiplies_weights():
  stats, inner = drawn(4), loss_reweighting("upper", burn_in_steps=0)
  corrected = policies.importance_corrected(inner)
  alone = inner.update(stats, inner.init(SPEC, KEY)[1])[0].weights
  both = corrected.update(stats, corrected.init(SPEC, KEY)[1])[0].weights
  base_B = np.array([0.01, 0.25 / 30, 0.0125])[np.asarray(stats.domain)]
  np.testing.assert_allclose(both, alone * base_B / stats.sampling_probability, rtol=1e-5)


def test_importance_correction_counts_rows_without_probability():
  policy = policies.importance_corrected(mixture.static())
  stats = ExampleStats(
    example_id=jnp.array([1, 2, 3, -1]),
    domain=jnp.array([0, 1, 2, 0]),
    sampling_probability=jnp.array([0.0, jnp.nan, 0.0125, 0.0]),
  )
  decision, _ = policy.update(stats, policy.init(SPEC, KEY)[1])
  assert decision.weights.tolist() == [0.0, 0.0, 1.0, 0.0]
  assert decision.metrics["num_without_probability"] == 2


def test_importance_correction_rejects_what_it_cannot_correct():
  with pytest.raises(ValueError, match="scope 'round'"):
    policies.importance_corrected(selection.loss())
  policy = policies.importance_corrected(mixture.static())
  with pytest.raises(ValueError, match=r"top_k.*8 candidates"):
    policy.init(SPEC._replace(draw="top_k", num_candidates=8), KEY)
  weighting = policies.importance_corrected(loss_reweighting())
  weighting.init(SPEC._replace(num_candidates=8), KEY)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda p: policies.after(-1, p), "steps"),
    (lambda p: policies.after(1.5, p), "steps"),
    (lambda p: policies.temperature(-1, p), "tau"),
    (lambda p: policies.floor(0.0, p), "min_prob"),
    (lambda p: policies.floor(np.nan, p), "min_prob"),
    (lambda p: policies.ema(1.0, p), "decay"),
  ],
)
def test_rejects(make, message):
  with pytest.raises(ValueError, match=message):
    make(mixture.static())


def test_keep_samples_alike_from_the_best():
  logits = [0.5, -np.inf, 2.0, 2.0, -1.0, np.nan, 2.0, 1.0]
  for fraction, kept in ((0.1, [2]), (0.5, [2, 3, 6]), (2 / 3, [2, 3, 6, 7]), (1.0, None)):
    decisions, _ = play(policies.keep(fraction, replay(logits)), 1)
    expected = np.isfinite(logits) if kept is None else np.isin(np.arange(8), kept)
    np.testing.assert_array_equal(decisions[0].logits, np.where(expected, 0.0, -np.inf))


def test_keep_takes_a_share_of_each_domain():
  """In any order of the rows, and of logits of the rows of a sample or of all."""
  rng, sizes = np.random.default_rng(0), (7, 1, 12)
  spec = SPEC._replace(num_examples=20, num_domains=3, domain_sizes=sizes, sweep_size=13)
  domain_N = np.repeat(np.arange(3), sizes)
  for fraction in (0.05, 0.3, 1.0):
    for ids in (rng.permutation(20)[:13], np.arange(20)):
      logits = rng.integers(0, 3, len(ids)).astype(np.float32)
      logits[rng.integers(0, len(ids), 2)] = -np.inf
      policy = policies.keep(fraction, replay(logits), by_domain=True)
      _, state = policy.init(spec, KEY)
      stats = ExampleStats(example_id=jnp.asarray(ids, jnp.int32))
      found = np.asarray(jax.jit(policy.update)(stats, state)[0].logits)
      for k in range(3):
        places = np.flatnonzero((domain_N[ids] == k) & np.isfinite(logits))
        best = sorted(places, key=lambda i: (-logits[i], i))
        count = math.ceil(fraction * len(best) * (1 - 1e-6))
        expected = np.isin(places, best[:count])
        np.testing.assert_array_equal(found[places] == 0, expected)
      assert np.all(found[~np.isfinite(logits)] == -np.inf)


def test_keep_refuses_shares_that_are_none():
  for fraction in (0.0, 1.1, np.nan, "half"):
    with pytest.raises(ValueError, match="fraction must be in"):
      policies.keep(fraction, selection.random())
