"""A run that is stopped and continued is bitwise the run that never stopped."""

import pytest

from jdc import metrics, policies
from jdc.policies import mixture, ordering, selection, weighting
from jdc.train.config import CheckpointConfig, MeshConfig

RUNS = {
  "static path": (policies.combine(), {}),
  "odm paper": (
    policies.combine(mixture=mixture.odm(variant="paper", warmup_steps=1)),
    {"domain_draw": "one"},
  ),
  "no lag": (policies.combine(mixture=mixture.odm(warmup_steps=1)), {"decision_lag": 0}),
  "long lag": (policies.combine(mixture=mixture.odm(warmup_steps=1)), {"decision_lag": 3}),
  "random": (policies.combine(selection=selection.random(0.5)), {"draw": "top_k"}),
  "loss sampled": (
    policies.combine(selection=selection.loss()),
    {"draw": "multinomial", "sweep_rows": 20},
  ),
  "loss_reweighting": (
    policies.combine(weighting=weighting.loss_reweighting(burn_in_steps=2)),
    {},
  ),
  "loss every other round": (
    policies.combine(selection=policies.every(2, selection.loss())),
    {"draw": "top_k", "sweep_rows": 20, "num_steps": 17},
  ),
  "an epoch in order": (
    policies.combine(ordering=ordering.saw(2, 0.1), mixture=mixture.odm(warmup_steps=1)),
    {"queue": "epoch"},
  ),
  "a remainder in order": (
    policies.combine(ordering=ordering.window_shuffle(4, ordering.segment())),
    {"queue": "remainder"},
  ),
  "everything": (
    policies.combine(
      mixture=mixture.odm(warmup_steps=1),
      selection=selection.loss(),
      weighting=weighting.loss_reweighting(burn_in_steps=2),
      ordering=ordering.sorting(),
    ),
    {"draw": "gumbel_top_k", "accumulation_steps": 2, "batch_size": 16},
  ),
  "epochs capped": (
    policies.combine(mixture=mixture.static((0.2, 0.3, 0.5))),
    {"max_epochs": (1.0, 0.5, 1.5), "num_steps": 12},
  ),
}


@pytest.mark.parametrize("name", RUNS)
def test_resumes_bitwise_in_the_middle_of_a_round(fit, assert_same, tmp_path, name):
  chosen, fields = RUNS[name]
  whole = fit(tmp_path / "whole", chosen, **fields)
  # Step 7 lies in the second round of 5 steps and in the third log window of 3.
  fit(tmp_path / "parts", chosen, **fields | {"num_steps": 7})
  _drop_what_the_early_end_wrote(tmp_path / "parts")
  parts = fit(tmp_path / "parts", chosen, **fields)
  assert_same(whole.state, parts.state)
  assert_same(whole.plan, parts.plan)
  for file in ("metrics.jsonl", "example_ids.i32"):
    assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def _drop_what_the_early_end_wrote(folder):
  # A run that ends at step 7 evaluates there; a run that is killed does not.
  lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
  assert "validation/micro_loss" in lines[-1]
  (folder / "metrics.jsonl").write_text("".join(lines[:-1]))


def test_a_finished_run_does_nothing_again(fit, assert_same, tmp_path):
  first = fit(tmp_path / "run")
  written = (tmp_path / "run/metrics.jsonl").read_bytes()
  again = fit(tmp_path / "run")
  assert again.after == first.after
  assert_same(again.state, first.state)
  assert (tmp_path / "run/metrics.jsonl").read_bytes() == written


def test_fewer_devices_see_the_same_examples(fit, tmp_path):
  chosen = RUNS["everything"][0]
  fields = {"draw": "gumbel_top_k", "checkpoint": CheckpointConfig(every_steps=5)}
  fit(tmp_path / "eight", chosen, **fields)
  other_mesh = {"mesh": MeshConfig(data=2, fsdp=2, tensor=2)}
  fit(tmp_path / "four", chosen, **fields | {"num_steps": 7})
  _drop_what_the_early_end_wrote(tmp_path / "four")
  fit(tmp_path / "four", chosen, **fields | other_mesh)
  ids = [metrics.read_example_ids(tmp_path / run) for run in ("eight", "four")]
  assert (ids[0] == ids[1]).all()
  losses = [
    [
      line["train/loss"]
      for line in metrics.read_metrics(tmp_path / run)
      if "train/loss" in line
    ]
    for run in ("eight", "four")
  ]
  assert losses[0] == pytest.approx(losses[1], rel=1e-5)
