"""A policy inside plain training loops, in under ten added lines each.

Lines that a loop gains are marked `# +`, lines that it already has and that change `# ~`.
"""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

NAMES, SIZES, SHARES, BATCH, STEPS = ("clean", "noisy"), (256, 256), (0.5, 0.5), 16, 150
ONES_B, TRUTH = np.ones(BATCH, np.int32), np.float32([1, -1, 2, 0.5])


def make_domains():
  """One linear regression in two domains, one of them with noise."""
  rng = np.random.default_rng(0)
  x_DxNx4 = rng.normal(size=(2, 256, 4)).astype(np.float32)
  noise_DxN = rng.normal(size=(2, 256)) * [[0.0], [3.0]]
  return x_DxNx4, x_DxNx4 @ TRUTH + noise_DxN.astype(np.float32)


def train_linen():
  from jdc import policies  # +

  (x_DxNx4, y_DxN), rng = make_domains(), np.random.default_rng(1)
  model, optimizer = nn.Dense(1), optax.sgd(0.02)
  params = model.init(jax.random.key(0), x_DxNx4[0, :1])
  opt_state = optimizer.init(params)
  spec = policies.RunSpec(512, 2, NAMES, SIZES, SHARES)  # +
  policy = policies.mixture.odm(warmup_steps=10)  # +
  decision, policy_state = policy.init(spec, jax.random.key(1))  # +

  @jax.jit
  def train_step(params, opt_state, x, y):
    def loss_fn(params):
      loss_B = jnp.square(model.apply(params, x)[:, 0] - y)
      return loss_B.mean(), loss_B

    (_, loss_B), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state, loss_B

  history = []
  for _ in range(STEPS):
    p = np.asarray(jax.nn.softmax(decision.logits))  # +
    domain_B = rng.choice(2, BATCH, p=p / p.sum())  # ~
    rows_B = rng.integers(0, 256, BATCH)
    x, y = x_DxNx4[domain_B, rows_B], y_DxN[domain_B, rows_B]
    params, opt_state, loss_B = train_step(params, opt_state, x, y)
    drawn = {"domain": domain_B, "num_tokens": ONES_B, "domain_probability": p[domain_B]}  # +
    stats = policies.ExampleStats(loss=loss_B, **drawn)  # +
    decision, policy_state = jax.jit(policy.update)(stats, policy_state)  # +
    history.append(p)
  return params["params"]["kernel"][:, 0], history


def train_nnx():
  from jdc import policies  # +

  (x_DxNx4, y_DxN), rng = make_domains(), np.random.default_rng(1)
  model = nnx.Linear(4, 1, rngs=nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, optax.sgd(0.02), wrt=nnx.Param)
  spec = policies.RunSpec(512, 2, NAMES, SIZES, SHARES, batch_size=BATCH)  # +
  policy = policies.weighting.loss_reweighting("linupper", burn_in_steps=10)  # +
  _, policy_state = policy.init(spec, jax.random.key(1))  # +

  @nnx.jit
  def train_step(model, optimizer, x, y, policy_state):  # ~
    def loss_fn(model):
      loss_B = jnp.square(model(x)[:, 0] - y)
      stats = policies.ExampleStats(loss=jax.lax.stop_gradient(loss_B), num_tokens=ONES_B)  # +
      decision, new_state = policy.update(stats, policy_state)  # +
      return (loss_B * decision.weights).mean(), (decision.weights, new_state)  # ~

    (_, aux), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model)
    optimizer.update(model, grads)
    return aux

  history = []
  for _ in range(STEPS):
    domain_B, rows_B = rng.integers(0, 2, BATCH), rng.integers(0, 256, BATCH)
    x, y = x_DxNx4[domain_B, rows_B], y_DxN[domain_B, rows_B]
    weights, policy_state = train_step(model, optimizer, x, y, policy_state)  # ~
    history.append(np.asarray(weights))
  return model.kernel[...][:, 0], history


@pytest.mark.parametrize("loop", [train_linen, train_nnx])
def test_adds_fewer_than_ten_lines(loop):
  lines = inspect.getsource(loop).splitlines()
  assert sum(line.endswith("# +") for line in lines) < 10
  words = ("policy", "policies", "decision", "stats")
  touched = [line for line in lines if any(word in line for word in words)]
  assert [line for line in touched if not line.endswith(("# +", "# ~"))] == []


def test_a_mixture_in_a_linen_loop():
  kernel, shares = train_linen()
  np.testing.assert_allclose(kernel, TRUTH, atol=0.3)
  np.testing.assert_allclose(shares[5], SHARES, rtol=1e-6)  # warming up
  assert shares[-1][1] > 0.55  # the domain whose loss stays high


def test_a_weighting_in_an_nnx_loop():
  kernel, weights = train_nnx()
  np.testing.assert_allclose(kernel, TRUTH, atol=0.3)
  assert weights[5].tolist() == [1.0] * BATCH  # burning in
  assert np.ptp(weights[-1]) > 0.5
  np.testing.assert_allclose(weights[-1].mean(), 1, rtol=1e-5)
