"""The training loop: draws, steps, logs, evaluates, saves, resumes."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jdc.data import plan
from jdc.data.filled import FilledTable
from jdc.data.formats import import_extra
from jdc.data.loader import Loader, LoaderIterator, Pool
from jdc.data.pack import Domain
from jdc.eval import perplexity
from jdc.models.base import LanguageModel
from jdc.policies.base import RunSpec
from jdc.policies.combine import Policies
from jdc.stats.directions import Adam
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
from jdc.train.config import RunConfig
from jdc.train.example_table import ExampleTable
from jdc.train.record import Record
from jdc.train.responses import Responses
from jdc.train.step import make_train_step

_LOG = logging.getLogger("jdc")


class Run(NamedTuple):
  """What a run consists of."""

  model: LanguageModel  # the network as pure functions
  optimizer: optax.GradientTransformation  # of the gradient of the weighted loss
  learning_rate: optax.Schedule  # the one inside the optimizer, for policies and logs
  policies: Policies  # what decides about the data; `combine()` for nothing
  domains: Mapping[str, Domain]  # packed rows
  config: RunConfig  # sizes, the plan, and when to log, evaluate and save
  # The whole config as flat JSON, kept in the checkpoint: a resume with another one is an
  # error. Default: `config`.
  config_json: Mapping[str, Any] | None = None
  scores: np.ndarray | None = None  # f32[N], of all rows in order, for an ordering by them
  weights: state_lib.Weights | None = None  # what the parameters start from; else drawn
  trainable: Callable[[str], bool] | None = None  # by path; default: all parameters
  reference: state_lib.Reference | None = None  # whose losses policies compare with
  # The target set of policies, a table a task; default: the target split of the domains.
  tasks: Mapping[str, Any] | None = None
  # The constants of the optimizer, for policies that observe its directions; `None` where it
  # is not Adam.
  adam: Adam | None = None
  responses: Responses | None = None  # how those to the target's prompts are rewarded


class Progress(NamedTuple):
  """A step that has been handed to the devices."""

  step: int  # steps so far
  state: state_lib.TrainState  # donated to the next step


@dataclasses.dataclass(frozen=True)
class Result:
  """How a run ended."""

  state: state_lib.TrainState
  stopped: str  # "finished", "SIGTERM", or why the data ended
  plan: plan.PlanState
  before: dict[str, float]  # metrics of the evaluated split before the first step
  after: dict[str, float] | None  # and at the end; None after SIGTERM
  spec: RunSpec  # what policies knew about the run


def fit(run: Run, workdir: str, *, profile: bool = False) -> Result:
  """Trains, or continues what `workdir` holds, until `config.num_steps`.

  Args:
    run: what to train, and on what.
    workdir: a local folder; receives `checkpoints/`, `metrics.jsonl` and the example ids.
    profile: writes a trace of a few steps to `workdir/profile`.

  Returns:
    The final state and a summary.

  Raises:
    ValueError: before any compilation, if the parts do not fit together or the checkpoint is
      of another config or other data; when a round begins, if its selection leaves no row of a
      domain that the mixture draws of.
    FloatingPointError: when too many steps in a row had no finite loss, or no gradient, or the
      selection of a round gave no row a finite logit.
    RuntimeError: if a checkpoint cannot be written, or none of those there is intact.
    OSError: if metrics cannot be written; the checkpoints are intact.
  """
  running = steps(run, workdir, profile=profile)
  while True:
    try:
      next(running)
    except StopIteration as end:
      return end.value


def steps(
  run: Run, workdir: str, *, profile: bool = False
) -> Generator[Progress, None, Result]:
  """Does what `fit` does, and yields after every step; the run's mesh is set in between."""
  config, policies = run.config, run.policies
  # What the run consists of, checked before anything compiles.
  targets = sources.target_rows(config, policies, run.domains, run.tasks)
  sizes = setup.sizes_of(run.model, run.domains, targets, run.tasks)
  reference_model = run.reference.model if run.reference is not None else None
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
  plan_spec = setup.plan_spec(config, spec, policies, run.domains)
  decisions, policy_states = state_lib.init_policies(policies, spec, config.seed)
  slot_checks.check_decisions(decisions, spec, policies, config.plan.max_segments)
  recorded = sources.recorded_decisions(config, spec, workdir)
  options = setup.step_options(config, decisions, policies, recorded)
  pieces = _pieces(run)
  if pieces is not None:
    options = dataclasses.replace(options, num_pieces=pieces.most)

  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    # Where the run stands: at the newest intact checkpoint, or at its start.
    folder = config.checkpoint.folder or f"{workdir}/checkpoints"
    checkpoints = checkpoint.Checkpoints(folder, config.checkpoint.keep)
    stack.enter_context(process.closing(checkpoints))
    refresh = sources.make_refresh(
      config, run.model, policies, targets, spec, batches, features.target, run.responses
    )
    parts = (start, run.optimizer, policy_states, mesh)
    shapes = state_lib.abstract(*parts, None if refresh is None else refresh.shapes)
    config_json = run.config_json or config_lib.to_json(config)
    described = setup.describe_run(
      config_json, policies, run.domains, run.scores, shapes, run.weights, targets,
      run.reference.fingerprint if run.reference is not None else None,
      run.responses.describe() if run.responses is not None else None, recorded,
    )  # fmt: skip
    setup.check_resume(checkpoints, described)
    saved = checkpoints.restore(state_lib.saved_part(shapes))
    if saved:
      state = state_lib.with_frozen(saved.state, shapes, start, config.seed)
    else:
      state = state_lib.init(*parts, config.seed)
    host = saved.host if saved else {}
    step = saved_step = saved.step if saved else 0

    # What the loop calls.
    pool = Pool([domain.train for domain in run.domains.values()], spec.sequence_length)
    reference, pool.reference = sources.open_reference(
      run.reference, pool, run.domains, config.batch_size, mesh
    )
    state = state._replace(fixed=sources.fixed_parts(reference, targets, mesh))
    sweep = (pool, config.plan.sweep_batch_size or config.batch_size, batches)
    arrange = make_arrange(
      policies.ordering, run.model, *sweep, run.scores, lambda: state,
      lambda count: record.spend(cost.Cost(forward=count)),
    )  # fmt: skip
    probe = sources.make_probe(
      config, run.model, policies, targets, spec, pool, batches, run.optimizer
    )
    sweeps = sweeps_lib.make_sweeps(
      run.model, reference_model, policies, *sweep, features.round, f"{workdir}/sweeps",
      {"run": {n: described[n] for n in ("config", "data", "parts")}, "adam": run.adam},
    )  # fmt: skip
    round_start = rounds.make_round_start(
      policies, spec, config.seed, pool, batches, sweeps, run.learning_rate, probe,
      sweep_rows=config.plan.sweep_rows, max_age=config.plan.max_age,
    )  # fmt: skip
    train_step = make_train_step(
      run.model, run.optimizer, run.learning_rate, policies, options, reference_model,
      features.step, features.products,
    )  # fmt: skip
    step_cost = cost.of_step(
      config, run.model, policies, options, reference_in_step=reference is not None
    )
    mixture = setup.initial_mixture(spec, decisions)
    iterator = iter(Loader(pool, plan_spec, mixture, batches, arrange, recorded))
    round_rows = _continue(iterator, saved)
    decides_in_step = policies.mixture is not None and policies.mixture.scope == "step"
    pushes = decides_in_step and decisions["mixture"].logits is not None
    examples = None
    if pieces is not None:
      trained = {name: domain.train for name, domain in run.domains.items()}
      examples = ExampleTable(trained, pieces, saved.arrays if saved else {}, step)
    record = Record(
      Path(workdir), spec, config, step, described["config"], host.get("record"),
      weighted=options.row_weights or any(
        decisions[name].weights is not None for name in options.weighted_slots
      ),
      token_weights=any(d.token_weights is not None for d in decisions.values()),
      examples=examples,
    )  # fmt: skip
    stack.enter_context(process.closing(record))
    if pool.reference is not None and not saved:
      # Counted whether or not an earlier run has left them in the cache.
      record.spend(cost.Cost(forward=len(pool)))
    trace = process.Trace(workdir, profile, step)
    tables = _tables(run)
    stack.enter_context(process.closing(trace))
    terminated = stack.enter_context(process.sigterm(mesh))

    def evaluate() -> dict[str, float]:
      with record.pause():
        found = _evaluate(run, tables, state.model_params, mesh)
      record.write(step, found | record.totals(iterator.state, record.cost))
      return found

    pending: tuple[Any, ...] | None = None

    def write_pending() -> None:
      # Before anything else is written, so that the metrics are in the order of the steps.
      nonlocal pending
      if pending is not None:
        record.step(*pending)
      pending = None

    def save() -> None:
      with record.pause():
        record.flush()  # what the checkpoint covers must survive it
        content: dict[str, Any] = {**described, "before": before, "after": after}
        content |= {"plan": iterator.get_state(), "record": record.to_json()}
        checkpoints.save(
          step, state_lib.saved_part(state), content, _arrays(round_rows, examples)
        )
        # The checkpoint before this one is on the disk, this one perhaps not yet.
        sweeps_lib.forget(f"{workdir}/sweeps", saved_step)

    before: dict[str, float] = host["before"] if saved else evaluate()
    after: dict[str, float] | None = host.get("after")
    stopped, compiled = "", None
    # The host draws batch t + 1 and reads step t - 1 while the devices compute step t.
    while step < config.num_steps and not stopped:
      if refresh is not None and refresh.due(step, iterator.at_round_start()):
        write_pending()
        with record.pause(step=step):
          state, spent = jax.block_until_ready(refresh(state))
          record.spend(spent)
        record.report(step, refresh.metrics(state))
      if round_start is not None and iterator.at_round_start():
        write_pending()
        with record.pause(step=step):
          begun = round_start(state, int(iterator.state.round), round_rows)
          record.spend(begun.cost)
          state, round_rows = begun.state, _begin(iterator, begun)
          if examples is not None and begun.rows is not None:
            examples.round(begun.rows)
          record.round(step, begun.metrics)
      try:
        batch = next(iterator)
      except StopIteration as end:
        stopped = str(end)
        break
      if compiled is None:
        compiled, seconds = _compile(train_step, state, batch, sharding.replicated(mesh))
        record.compiled(step + 1, seconds)
      trace.before(step)
      state, output = compiled(state, batch)
      record.spend(step_cost)
      step, after = step + 1, None
      if pushes:
        iterator.push(output.mixture_logits)
      write_pending()
      pending = (output, iterator.state, record.cost)
      stopped = "SIGTERM" if terminated() else ""
      evaluates = _due(config.evaluation.every_steps, step, config)
      saves = _due(config.checkpoint.every_steps, step, config)
      if evaluates or saves:
        write_pending()
      if evaluates:
        evaluate()
      if saves:
        save()
        saved_step = step
      yield Progress(step, state)

    write_pending()
    if after is None and stopped != "SIGTERM":
      after, saved_step = evaluate(), -1
    if saved_step != step:
      save()
    checkpoints.wait()
    sweeps_lib.forget(f"{workdir}/sweeps", step)
    return Result(state, stopped or "finished", iterator.state, before, after, spec)


