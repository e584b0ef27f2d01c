"""AdamW, its schedule, its decay mask, and the errors of its fields."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc.train.config import OptimizerConfig
from jdc.train.optimizer import make_optimizer

CONFIG = OptimizerConfig(learning_rate=0.1, warmup_steps=4, final_fraction=0.2)


@pytest.mark.parametrize(
  ("schedule", "middle"), [("cosine", 0.06), ("linear", 0.06), ("constant", 0.1)]
)
def test_the_rate_warms_up_and_decays(schedule, middle):
  _, rate = make_optimizer(dataclasses.replace(CONFIG, schedule=schedule), 24)
  np.testing.assert_allclose([rate(i) for i in range(4)], [0.025, 0.05, 0.075, 0.1], rtol=1e-6)
  assert rate(4) == pytest.approx(0.1)
  assert rate(14) == pytest.approx(middle)
  assert rate(24) == pytest.approx(0.1 if schedule == "constant" else 0.02)


def test_gains_do_not_decay_and_matrices_do():
  optimizer, _ = make_optimizer(dataclasses.replace(CONFIG, warmup_steps=0), 10)
  params = {
    "map": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
    "norm": {"scale": jnp.ones(2)},
  }
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  np.testing.assert_allclose(updates["map"]["kernel"], -0.1 * 0.1, rtol=1e-5)
  assert not updates["map"]["bias"].any()
  assert not updates["norm"]["scale"].any()


def test_gradients_are_clipped_by_their_global_norm():
  config = dataclasses.replace(CONFIG, weight_decay=0.0, warmup_steps=0, epsilon=1e3)
  params = {"kernel": jnp.zeros(4)}
  large, small = {"kernel": jnp.full(4, 100.0)}, {"kernel": jnp.full(4, 0.5)}
  optimizer, _ = make_optimizer(config, 10)
  state = optimizer.init(params)
  # 0.5 in each of four places has norm 1: the large gradient is clipped to the small one.
  np.testing.assert_allclose(
    optimizer.update(large, state, params)[0]["kernel"],
    optimizer.update(small, state, params)[0]["kernel"],
    rtol=1e-5,
  )
  free, _ = make_optimizer(dataclasses.replace(config, clip_norm=0.0), 10)
  moved = free.update(large, free.init(params), params)[0]["kernel"]
  assert (
    jnp.abs(moved) > 50 * jnp.abs(optimizer.update(large, state, params)[0]["kernel"])
  ).all()


def test_all_wrong_fields_are_named_at_once():
  wrong = OptimizerConfig(learning_rate=0.0, schedule="cosin", warmup_steps=10, b2=1.0)
  with pytest.raises(ValueError, match=r"learning_rate.*schedule.*cosin.*warmup_steps.*b2"):
    make_optimizer(wrong, 10)
