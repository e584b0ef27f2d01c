"""Every pass besides those that train is counted, once."""

import dataclasses

import jax
import pytest

from jdc import metrics, policies
from jdc.policies import mixture, selection, weighting
from jdc.train import cost, loop
from jdc.train.config import PlanConfig, RunConfig
from jdc.train.state import Reference
from jdc.train.step import StepOptions

CONFIG = RunConfig(batch_size=8)
ALIGNED = policies.combine(weighting=weighting.learning_to_reweight())
COMPARED = policies.combine(mixture=mixture.doremi())


@pytest.mark.parametrize(
  ("chosen", "num_candidates", "forward", "backward"),
  [
    (policies.combine(), 0, 0, 0),
    (policies.combine(), 16, 16, 0),
    (COMPARED, 0, 8, 0),
    (COMPARED, 16, 16 + 8 + 16, 0),
    (ALIGNED, 0, 8 + 8, 3 * 8 + 8),
    (ALIGNED, 16, 16 + 8 + 16 + 8, 3 * (8 + 16) + 8),
  ],
)
def test_a_step_counts_its_passes(chosen, num_candidates, forward, backward):
  config = dataclasses.replace(CONFIG, plan=PlanConfig(num_candidates=num_candidates))
  found = cost.of_step(config, chosen, StepOptions(), reference_in_step=True)
  assert found == cost.Cost(forward, backward)


@pytest.mark.parametrize("compared", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_a_sweep_counts_the_passes_of_a_reference(
  cached, compared, small_run, small_model, tmp_path
):
  """And those of the model itself where its losses are observed."""
  reference = Reference(
    small_model,
    lambda mesh: jax.jit(small_model.init)(jax.random.key(1)),
    "first",
    cache=str(tmp_path / "cache") if cached else None,
  )
  chosen = selection.loss()._replace(
    observes=frozenset({"reference_loss", "example_id", *["loss"] * compared}),
    score=lambda stats, state: stats.reference_loss,
  )
  run = small_run(
    policies.combine(selection=chosen),
    reference=reference, num_steps=4, steps_per_round=2, draw="top_k", sweep_rows=24,
  )  # fmt: skip
  loop.fit(run, str(tmp_path / "run"))
  spent = metrics.read_metrics(tmp_path / "run")[-1]["cost/extra_forward_rows"]
  num_rows = sum(len(domain.train) for domain in run.domains.values())
  assert spent == (num_rows if cached else 2 * 24) + 2 * 24 * compared
