"""Online data mixing: the equations, the edges, the behaviour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc import policies
from jdc.policies import ExampleStats, RunSpec
from jdc.policies.mixture import odm

SPEC = RunSpec(100, 4, ("a", "b", "c", "d"), (25,) * 4, (0.1, 0.2, 0.3, 0.4), domain_draw="one")
KEY = jax.random.key(0)


def exploration(t, num_domains):
  return min(1 / num_domains, np.sqrt(np.log(num_domains) / (num_domains * t)))


def reference(batches, variant, reward, a, num_domains=4):
  """The docstring's equations, one example at a time, in float64."""
  R = np.zeros(num_domains)
  for domain_B, loss_B, tokens_B, pi_B in batches:
    for k in range(num_domains):
      rows = [i for i in range(len(domain_B)) if domain_B[i] == k and tokens_B[i] > 0]
      rows = [i for i in rows if np.isfinite(loss_B[i])]
      if not rows:
        continue
      mean = lambda values, rows=rows, tokens_B=tokens_B: np.average(
        [values[i] for i in rows], weights=[tokens_B[i] for i in rows]
      )
      if reward == "moving_average":
        R[k] = a * R[k] + (1 - a) * mean(loss_B / pi_B)
      elif reward == "cumulative":
        R[k] += mean(loss_B / pi_B) / 10
      else:
        R[k] = a * R[k] + (1 - a) * np.exp(mean(loss_B))
  t = len(batches)
  if variant == "batched" and reward == "smoothed_mean":
    greedy = R / R.sum()
  else:
    greedy = np.exp(exploration(t, num_domains) * (R - R.max()))
    greedy /= greedy.sum()
  eps = exploration(t + 1, num_domains)
  return R, np.log((1 - num_domains * eps) * greedy + eps)


def random_batches(seed, num_batches, one):
  rng = np.random.default_rng(seed)
  for _ in range(num_batches):
    domain_B = np.full(8, rng.integers(4)) if one else rng.integers(0, 4, 8)
    loss_B = rng.gamma(4.0, 0.5, 8)
    loss_B[rng.random(8) < 0.1] = np.nan
    yield domain_B, loss_B, rng.integers(0, 9, 8), rng.dirichlet(np.ones(4) * 3)[domain_B]


def as_stats(domain_B, loss_B, tokens_B, pi_B):
  return ExampleStats(
    domain=jnp.asarray(domain_B),
    loss=jnp.float32(loss_B),
    num_tokens=jnp.asarray(tokens_B),
    domain_probability=jnp.float32(pi_B),
  )


@pytest.mark.parametrize("variant", ["batched", "paper"])
@pytest.mark.parametrize("reward", ["moving_average", "cumulative", "smoothed_mean"])
@pytest.mark.parametrize("smoothing", [0.9, 0.0])
def test_agrees_with_the_equations(variant, reward, smoothing):
  policy = odm(variant, reward, smoothing, warmup_steps=0)
  update = jax.jit(policy.update)
  for seed in range(3):
    _, state = policy.init(SPEC, KEY)
    batches = list(random_batches(seed, 40, one=variant == "paper"))
    for batch in batches:
      decision, state = update(as_stats(*batch), state)
    R, log_pi = reference(batches, variant, reward, smoothing)
    np.testing.assert_allclose(state.reward_K, R, rtol=1e-5)
    np.testing.assert_allclose(decision.logits, log_pi, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.exp(decision.logits).sum(), 1, rtol=1e-6)


def test_warms_up_at_the_base_proportions_while_it_learns():
  """The same as holding the decision back from outside."""
  warm, held = odm(warmup_steps=30), policies.after(30, odm(warmup_steps=0))
  (first, state), (_, outer) = warm.init(SPEC, KEY), held.init(SPEC, KEY)
  np.testing.assert_allclose(np.exp(first.logits), SPEC.proportions, rtol=1e-6)
  for number, batch in enumerate(random_batches(1, 35, one=False)):
    decision, state = warm.update(as_stats(*batch), state)
    other, outer = held.update(as_stats(*batch), outer)
    np.testing.assert_array_equal(decision.logits, other.logits)
    assert (decision.logits.tolist() == first.logits.tolist()) == (number < 30)
  assert np.all(state.reward_K > 0)