def _due(every: int, step: int, config: RunConfig) -> bool:
  # The end of the run has its own evaluation and checkpoint.
  return every > 0 and step % every == 0 and step < config.num_steps


def _continue(
  iterator: LoaderIterator, saved: checkpoint.Saved | None
) -> plan.RoundRows | None:
  """Sets the iterator to where a checkpoint was taken; returns the round decision in force."""
  if saved is None:
    return None
  iterator.set_state(saved.host["plan"])
  _LOG.info("continuing from step %d", saved.step)
  held = {name: saved.arrays[name] for name in plan.RoundRows._fields if name in saved.arrays}
  if not held:
    return None
  rows = plan.RoundRows(**held)
  iterator.resume_round(rows)
  return rows


def _begin(iterator: LoaderIterator, begun: rounds.RoundStart) -> plan.RoundRows | None:
  if begun.mixture_logits is not None:
    iterator.hold(begun.mixture_logits)
  if begun.rows is not None:
    iterator.start_round(begun.rows)
  return begun.rows


def _arrays(
  rows: plan.RoundRows | None, examples: ExampleTable | None
) -> dict[str, np.ndarray]:
  kept = {} if rows is None else {n: x for n, x in rows._asdict().items() if x is not None}
  return kept if examples is None else kept | examples.arrays()


