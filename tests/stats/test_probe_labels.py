"""Labels of probe rows: agreement with a loop of plain optimizer steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdc.data.batch import inputs_and_targets
from jdc.models import subsets
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.models.lora import LoraConfig
from jdc.stats.losses import full_params
from jdc.stats.probe_labels import probe_labels

P, M, T, V = 5, 3, 8, 20
CONFIG = DecoderConfig(
  vocab_size=V, width=8, num_layers=1, num_heads=2, num_kv_heads=2, mlp_width=8
)


class State(NamedTuple):
  params: Any
  frozen: Any
  opt_state: Any


def random_rows(seed, num_rows):
  rng = np.random.default_rng(seed)
  segments = np.where(np.arange(T + 1) < rng.integers(3, T + 2, (num_rows, 1)), 1, 0)
  segments[:, :2] *= -1
  return inputs_and_targets(
    rng.integers(0, V, segments.shape).astype(np.int32), segments.astype(np.int32)
  )


def in_chunks(target):
  """In chunks of two rows, the last one padded."""
  padded = jax.tree.map(lambda x: np.pad(x, ((0, -len(x) % 2), (0, 0))), target)
  return jax.tree.map(lambda x: x.reshape(-1, 2, T), padded)


@pytest.mark.parametrize("name", ["full", "lora"])
def test_agrees_with_a_loop_of_plain_steps(name):
  lora = LoraConfig(rank=2) if name == "lora" else None
  model = decoder(CONFIG, lora=lora)
  params, frozen = model.init(jax.random.key(0)), None
  if lora is not None:
    params = jax.tree.map(lambda x: x + 0.02, params)
    params, frozen = subsets.split(params, subsets.matcher(["*/lora_*"]))
  rate = optax.linear_schedule(0.1, 0.0, 10)
  optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(rate, weight_decay=0.1))
  rows, target = random_rows(1, P), random_rows(2, M)
  plain = decoder(CONFIG, loss_chunk=None, lora=lora)

  def mean(trained, chosen):
    losses = plain.token_losses(full_params((trained, frozen)), *chosen[:4])
    return jnp.sum(losses * chosen.mask) / jnp.sum(chosen.mask)

  @jax.jit
  def step(params, opt_state, row):
    grads = jax.grad(mean)(params, row)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  loss, opt_state = jax.jit(mean), optimizer.init(params)
  one = lambda i: jax.tree.map(lambda x: x[i : i + 1], rows)
  for i in (0, 3):  # so that there are moments and a count
    params, opt_state = step(params, opt_state, one(i))
  expected = [loss(step(params, opt_state, one(i))[0], target) for i in range(P)]
  state = State(params, frozen, opt_state)
  found = jax.jit(lambda state, *x: probe_labels(model, optimizer, state, *x))(
    state, rows, in_chunks(target)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert np.ptp(found) > 1e-3


def test_a_row_without_targets_takes_a_step_of_gradient_0():
  model = decoder(CONFIG)
  params = model.init(jax.random.key(0))
  rows, target = random_rows(1, 2), random_rows(2, M)
  rows = rows._replace(mask=np.zeros_like(rows.mask))
  optimizer = optax.sgd(1.0)
  found = probe_labels(
    model, optimizer, State(params, None, optimizer.init(params)), rows, in_chunks(target)
  )
  losses = model.token_losses(params, *target[:4])
  expected = jnp.sum(losses * target.mask) / jnp.sum(target.mask)
  np.testing.assert_allclose(found, [expected] * 2, rtol=1e-6)
