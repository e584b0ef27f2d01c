"""The loop: one compilation, the decision lag, what it logs, how it stops."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdc import metrics, policies
from jdc.models.decoder import decoder
from jdc.policies import mixture, ordering, selection, weighting
from jdc.train import loop
from jdc.train.config import CheckpointConfig, EvaluationConfig

THREE = policies.combine(
  mixture=mixture.odm(warmup_steps=1),
  selection=selection.loss(),
  weighting=weighting.loss_reweighting(burn_in_steps=2),
)


def test_nothing_compiles_after_the_first_round(fit, tmp_path):
  compiled_at = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled_at.append(event) if "backend_compile" in event else None
  )
  counts = []
  for num_steps in (5, 15):  # one round, three rounds
    compiled_at.clear()
    jax.clear_caches()
    fit(
      tmp_path / str(num_steps),
      THREE,
      draw="gumbel_top_k",
      num_steps=num_steps,
      checkpoint=CheckpointConfig(every_steps=4),
      evaluation=EvaluationConfig(every_steps=4, max_rows=8),
    )
    counts.append(len(compiled_at))
  assert counts[0] > 0
  assert counts[1] == counts[0]


def test_training_learns_and_logs_every_domain(fit, tmp_path, domains):
  result = fit(tmp_path / "run", THREE, draw="gumbel_top_k", num_steps=30)
  assert result.stopped == "finished"
  assert result.after["validation/macro_loss"] < result.before["validation/macro_loss"] - 1
  lines = metrics.read_metrics(tmp_path / "run")
  logged = next(line for line in reversed(lines) if "train/loss" in line)
  for name in domains:
    for quantity in ("probability", "share_asked", "share_seen", "epochs"):
      assert f"data/domain/{name}/{quantity}" in logged
    assert f"train/domain/{name}/loss" in logged
    assert f"train/domain/{name}/weight" in logged
  assert any(key.startswith("policy/mixture/") for key in logged)
  rounds = [line["step"] for line in lines if any("policy/selection" in key for key in line)]
  assert rounds == [1, 6, 11, 16, 21, 26]


def test_logged_shares_are_those_of_the_example_log(fit, tmp_path, domains):
  result = fit(tmp_path / "run", policies.combine(mixture=mixture.static((0.2, 0.3, 0.5))))
  ids = metrics.read_example_ids(tmp_path / "run")
  starts = np.cumsum([0, *(len(d.train) for d in domains.values())])
  rows = np.bincount(np.searchsorted(starts, ids.ravel(), side="right") - 1)
  np.testing.assert_array_equal(result.plan.seen_K, rows)
  last = metrics.read_metrics(tmp_path / "run")[-1]
  for name, count in zip(domains, rows, strict=True):
    assert last[f"data/domain/{name}/share_seen"] == pytest.approx(count / rows.sum())
  np.testing.assert_allclose(result.plan.asked_K / rows.sum(), [0.2, 0.3, 0.5])


def test_a_mixture_that_decides_no_logits_leaves_the_base_proportions(fit, tmp_path):
  decision = policies.Decision(metrics={"seen": jnp.int32(0)})
  watch = policies.DataPolicy(
    lambda spec, key: (decision, ()),
    lambda stats, state: (decision, state),
    frozenset(),
    "step",
  )
  result = fit(tmp_path, policies.combine(mixture=watch), proportions=(0.2, 0.3, 0.5))
  np.testing.assert_allclose(result.plan.asked_K / (12 * 8), [0.2, 0.3, 0.5])


def test_an_ordering_by_given_scores(fit, domains, model_config, tiny_config, tmp_path):
  num_rows = sum(len(d.train) for d in domains.values())
  scores = np.random.default_rng(0).random(num_rows).astype(np.float32)
  schedule = optax.constant_schedule(1e-2)
  chosen = policies.combine(ordering=ordering.sorting(observes=frozenset()))
  run = loop.Run(
    decoder(model_config), optax.adam(schedule), schedule, chosen, domains, tiny_config,
    scores=scores,
  )  # fmt: skip
  tmp_path.joinpath("run").mkdir()
  loop.fit(run, str(tmp_path / "run"))
  ids = metrics.read_example_ids(tmp_path / "run")
  for first in range(0, tiny_config.num_steps - 4, 5):  # each round of 5 steps rises
    means = scores[ids[first : first + 5]]
    assert (means.max(axis=1)[:-1] <= means.min(axis=1)[1:]).all()


def test_the_end_of_the_data_ends_the_run(fit, tmp_path, domains):
  sizes = [len(d.train) for d in domains.values()]
  result = fit(
    tmp_path / "run",
    policies.combine(mixture=mixture.by_size()),
    max_epochs=(1.0, 1.0, 1.0),
    num_steps=1000,
  )
  assert "max_epochs" in result.stopped
  ids = metrics.read_example_ids(tmp_path / "run").ravel()
  assert len(ids) == len(set(ids)) == sum(sizes) // 8 * 8
  again = fit(
    tmp_path / "run",
    policies.combine(mixture=mixture.by_size()),
    max_epochs=(1.0, 1.0, 1.0),
    num_steps=1000,
  )
  assert again.after == result.after


def test_sigterm_saves_and_stops(domains, model_config, tiny_config, tmp_path):
  schedule = optax.constant_schedule(1e-2)
  run = loop.Run(
    decoder(model_config), optax.adam(schedule), schedule, policies.combine(), domains,
    tiny_config,
  )  # fmt: skip
  result = _terminated_at(6, loop.steps(run, str(tmp_path)))
  assert (result.stopped, int(result.state.step), result.after) == ("SIGTERM", 7, None)
  assert (tmp_path / "checkpoints" / "7").exists()
  assert loop.fit(run, str(tmp_path)).stopped == "finished"


def _terminated_at(step, running):
  while True:
    try:
      if next(running).step == step:
        os.kill(os.getpid(), signal.SIGTERM)
    except StopIteration as end:
      return end.value
