"""Selection by loss: the bands, the quantiles, the edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.selection import loss

KEY = jax.random.key(0)


def decide(loss_C, id_C=None, **arguments):
  policy = loss(**arguments)
  size = len(loss_C)
  _, state = policy.init(RunSpec(99, 1, ("web",), (99,), (1.0,), sweep_size=size), KEY)
  ids = np.arange(size) if id_C is None else id_C
  swept = ExampleStats(example_id=jnp.asarray(ids), loss=jnp.float32(loss_C))
  stats = ExampleStats(example_id=swept.example_id, score=policy.score(swept, state))
  return policy.update(stats, state)[0]


def reference(loss_C, id_C, focus, focus_weight, temperature, low, high):
  """The docstring's rule in float64; probabilities."""
  usable = np.isfinite(loss_C) & (np.asarray(id_C) >= 0)
  q1, q2 = np.quantile(loss_C[usable].astype(np.float64), [low, high])
  band = np.where(loss_C <= q1, "low", np.where(loss_C <= q2, "medium", "high"))
  p = np.where(usable, np.where(band == focus, focus_weight, 1.0) ** (1 / temperature), 0.0)
  return p / p.sum()


@pytest.mark.parametrize("focus", ["low", "medium", "high"])
@pytest.mark.parametrize(("focus_weight", "temperature"), [(5.0, 1.0), (0.2, 3.0), (9.0, 0.5)])
def test_agrees_with_the_rule(focus, focus_weight, temperature):
  for seed, size in enumerate([3, 10, 100, 257, 3001]):
    rng = np.random.default_rng(seed)
    loss_C = rng.gamma(4.0, 0.7, size).astype(np.float32)
    loss_C[rng.random(size) < 0.1] = np.nan
    id_C = np.where(rng.random(size) < 0.1, -1, np.arange(size))
    loss_C[id_C < 0] = 1e4  # padding must not move the quantiles
    loss_C[0], id_C[0] = 1.0, 0
    arguments = {"focus": focus, "focus_weight": focus_weight, "temperature": temperature}
    decision = decide(loss_C, id_C, **arguments)
    expected = reference(loss_C, id_C, **arguments, low=0.33, high=0.66)
    np.testing.assert_allclose(jax.nn.softmax(decision.logits), expected, rtol=1e-5)
    assert decision.metrics["num_eligible"] == np.sum(expected > 0)
    assert decision.metrics["num_nonfinite"] == np.sum(np.isnan(loss_C) & (id_C >= 0))


@pytest.mark.parametrize("focus", ["low", "medium", "high"])
def test_a_loss_at_the_quantile_is_below_it(focus):
  loss_C = np.random.default_rng(0).permutation(101).astype(np.float32)
  logits = decide(loss_C, focus=focus).logits
  expected = {
    "low": loss_C <= 33,
    "medium": (loss_C > 33) & (loss_C <= 66),
    "high": loss_C > 66,
  }
  np.testing.assert_array_equal(np.asarray(logits) == 0, expected[focus])


def test_equal_losses_are_all_low():
  for value in (0.1, 2.7182817, 3e38):
    np.testing.assert_allclose(decide([value] * 7, focus="high").logits, np.zeros(7))
    np.testing.assert_allclose(decide([value] * 7, focus="low").logits, np.zeros(7))


def test_infinite_loss_is_never_drawn_at_any_temperature():
  for temperature in (0.5, 1.0, 50.0, np.inf):
    logits = decide([1.0, np.inf, np.nan, 2.0, 3.0], temperature=temperature).logits
    assert logits[1] == logits[2] == -np.inf
    assert np.all(np.isfinite(logits[jnp.array([0, 3, 4])]))
  sharp = decide([1.0, 2.0, 3.0], temperature=0.0).logits
  assert sharp.tolist() == [-np.inf, -np.inf, 0.0]


def test_no_finite_loss_leaves_no_row():
  decision = decide([np.nan, np.inf, 1.0], [0, 1, -1])
  assert decision.logits.tolist() == [-np.inf] * 3
  assert decision.metrics == {"num_nonfinite": 2, "num_eligible": 0}


@pytest.mark.parametrize(
  "argument",
  [
    {"focus": "hard"},
    {"focus_weight": 0.0},
    {"focus_weight": np.inf},
    {"temperature": -1.0},
    {"low": np.nan},
    {"high": 1.2},
    {"low": 0.7},
  ],
)
def test_rejects(argument):
  with pytest.raises(ValueError, match=next(iter(argument))):
    loss(**argument)
  with pytest.raises(ValueError, match="sweep_size"):
    loss().init(RunSpec(9, 1, ("web",), (9,), (1.0,)), KEY)
