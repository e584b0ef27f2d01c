"""Losses that are not finite, signals, and damaged checkpoints, in the middle of a run."""

import dataclasses
import gc
import logging
import os
import re
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdc import metrics, policies
from jdc.models.decoder import decoder
from jdc.policies import mixture, selection, weighting
from jdc.train import checkpoint, loop
from jdc.train.config import CheckpointConfig, EvaluationConfig, LoggingConfig

ODM = policies.combine(mixture=mixture.odm(warmup_steps=1))


@jax.custom_vjp
def poisoned(loss_BxT, bad_Bx1):
  """The loss itself, with a gradient that is not finite where `bad`."""
  return loss_BxT


poisoned.defvjp(
  lambda loss, bad: (loss, bad), lambda bad, g: (jnp.where(bad, jnp.nan, g), None)
)


def breaking(model, kind, modulus=23):
  """A model whose loss or gradient is not finite on the rows that `is_bad` names."""

  def token_losses(params, tokens, *rest):
    loss_BxT = model.token_losses(params, tokens, *rest)
    bad_Bx1 = (jnp.sum(tokens, axis=1, keepdims=True) % modulus) == 0
    if kind == "gradient":
      return poisoned(loss_BxT, bad_Bx1)
    return jnp.where(bad_Bx1, {"NaN": jnp.nan, "inf": jnp.inf}[kind], loss_BxT)

  return model._replace(token_losses=token_losses, weighted_loss=None)


def is_bad(domains, ids_B, modulus=23):
  tables = [domain.train for domain in domains.values()]
  rows = np.concatenate([table.rows(np.arange(len(table)))[0] for table in tables])
  return rows[ids_B, :-1].sum(axis=1) % modulus == 0


def make_run(domains, model, config, chosen=ODM):
  schedule = optax.constant_schedule(1e-2)
  return loop.Run(model, optax.adamw(schedule), schedule, chosen, domains, config)


