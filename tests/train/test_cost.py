"""Every pass besides those that train is counted, once."""

import dataclasses

import jax
import pytest

from jdc import metrics, policies
from jdc.models.decoder import DecoderConfig, decoder
from jdc.policies import mixture, selection, weighting
from jdc.train import cost, loop
from jdc.train.config import PlanConfig, RunConfig, TargetConfig
from jdc.train.state import Reference
from jdc.train.step import StepOptions

CONFIG = RunConfig(batch_size=8)
MODEL = decoder(
  DecoderConfig(vocab_size=8, width=8, num_layers=1, num_heads=1, num_kv_heads=1, mlp_width=8)
)
ALIGNED = policies.combine(weighting=weighting.learning_to_reweight())
VALUED = policies.combine(selection=selection.in_run_shapley())
CURVED = policies.combine(selection=selection.in_run_shapley("second"))
CHOSEN = policies.combine(selection=selection.rho_loss())
COMPARED = policies.combine(mixture=mixture.doremi())


@pytest.mark.parametrize(
  ("chosen", "num_candidates", "forward", "backward"),
  [
    (policies.combine(), 0, 0, 0),
    (policies.combine(), 16, 16, 0),
    (COMPARED, 0, 8, 0),
    (CHOSEN, 16, 16 + 16, 0),
    (CHOSEN._replace(mixture=mixture.doremi()), 16, 16 + 16, 0),
    (CHOSEN._replace(weighting=weighting.rho1()), 16, 16 + 16 + 8, 0),
    (ALIGNED, 0, 8 + 8, 3 * 8 + 8),
    (CURVED, 0, 3 * 8 + 2 * 8, 7 * 8 + 4 * 8),
    (ALIGNED, 16, 16 + 8 + 16 + 8, 3 * (8 + 16) + 8),
  ],
)
def test_a_step_counts_its_passes(chosen, num_candidates, forward, backward):
  config = dataclasses.replace(CONFIG, plan=PlanConfig(num_candidates=num_candidates))
  found = cost.of_step(config, MODEL, chosen, StepOptions(), reference_in_step=True)
  assert found == cost.Cost(forward, backward)


@pytest.mark.parametrize(
  ("chosen", "model", "weighted", "accumulation_steps", "apart"),
  [
    (VALUED, MODEL, (), 1, 0),
    (VALUED, MODEL, (), 2, 8),
    (VALUED, MODEL._replace(dropout=True), (), 1, 8),
    (ALIGNED, MODEL, ("weighting",), 1, 8),
  ],
)
def test_alignment_by_linear_maps_takes_the_pass_that_trains_where_it_can(
  chosen, model, weighted, accumulation_steps, apart
):
  config = dataclasses.replace(
    CONFIG,
    accumulation_steps=accumulation_steps,
    target=TargetConfig(alignment="linear_maps", alignment_rows=4),
  )
  options = StepOptions(weighted_slots=frozenset(weighted))
  found = cost.of_step(config, model, chosen, options, reference_in_step=True)
  assert found == cost.Cost(apart + 4, apart + 4)


def test_alignment_of_low_rank_takes_no_target_rows_in_a_step():
  config = dataclasses.replace(CONFIG, target=TargetConfig(alignment="low_rank"))
  found = cost.of_step(config, MODEL, VALUED, StepOptions(), reference_in_step=True)
  assert found == cost.Cost()


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