@pytest.mark.parametrize(("num_steps", "expected"), [(0, 0), (50, 1), (1000, 10), (1001, 11)])
def test_warms_up_for_one_percent_of_the_run(num_steps, expected):
  _, state = odm().init(SPEC._replace(num_steps=num_steps), KEY)
  assert state.warmup_steps == expected


def test_leaves_out_and_counts_what_is_not_finite():
  policy = odm(warmup_steps=0)
  _, state = policy.init(SPEC, KEY)
  stats = as_stats([0, 1, 1, 2, 3], [2.0, np.nan, 1.0, 5.0, np.inf], [4, 4, 4, 4, 0], [0.5] * 5)
  stats = ExampleStats(
    **{**vars(stats), "domain_probability": jnp.float32([0.5, 0.5, 0.5, 0, 1])}
  )
  decision, state = policy.update(stats, state)
  assert decision.metrics["num_nonfinite"] == 2  # the last row is padding
  np.testing.assert_allclose(state.reward_K, [0.4, 0.2, 0, 0], rtol=1e-6)


def test_refuses_a_reward_that_overflows():
  policy = odm(reward="smoothed_mean", warmup_steps=0)
  _, state = policy.init(SPEC, KEY)
  decision, state = policy.update(as_stats([0, 1], [500.0, 1.0], [4, 4], [0.5, 0.5]), state)
  assert decision.metrics["num_nonfinite"] == 1
  np.testing.assert_allclose(state.reward_K, [0, 0.1 * np.e, 0, 0], rtol=1e-6)


def test_sums_over_a_domain_have_one_order():
  """A scatter adds in any order on an accelerator, and a resumed run would round otherwise."""
  policy = odm()
  _, state = policy.init(SPEC, KEY)
  stats = as_stats(*next(random_batches(0, 1, one=False)))
  assert "scatter" not in str(jax.make_jaxpr(policy.update)(stats, state))


def test_one_domain_is_always_drawn():
  policy = odm(warmup_steps=0)
  spec = RunSpec(10, 1, ("web",), (10,), (1.0,))
  _, state = policy.init(spec, KEY)
  decision, _ = policy.update(as_stats([0, 0], [1.0, 2.0], [3, 3], [1.0, 1.0]), state)
  assert decision.logits.tolist() == [0.0]


def test_raises_the_domain_that_has_more_to_learn():
  policy, rng = odm(warmup_steps=0), np.random.default_rng(0)
  decision, state = policy.init(SPEC, KEY)
  update = jax.jit(policy.update)
  for _ in range(300):
    pi_K = np.exp(np.float64(decision.logits))
    domain_B = rng.choice(4, 16, p=pi_K / pi_K.sum())
    loss_B = np.where(domain_B == 2, 6.0, 1.0)
    stats = as_stats(domain_B, loss_B, np.full(16, 8), pi_K[domain_B])
    decision, state = update(stats, state)
  assert np.argmax(decision.logits) == 2
  assert np.exp(decision.logits[2]) > 0.3


def test_paper_needs_one_domain_a_step():
  with pytest.raises(ValueError, match="domain_draw"):
    odm("paper").init(SPEC._replace(domain_draw="systematic"), KEY)


@pytest.mark.parametrize(
  "argument",
  [
    {"variant": "official"},
    {"reward": "loss"},
    {"smoothing": 1.0},
    {"smoothing": np.nan},
    {"warmup_steps": -1},
    {"warmup_steps": 0.01},
  ],
)
def test_rejects(argument):
  with pytest.raises(ValueError, match=next(iter(argument))):
    odm(**argument)
  with pytest.raises(TypeError, match="alpha"):
    odm(alpha=0.9)
