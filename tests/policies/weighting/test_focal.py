"""Focal weighting: the equation, the edges, the behaviour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.weighting import focal

SPEC = RunSpec(90, 1, ("web",), (90,), (1.0,), batch_size=4, sequence_length=6)
KEY = jax.random.key(0)


def decide(policy, loss, mask):
  stats = ExampleStats(token_loss=jnp.float32(loss), token_mask=jnp.float32(mask))
  return jax.jit(policy.update)(stats, ())[0]


@pytest.mark.parametrize("gamma", [2.0, 0.5, 0.0, 5])
def test_agrees_with_the_equation(gamma):
  policy = focal(gamma)
  update = jax.jit(policy.update)
  for seed in range(8):
    rng = np.random.default_rng(seed)
    loss = np.float32(rng.gamma(1.0, 2.0, (4, 6)) * 10.0 ** rng.integers(-5, 2, (4, 6)))
    mask = np.float32(rng.random((4, 6)) < 0.7)
    loss[rng.random((4, 6)) < 0.1] = np.inf
    stats = ExampleStats(token_loss=jnp.asarray(loss), token_mask=jnp.asarray(mask))
    decision, _ = update(stats, ())
    expected = np.zeros((4, 6))
    for b, t in np.ndindex(4, 6):
      if mask[b, t] and np.isfinite(loss[b, t]):
        expected[b, t] = (-np.expm1(-np.float64(loss[b, t]))) ** gamma
    np.testing.assert_allclose(decision.token_weights, expected, rtol=1e-5, atol=1e-12)
    assert decision.metrics["num_nonfinite"] == np.sum((mask > 0) & ~np.isfinite(loss))
    mean = expected.sum() / mask.sum()
    np.testing.assert_allclose(decision.metrics["mean_weight"], mean, rtol=1e-5)


def test_gamma_0_weighs_exactly_one_and_losses_at_0_nothing():
  loss = [[0.0, 1e-9, 3.0, 80.0, -1e-9, 2.0]]
  mask = [[1, 1, 1, 1, 1, 0]]
  assert decide(focal(0.0), loss, mask).token_weights.tolist() == [[1.0] * 5 + [0.0]]
  weights = decide(focal(), loss, mask).token_weights[0]
  assert weights[0] == weights[4] == 0
  assert weights[3] == 1


def test_each_token_by_itself_and_no_tokens():
  rng, policy = np.random.default_rng(1), focal()
  loss, mask = rng.gamma(1.0, 2.0, (4, 6)), np.ones((4, 6))
  whole = decide(policy, loss, mask).token_weights
  halves = [decide(policy, loss[i : i + 2], mask[:2]).token_weights for i in (0, 2)]
  assert policy.pointwise
  np.testing.assert_array_equal(jnp.concatenate(halves), whole)
  empty = decide(policy, loss, 0 * mask)
  assert empty.metrics["mean_weight"] == 0
  assert not np.any(empty.token_weights)


def test_lowers_tokens_that_are_well_predicted():
  """A model that has learnt half of the tokens keeps the other half's gradient."""
  probability = np.array([[0.99, 0.95, 0.9, 0.3, 0.1, 0.01]])
  weights = decide(focal(), -np.log(probability), np.ones((1, 6))).token_weights[0]
  assert np.all(np.diff(weights) > 0)
  assert weights[:3].max() < 0.02 < 0.4 < weights[3:].min()


def test_shape_of_packed_rows():
  packed = SPEC._replace(batch_size=12, max_segments=3)
  decision, _ = focal().init(packed, KEY)
  assert decision.token_weights.tolist() == [[1.0] * 6] * 4


def test_rejects():
  for gamma in (-1.0, np.inf, np.nan, "2"):
    with pytest.raises(ValueError, match="gamma"):
      focal(gamma)
  with pytest.raises(ValueError, match=r"focal weighs tokens.*batch_size.*sequence_length"):
    focal().init(SPEC._replace(batch_size=0, sequence_length=0), KEY)
