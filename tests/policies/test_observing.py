"""A policy that has more computed decides as it did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdc import policies
from jdc.policies import mixture, selection
from jdc.policies.base import ExampleStats, RunSpec

SPEC = RunSpec(8, 2, ("a", "b"), (4, 4), proportions=(0.5, 0.5), batch_size=4, sweep_size=8)


def test_a_step_scope_policy_decides_as_before():
  plain = mixture.odm(warmup_steps=0)
  watching = policies.observing(["target_alignment"], plain)
  assert watching.observes == plain.observes | {"target_alignment"}
  policies.combine(mixture=watching)
  stats = ExampleStats(**{
    name: jnp.array([0, 1, 0, 1]) if name == "domain" else jnp.ones(4)
    for name in plain.observes
  })  # fmt: skip
  decided = [
    policy.update(stats, policy.init(SPEC, jax.random.key(0))[1])[0].logits
    for policy in (plain, watching)
  ]
  np.testing.assert_array_equal(*decided)


def test_a_round_scope_policy_passes_batches_by_or_still_sees_them():
  random = policies.observing(["target_alignment"], selection.random())
  policies.combine(selection=random)
  assert random.observes_batch == {"target_alignment"}
  _, state = random.init(SPEC, jax.random.key(0))
  assert random.observe(ExampleStats(), state) is state
  shapley = selection.in_run_shapley()
  watching = policies.observing(["gradient_norm"], shapley)
  assert watching.observe is shapley.observe
  assert watching.observes_batch == shapley.observes_batch | {"gradient_norm"}


def test_no_field_is_an_error():
  with pytest.raises(ValueError, match="at least one statistic"):
    policies.observing([], mixture.by_size())
