"""What a run writes down: metrics, times, example ids, and the progress on the terminal."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from jdc import metrics as metrics_lib
from jdc.data.plan import PlanState
from jdc.policies.base import RunSpec
from jdc.train.config import RunConfig
from jdc.train.cost import Cost
from jdc.train.example_table import ExampleTable
from jdc.train.step import StepOutput

_LOG = logging.getLogger("jdc")


class Record:
  """Turns step outputs into metrics. Process 0 writes; all processes watch for bad losses.

  Args:
    workdir: where the files go.
    spec: of the run.
    config: of the run.
    step: steps done before this process; later lines of the files are cut off.
    config_json: shown to W&B.
    saved: what `to_json` returned at `step`, or `None` in a fresh run.
    weighted: whether examples have weights.
    token_weights: whether single tokens have.
    examples: the table of examples, where one is kept.
  """

  def __init__(
    self,
    workdir: Path,
    spec: RunSpec,
    config: RunConfig,
    step: int,
    config_json: Mapping[str, Any],
    saved: Mapping[str, Any] | None,
    *,
    weighted: bool = False,
    token_weights: bool = False,
    examples: ExampleTable | None = None,
  ):
    self._weighted, self._token_weights = weighted, token_weights
    self._workdir, self.examples = workdir, examples
    self._spec, self._config = spec, config
    self._window = metrics_lib.Window(spec.num_domains)
    self._tokens = self._skipped = 0
    self.cost = Cost()
    if saved is not None:
      self._window.from_json(saved["window"])
      self._tokens, self._skipped = saved["tokens"], saved["skipped"]
      self.cost = Cost(*saved["cost"])
    self._busy, self._timed_steps, self._timed_tokens = 0.0, 0, 0
    self._mark: float | None = None
    self._main = jax.process_index() == 0
    self._writers: list[metrics_lib.Writer] = []
    self._files: list[metrics_lib.Closable] = []
    if self._main:
      self._open(workdir, config, step, config_json, saved or {})
    hidden = not (self._main and sys.stderr.isatty())
    self._bar = tqdm.tqdm(
      total=config.num_steps, initial=step, unit="step", disable=hidden, dynamic_ncols=True
    )

  def _open(
    self,
    workdir: Path,
    config: RunConfig,
    step: int,
    config_json: Mapping[str, Any],
    saved: Mapping[str, Any],
  ) -> None:
    # A run from the start keeps nothing of an earlier try that never saved.
    last_step = step if step else -1
    # A run that was killed while it saved its end has evaluated the saved step once more.
    last_line = saved.get("lines")
    self._lines = metrics_lib.JsonlWriter(workdir / "metrics.jsonl", last_step, last_line)
    self._times = metrics_lib.JsonlWriter(workdir / "timing.jsonl", last_step)
    self._decisions = metrics_lib.DecisionLog(
      workdir,
      self._spec.batch_size,
      step,
      self._weighted,
      {
        "data_fingerprint": self._spec.data_fingerprint,
        "token_weights": self._token_weights,
        "max_segments": self._spec.max_segments,
      },
    )
    if config.logging.tensorboard:
      folder = workdir / "tensorboard"
      self._writers.append(metrics_lib.TensorBoardWriter(folder, last_step))
    if config.logging.wandb_project:
      project = config.logging.wandb_project
      self._writers.append(metrics_lib.WandbWriter(project, workdir, config_json))
    self._files = [self._lines, self._times, self._decisions, *self._writers]

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes metrics that do not depend on the clock."""
    if self._main:
      for writer in (self._lines, *self._writers):
        writer.write(step, metrics)

  def step(self, output: StepOutput, after: PlanState, cost: Cost) -> None:
    """Takes in a step that has been computed, the plan behind it and the cost up to it.

    Raises:
      FloatingPointError: if too many steps in a row had no finite loss, or no gradient.
    """
    out: Any = jax.device_get(output)
    done = int(after.step)
    self._window.add(out.domain, out.loss_B, out.num_tokens_B, out.weight_B, out.example_id)
    if self.examples is not None:
      self.examples.step(out, done)
    tokens = int(out.num_tokens_B.sum())
    self._tokens += tokens
    self._skipped += int(out.skipped)
    self._time(tokens)
    if self._main:
      self._decisions.append(out.example_id, out.weight_B if self._weighted else None)
    if out.skipped:
      _LOG.warning("step %d skipped: %s", done, _reason(out))
    if out.skipped_in_row > self._config.max_skipped_in_row:
      raise FloatingPointError(
        f"step {done}: {_reason(out)}; the last {out.skipped_in_row} steps in a row were not "
        "finite, or had no gradient, and made no update "
        f"(max_skipped_in_row={self._config.max_skipped_in_row}); "
        f"example ids of this step: {out.example_id.tolist()}"
      )
    self._bar.update(done - self._bar.n)
    if done % self._config.logging.every_steps == 0:
      self.write(done, self._metrics(out, after, cost))
      self._window.reset()
      self._write_times(done, out)

  def totals(self, state: PlanState, cost: Cost) -> dict[str, float]:
    """Returns the cost, and by domain the shares of rows asked for and seen."""
    rows = {f"cost/extra_{name}_rows": float(x) for name, x in cost._asdict().items()}
    return rows | _by_domain(
      self._spec.domain_names,
      share_asked=state.asked_K / max(state.asked_K.sum(), 1),
      share_seen=state.seen_K / max(state.seen_K.sum(), 1),
      epochs=state.seen_K / np.asarray(self._spec.domain_sizes),
    )

  def round(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Writes the metrics of a round's decisions, beside the first step that they govern."""
    self.report(step, self._policy_metrics(metrics))

  def report(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes metrics beside the first step that they govern."""
    if metrics:
      self.write(step + 1, metrics)

  def spend(self, cost: Cost) -> None:
    """Counts rows that are passed through models besides those that are trained."""
    self.cost = self.cost.plus(cost)

  def compiled(self, step: int, seconds: float) -> None:
    """Notes how long the training step took to compile."""
    if self._main:
      for writer in (self._times, *self._writers):
        writer.write(step, {"time/compile_seconds": seconds})

  @contextlib.contextmanager
  def pause(self, *, step: int | None = None) -> Iterator[None]:
    """Leaves what happens inside out of the step times.

    With the number of steps done, its time is written beside the next step as that of policies.
    """
    started = time.perf_counter()
    try:
      yield
    finally:
      self._mark = None
      if step is not None and self._main:
        seconds = time.perf_counter() - started
        self._times.write(step + 1, {"time/policy_seconds": seconds})

  def flush(self) -> None:
    """Makes everything that was written durable."""
    if self._main:
      for file in self._files:
        file.flush()
      if self.examples is not None:
        self.examples.write(self._workdir)

  def to_json(self) -> dict[str, Any]:
    """Returns what a resumed run needs to write the same metrics."""
    return {
      "lines": self._lines.num_lines if self._main else 0,
      "window": self._window.to_json(),
      "tokens": self._tokens,
      "skipped": self._skipped,
      "cost": list(self.cost),
    }

  def close(self) -> None:
    """Flushes and closes all files."""
    with contextlib.ExitStack() as stack:  # closes all of them, whichever fails
      stack.callback(self._bar.close)
      for file in self._files:
        stack.callback(file.close)

  def _metrics(self, out: StepOutput, after: PlanState, cost: Cost) -> dict[str, float]:
    metrics = {
      "train/weighted_loss": float(out.loss),
      "train/grad_norm": float(out.grad_norm),
      "train/learning_rate": float(out.learning_rate),
      "train/skipped_steps": float(self._skipped),
      "train/tokens": float(self._tokens),
      "data/entropy": metrics_lib.entropy(after.probability_K),
    }
    if out.balance_loss is not None:
      metrics["train/balance_loss"] = float(out.balance_loss)
    names = self._spec.domain_names
    metrics |= _by_domain(names, probability=after.probability_K)
    if out.share_filled is not None:
      metrics["data/share_filled"] = float(out.share_filled)
    metrics |= self.totals(after, cost)
    return metrics | self._window.metrics(names) | self._policy_metrics(out.metrics)

  def _policy_metrics(self, metrics: Mapping[str, Any]) -> dict[str, float]:
    flat: dict[str, float] = {}
    for slot, values in metrics.items():
      flat |= metrics_lib.flatten(f"policy/{slot}", values, self._spec.domain_names)
    return flat

  def _time(self, tokens: int) -> None:
    now = time.perf_counter()
    if self._mark is not None:
      self._busy += now - self._mark
      self._timed_steps += 1
      self._timed_tokens += tokens
    self._mark = now

  def _write_times(self, step: int, out: StepOutput) -> None:
    if not self._main or not self._timed_steps:
      return
    seconds, rate = self._busy / self._timed_steps, self._timed_tokens / self._busy
    times = {"time/step_seconds": seconds, "time/tokens_per_second": rate}
    for writer in (self._times, *self._writers):
      writer.write(step, times)
    self._bar.set_postfix(loss=f"{float(out.loss):.3f}", tokens_per_s=f"{rate:,.0f}")
    if self._bar.disable:
      _LOG.info(
        "step %d of %d: loss %.4f, %.0f ms a step, %.0f tokens/s",
        step, self._config.num_steps, out.loss, 1e3 * seconds, rate,
      )  # fmt: skip
    self._busy, self._timed_steps, self._timed_tokens = 0.0, 0, 0


def _by_domain(names: tuple[str, ...], **quantities: np.ndarray) -> dict[str, float]:
  return {
    f"data/domain/{name}/{quantity}": float(value)
    for quantity, values_K in quantities.items()
    for name, value in zip(names, values_K, strict=True)
  }


def _reason(out: Any) -> str:
  """Why a step made no update."""
  if not out.num_tokens_B.sum():
    return "no row with a target token was kept"
  if out.grad_norm == 0 and np.isfinite(out.loss):
    return "the gradient is 0, as where all weights are"
  return f"loss {out.loss} and gradient norm {out.grad_norm}"
