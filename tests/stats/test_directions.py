"""Adam's directions: against the optimizer itself, and against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdc.stats import directions
from jdc.stats.directions import Adam, Moments, adam_direction, moments_of
from jdc.train.config import OptimizerConfig
from jdc.train.optimizer import make_optimizer


def random_tree(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: np.float32(scale * rng.normal(size=shape))
  return {"map": {"kernel": draw(2, 3, 5), "bias": draw(3)}, "norm": {"scale": draw(4)}}


@pytest.mark.parametrize("clip_norm", [0.0, 0.3, 100.0])
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_optimizer_is_the_step_that_would_be_taken(clip_norm, steps):
  config = OptimizerConfig(
    learning_rate=0.01, schedule="constant", warmup_steps=0, b1=0.8, b2=0.95, epsilon=1e-3,
    weight_decay=0.0, clip_norm=clip_norm,
  )  # fmt: skip
  optimizer, _ = make_optimizer(config, 100)
  params = random_tree(0)
  state, update = optimizer.init(params), jax.jit(optimizer.update)
  for step in range(steps):
    _, state = update(random_tree(step + 1), state, params)
  adam = Adam(config.b1, config.b2, config.epsilon, clip_norm)
  moments = moments_of(state)
  assert moments.count == steps
  examples = [random_tree(100 + i, 10.0 ** (i - 3)) for i in range(6)]
  stacked = jax.tree.map(lambda *x: np.stack(x), *examples)
  found = jax.jit(
    jax.vmap(lambda g: adam_direction("optimizer", adam, g, moments)),
  )(stacked)
  for i, example in enumerate(examples):
    moved, _ = update(example, state, params)
    expected = jax.tree.map(lambda x: x / -config.learning_rate, moved)
    for one, right in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(one[i], right, rtol=1e-5, atol=1e-6)


def expected_direction(form, adam, g, mu, nu, count):
  """One leaf, in float64."""
  mu = adam.b1 * mu + (1 - adam.b1) * g
  nu = adam.b2 * nu + (1 - adam.b2) * g**2
  if form in ("optimizer", "paper"):
    mu, nu = mu / (1 - adam.b1 ** (count + 1)), nu / (1 - adam.b2 ** (count + 1))
  inside = form in ("paper", "official")
  return mu / np.sqrt(nu + adam.epsilon) if inside else mu / (np.sqrt(nu) + adam.epsilon)


@functools.cache
def jitted(form, adam):
  return jax.jit(functools.partial(adam_direction, form, adam))


@pytest.mark.parametrize("form", directions.DIRECTIONS)
def test_forms_agree_with_their_equations(form):
  adam = Adam(b1=0.9, b2=0.99, epsilon=1e-2)
  for seed in range(20):
    gradient, mu = random_tree(seed, 0.3), random_tree(seed + 50, 0.1)
    nu = jax.tree.map(np.square, random_tree(seed + 90, 0.1))
    count = np.int32([0, 1, 3, 1000][seed % 4])
    found = jitted(form, adam)(gradient, Moments(mu, nu, count))
    for one, *leaves in zip(*map(jax.tree.leaves, (found, gradient, mu, nu)), strict=True):
      g, m, v = (np.float64(x) for x in leaves)
      right = expected_direction(form, adam, g, m, v, int(count))
      np.testing.assert_allclose(one, right, rtol=0, atol=1e-5 * np.linalg.norm(right))


def test_results_are_float32_of_any_types():
  half = lambda x: jnp.asarray(x, jnp.bfloat16)
  gradient, moments = random_tree(0), (random_tree(1), jax.tree.map(np.abs, random_tree(2)))
  adam = Adam(0.9, 0.99, 1e-2, clip_norm=1.0)
  halves = jax.tree.map(half, (gradient, *moments))
  rounded = jax.tree.map(lambda x: x.astype(jnp.float32), halves)
  direction = jitted("optimizer", adam)
  found, right = (direction(g, Moments(mu, nu, 2)) for g, mu, nu in (halves, rounded))
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
    assert one.dtype == jnp.float32
    np.testing.assert_array_equal(one, other)


def test_moments_are_found_anywhere_in_a_state():
  params = random_tree(0)
  for optimizer in (
    optax.adam(0.1),
    optax.chain(optax.clip(1.0), optax.chain(optax.adamw(optax.linear_schedule(1, 0, 9)))),
    optax.inject_hyperparams(optax.adamw)(learning_rate=0.1),
    optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
  ):
    state = optimizer.init(params)
    found = moments_of(state)
    assert jax.tree.structure(found.mu) == jax.tree.structure(params)
    assert found.count == 0


@pytest.mark.parametrize(
  ("optimizer", "count"), [(optax.sgd(0.1), 0), (optax.chain(*[optax.adam(0.1)] * 2), 2)]
)
def test_states_without_one_adam_are_refused(optimizer, count):
  with pytest.raises(ValueError, match=f"one `optax.scale_by_adam`.*holds {count} of them"):
    moments_of(optimizer.init(random_tree(0)))


def test_unknown_forms_are_refused():
  state = Moments({}, {}, jnp.int32(0))
  with pytest.raises(ValueError, match=r"features.direction.*'official'.*got 'adam'"):
    adam_direction("adam", Adam(0.9, 0.99, 1e-8), {}, state)
