"""From a run to what its loop calls, in two steps: the checks, then all that computes."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jdc.data import plan
from jdc.data.formats import import_extra
from jdc.data.loader import Loader, LoaderIterator, Pool
from jdc.metrics import Decisions
from jdc.policies.base import Decision, RunSpec
from jdc.stats.target_rows import TargetRows
from jdc.train import (
  checkpoint,
  checks,
  cost,
  example_table,
  process,
  rounds,
  setup,
  sharding,
  slot_checks,
  sources,
)
from jdc.train import config as config_lib
from jdc.train import features as features_lib
from jdc.train import state as state_lib
from jdc.train import sweeps as sweeps_lib
from jdc.train.arrange import make_arrange
from jdc.train.evaluate import make_evaluate
from jdc.train.example_table import ExampleTable
from jdc.train.record import Record
from jdc.train.run import Run
from jdc.train.step import StepOptions, make_train_step


class Checked(NamedTuple):
  """A run whose parts fit together, and what follows from them."""

  run: Run
  workdir: str
  spec: RunSpec  # what policies know about the run
  targets: TargetRows | None
  mesh: jax.sharding.Mesh
  start: state_lib.Start
  features: features_lib.RunFeatures
  decisions: dict[str, Decision]  # of the policies before the first step, by slot
  policy_states: dict[str, Any]
  recorded: Decisions | None  # of another run, which this one replays
  options: StepOptions
  pieces: example_table.Pieces | None  # of the rows, where a table of examples is kept


class Parts(NamedTuple):
  """What the loop calls."""

  checkpoints: checkpoint.Checkpoints
  described: Mapping[str, Any]  # what a resumed run must have in common with the saved one
  refresh: sources.Refresh | None
  round_start: Callable[..., rounds.RoundStart] | None
  iterator: LoaderIterator
  train_step: Callable[..., Any]
  step_cost: cost.Cost
  pushes: bool  # each step decides about the mixture of a later batch
  evaluate: Callable[[Any], dict[str, float]]
  record: Record
  examples: ExampleTable | None
  trace: process.Trace
  terminated: Callable[[], bool]


@dataclasses.dataclass
class Standing:
  """Where a run stands."""

  state: state_lib.TrainState  # donated to the next step
  step: int  # steps so far
  saved_step: int  # of the newest checkpoint
  round_rows: plan.RoundRows | None = None  # the decision of the round
  before: dict[str, float] | None = None  # metrics of the evaluated split at the start
  after: dict[str, float] | None = None  # and now, where nothing was trained since


def check(run: Run, workdir: str) -> Checked:
  """Returns what follows from the parts of a run, or says what is wrong with them.

  Raises:
    ValueError: before any compilation.
  """
  config, policies = run.config, run.policies
  targets = sources.target_rows(config, policies, run.domains, run.tasks)
  sizes = setup.sizes_of(run.model, run.domains, targets, run.tasks)
  checks.check(
    config, policies, run.model, run.domains, run.scores, sizes, run.reference, run.tasks,
    run.trainable, run.adam, run.responses, targets,
  )  # fmt: skip
  mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
  start = state_lib.Start(run.model, run.weights, run.trainable)
  batches = sharding.batch_sharding(mesh)
  features = features_lib.of_run(config, start, policies, run.adam, batches)
  num_responses = config.responses.count if run.responses is not None else 0
  sizes = sizes._replace(feature_size=features.size, num_responses=num_responses)
  spec = setup.run_spec(config, run.domains, policies, sizes)
  decisions, policy_states = state_lib.init_policies(policies, spec, config.seed)
  slot_checks.check_decisions(decisions, spec, policies, config.plan.max_segments)
  recorded = sources.recorded_decisions(config, spec, workdir)
  options = setup.step_options(config, decisions, policies, recorded)
  pieces = None
  if config.logging.example_table:
    import_extra("pyarrow.parquet", "parquet")
    pieces = example_table.pieces_of([domain.train for domain in run.domains.values()])
    options = dataclasses.replace(options, num_pieces=pieces.most)
  return Checked(
    run, workdir, spec, targets, mesh, start, features, decisions, policy_states, recorded,
    options, pieces,
  )  # fmt: skip


def assemble(
  checked: Checked, profile: bool, stack: contextlib.ExitStack
) -> tuple[Parts, Standing]:
  """Returns what the loop calls and where the run stands; the stack closes what is open.

  Raises:
    ValueError: before any compilation, if the checkpoint is of another config or other data.
    RuntimeError: if none of the checkpoints is intact.
  """
  run, config, policies = checked.run, checked.run.config, checked.run.policies
  batches = sharding.batch_sharding(checked.mesh)
  refresh = sources.make_refresh(
    config, run.model, policies, checked.targets, checked.spec, batches,
    checked.features.target, run.responses,
  )  # fmt: skip
  checkpoints, described, saved, state = _restore(checked, refresh, stack)
  step = saved.step if saved else 0
  host = saved.host if saved else {}
  pool = Pool([d.train for d in run.domains.values()], checked.spec.sequence_length)
  reference, pool.reference = sources.open_reference(
    run.reference, pool, run.domains, config.batch_size, checked.mesh
  )
  fixed = sources.fixed_parts(reference, checked.targets, checked.mesh)
  standing = Standing(state._replace(fixed=fixed), step, step)
  standing.before, standing.after = host.get("before"), host.get("after")

  arrange = make_arrange(
    policies.ordering, run.model, pool, config.plan.sweep_batch_size or config.batch_size,
    batches, run.scores, lambda: standing.state,
    lambda count: record.spend(cost.Cost(forward=count)),
  )  # fmt: skip
  round_start = _round_start(checked, pool, described)
  train_step = make_train_step(
    run.model, run.optimizer, run.learning_rate, policies, checked.options,
    run.reference.model if run.reference is not None else None,
    checked.features.step, checked.features.products,
  )  # fmt: skip
  plan_spec = setup.plan_spec(config, checked.spec, policies, run.domains)
  mixture = setup.initial_mixture(checked.spec, checked.decisions)
  iterator = iter(Loader(pool, plan_spec, mixture, batches, arrange, checked.recorded))
  if saved:
    standing.round_rows = _continue(iterator, saved)
  examples = None
  if checked.pieces is not None:
    trained = {name: domain.train for name, domain in run.domains.items()}
    examples = ExampleTable(trained, checked.pieces, saved.arrays if saved else {}, step)
  record = _record(checked, step, described["config"], host.get("record"), examples)
  stack.enter_context(process.closing(record))
  if pool.reference is not None and not saved:
    # Counted whether or not an earlier run has left them in the cache.
    record.spend(cost.Cost(forward=len(pool)))
  trace = process.Trace(checked.workdir, profile, step)
  stack.enter_context(process.closing(trace))
  step_cost = cost.of_step(
    config, run.model, policies, checked.options, reference_in_step=reference is not None
  )
  decides_in_step = policies.mixture is not None and policies.mixture.scope == "step"
  parts = Parts(
    checkpoints, described, refresh, round_start, iterator, train_step, step_cost,
    decides_in_step and checked.decisions["mixture"].logits is not None,
    make_evaluate(run, checked.mesh), record, examples, trace,
    stack.enter_context(process.sigterm(checked.mesh)),
  )  # fmt: skip
  return parts, standing


def _restore(
  checked: Checked, refresh: sources.Refresh | None, stack: contextlib.ExitStack
) -> tuple[
  checkpoint.Checkpoints, dict[str, Any], checkpoint.Saved | None, state_lib.TrainState
]:
  """The state of the newest intact checkpoint, or that of the start."""
  run, config = checked.run, checked.run.config
  folder = config.checkpoint.folder or f"{checked.workdir}/checkpoints"
  checkpoints = checkpoint.Checkpoints(folder, config.checkpoint.keep)
  stack.enter_context(process.closing(checkpoints))
  parts = (checked.start, run.optimizer, checked.policy_states, checked.mesh)
  shapes = state_lib.abstract(*parts, None if refresh is None else refresh.shapes)
  described = setup.describe_run(
    run.config_json or config_lib.to_json(config), run.policies, run.domains, run.scores,
    shapes, run.weights, checked.targets,
    run.reference.fingerprint if run.reference is not None else None,
    run.responses.describe() if run.responses is not None else None, checked.recorded,
  )  # fmt: skip
  setup.check_resume(checkpoints, described)
  saved = checkpoints.restore(state_lib.saved_part(shapes))
  if saved:
    state = state_lib.with_frozen(saved.state, shapes, checked.start, config.seed)
  else:
    state = state_lib.init(*parts, config.seed)
  return checkpoints, described, saved, state


def _round_start(
  checked: Checked, pool: Pool, described: Mapping[str, Any]
) -> Callable[..., rounds.RoundStart] | None:
  run, config, policies = checked.run, checked.run.config, checked.run.policies
  batches = sharding.batch_sharding(checked.mesh)
  probe = sources.make_probe(
    config, run.model, policies, checked.targets, checked.spec, pool, batches, run.optimizer
  )
  sweeps = sweeps_lib.make_sweeps(
    run.model, run.reference.model if run.reference is not None else None, policies, pool,
    config.plan.sweep_batch_size or config.batch_size, batches, checked.features.round,
    f"{checked.workdir}/sweeps",
    {"run": {n: described[n] for n in ("config", "data", "parts")}, "adam": run.adam},
  )  # fmt: skip
  return rounds.make_round_start(
    policies, checked.spec, config.seed, pool, batches, sweeps, run.learning_rate, probe,
    sweep_rows=config.plan.sweep_rows, max_age=config.plan.max_age,
  )  # fmt: skip


def _continue(iterator: LoaderIterator, saved: checkpoint.Saved) -> plan.RoundRows | None:
  """Sets the iterator to where a checkpoint was taken; returns the round decision in force."""
  iterator.set_state(saved.host["plan"])
  held = {name: saved.arrays[name] for name in plan.RoundRows._fields if name in saved.arrays}
  if not held:
    return None
  rows = plan.RoundRows(**held)
  iterator.resume_round(rows)
  return rows


def _record(
  checked: Checked,
  step: int,
  config_json: Mapping[str, Any],
  saved: Mapping[str, Any] | None,
  examples: ExampleTable | None,
) -> Record:
  decisions, options = checked.decisions, checked.options
  weighted = any(decisions[name].weights is not None for name in options.weighted_slots)
  return Record(
    Path(checked.workdir),
    checked.spec,
    checked.run.config,
    step,
    config_json,
    saved,
    weighted=options.row_weights or weighted,
    token_weights=any(d.token_weights is not None for d in decisions.values()),
    examples=examples,
  )
