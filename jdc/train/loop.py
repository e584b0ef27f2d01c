"""The training loop: draws, steps, logs, evaluates, saves, resumes."""

import contextlib
import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jdc.data import plan
from jdc.data.loader import Loader, LoaderIterator, Pool
from jdc.data.pack import Domain
from jdc.eval import perplexity
from jdc.models.base import LanguageModel
from jdc.policies.combine import Policies
from jdc.train import checkpoint, rounds, setup, sharding
from jdc.train import config as config_lib
from jdc.train import state as state_lib
from jdc.train.arrange import make_arrange
from jdc.train.config import RunConfig
from jdc.train.record import Record
from jdc.train.step import make_train_step

_LOG = logging.getLogger("jdc")

_PROFILED = (10, 15)  # steps after the start of the process that `profile` traces


@dataclasses.dataclass(frozen=True)
class Result:
  """How a run ended."""

  state: state_lib.TrainState
  stopped: str  # "finished", "SIGTERM", or why the data ended
  plan: plan.PlanState
  before: dict[str, float]  # validation metrics before the first step
  after: dict[str, float] | None  # and at the end; None after SIGTERM


def fit(
  model: LanguageModel,
  optimizer: optax.GradientTransformation,
  learning_rate: optax.Schedule,
  policies: Policies,
  domains: Mapping[str, Domain],
  config: RunConfig,
  workdir: str,
  *,
  config_json: Mapping[str, Any] | None = None,
  scores: np.ndarray | None = None,
  profile: bool = False,
) -> Result:
  """Trains, or continues what `workdir` holds, until `config.num_steps`.

  Args:
    model: the network as pure functions.
    optimizer: applied to the gradient of the weighted loss.
    learning_rate: the schedule inside the optimizer, for policies and logs.
    policies: what decides about the data; `combine()` for nothing.
    domains: packed rows by domain.
    config: sizes, the plan, and when to log, evaluate and save.
    workdir: receives `checkpoints/`, `metrics.jsonl` and the log of example ids.
    config_json: the whole config as flat JSON, kept in the checkpoint; a resume with another
      one is an error that names the fields. Default: `config`.
    scores: f32[N], one per row of all domains in order, for an ordering by given scores.
    profile: writes a trace of a few steps to `workdir/profile`.

  Returns:
    The final state and a summary.

  Raises:
    ValueError: before any compilation, if the parts do not fit together or the checkpoint is
      of another config or other data.
    FloatingPointError: when too many steps in a row had no finite loss or gradient.
  """
  # What the run consists of, checked before anything compiles.
  mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
  setup.check(config, policies, model, domains, mesh, scores)
  spec = setup.run_spec(config, domains, policies)
  plan_spec = setup.plan_spec(config, spec, policies)
  described = {
    "config": dict(config_lib.to_json(config) if config_json is None else config_json),
    "data": {name: domain.train.fingerprint for name, domain in domains.items()},
  }
  decisions, policy_states = state_lib.init_policies(policies, spec, config.seed)
  options = setup.step_options(config, decisions, policies)
  batches = sharding.batch_sharding(mesh)

  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    # The state: fresh, or from the newest intact checkpoint.
    checkpoints = checkpoint.Checkpoints(f"{workdir}/checkpoints", config.checkpoint.keep)
    stack.callback(checkpoints.close)
    setup.check_resume(checkpoints, described)
    parts = (model, optimizer, policy_states, mesh)
    saved = checkpoints.restore(state_lib.abstract(*parts))
    tables = [domain.train for domain in domains.values()]
    mixture = setup.initial_mixture(spec, decisions)
    pool = Pool(tables, spec.sequence_length)
    sweep_batch_size = config.plan.sweep_batch_size or config.batch_size
    arrange = None
    if policies.ordering is not None:
      arrange = make_arrange(
        policies.ordering, model, pool, sweep_batch_size, batches, scores, lambda: state
      )
    iterator = iter(Loader(pool, plan_spec, mixture, batches, arrange))
    host: dict[str, Any] = {}
    round_rows: plan.RoundRows | None = None
    step = 0
    if saved is not None:
      state, host, step = saved.state, saved.host, saved.step
      iterator.set_state(host["plan"])
      round_rows = _round_rows(saved.arrays)
      if round_rows is not None:
        iterator.resume_round(round_rows)
      _LOG.info("resumed from step %d", step)
    else:
      state = state_lib.init(*parts, config.seed)
    saved_step = step if saved is not None else None

    # What the loop calls.
    record = Record(Path(workdir), spec, config, step, described["config"], host.get("record"))
    stack.callback(record.close)
    train_step = make_train_step(model, optimizer, learning_rate, policies, options)
    compiled: Any = None
    round_start = rounds.make_round_start(
      model, policies, pool, spec, sweep_batch_size, config.seed, batches
    )
    push = policies.mixture is not None and policies.mixture.scope == "step"

    def evaluate(step: int) -> dict[str, float]:
      with record.pause():
        found = _evaluate(model, state, domains, config, mesh)
      record.write(step, found | record.shares(iterator.state))
      return found

    def save(step: int) -> None:
      with record.pause():
        record.flush()  # what the checkpoint covers must survive it
        content = {
          **described,
          "plan": iterator.get_state(),
          "record": record.to_json(),
          "before": before,
          "after": after,
        }
        checkpoints.save(step, state, content, _arrays(round_rows))

    # The host draws batch t + 1 and reads step t - 1 while the devices compute step t.
    before: dict[str, float] = host["before"] if host else evaluate(0)
    after: dict[str, float] | None = host.get("after")
    terminated, trace = stack.enter_context(_sigterm()), _Trace(workdir, profile, step)
    stack.callback(trace.close)
    stopped, pending = "", None
    while step < config.num_steps and not stopped:
      if round_start is not None and iterator.at_round_start():
        with record.pause():
          begun = round_start(state, int(iterator.state.round))
          state, round_rows = begun.state, _begin(iterator, begun)
          record.round(step, begun.metrics)
      drawn_from = iterator.state
      try:
        batch = next(iterator)
      except StopIteration as end:
        stopped = str(end)
        break
      if compiled is None:
        compiled, seconds = _compile(train_step, state, batch)
        record.compiled(step + 1, seconds)
      trace.before(step)
      state, output = compiled(state, batch)
      step, after = step + 1, None
      if push:
        iterator.push(output.mixture_logits)
      if pending is not None:
        record.step(*pending)
      pending = (output, drawn_from, iterator.state)
      stopped = "SIGTERM" if terminated(step) else ""
      evaluates, saves = (
        _due(config.evaluation.every_steps, step, config),
        _due(config.checkpoint.every_steps, step, config),
      )
      if evaluates or saves:
        record.step(*pending)
        pending = None
      if evaluates:
        evaluate(step)
      if saves:
        save(step)
        saved_step = step

    if pending is not None:
      record.step(*pending)
    if after is None and stopped != "SIGTERM":
      after, saved_step = evaluate(step), None
    if saved_step != step:
      save(step)
    checkpoints.wait()
    return Result(state, stopped or "finished", iterator.state, before, after)


