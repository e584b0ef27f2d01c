"""Loss reweighting: the equations, the schedule, the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.weighting import loss_reweighting

SPEC = RunSpec(100, 1, ("web",), (100,), (1.0,), batch_size=12, num_steps=50)
KEY = jax.random.key(0)
STRATEGIES = ["uniform", "linupper", "quadratic", "extremes", "upper", "code_uniform"]


def reference(loss_B, tokens_B, strategy, r, delta):
  """The docstring's equations, one example at a time, in float64."""
  rows = [i for i in range(len(loss_B)) if tokens_B[i] > 0 and np.isfinite(loss_B[i])]
  used = [float(loss_B[i]) for i in rows]
  weights = np.zeros(len(loss_B))
  for i in rows:
    spread = max(max(used) - min(used), 1e-6)
    h = delta * (2 * float(loss_B[i]) - max(used) - min(used)) / spread
    weights[i] = {
      "uniform": lambda h: 0.0,
      "linupper": lambda h: min(h + delta, delta),
      "quadratic": lambda h: 1 - h**2 / delta**2,
      "extremes": lambda h: abs(h),
      "upper": lambda h: (h + delta) / 2,
      "code_uniform": lambda h: h,
    }[strategy](h)
  share = np.exp(weights[rows] / r)
  weights[rows] = share / share.sum() * len(rows)
  return weights


def decide(loss_B, tokens_B, **arguments):
  policy = loss_reweighting(burn_in_steps=0, **arguments)
  _, state = policy.init(SPEC._replace(batch_size=len(loss_B)), KEY)
  stats = ExampleStats(loss=jnp.float32(loss_B), num_tokens=jnp.asarray(tokens_B))
  return policy.update(stats, state)[0]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("r", "delta"), [(1.0, 1.0), (0.4, 1.0), (2.0, 3.0)])
def test_agrees_with_the_equations(strategy, r, delta):
  for seed in range(5):
    rng = np.random.default_rng(seed)
    loss_B, tokens_B = rng.gamma(4.0, 0.7, 12).astype(np.float32), rng.integers(0, 9, 12)
    loss_B[rng.random(12) < 0.15] = np.nan
    decision = decide(loss_B, tokens_B, strategy=strategy, temperature=r, delta=delta)
    expected = reference(loss_B, tokens_B, strategy, r, delta)
    np.testing.assert_allclose(decision.weights, expected, rtol=1e-5, atol=1e-7)