def _pieces(run: Run) -> example_table.Pieces | None:
  """Of the rows, where a table of examples is kept; before anything compiles."""
  if not run.config.logging.example_table:
    return None
  import_extra("pyarrow.parquet", "parquet")
  return example_table.pieces_of([domain.train for domain in run.domains.values()])


def _compile(
  train_step: Callable, state: Any, batch: Any, output: jax.NamedSharding
) -> tuple[Any, float]:
  started = time.perf_counter()
  shardings = jax.tree.map(lambda x: x.sharding, state)
  jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, output))
  compiled = jitted.lower(state, batch).compile()
  return compiled, time.perf_counter() - started


def _evaluate(
  run: Run, tables: Mapping[str, Any], params: Any, mesh: jax.sharding.Mesh
) -> dict[str, float]:
  fields, packed = run.config.evaluation, run.config.plan.max_segments > 0
  if fields.split == "none":
    return {}
  found = perplexity.evaluate(
    run.model.token_losses,
    params,
    tables,
    fields.batch_size or run.config.batch_size,
    mesh,
    None if packed else fields.max_rows or None,
  )
  return {f"{fields.split}/{path.removeprefix('validation/')}": x for path, x in found.items()}


def _tables(run: Run) -> dict[str, Any]:
  """What is evaluated, by domain."""
  config = run.config
  tables = {n: domain.splits.get(config.evaluation.split) for n, domain in run.domains.items()}
  return {
    name: _evaluated(table, config.evaluation.max_rows, config.plan.max_segments)
    for name, table in tables.items()
    if table is not None
  }


def _evaluated(table: Any, max_rows: int, max_segments: int) -> Any:
  """The rows of a domain to evaluate; where records are packed, `max_rows` counts records."""
  if not max_segments:
    return table
  size = min(len(table), max_rows or len(table))
  return FilledTable(table, np.arange(size) * len(table) // size, max_segments)