@pytest.mark.parametrize("kind", ["NaN", "inf", "gradient"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(
  domains, model_config, tiny_config, assert_same, tmp_path, caplog, kind
):
  model = breaking(decoder(model_config), kind)
  tmp_path = tmp_path / "run"
  tmp_path.mkdir()
  running = loop.steps(make_run(domains, model, tiny_config), str(tmp_path))
  with caplog.at_level(logging.WARNING, logger="jdc"):
    states = [jax.device_get(p.state._replace(key=jnp.zeros(()))) for p in running]
  ids = metrics.read_example_ids(tmp_path)
  bad_steps = [step for step, ids_B in enumerate(ids, 1) if is_bad(domains, ids_B).any()]
  assert 0 < len(bad_steps) < len(ids)
  for step in range(2, len(ids) + 1):
    before, after = states[step - 2], states[step - 1]
    changed = any(
      not np.array_equal(a, b)
      for a, b in zip(
        jax.tree.leaves((before.params, before.opt_state)),
        jax.tree.leaves((after.params, after.opt_state)),
        strict=True,
      )
    )
    assert changed == (step not in bad_steps)
    assert after.step == before.step + 1
    assert after.policies["mixture"].num_updates == before.policies["mixture"].num_updates + 1
  assert states[-1].skipped == len(bad_steps)
  last = [line for line in metrics.read_metrics(tmp_path) if "train/skipped_steps" in line][-1]
  assert last["train/skipped_steps"] == len(bad_steps)
  skips = [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]
  assert [int(re.search(r"step (\d+) skipped", text)[1]) for text in skips] == bad_steps
  if kind != "gradient":
    logged = metrics.read_metrics(tmp_path)
    counted = sum(line.get("train/num_nonfinite_losses", 0) for line in logged)
    assert counted == is_bad(domains, ids.ravel()).sum()


def test_too_many_in_a_row_stop_the_run_with_the_step_and_the_examples(
  fit, model_config, tmp_path
):
  model = breaking(decoder(model_config), "NaN", modulus=1)
  with pytest.raises(FloatingPointError, match="step 4: loss nan") as error:
    fit(tmp_path / "run", ODM, model=model, max_skipped_in_row=3)
  message = str(error.value)
  assert "the last 4 steps in a row" in message
  assert "max_skipped_in_row=3" in message
  ids = metrics.read_example_ids(tmp_path / "run")
  assert str(ids[3].tolist()) in message


def test_as_many_as_allowed_do_not(fit, model_config, tmp_path):
  model = breaking(decoder(model_config), "NaN", modulus=1)
  result = fit(tmp_path / "run", ODM, model=model, max_skipped_in_row=5, num_steps=5)
  assert int(result.state.skipped_in_row) == 5


def test_a_selection_without_a_finite_score_stops_with_the_round(fit, model_config, tmp_path):
  chosen = policies.combine(selection=selection.loss())
  model = breaking(decoder(model_config), "NaN", modulus=1)
  with pytest.raises(FloatingPointError, match="round 0: the selection gave none of"):
    fit(tmp_path / "run", chosen, model=model, draw="top_k")


def test_rows_without_a_finite_score_are_not_drawn(fit, domains, model_config, tmp_path):
  chosen = policies.combine(selection=selection.loss())
  model = breaking(decoder(model_config), "NaN", modulus=7)
  fit(tmp_path / "run", chosen, model=model, draw="top_k")
  ids = metrics.read_example_ids(tmp_path / "run")
  assert is_bad(domains, np.arange(sum(len(d.train) for d in domains.values())), 7).any()
  assert not is_bad(domains, ids.ravel(), 7).any()


ALL = policies.combine(
  mixture=mixture.odm(warmup_steps=1),
  selection=selection.loss(),
  weighting=weighting.loss_reweighting(burn_in_steps=2),
)
FIELDS = {"draw": "gumbel_top_k", "num_steps": 8}


def stopped_at(step, run, workdir):
  """Runs and sends SIGTERM so that the run stops after `step`."""
  workdir.mkdir(exist_ok=True)
  running = loop.steps(run, str(workdir))
  while True:
    try:
      progress = next(running)
    except StopIteration as end:
      return end.value
    if progress.step == step - 1:
      os.kill(os.getpid(), signal.SIGTERM)


LOGS = LoggingConfig(every_steps=5, tensorboard=False)


@pytest.fixture(scope="module")
def whole(fit, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("whole") / "run"
  return workdir, fit(workdir, ALL, **FIELDS, logging=LOGS)


@pytest.mark.parametrize("step", [4, 5, 8])  # a round has 5 steps, as has a line of metrics
def test_sigterm_at_any_step_leaves_no_trace(
  whole, domains, model_config, tiny_config, assert_same, tmp_path, step
):
  config = dataclasses.replace(
    tiny_config,
    num_steps=8,
    logging=LOGS,
    plan=dataclasses.replace(tiny_config.plan, draw="gumbel_top_k"),
  )
  run = make_run(domains, decoder(model_config), config, ALL)
  first = stopped_at(step, run, tmp_path / "parts")
  assert first.stopped == "SIGTERM"
  assert int(first.plan.step) == step
  assert first.after is None
  assert (tmp_path / "parts/checkpoints" / str(step)).is_dir()
  parts = loop.fit(run, str(tmp_path / "parts"))
  workdir, result = whole
  assert parts.after == result.after
  assert_same(result.state, parts.state)
  for file in ("metrics.jsonl", "example_ids.i32"):
    assert (tmp_path / "parts" / file).read_bytes() == (workdir / file).read_bytes()


def test_a_kill_while_the_end_is_saved_leaves_no_trace(
  fit, domains, model_config, tiny_config, tmp_path, monkeypatch
):
  whole = fit(tmp_path / "whole", ODM)
  run = make_run(domains, decoder(model_config), tiny_config)
  stopped_at(tiny_config.num_steps, run, tmp_path / "parts")  # saves the last step

  def killed(*_):  # the final evaluation is in the file, but in no checkpoint
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, "save", killed)
    with pytest.raises(KeyboardInterrupt):
      loop.fit(run, str(tmp_path / "parts"))
  result = loop.fit(run, str(tmp_path / "parts"))
  assert result.after == whole.after
  for file in ("metrics.jsonl", "example_ids.i32"):
    assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def damage(folder):
  (data,) = (folder / "state/d").iterdir()
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)


# See test_checkpoint.py: loads that fail leave complaints of Orbax behind.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_newest_checkpoint_costs_steps_and_nothing_else(
  fit, assert_same, tmp_path, caplog
):
  fields = FIELDS | {
    "checkpoint": CheckpointConfig(every_steps=3),
    "evaluation": EvaluationConfig(every_steps=6, max_rows=8),
  }
  whole = fit(tmp_path / "whole", ALL, **fields)
  shutil.copytree(tmp_path / "whole", tmp_path / "parts")
  damage(tmp_path / "parts/checkpoints/8")
  with caplog.at_level(logging.INFO, logger="jdc"):
    parts = fit(tmp_path / "parts", ALL, **fields)
  said = [record.getMessage() for record in caplog.records]
  assert any("checkpoints/8 is damaged" in line for line in said)
  assert any("using checkpoint" in line and "/6 instead" in line for line in said)
  assert "continuing from step 6" in said
  assert_same(whole.state, parts.state)
  assert_same(whole.plan, parts.plan)
  for file in ("metrics.jsonl", "example_ids.i32"):
    assert (tmp_path / "parts" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()

  for step in (6, 8):
    damage(tmp_path / f"parts/checkpoints/{step}")
  written = (tmp_path / "parts/metrics.jsonl").read_bytes()
  for _ in range(2):  # never a silent fresh start
    with pytest.raises(checkpoint.Damaged, match="none of the checkpoints"):
      fit(tmp_path / "parts", ALL, **fields)
  assert (tmp_path / "parts/metrics.jsonl").read_bytes() == written
  gc.collect()
  time.sleep(0.05)
