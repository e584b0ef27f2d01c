"""Scores of a pool without training: what a round-scope selection decides, as a table."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jdc.data.loader import Pool
from jdc.policies.combine import Policies, combine
from jdc.train import (
  checkpoint,
  checks,
  loop,
  rounds,
  setup,
  sharding,
  slot_checks,
  sources,
)
from jdc.train import config as config_lib
from jdc.train import features as features_lib
from jdc.train import state as state_lib
from jdc.train.cost import Cost
from jdc.train.kept_features import NAMES, KeptFeatures
from jdc.train.restore import restored
from jdc.train.sweeps import make_sweeps


class Scored(NamedTuple):
  """The rows of a pool under a selection."""

  columns: dict[str, np.ndarray]  # by name, one value a row, in the order of the pool
  metrics: dict[str, Any]  # of the policy, at the last checkpoint
  cost: Cost
  rows_read: int  # whose features were kept by an earlier call, and are not in the cost
  fingerprint: str  # of the data
  steps: tuple[int, ...]  # of the checkpoints


def score(
  run: loop.Run,
  workdir: str,
  checkpoints: str | None = None,
  steps: Sequence[int] = (),
  features: str | None = None,
) -> Scored:
  """Returns what the selection of a run makes of the pool, at one or more checkpoints.

  Each checkpoint begins a round of its own, one after the other: a policy that adds up over
  rounds adds up over them. What an interrupted sweep had is found again in `workdir`.

  Args:
    run: its selection must be of round scope; other slots are left out.
    workdir: a local folder.
    checkpoints: folder of checkpoints of a run that trains the same parameters, under whatever
      policies; `None`: the parameters that `run` starts from.
    steps: of the checkpoints; empty: the newest.
    features: a local folder that keeps the projected gradients of the pool, for
      `stats.features_table.FeaturesTable` and for the next call: where it holds those of the
      same parameters, data and `config.features`, they are read and not computed. `None`: they
      are not kept.

  Returns:
    Columns `example_id`, `domain` (its place), `score` (the logit, -inf for rows that may not
    be drawn), `weight` where the selection decides one, and what was observed of each row of
    the last sweep: `num_tokens`, `loss` and others, NaN where it was not swept.

  Raises:
    ValueError: if the run has no round-scope selection, parts of it do not fit together, or the
      checkpoints are of other parameters, or `features` holds those of others.
    checkpoint.Damaged: if a checkpoint cannot be read.
  """
  run = _selecting(run)
  config, policies = run.config, run.policies
  _check_features(features, policies)
  targets = sources.target_rows(config, policies, run.domains, run.tasks)
  sizes = setup.sizes_of(run.model, run.domains, targets, run.tasks)
  checks.check(
    config, policies, run.model, run.domains, None, sizes, run.reference, run.tasks,
    run.trainable, run.adam, run.responses, targets,
  )  # fmt: skip
  mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
  batches = sharding.batch_sharding(mesh)
  start = state_lib.Start(run.model, run.weights, run.trainable)
  of_rows = features_lib.of_run(config, start, policies, run.adam, batches)
  num_responses = config.responses.count if run.responses is not None else 0
  sizes = sizes._replace(feature_size=of_rows.size, num_responses=num_responses)
  spec = setup.run_spec(config, run.domains, policies, sizes)
  decisions, policy_states = state_lib.init_policies(policies, spec, config.seed)
  slot_checks.check_decisions(decisions, spec, policies)

  with jax.set_mesh(mesh):
    refresh = sources.make_refresh(
      config, run.model, policies, targets, spec, batches, of_rows.target, run.responses
    )
    state = state_lib.init(start, run.optimizer, policy_states, mesh, config.seed)
    pool = Pool([domain.train for domain in run.domains.values()], spec.sequence_length)
    reference, pool.reference = sources.open_reference(
      run.reference, pool, run.domains, config.batch_size, mesh
    )
    state = state._replace(fixed=sources.fixed_parts(reference, targets, mesh))
    model = run.reference.model if run.reference is not None else None
    described = setup.describe_run(
      dict(run.config_json or {}) | config_lib.to_json(config), policies, run.domains, None,
      state.params, run.weights, targets,
      run.reference.fingerprint if run.reference is not None else None,
      run.responses.describe() if run.responses is not None else None,
    )  # fmt: skip
    data = setup.data_fingerprint(run.domains)
    kept = None
    if features is not None:
      kept = KeptFeatures(features, described, len(pool), data, run.adam)
    sweeps = make_sweeps(
      run.model, model, policies, pool, config.plan.sweep_batch_size or config.batch_size,
      batches, of_rows.round, f"{workdir}/sweeps", {"run": described, "adam": run.adam}, kept,
    )  # fmt: skip
    begin = rounds.make_round_start(
      policies, spec, config.seed, pool, batches, sweeps, run.learning_rate,
      sources.make_probe(
        config, run.model, policies, targets, spec, pool, batches, run.optimizer
      ),
      sweep_rows=config.plan.sweep_rows, max_age=config.plan.max_age,
    )  # fmt: skip
    assert begin is not None  # there is a selection
    rows, cost, done = None, Cost(), []
    metrics: dict[str, Any] = {}
    for round_, step in enumerate(_steps(checkpoints, steps)):
      if step is not None:
        assert checkpoints is not None
        state = restored(state, checkpoints, step, run)
      if refresh is not None:
        state, spent = refresh(state)
        cost = cost.plus(spent)
      begun = begin(state, round_, rows)
      state, rows, metrics = begun.state, begun.rows, begun.metrics.get("selection") or {}
      cost = cost.plus(begun.cost)
      done.append(int(state.step))
  assert rows is not None  # it decides about rows
  columns = {"example_id": np.arange(len(pool)), "domain": pool.domain(np.arange(len(pool)))}
  columns |= {"score": rows.logits_N}
  if rows.weights_N is not None:
    columns["weight"] = rows.weights_N
  rows_read = 0 if kept is None else kept.rows_read
  return Scored(columns | begun.shown, metrics, cost, rows_read, data, tuple(done))


def _selecting(run: loop.Run) -> loop.Run:
  selection = run.policies.selection
  if selection is None or selection.scope != "round":
    raise ValueError("scores of a pool need config.selection to be a round-scope selection")
  if selection.observes_batch:
    raise ValueError(
      "config.selection learns from the batches that are trained, of which it observes "
      f"{', '.join(sorted(selection.observes_batch))}; scores of a pool are told without "
      "training, by selections that observe none"
    )
  return run._replace(policies=combine(selection=selection))


def _check_features(features: str | None, policies: Policies) -> None:
  if features is None:
    return
  assert policies.selection is not None
  observed = policies.selection.observes | policies.selection.observes_pool
  if "://" in features:
    raise ValueError(f"features={features} must be a local folder")
  if not observed & NAMES:
    raise ValueError(
      f"features={features} keeps {', '.join(sorted(NAMES))}, of which the selection observes "
      f"none; it observes {', '.join(sorted(observed))}"
    )


def _steps(checkpoints: str | None, steps: Sequence[int]) -> Sequence[int | None]:
  """The steps of the checkpoints to read, or once `None` without any."""
  if checkpoints is None:
    if steps:
      raise ValueError(f"steps {tuple(steps)} are of checkpoints, and none are given")
    return (None,)
  if not steps:
    return (checkpoint.read_payload(Path(checkpoints))[0],)
  if list(steps) != sorted(set(steps)):
    raise ValueError(f"steps must increase, got {tuple(steps)}")
  for step in steps:
    checkpoint.read_payload(Path(checkpoints), step)  # all of them are there, before any work
  return tuple(steps)
