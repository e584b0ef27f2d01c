"""In-run Shapley values: brute force on a quadratic, sums over a run, edges, the behaviour."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.policies import ExampleStats, RunSpec
from jdc.policies.selection import in_run_shapley

N = 20
SPEC = RunSpec(N, 1, ("all",), (N,), (1.0,), batch_size=6, num_targets=3)
KEY = jax.random.key(0)


def begin(policy):
  return policy.init(SPEC, KEY)[1]


def batch(ids, alignment, curvature=None, rate=1.0, tokens=None):
  return ExampleStats(
    example_id=jnp.asarray(ids),
    num_tokens=jnp.ones(len(ids), int) if tokens is None else jnp.asarray(tokens),
    target_alignment=jnp.float32(alignment),
    target_curvature=None if curvature is None else jnp.float32(curvature),
    learning_rate=jnp.float32(rate),
  )


def shapley(utility, size):
  """By definition: of all subsets of the others, the mean of what a player adds."""
  values = np.zeros(size)
  for i in range(size):
    others = [j for j in range(size) if j != i]
    for count in range(size):
      share = math.factorial(count) * math.factorial(size - 1 - count) / math.factorial(size)
      for subset in itertools.combinations(others, count):
        values[i] += share * (utility([*subset, i]) - utility(list(subset)))
  return values


@pytest.mark.parametrize("step", ["mean", "sum"])
@pytest.mark.parametrize("order", ["first", "second"])
def test_is_the_shapley_value_of_a_quadratic(order, step):
  """Of first order, of a plane. In float64, over all subsets of the rows with tokens."""
  policy = in_run_shapley(order, step)
  observe = jax.jit(policy.observe)
  for seed in range(10):
    rng, rate, size = np.random.default_rng(seed), 0.3, 6
    gradient, theta, slope = rng.normal(size=(size, 4)), *rng.normal(size=(2, 4))
    hessian = rng.normal(size=(4, 4))
    hessian = hessian @ hessian.T * (order == "second")
    tokens = rng.permutation([1, 2, 3, 4, 5, 0])
    gradient[tokens == 0] = 0
    eta = rate / 5 if step == "mean" else rate
    target = lambda x, h=hessian, b=slope: x @ h @ x / 2 + b @ x

    def utility(rows, target=target, theta=theta, gradient=gradient, eta=eta):
      return target(theta) - target(theta - eta * gradient[rows].sum(axis=0))

    expected = shapley(utility, size)
    np.testing.assert_allclose(expected.sum(), utility([*range(size)]), rtol=1e-9)
    g, ids = hessian @ theta + slope, rng.permutation(N)[:size]
    told = batch(ids, gradient @ g, gradient @ hessian @ gradient.sum(axis=0), rate, tokens)
    state = observe(told, begin(policy))
    scale = eta * np.linalg.norm(gradient, axis=1).max() * np.linalg.norm(g)
    scale += eta**2 * np.linalg.norm(hessian) * np.sum(gradient**2)
    found = np.asarray(state.value_N)[ids]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)
    assert found[tokens == 0] == 0
    assert np.sum(state.count_N) == 5
    assert np.sum(np.asarray(state.value_N) != 0) == 5


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("aggregate", ["sum", "mean"])
def test_values_of_a_run_are_added_by_row(aggregate, drop):
  """Copies of a row in a batch, padding and rows without tokens among them."""
  policy = in_run_shapley(aggregate=aggregate, temperature=0.5, drop_negative=drop)
  observe, update = jax.jit(policy.observe), jax.jit(policy.update)
  for seed in range(10):
    rng, state = np.random.default_rng(seed), begin(policy)
    value, count = np.zeros(N), np.zeros(N)
    for _ in range(4):
      ids, alignment = rng.integers(-1, N, 8), np.float32(rng.normal(size=8))
      ids[1], tokens, rate = ids[0], rng.integers(0, 3, 8), rng.uniform(0, 1)
      valid = (ids >= 0) & (tokens > 0)
      state = observe(batch(ids, alignment, None, rate, tokens), state)
      for row in np.flatnonzero(valid):
        value[ids[row]] += rate / valid.sum() * np.float64(alignment[row])
        count[ids[row]] += 1
    if aggregate == "mean":
      value /= np.maximum(count, 1)
    expected = value / np.sqrt(np.mean(value[count > 0] ** 2)) / 0.5
    decision, _ = update(ExampleStats(), state)
    dropped = (value < 0) & drop
    clear = np.abs(value) > 1e-6
    np.testing.assert_array_equal(np.isinf(decision.logits)[clear], dropped[clear])
    kept = np.isfinite(decision.logits)
    np.testing.assert_allclose(np.asarray(decision.logits)[kept], expected[kept], atol=2e-5)
    np.testing.assert_array_equal(state.count_N, count)
    assert decision.metrics["num_seen"] == np.sum(count > 0)
    assert decision.metrics["num_eligible"] == kept.sum()
    assert decision.metrics["num_nonfinite"] == 0
    assert np.all(np.asarray(decision.logits)[count == 0] == 0)


def test_what_is_not_finite():
  policy = in_run_shapley(step="sum")
  state = policy.observe(batch([0, 1, 2], [1.0, np.nan, np.inf]), begin(policy))
  decision, _ = policy.update(ExampleStats(), state)
  assert decision.logits.tolist() == [1.0, -np.inf, -np.inf, *[0.0] * (N - 3)]
  assert decision.metrics["num_nonfinite"] == 2
  assert decision.metrics["num_seen"] == 1
  # A target gradient that is not finite says nothing about the rows.
  same = policy.observe(batch([0, 4, 5], [np.nan] * 3), state)
  for one, other in zip(same, state, strict=True):
    np.testing.assert_array_equal(one, other)
  found = policy.observe(batch([1, 2, -1], [-1.0, np.nan, 1.0]), state)
  decision, _ = policy.update(ExampleStats(), found)
  assert decision.logits[:3].tolist() == [1.0, -1.0, -np.inf]
  full = policy.observe(batch([0], [3e38]), policy.observe(batch([0, 1], [3e38, 3e38]), state))
  decision, _ = policy.update(ExampleStats(), full)  # a sum that is too large
  assert decision.logits[0] == -np.inf
  assert not np.any(np.isnan(decision.logits))
  still = policy.observe(batch([0, 1], [1.0, 1.0], rate=0.0), begin(policy))
  decision, _ = policy.update(ExampleStats(), still)
  assert decision.logits.tolist() == [0.0] * N
  assert decision.metrics["num_seen"] == 2


def test_rows_with_wrong_labels_have_done_harm():
  """A regression by gradient descent, whose target has the true labels."""
  rng = np.random.default_rng(0)
  wrong, theta = np.arange(N) % 4 == 0, np.array([1.0, -2.0, 0.5])
  x, target = rng.normal(size=(N, 3)), rng.normal(size=(30, 3))
  y = x @ theta * np.where(wrong, -1, 1)
  for order in ("first", "second"):
    policy, estimate, rate = in_run_shapley(order), np.zeros(3), 0.2
    state = begin(policy)
    for _ in range(60):
      ids = rng.permutation(N)[:6]
      gradient = (x[ids] @ estimate - y[ids])[:, None] * x[ids]
      hessian = target.T @ target / 30
      g = hessian @ (estimate - theta)
      curvature = gradient @ hessian @ gradient.sum(axis=0)
      state = policy.observe(batch(ids, gradient @ g, curvature, rate), state)
      estimate = estimate - rate * gradient.mean(axis=0)
    decision, _ = policy.update(ExampleStats(), state)
    worst = np.argsort(decision.logits)[: wrong.sum()]
    assert np.mean(wrong[worst]) >= 0.8


def test_rejects():
  with pytest.raises(ValueError, match=r"order must be .*; step must.*; temperature must"):
    in_run_shapley("third", "product", temperature=0.0)
  with pytest.raises(ValueError, match=r"aggregate must be .*; drop_negative must"):
    in_run_shapley(aggregate="max", drop_negative=1)
  with pytest.raises(ValueError, match="num_targets > 0, got 0"):
    in_run_shapley().init(SPEC._replace(num_targets=0), KEY)
