"""Rho-1: the equation, the edges, the behaviour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.weighting import rho1

SPEC = RunSpec(90, 1, ("web",), (90,), (1.0,), batch_size=4, sequence_length=6)
KEY = jax.random.key(0)


def as_stats(loss, reference_loss, mask):
  return ExampleStats(
    token_loss=jnp.float32(loss),
    reference_token_loss=jnp.float32(reference_loss),
    token_mask=jnp.float32(mask),
  )


def decide(policy, *args):
  return jax.jit(policy.update)(as_stats(*args), ())[0]


def reference(loss, reference_loss, mask, tenths):
  """The docstring's equation on a list of tokens, in float64."""
  excess = np.float64(loss) - np.float64(reference_loss)
  tokens = [at for at in np.ndindex(loss.shape) if mask[at] and np.isfinite(excess[at])]
  kept = sorted(tokens, key=lambda at: (-excess[at], at))[: -(-tenths * len(tokens) // 10)]
  weights = np.zeros(loss.shape)
  for at in kept:
    weights[at] = len(tokens) / len(kept)
  return weights


@pytest.mark.parametrize("tenths", [1, 6, 7, 10])
def test_agrees_with_the_equation(tenths):
  policy = rho1(tenths / 10)
  update = jax.jit(policy.update)
  for seed in range(12):
    rng = np.random.default_rng(seed)
    # Quarters, so that there are ties and differences are exact.
    loss, reference_loss = (np.float32(rng.integers(0, 9, (4, 6)) / 4) for _ in range(2))
    mask = rng.random((4, 6)) < 0.7
    loss[rng.random((4, 6)) < 0.1] = np.nan
    reference_loss[rng.random((4, 6)) < 0.05] = np.inf
    decision, _ = update(as_stats(loss, reference_loss, mask), ())
    expected = reference(loss, reference_loss, mask, tenths)
    np.testing.assert_allclose(decision.token_weights, expected, rtol=1e-6)
    assert decision.metrics["num_kept"] == np.sum(expected > 0)
    lost = np.sum(mask & ~np.isfinite(loss - reference_loss))
    assert decision.metrics["num_nonfinite"] == lost


def test_keeping_all_weighs_exactly_one():
  update = jax.jit(rho1(1.0).update)
  loss = np.random.default_rng(0).gamma(2.0, 1.0, (8, 8))
  for count in range(1, 65):
    mask = np.float32(np.arange(64) < count).reshape(8, 8)
    decision, _ = update(as_stats(loss, 0 * loss, mask), ())
    np.testing.assert_array_equal(decision.token_weights, mask)


def test_counts_are_exact_and_ties_go_to_the_lower_index():
  equal = decide(rho1(0.6), np.ones((4, 5)), np.ones((4, 5)), np.ones((4, 5)))
  kept = np.asarray(equal.token_weights).reshape(-1) > 0
  np.testing.assert_array_equal(kept, np.arange(20) < 12)
  none = decide(rho1(), np.ones((2, 3)), np.ones((2, 3)), np.zeros((2, 3)))
  assert not np.any(none.token_weights)
  assert none.metrics["num_kept"] == 0


def test_keeps_what_is_learnable_but_not_learnt():
  """Tokens are noise, learnt, or neither; only the last have a loss above the reference's."""
  rng = np.random.default_rng(1)
  kind = rng.permutation(np.repeat(["noise", "learnt", "unlearnt"], [16, 16, 16])).reshape(6, 8)
  loss = np.where(kind == "learnt", 0.1, 6.0) + 0.05 * rng.normal(size=(6, 8))
  easy_for_reference = np.where(kind == "noise", 6.0, 0.1)
  decision = decide(rho1(1 / 3), loss, easy_for_reference, np.ones((6, 8)))
  np.testing.assert_array_equal(decision.token_weights, np.where(kind == "unlearnt", 3.0, 0.0))


def test_default_and_shape_of_packed_rows():
  packed = SPEC._replace(batch_size=12, max_segments=3)
  decision, _ = rho1().init(packed, KEY)
  assert decision.token_weights.tolist() == [[1.0] * 6] * 4
  assert decide(rho1(), *np.ones((3, 2, 5))).metrics["num_kept"] == 6


def test_rejects():
  for fraction in (0.0, 1.1, np.nan, None, True):
    with pytest.raises(ValueError, match="fraction"):
      rho1(fraction)
  with pytest.raises(ValueError, match=r"rho1 weighs tokens.*batch_size.*sequence_length"):
    rho1().init(SPEC._replace(batch_size=0, sequence_length=0), KEY)
