"""Online hard example mining: the equation, the edges, the behaviour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.weighting import ohem

SPEC = RunSpec(90, 1, ("web",), (90,), (1.0,), batch_size=12)
KEY = jax.random.key(0)


def decide(policy, loss, tokens):
  stats = ExampleStats(loss=jnp.float32(loss), num_tokens=jnp.asarray(tokens))
  return jax.jit(policy.update)(stats, ())[0]


def reference(loss, tokens, fraction, k):
  """Tenths, so that the number kept is exact."""
  rows = [i for i in range(len(loss)) if tokens[i] > 0 and np.isfinite(loss[i])]
  wanted = k if fraction is None else -(-round(10 * fraction) * len(rows) // 10)
  kept = sorted(rows, key=lambda i: (-float(loss[i]), i))[:wanted]
  weights = np.zeros(len(loss))
  weights[kept] = len(rows) / max(len(kept), 1)
  return weights, wanted - len(kept)


@pytest.mark.parametrize(
  ("fraction", "k"), [(0.1, None), (0.3, None), (1.0, None), (None, 1), (None, 7), (None, 12)]
)
def test_agrees_with_the_equation(fraction, k):
  policy = ohem(fraction, k)
  update = jax.jit(policy.update)
  for seed in range(12):
    rng = np.random.default_rng(seed)
    loss, tokens = np.float32(rng.integers(0, 8, 12) / 3), rng.integers(0, 4, 12)  # ties
    loss[rng.random(12) < 0.2] = np.nan
    stats = ExampleStats(loss=jnp.asarray(loss), num_tokens=jnp.asarray(tokens))
    decision, _ = update(stats, ())
    expected, missing = reference(loss, tokens, fraction, k)
    np.testing.assert_allclose(decision.weights, expected, rtol=1e-6)
    assert decision.metrics["num_missing"] == missing
    assert decision.metrics["num_kept"] == np.sum(expected > 0)
    assert decision.metrics["num_nonfinite"] == np.sum((tokens > 0) & np.isnan(loss))


@pytest.mark.parametrize(("fraction", "k"), [(None, 64), (1.0, None)])
def test_where_all_are_kept_they_weigh_exactly_one(fraction, k):
  policy, loss = ohem(fraction, k), jnp.linspace(0.0, 5.0, 64)
  update = jax.jit(policy.update)
  for rows in range(1, 65):
    tokens = jnp.int32(np.arange(64) < rows)
    decision, _ = update(ExampleStats(loss=loss, num_tokens=tokens), ())
    np.testing.assert_array_equal(decision.weights, tokens)
    assert decision.metrics["num_missing"] == (64 - rows if k else 0)


def test_edges():
  none = decide(ohem(0.5), [1.0, np.nan], [0, 4])
  assert none.weights.tolist() == [0.0, 0.0]
  assert none.metrics["num_kept"] == 0
  assert none.metrics["num_missing"] == 0
  ties = decide(ohem(k=2), [2.0, 2.0, 2.0, 1.0], [3, 3, 3, 3])
  assert ties.weights.tolist() == [2.0, 2.0, 0.0, 0.0]


def test_keeps_the_hardest_and_their_mean_loss():
  rng = np.random.default_rng(0)
  hard = rng.random(40) < 0.25
  loss = np.where(hard, 4.0, 1.0) + 0.1 * rng.normal(size=40)
  weights = np.asarray(decide(ohem(k=int(hard.sum())), loss, np.full(40, 6)).weights)
  np.testing.assert_array_equal(weights > 0, hard)
  np.testing.assert_allclose(np.mean(weights * loss), loss[hard].mean(), rtol=1e-5)


@pytest.mark.parametrize(
  ("arguments", "named"),
  [
    ({}, "exactly one of fraction and k"),
    ({"fraction": 0.5, "k": 3}, "exactly one of fraction and k"),
    ({"fraction": 0.0}, "fraction"),
    ({"fraction": 1.5}, "fraction"),
    ({"fraction": np.nan}, "fraction"),
    ({"k": 0}, "k must"),
    ({"k": 2.0}, "k must"),
  ],
)
def test_rejects(arguments, named):
  with pytest.raises(ValueError, match=named):
    ohem(**arguments)


def test_rejects_what_does_not_fit_the_run():
  with pytest.raises(ValueError, match="k must be at most batch_size 12, got 13"):
    ohem(k=13).init(SPEC, KEY)
  with pytest.raises(ValueError, match="batch_size"):
    ohem(0.5).init(SPEC._replace(batch_size=0), KEY)
  with pytest.raises(ValueError, match=r"exactly one.*fraction.*k must"):
    ohem(-1.0, -1)
