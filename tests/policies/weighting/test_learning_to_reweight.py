"""Learning to reweight: the equation, the virtual step, the edges, the behaviour."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.weighting import learning_to_reweight

SPEC = RunSpec(90, 1, ("web",), (90,), (1.0,), batch_size=8, num_targets=5)
KEY = jax.random.key(0)
POLICY = learning_to_reweight()
UPDATE = jax.jit(POLICY.update)


def decide(alignment, tokens):
  stats = ExampleStats(target_alignment=jnp.float32(alignment), num_tokens=jnp.asarray(tokens))
  return UPDATE(stats, ())[0]


def reference(alignment, tokens):
  rows = [i for i in range(len(tokens)) if tokens[i] > 0 and np.isfinite(alignment[i])]
  total = sum(max(float(alignment[i]), 0.0) for i in rows)
  weights = np.zeros(len(tokens))
  for i in rows:
    weights[i] = len(rows) * max(float(alignment[i]), 0.0) / total if total > 0 else 0.0
  return weights


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_agrees_with_the_equation(scale):
  for seed in range(20):
    rng = np.random.default_rng(seed)
    alignment, tokens = np.float32(rng.normal(size=8) * scale), rng.integers(0, 4, 8)
    alignment[rng.random(8) < 0.2] = np.nan
    decision, expected = decide(alignment, tokens), reference(alignment, tokens)
    np.testing.assert_allclose(decision.weights, expected, rtol=1e-5, atol=1e-6)
    assert decision.metrics["num_nonfinite"] == np.sum((tokens > 0) & np.isnan(alignment))
    assert decision.metrics["num_positive"] == np.sum(expected > 0)


def test_edges():
  assert decide([-1.0, 0.0, -2.0], [3, 3, 3]).weights.tolist() == [0.0, 0.0, 0.0]
  assert decide([np.inf, 2.0, 5.0], [3, 3, 0]).weights.tolist() == [0.0, 1.0, 0.0]
  assert decide([3e38, 3e38, -3e38], [3, 3, 3]).weights.tolist() == [1.5, 1.5, 0.0]
  assert decide([3e38, 1.5e38, 0.0], [3, 3, 3]).weights.tolist() == [2.0, 1.0, 0.0]
  assert decide([np.nan] * 3, [3, 0, 0]).weights.tolist() == [0.0, 0.0, 0.0]


def test_equal_alignments_weigh_exactly_one():
  for value in np.random.default_rng(0).gamma(2.0, 2.0, 12):
    for rows in (1, 13, 41, 47, 64):
      tokens = np.int32(np.arange(64) < rows)
      np.testing.assert_array_equal(decide(np.full(64, value), tokens).weights, tokens)


def model_loss(theta, x, y):
  return jnp.mean((x @ theta - y) ** 2)


def problem(seed):
  """A linear regression in which every third example has a wrong label."""
  rng = np.random.default_rng(seed)
  truth, x = np.array([1.0, -2.0, 0.5]), rng.normal(size=(24, 3))
  wrong = np.arange(24) % 3 == 0
  y = x @ truth * np.where(wrong, -1, 1)
  clean = rng.normal(size=(40, 3))
  return x, y, wrong, clean, clean @ truth


def alignments(theta, x, y, clean, clean_y):
  of_examples = jax.vmap(jax.grad(model_loss), (None, 0, 0))(theta, x, y)
  return of_examples @ jax.grad(model_loss)(theta, clean, clean_y)


def test_is_the_steepest_virtual_step():
  """The paper's definition: minus the gradient by example weights at 0, cut and normalised."""
  x, y, _, clean, clean_y = problem(0)
  theta = jnp.zeros(3)

  def after_a_step(eps):
    loss = lambda theta: jnp.sum(eps * jax.vmap(model_loss, (None, 0, 0))(theta, x, y))
    return model_loss(theta - 0.1 * jax.grad(loss)(theta), clean, clean_y)

  steepest = np.maximum(-np.float64(jax.grad(after_a_step)(jnp.zeros(24))), 0)
  weights = decide(alignments(theta, x, y, clean, clean_y), [1] * 24).weights
  np.testing.assert_allclose(weights, 24 * steepest / steepest.sum(), rtol=1e-5)


def test_drops_mislabelled_examples():
  """Training with the weights finds the truth; training without them does not."""
  x, y, wrong, clean, clean_y = problem(1)

  @jax.jit
  def train(theta, weights):
    loss = lambda theta: jnp.mean(weights * jax.vmap(model_loss, (None, 0, 0))(theta, x, y))
    return theta - 0.05 * jax.grad(loss)(theta)

  measure, ones = jax.jit(alignments), jnp.ones(24)
  weighted, plain, shares = jnp.zeros(3), jnp.zeros(3), []
  for _ in range(60):
    weights = decide(measure(weighted, x, y, clean, clean_y), [1] * 24).weights
    shares.append(float(jnp.sum(jnp.where(wrong, weights, 0)) / 24))
    weighted, plain = train(weighted, weights), train(plain, ones)
  assert np.mean(shares) < 0.05 < wrong.mean()
  assert model_loss(weighted, clean, clean_y) < 0.05 < model_loss(plain, clean, clean_y)


def test_rejects():
  with pytest.raises(ValueError, match=r"batch_size.*num_targets"):
    POLICY.init(SPEC._replace(batch_size=0, num_targets=0), KEY)