def test_uniform_is_truly_uniform_and_the_published_one_is_not():
  loss_B, tokens_B = [0.5, 1.0, 4.0], [3, 3, 3]
  assert decide(loss_B, tokens_B, strategy="uniform").weights.tolist() == [1.0, 1.0, 1.0]
  weights = decide(loss_B, tokens_B, strategy="code_uniform").weights
  np.testing.assert_allclose(weights[2] / weights[0], np.exp(2), rtol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_edges(strategy):
  constant = decide([2.5] * 4, [1, 2, 3, 0], strategy=strategy).weights
  np.testing.assert_allclose(constant, [1, 1, 1, 0], rtol=1e-6)
  assert decide([7.0], [3], strategy=strategy).weights.tolist() == [1.0]
  flat = decide([0.1, 5.0], [1, 1], strategy=strategy, temperature=np.inf)
  assert flat.weights.tolist() == [1.0, 1.0]
  nothing = decide([np.nan, 2.0], [4, 0], strategy=strategy)
  assert nothing.weights.tolist() == [0.0, 0.0]
  assert nothing.metrics["num_nonfinite"] == 1


def test_a_small_spread_counts_in_full_and_rounding_does_not():
  close = decide([1.0, 1.01, 1.02], [1, 1, 1], strategy="code_uniform").weights
  np.testing.assert_allclose(close[2] / close[0], np.exp(2), rtol=1e-4)
  loss_B = np.float32([1.0, np.nextafter(np.float32(1), np.float32(2))])
  equal = decide(loss_B, [1, 1], strategy="code_uniform").weights
  expected = reference(loss_B, [1, 1], "code_uniform", 1.0, 1.0)
  np.testing.assert_allclose(equal, expected, rtol=1e-5)
  assert equal[1] / equal[0] < 1.3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_padding_and_infinite_losses_are_outside_the_range(strategy):
  alone = decide([1.0, 2.0, 5.0], [4, 4, 4], strategy=strategy).weights
  among = decide([1.0, np.inf, 2.0, 99.0, 5.0], [4, 4, 4, 0, 4], strategy=strategy)
  np.testing.assert_array_equal(among.weights[jnp.array([0, 2, 4])], alone)
  assert among.weights[1] == among.weights[3] == 0
  assert among.metrics["num_nonfinite"] == 1


def test_burn_in_then_stages_of_temperature():
  policy = loss_reweighting("upper", ((0, 9.0), (3, 0.5)), burn_in_steps=2)
  _, state = policy.init(SPEC._replace(batch_size=3), KEY)
  loss_B, tokens_B, seen = np.array([1.0, 2.0, 4.0]), np.array([5, 5, 5]), []
  for _ in range(5):
    stats = ExampleStats(loss=jnp.float32(loss_B), num_tokens=jnp.asarray(tokens_B))
    decision, state = policy.update(stats, state)
    seen.append(np.asarray(decision.weights))
  expected = [reference(loss_B, tokens_B, "upper", r, 1.0) for r in (9.0, 0.5)]
  for weights, r in zip(seen, [None, None, 0, 1, 1], strict=True):
    np.testing.assert_allclose(weights, np.ones(3) if r is None else expected[r], rtol=1e-5)


def test_defaults_are_those_of_the_paper():
  policy = loss_reweighting()
  with pytest.raises(ValueError, match="burn_in_steps 1000 covers all 50 steps"):
    policy.init(SPEC, KEY)
  decision, state = policy.init(SPEC._replace(num_steps=0), KEY)
  assert decision.weights.tolist() == [1.0] * 12
  state = state._replace(num_updates=jnp.int32(1000))
  loss_B = np.linspace(0.5, 3.0, 12)
  stats = ExampleStats(loss=jnp.float32(loss_B), num_tokens=jnp.full(12, 4))
  expected = reference(loss_B, np.full(12, 4), "linupper", 1.0, 1.0)
  np.testing.assert_allclose(policy.update(stats, state)[0].weights, expected, rtol=1e-5)


@pytest.mark.parametrize(
  "argument",
  [
    {"strategy": "mid"},
    {"temperature": 0.0},
    {"temperature": np.nan},
    {"temperature": ((1, 2.0),)},
    {"temperature": ((0, 2.0), (5, -1.0))},
    {"temperature": ()},
    {"temperature": [(0,)]},
    {"temperature": [(0, 2.0), (5, 1.0, 0.5)]},
    {"temperature": [0, 2.0]},
    {"temperature": "12"},
    {"temperature": None},
    {"temperature": [(0, 2.0), (2.5, 1.0)]},
    {"temperature": [(0, 2.0), ("5", 1.0)]},
    {"burn_in_steps": -1},
    {"burn_in_steps": 2.5},
    {"delta": 0.0},
    {"delta": np.inf},
  ],
)
def test_rejects(argument):
  with pytest.raises(ValueError, match=next(iter(argument))):
    loss_reweighting(**argument)


def test_rejects_all_at_once():
  with pytest.raises(ValueError, match=r"strategy.*temperature.*delta"):
    loss_reweighting("high", temperature=-1.0, delta=-1.0)
  with pytest.raises(ValueError, match=r"strategy.*temperature.*delta"):
    loss_reweighting("high", temperature=[(0,)], delta=-1.0)
  with pytest.raises(ValueError, match="batch_size"):
    loss_reweighting(burn_in_steps=0).init(SPEC._replace(batch_size=0), KEY)
  with pytest.raises(TypeError, match="strength"):
    loss_reweighting(strength=1.0)


@pytest.mark.parametrize("strategy", ["uniform", "upper"])
def test_equal_losses_weigh_exactly_one(strategy):
  """For any number of rows: 41 times 1/41 is not 1 in float32."""
  policy = loss_reweighting(strategy, burn_in_steps=0)
  _, state = policy.init(SPEC._replace(batch_size=128), KEY)
  update = jax.jit(lambda stats: policy.update(stats, state)[0].weights)
  for rows in range(1, 129):
    tokens_B = jnp.asarray(np.arange(128) < rows, jnp.int32)
    weights = update(ExampleStats(loss=jnp.full(128, 2.3), num_tokens=tokens_B))
    np.testing.assert_array_equal(weights, tokens_B)
