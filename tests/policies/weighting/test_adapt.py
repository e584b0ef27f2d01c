"""ADAPT: the equations, the edges, the behaviour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec, TargetStats
from jdc.policies.weighting import adapt

SPEC = RunSpec(90, 1, ("web",), (90,), (1.0,), batch_size=8, num_targets=5)
KEY = jax.random.key(0)
PHI = "position_weighted_embedding"


def as_stats(phi, anchors, tokens, field=PHI):
  target = TargetStats(**{field: jnp.float32(anchors)})
  return ExampleStats(
    **{field: jnp.float32(phi)}, num_tokens=jnp.asarray(tokens), target=target
  )


def decide(policy, *args, **kwargs):
  return jax.jit(policy.update)(as_stats(*args, **kwargs), ())[0]


def cosine(a, b):
  norms = np.linalg.norm(a) * np.linalg.norm(b)
  return a @ b / norms if norms > 0 else 0.0


def reference(phi, anchors, tokens, tau):
  """The docstring's equations, one pair at a time, in float64."""
  anchors = [a for a in anchors if np.all(np.isfinite(a))]
  weights = []
  for z, n in zip(phi, tokens, strict=True):
    if n > 0 and not np.all(np.isfinite(z)):
      weights.append(0.0)
      continue
    s = np.mean([cosine(z, a) for a in anchors]) if n > 0 and anchors else 0.0
    weights.append(1 / (1 + np.exp(-s / max(tau, 1e-8))))
  return weights


@pytest.mark.parametrize("tau", [1.0, 0.2, 5.0])
@pytest.mark.parametrize("field", [PHI, "embedding", "last_token_embedding"])
def test_agrees_with_the_equations(tau, field):
  policy = adapt(tau, field)
  update = jax.jit(policy.update)
  assert policy.observes == {field, "num_tokens", "target"}
  for seed in range(8):
    rng = np.random.default_rng(seed)
    phi, anchors = rng.normal(size=(8, 6)) * 9, rng.normal(size=(5, 6)) + 0.5
    phi[rng.random(8) < 0.2, 2] = np.nan
    anchors[rng.random(5) < 0.2, 1] = np.inf
    phi[0], anchors[-1], tokens = 0.0, 0.0, rng.integers(0, 3, 8)
    decision, _ = update(as_stats(phi, anchors, tokens, field), ())
    expected = reference(phi, anchors, tokens, tau)
    np.testing.assert_allclose(decision.weights, expected, rtol=1e-5, atol=1e-6)
    lost = np.sum(~np.isfinite(phi).all(1) & (tokens > 0))
    assert decision.metrics["num_nonfinite"] == lost
    assert decision.metrics["num_nonfinite_anchors"] == np.sum(~np.isfinite(anchors).all(1))
    mean = np.mean(np.array(expected)[tokens > 0]) if np.any(tokens > 0) else 0.0
    np.testing.assert_allclose(decision.metrics["mean_weight"], mean, rtol=1e-5)


def test_each_example_by_itself():
  """A batch in two halves decides the same, bit for bit."""
  policy, rng = adapt(), np.random.default_rng(1)
  phi, anchors = rng.normal(size=(8, 6)), rng.normal(size=(5, 6))
  whole = decide(policy, phi, anchors, [3] * 8).weights
  halves = [decide(policy, part, anchors, [3] * 4).weights for part in (phi[:4], phi[4:])]
  assert policy.pointwise
  np.testing.assert_allclose(jnp.concatenate(halves), whole, rtol=1e-6)


def test_edges():
  anchors = [[1.0, 0.0]] * 3
  some = decide(adapt(), [[0.0, 0.0], [np.nan, 1.0], [4.0, 0.0]], anchors, [2, 0, 2])
  np.testing.assert_allclose(some.weights, [0.5, 0.5, 1 / (1 + np.exp(-1))], rtol=1e-6)
  assert some.metrics["num_nonfinite"] == 0
  steep = decide(adapt(0.0), [[2.0, 0.0], [0.0, 1.0], [-1e-20, 0.0]], anchors, [1] * 3)
  assert steep.weights.tolist() == [1.0, 0.5, 0.0]
  without = decide(adapt(), [[2.0, 0.0]], [[np.nan, 0.0]] * 2, [1])
  assert without.weights.tolist() == [0.5]
  far = decide(adapt(), [[3e38, 0.0], [1e-37, 0.0]], [[-3e38, 0.0]], [1, 1])
  np.testing.assert_allclose(far.weights, [1 / (1 + np.e)] * 2, rtol=1e-6)


def test_prefers_examples_like_the_anchors():
  rng = np.random.default_rng(2)
  topics = np.eye(2, 16)
  like = rng.random(64) < 0.5
  phi = topics[np.where(like, 0, 1)] + 0.1 * rng.normal(size=(64, 16))
  anchors = topics[0] + 0.1 * rng.normal(size=(12, 16))
  weights = np.asarray(decide(adapt(), phi, anchors, np.full(64, 5)).weights)
  assert weights[like].min() > weights[~like].max() + 0.1
  assert 0.73 > weights.max() > weights.min() > 0.26


@pytest.mark.parametrize(
  "argument",
  [{"temperature": -1.0}, {"temperature": np.inf}, {"embedding": "gradient"}],
)
def test_rejects(argument):
  with pytest.raises(ValueError, match=next(iter(argument))):
    adapt(**argument)


def test_rejects_all_at_once():
  with pytest.raises(ValueError, match=r"temperature.*embedding"):
    adapt(np.nan, "mean")
  with pytest.raises(ValueError, match=r"batch_size.*num_targets"):
    adapt().init(SPEC._replace(batch_size=0, num_targets=0), KEY)
