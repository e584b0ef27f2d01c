"""The training loop: draws, steps, logs, evaluates, saves, resumes."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import jax
import numpy as np

from jdc.data import plan
from jdc.policies.base import RunSpec
from jdc.train import assemble, sharding
from jdc.train import state as state_lib
from jdc.train import sweeps as sweeps_lib
from jdc.train.assemble import Checked, Parts, Standing
from jdc.train.run import Run as Run

_LOG = logging.getLogger("jdc")


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
  checked = assemble.check(run, workdir)
  with jax.set_mesh(checked.mesh), contextlib.ExitStack() as stack:
    parts, now = assemble.assemble(checked, profile, stack)
    loop = _Loop(checked, parts, now)
    if now.step:
      _LOG.info("continuing from step %d", now.step)
    if now.before is None:
      now.before = loop.evaluate()
    # The host draws batch t + 1 and reads step t - 1 while the devices compute step t.
    stopped = ""
    while now.step < run.config.num_steps and not stopped:
      loop.refresh_target()
      loop.begin_round()
      try:
        batch = next(parts.iterator)
      except StopIteration as end:
        stopped = str(end)
        break
      loop.step(batch)
      stopped = "SIGTERM" if parts.terminated() else ""
      loop.evaluate_and_save_if_due()
      yield Progress(now.step, now.state)
    loop.finish(evaluates=stopped != "SIGTERM")
    return Result(
      now.state,
      stopped or "finished",
      parts.iterator.state,
      now.before,
      now.after,
      checked.spec,
    )


class _Loop:
  """What happens around steps, and what waits to be read of the last one."""

  def __init__(self, checked: Checked, parts: Parts, now: Standing):
    self._checked, self._parts, self._now = checked, parts, now
    self._compiled: Callable[..., Any] | None = None
    self._pending: tuple[Any, ...] | None = None

  def refresh_target(self) -> None:
    """Computes the statistics of the target set anew where the next step needs them."""
    refresh, record, now = self._parts.refresh, self._parts.record, self._now
    if refresh is None or not refresh.due(now.step, self._parts.iterator.at_round_start()):
      return
    self._write_pending()
    with record.pause(step=now.step):
      now.state, spent = jax.block_until_ready(refresh(now.state))
      record.spend(spent)
    record.report(now.step, refresh.metrics(now.state))

  def begin_round(self) -> None:
    """Lets the policies decide where a round begins."""
    parts, record, now = self._parts, self._parts.record, self._now
    if parts.round_start is None or not parts.iterator.at_round_start():
      return
    self._write_pending()
    with record.pause(step=now.step):
      begun = parts.round_start(now.state, int(parts.iterator.state.round), now.round_rows)
      record.spend(begun.cost)
      now.state, now.round_rows = begun.state, begun.rows
      if begun.mixture_logits is not None:
        parts.iterator.hold(begun.mixture_logits)
      if begun.rows is not None:
        parts.iterator.start_round(begun.rows)
        if parts.examples is not None:
          parts.examples.round(begun.rows)
      record.round(now.step, begun.metrics)

  def step(self, batch: Any) -> None:
    """Hands a step to the devices, and reads the one before it."""
    parts, record, now = self._parts, self._parts.record, self._now
    if self._compiled is None:
      self._compiled, seconds = self._compile(batch)
      record.compiled(now.step + 1, seconds)
    parts.trace.before(now.step)
    now.state, output = self._compiled(now.state, batch)
    record.spend(parts.step_cost)
    now.step, now.after = now.step + 1, None
    if parts.pushes:
      parts.iterator.push(output.mixture_logits)
    self._write_pending()
    self._pending = (output, parts.iterator.state, record.cost)

  def evaluate_and_save_if_due(self) -> None:
    """The end of the run has its own evaluation and checkpoint."""
    config, step = self._checked.run.config, self._now.step
    evaluates, saves = (
      every > 0 and step % every == 0 and step < config.num_steps
      for every in (config.evaluation.every_steps, config.checkpoint.every_steps)
    )
    if evaluates:
      self.evaluate()
    if saves:
      self._save()

  def finish(self, evaluates: bool) -> None:
    """Reads the last step, evaluates if asked to and not done, and saves."""
    now = self._now
    self._write_pending()
    unsaved = now.saved_step != now.step
    if now.after is None and evaluates:
      now.after, unsaved = self.evaluate(), True
    if unsaved:
      self._save()
    self._parts.checkpoints.wait()
    sweeps_lib.forget(f"{self._checked.workdir}/sweeps", now.step)

  def evaluate(self) -> dict[str, float]:
    """Returns the metrics of the evaluated split, once they are written."""
    record, now = self._parts.record, self._now
    self._write_pending()
    with record.pause():
      found = self._parts.evaluate(now.state.model_params)
    record.write(now.step, found | record.totals(self._parts.iterator.state, record.cost))
    return found

  def _save(self) -> None:
    parts, record, now = self._parts, self._parts.record, self._now
    self._write_pending()
    with record.pause():
      record.flush()  # what the checkpoint covers must survive it
      content: dict[str, Any] = {**parts.described, "before": now.before, "after": now.after}
      content |= {"plan": parts.iterator.get_state(), "record": record.to_json()}
      arrays = {} if now.round_rows is None else now.round_rows._asdict()
      kept: dict[str, np.ndarray] = {name: x for name, x in arrays.items() if x is not None}
      if parts.examples is not None:
        kept |= parts.examples.arrays()
      parts.checkpoints.save(now.step, state_lib.saved_part(now.state), content, kept)
      # The checkpoint before this one is on the disk, this one perhaps not yet.
      sweeps_lib.forget(f"{self._checked.workdir}/sweeps", now.saved_step)
    now.saved_step = now.step

  def _write_pending(self) -> None:
    # Before anything else is written, so that the metrics are in the order of the steps.
    if self._pending is not None:
      self._parts.record.step(*self._pending)
    self._pending = None

  def _compile(self, batch: Any) -> tuple[Callable[..., Any], float]:
    started = time.perf_counter()
    state = self._now.state
    shardings = jax.tree.map(lambda x: x.sharding, state)
    output = sharding.replicated(self._checked.mesh)
    jitted = jax.jit(
      self._parts.train_step, donate_argnums=0, out_shardings=(shardings, output)
    )
    return jitted.lower(state, batch).compile(), time.perf_counter() - started