def _due(every: int, step: int, config: RunConfig) -> bool:
  # The end of the run has its own evaluation and checkpoint.
  return every > 0 and step % every == 0 and step < config.num_steps


def _begin(iterator: LoaderIterator, begun: rounds.RoundStart) -> plan.RoundRows | None:
  if begun.mixture_logits is not None:
    iterator.hold(begun.mixture_logits)
  if begun.rows is not None:
    iterator.start_round(begun.rows)
  return begun.rows


def _compile(train_step: Callable, state: Any, batch: Any) -> tuple[Any, float]:
  started = time.perf_counter()
  shardings = jax.tree.map(lambda x: x.sharding, state)
  jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, None))
  compiled = jitted.lower(state, batch).compile()
  return compiled, time.perf_counter() - started


def _evaluate(
  model: LanguageModel,
  state: state_lib.TrainState,
  domains: Mapping[str, Domain],
  config: RunConfig,
  mesh: jax.sharding.Mesh,
) -> dict[str, float]:
  tables = {name: d.validation for name, d in domains.items() if d.validation is not None}
  return perplexity.evaluate(
    model.token_losses,
    state.params,
    tables,
    config.evaluation.batch_size or config.batch_size,
    mesh,
    config.evaluation.max_rows or None,
  )


def _arrays(rows: plan.RoundRows | None) -> dict[str, np.ndarray]:
  if rows is None:
    return {}
  return {name: x for name, x in rows._asdict().items() if x is not None}


def _round_rows(arrays: Mapping[str, np.ndarray]) -> plan.RoundRows | None:
  return plan.RoundRows(**arrays) if arrays else None


@contextlib.contextmanager
def _sigterm() -> Iterator[Callable[[int], bool]]:
  """Yields a function that tells after a step whether the run was asked to stop."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    # All processes must stop at the same step; JAX's coordinator arranges that.
    yield multihost_utils.reached_preemption_sync_point
    return
  asked = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield lambda step: asked.is_set()  # only the main thread may handle signals
    return
  previous = signal.signal(signal.SIGTERM, lambda *_: asked.set())
  try:
    yield lambda step: asked.is_set()
  finally:
    signal.signal(signal.SIGTERM, previous)


class _Trace:
  """Profiles a few steps once everything is warm."""

  def __init__(self, workdir: str, wanted: bool, step: int):
    self._folder = f"{workdir}/profile"
    self._steps = range(step + _PROFILED[0], step + _PROFILED[1]) if wanted else range(0)
    self._running = False

  def before(self, step: int) -> None:
    """Starts or stops the trace, as the step asks for."""
    if step in self._steps and not self._running:
      jax.profiler.start_trace(self._folder)
      self._running = True
    elif self._running and step not in self._steps:
      self.close()

  def close(self) -> None:
    """Writes the trace if one is running."""
    if self._running:
      jax.profiler.stop_trace()
      self._running = False
