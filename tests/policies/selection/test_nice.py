"""NICE: coefficients against loops of both rules, what is matched, and what a run must have."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec, TargetStats
from jdc.policies.selection import less, nice
from jdc.policies.selection.coefficients import coefficients, importance_ratios

KEY = jax.random.key(0)
M, S, C, R = 6, 8, 12, 5
SIZES = {"sweep_size": C, "num_targets": M, "num_tasks": 2, "feature_size": R}
SPEC = RunSpec(C, 1, ("web",), (C,), (1.0,), num_responses=S, **SIZES)


def reference(reward, right, rule, baseline, best, ratios):
  """The rules, one response at a time."""
  a = np.zeros((len(reward), reward.shape[1] + 1))
  for j, r in enumerate(reward.astype(np.float64)):
    w = np.ones(len(r)) if ratios is None else ratios[j].astype(np.float64)
    mean = np.mean(w * r) if baseline else 0.0
    gain = w * (r - mean)
    if rule == "dataflex":
      a[j, :-1] = gain / len(r)
      continue
    ranked = sorted(range(len(r)), key=lambda k: (-r[k], k))[:best]
    kept = [k for k in ranked if r[k] > right[j] - 1e-5]
    for k in kept:
      a[j, k] = gain[k] / len(kept)
    if not kept:
      a[j, -1] = right[j]
  return a


@pytest.mark.parametrize("rule", ["official", "dataflex"])
@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_coefficients_agree_with_the_rules(rule, baseline, weighted):
  protected = 0
  for seed in range(30):
    rng = np.random.default_rng(seed)
    reward = (rng.integers(0, 5, (M, S)) / 4).astype(np.float32)  # with ties
    right = (rng.integers(0, 5, M) / 4).astype(np.float32)
    ratios = rng.gamma(2.0, 0.5, (M, S)).astype(np.float32) if weighted else None
    best = int(rng.integers(1, S + 2))
    found = coefficients(reward, right, rule, baseline, best, ratios)
    expected = reference(reward, right, rule, baseline, best, ratios)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    protected += np.sum(expected[:, -1] > 0)
  assert (protected > 5) == (rule == "official")


def test_a_baseline_leaves_a_mean_of_zero_and_ranks_above_and_below_it():
  reward = np.float32([[1, 1, 0, 0, 0, 0, 0, 0]])
  a = np.asarray(coefficients(reward, np.ones(1), "dataflex", baseline=True))
  np.testing.assert_allclose(a.sum(), 0, atol=1e-7)
  assert np.all(a[0, :2] > 0)
  assert np.all(a[0, 2:8] < 0)


@pytest.mark.parametrize("num_drawn", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_expectation_is_the_policy_gradient_and_a_baseline_takes_part_of_it_off(
  num_drawn, weighted
):
  """Of a softmax over three responses by its logits, over all that may be drawn."""
  p, reward = np.array([0.2, 0.5, 0.3]), np.array([1.0, 0.25, 0.0])
  q = np.array([0.4, 0.3, 0.3]) if weighted else p
  steps = p - np.eye(3)  # grad NLL of each response
  policy_gradient = -(np.diag(p) - np.outer(p, p)) @ reward
  squares = np.sum(q * (p / q) ** 2 * reward * steps.T, axis=1)
  draws = np.array(list(itertools.product(range(3), repeat=num_drawn)))
  ratios = importance_ratios(np.log(p)[draws], np.log(q)[draws]) if weighted else None
  for baseline in (False, True):
    a = coefficients(reward[draws], np.zeros(len(draws)), "dataflex", baseline, 10, ratios)
    directions = np.einsum("ds,dsv->dv", np.float64(a)[:, :-1], steps[draws])
    found = np.prod(q[draws], axis=1) @ directions
    taken_off = squares / num_drawn if baseline else 0.0
    np.testing.assert_allclose(found, policy_gradient - taken_off, atol=1e-6)
  if not weighted:
    share = 1 - 1 / num_drawn
    np.testing.assert_allclose(found, share * policy_gradient, atol=1e-6)


def test_ratios_are_bounded_and_finite():
  log_p, log_q = np.float32([-1, -400, 0]), np.float32([-2, -1, -500])
  np.testing.assert_allclose(
    importance_ratios(log_p, log_q, 20.0), [np.e, 0, 20], rtol=1e-6, atol=1e-30
  )
  assert np.all(np.isfinite(importance_ratios(log_p, log_q)))
  with pytest.raises(ValueError, match="largest must be positive, got 0"):
    importance_ratios(log_p, log_q, 0)


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"rule": "mean"}, "rule must be in"),
    ({"best": 0}, "best must be"),
    ({"baseline": 1}, "baseline must be"),
    ({"importance": np.ones((M, 2))}, r"importance must be of shape \(6, 8\)"),
    ({"reference_reward": np.ones(2)}, r"reference_reward must be of shape \(6,\)"),
    ({"reward": np.ones(M)}, r"reward must be \[M, S\]"),
  ],
  ids=str,
)
def test_coefficients_reject(arguments, message):
  fields = {"reward": np.ones((M, S)), "reference_reward": np.ones(M)} | arguments
  with pytest.raises(ValueError, match=message):
    coefficients(**fields)


def swept(policy, direction, gradient, target, reward, state):
  score = policy.score(ExampleStats(**{direction: gradient}, target=target), state)
  return ExampleStats(
    example_id=jnp.arange(C), score=score, target=target, target_reward=reward
  )


@pytest.mark.parametrize("direction", ["update_direction", "gradient"])
@pytest.mark.parametrize("aggregate", ["submax", "mean"])
def test_is_less_with_the_gradients_of_rewards(direction, aggregate):
  rng = np.random.default_rng(0)
  gradient = jnp.asarray(rng.normal(size=(C, R)), jnp.float32).at[3, 1].set(jnp.nan)
  toward = jnp.asarray(rng.normal(size=(M, R)), jnp.float32).at[2].set(0.0)
  target = TargetStats(gradient=toward, task=jnp.array([0, 0, 0, 1, 1, 0]))
  reward = jnp.asarray(rng.uniform(size=(M, S)), jnp.float32)
  policy, plain = nice(direction, aggregate), less(direction, aggregate)
  assert policy.observes == plain.observes | {"target_reward"}
  first, state = policy.init(SPEC, KEY)
  decision, _ = policy.update(swept(policy, direction, gradient, target, reward, state), state)
  expected, _ = plain.update(swept(plain, direction, gradient, target, None, state), state)
  np.testing.assert_array_equal(decision.logits, expected.logits)
  assert decision.metrics.keys() == first.metrics.keys()
  assert decision.metrics["num_undirected_targets"] == 1
  np.testing.assert_allclose(decision.metrics["mean_reward"], np.mean(reward), rtol=1e-6)


@pytest.mark.parametrize("checkpoints", ["current", "sum"])
def test_prefers_no_row_where_no_prompt_has_a_direction(checkpoints):
  policy = nice("gradient", checkpoints=checkpoints)
  rng = np.random.default_rng(0)
  gradient, aim = rng.normal(size=(C, R)), rng.normal(size=(M, R))
  task = jnp.arange(M) % 2

  def after(state, aims):
    target = TargetStats(gradient=jnp.asarray(aims, jnp.float32), task=task)
    swept = ExampleStats(gradient=jnp.asarray(gradient, jnp.float32), target=target)
    stats = ExampleStats(
      example_id=jnp.arange(C),
      score=policy.score(swept, state),
      target=target,
      target_reward=jnp.zeros((M, S)),
      learning_rate=jnp.float32(1),
      score_age=jnp.zeros(C, jnp.int32),
    )
    return policy.update(stats, state)

  _, state = policy.init(SPEC, KEY)
  decision, state = after(state, 0 * aim)
  assert np.all(np.isneginf(decision.logits))
  decision, state = after(state, aim)
  directed = np.asarray(decision.logits)
  assert np.all(np.isfinite(directed))
  decision, state = after(state, 0 * aim)
  # The mean is over three rounds then, of which one had a direction.
  expected = directed * 2 / 3 if checkpoints == "sum" else np.full(C, -np.inf)
  np.testing.assert_allclose(decision.logits, expected, rtol=1e-5)


def test_needs_responses_and_what_less_needs():
  with pytest.raises(ValueError, match=r"nice needs num_responses > 0.*nice needs num_targets"):
    nice().init(SPEC._replace(num_responses=0, num_targets=0), KEY)
  with pytest.raises(ValueError, match="direction must be in"):
    nice("sideways")
