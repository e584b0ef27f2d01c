"""Where the numbers of a run go: JSON lines, TensorBoard, W&B; and the log of its decisions.

`metrics.jsonl` and the log of decisions hold nothing that depends on the clock, so those of a
resumed run equal an uninterrupted one's byte for byte; times are in `timing.jsonl`.
"""

import contextlib
import json
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

# The files of the log of decisions.
_IDS, _WEIGHTS, _ABOUT = "example_ids.i32", "example_weights.f32", "example_ids.json"


class Closable(Protocol):
  """Holds what was written until it is flushed."""

  def flush(self) -> None: ...

  def close(self) -> None: ...


class Writer(Closable, Protocol):
  """Receives the metrics of a step, by path-like names such as `train/domain/web/loss`."""

  def write(self, step: int, metrics: Mapping[str, float]) -> None: ...


class JsonlWriter:
  """Appends one JSON object a step.

  Args:
    path: the file; lines after `last_step` are cut off when it exists.
    last_step: the step from which the run continues.
    last_line: lines to keep at most; `None`: all up to `last_step`.
  """

  def __init__(self, path: Path, last_step: int, last_line: int | None = None):
    self._path = path
    self.num_lines = _cut_lines(path, last_step, math.inf if last_line is None else last_line)
    self._file = path.open("a", encoding="utf-8")

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    with _naming(self._path):
      self._file.write(json.dumps({"step": step, **metrics}) + "\n")
    self.num_lines += 1

  def flush(self) -> None:
    with _naming(self._path):
      self._file.flush()
      os.fsync(self._file.fileno())

  def close(self) -> None:
    with _naming(self._path), self._file:
      self.flush()


class TensorBoardWriter:
  """Writes scalars for TensorBoard; those after `last_step` of an earlier run are hidden.

  Writes as it is told and raises when the disk is full; `tensorboardX.SummaryWriter` writes in
  a thread that dies of it and then waits for that thread for ever.
  """

  def __init__(self, folder: Path, last_step: int):
    from tensorboardX import event_file_writer
    from tensorboardX.proto import event_pb2, summary_pb2

    self._path, self._event, self._summary = folder, event_pb2.Event, summary_pb2.Summary
    folder.mkdir(parents=True, exist_ok=True)
    with _naming(folder):
      # The name holds the time in seconds only; another process may start within one.
      self._events = event_file_writer.EventsWriter(
        str(folder / "events"), f".{time.time_ns()}"
      )
      start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._write(last_step + 1, session_log=start)

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    values = [self._summary.Value(tag=n, simple_value=x) for n, x in metrics.items()]
    with _naming(self._path):
      self._write(step, summary=self._summary(value=values))

  def flush(self) -> None:
    with _naming(self._path):
      self._events.flush()

  def close(self) -> None:
    with _naming(self._path):
      self._events.close()

  def _write(self, step: int, **what: Any) -> None:
    self._events.write_event(self._event(wall_time=time.time(), step=step, **what))


class WandbWriter:
  """Sends scalars to W&B (`pip install jdc[wandb]`); a resumed run continues its own."""

  def __init__(self, project: str, folder: Path, config: Mapping[str, Any]):
    try:
      import wandb
    except ImportError as error:
      raise ImportError("logging.wandb_project needs W&B: pip install jdc[wandb]") from error
    identity = folder / "wandb_id"
    if not identity.exists():
      identity.write_text(uuid.uuid4().hex)
    self._run = wandb.init(
      project=project,
      dir=str(folder),
      config=dict(config),
      name=folder.name,
      id=identity.read_text(),
      resume="allow",
    )

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    self._run.log(dict(metrics), step=step)

  def flush(self) -> None:
    pass  # W&B sends on its own

  def close(self) -> None:
    self._run.finish()


class DecisionLog:
  """The examples of every step and what their losses were multiplied by.

  Both are raw little-endian rows of one fixed width, int32 and float32. There is a file of
  weights where something weights examples.

  Args:
    folder: receives `example_ids.i32`, `example_weights.f32` and `example_ids.json`, which
      holds the width.
    num_rows: rows trained in a step.
    steps: complete steps to keep of an existing log; the rest is cut off.
    weighted: whether examples have weights.
    about: what else `example_ids.json` is to tell.
  """

  def __init__(
    self,
    folder: Path,
    num_rows: int,
    steps: int,
    weighted: bool = False,
    about: Mapping[str, Any] | None = None,
  ):
    self._num_rows = num_rows
    told = {"rows_per_step": num_rows, **(about or {})}
    (folder / _ABOUT).write_text(json.dumps(told))
    self._ids = _cut_array(folder / _IDS, 4 * num_rows * steps)
    self._weights = None
    if weighted:
      self._weights = _cut_array(folder / _WEIGHTS, 4 * num_rows * steps)
    elif not steps:
      (folder / _WEIGHTS).unlink(missing_ok=True)

  def append(self, example_ids: np.ndarray, weights: np.ndarray | None = None) -> None:
    """Adds the ids of the next step, and the weights where examples have them."""
    expected, given = (self._num_rows,), None if weights is None else weights.shape
    if example_ids.shape != expected or given != (expected if self._weights else None):
      raise ValueError(
        f"expected {self._num_rows} example ids and {'as many' if self._weights else 'no'} "
        f"weights, got shapes {example_ids.shape} and {given}"
      )
    _append(self._ids, example_ids.astype("<i4"))
    if self._weights is not None and weights is not None:
      _append(self._weights, weights.astype("<f4"))

  def flush(self) -> None:
    """Makes what was appended durable."""
    for file in self._files():
      with _naming(Path(file.name)):
        file.flush()
        os.fsync(file.fileno())

  def close(self) -> None:
    """Flushes and closes the files."""
    with contextlib.ExitStack() as stack:
      for file in self._files():
        stack.enter_context(_naming(Path(file.name)))
        stack.enter_context(file)
      self.flush()

  def _files(self) -> list[BinaryIO]:
    return [file for file in (self._ids, self._weights) if file is not None]


class Decisions(NamedTuple):
  """What a run's log tells."""

  ids_SxB: np.ndarray  # i32, of S steps; -1 is a row that did not count
  weights_SxB: np.ndarray | None  # f32, what the losses were multiplied by; `None`: 1
  data_fingerprint: str  # of the rows that were drawn from; empty: not told
  token_weights: bool  # whether single tokens were weighted, which no log tells
  max_segments: int = 0  # records of a packed row; 0: a row is one


def read_decisions(folder: Path | str) -> Decisions:
  """Reads the log of a run in its workdir.

  Raises:
    ValueError: if there is none, or its files do not belong together.
  """
  folder = Path(folder)
  try:
    about, ids = _read_ids(folder)
    weights = None
    if (folder / _WEIGHTS).exists():
      weights = np.fromfile(folder / _WEIGHTS, "<f4").reshape(-1, about["rows_per_step"])
    told = [about[name] for name in ("data_fingerprint", "token_weights", "max_segments")]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(f"{folder} holds no log of a run's decisions: {error!r}") from error
  if weights is not None and weights.shape != ids.shape:
    raise ValueError(
      f"{folder}: {_IDS} holds {ids.shape} examples by step, {_WEIGHTS} {weights.shape}"
    )
  return Decisions(ids, weights, *told)


def read_example_ids(folder: Path | str) -> np.ndarray:
  """Returns the example ids of a run, i32[steps, rows]; -1 is a row that did not count."""
  return _read_ids(Path(folder))[1]


def _read_ids(folder: Path) -> tuple[dict[str, Any], np.ndarray]:
  about = json.loads((folder / _ABOUT).read_text())
  return about, np.fromfile(folder / _IDS, "<i4").reshape(-1, about["rows_per_step"])


def read_metrics(folder: Path | str, file: str = "metrics.jsonl") -> list[dict[str, float]]:
  """Returns the logged metrics of a run, one dict a line."""
  lines = (Path(folder) / file).read_text(encoding="utf-8").splitlines()
  return [json.loads(line) for line in lines]


class Window:
  """Sums over the steps since the last log, kept as sums so that no mean is biased.

  Everything is float64 on the host; `state` makes a resumed run log what an uninterrupted one
  would have logged.
  """

  def __init__(self, num_domains: int):
    self._num_domains = num_domains
    self.reset()

  def reset(self) -> None:
    """Forgets what was added."""
    self.steps = 0
    self.sums = np.zeros((5, self._num_domains))

  def add(
    self,
    domain_B: np.ndarray,
    loss_B: np.ndarray,
    num_tokens_B: np.ndarray,
    weight_B: np.ndarray | None,
    example_id_B: np.ndarray,
  ) -> None:
    """Adds a step; the losses leave out rows without target tokens or a finite loss."""
    weight_B = np.ones(len(loss_B)) if weight_B is None else weight_B
    rows_B = (example_id_B >= 0).astype(float)
    finite_B = np.isfinite(loss_B) & (num_tokens_B > 0)
    tokens_B = np.where(finite_B, num_tokens_B, 0)
    terms = (rows_B, tokens_B, tokens_B * np.where(finite_B, loss_B, 0.0), rows_B * weight_B)
    not_finite_B = rows_B * (num_tokens_B > 0) * ~np.isfinite(loss_B)
    self.steps += 1
    for total_K, value_B in zip(self.sums, (*terms, not_finite_B), strict=True):
      total_K += np.bincount(domain_B, value_B, minlength=self._num_domains)

  def metrics(self, names: tuple[str, ...]) -> dict[str, float]:
    """Returns means per domain; a domain that no step of the window drew has none."""
    rows_K, tokens_K, loss_K, weight_K, not_finite_K = self.sums
    out = {"train/num_nonfinite_losses": float(not_finite_K.sum())}
    if tokens_K.sum() > 0:
      out["train/loss"] = float(loss_K.sum() / tokens_K.sum())
    for k, name in enumerate(names):
      out[f"train/domain/{name}/window_share"] = float(rows_K[k] / max(rows_K.sum(), 1.0))
      if tokens_K[k] > 0:
        out[f"train/domain/{name}/loss"] = float(loss_K[k] / tokens_K[k])
      if rows_K[k] > 0:
        out[f"train/domain/{name}/weight"] = float(weight_K[k] / rows_K[k])
    return out

  def to_json(self) -> dict[str, Any]:
    """Returns the sums as JSON values."""
    return {"steps": self.steps, "sums": self.sums.tolist()}

  def from_json(self, values: Mapping[str, Any]) -> None:
    """Continues from sums of `to_json`."""
    self.steps, self.sums = int(values["steps"]), np.asarray(values["sums"], np.float64)


def flatten(prefix: str, values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, float]:
  """Returns scalars and per-domain vectors as floats by path."""
  out: dict[str, float] = {}
  for name, value in values.items():
    array = np.asarray(value)
    if array.ndim == 0:
      out[f"{prefix}/{name}"] = float(array)
    elif array.shape == (len(names),):
      out |= {f"{prefix}/{name}/{n}": float(x) for n, x in zip(names, array, strict=True)}
    else:
      raise ValueError(f"metric {prefix}/{name} has shape {array.shape}; scalars are accepted")
  return out


def entropy(p_K: np.ndarray) -> float:
  """Returns the entropy of a distribution in nats."""
  positive = p_K[p_K > 0]
  return float(-(positive * np.log(positive)).sum()) + 0.0 if len(positive) else math.nan


def _cut_array(path: Path, kept: int) -> BinaryIO:
  """Opens a file to append to its first `kept` bytes, without what follows them."""
  size = path.stat().st_size if path.exists() else 0
  if size < kept:
    raise ValueError(f"{path} holds {size} bytes, but the checkpoint needs {kept}")
  if size > kept:
    os.truncate(path, kept)
  return path.open("ab")


def _append(file: BinaryIO, array: np.ndarray) -> None:
  with _naming(Path(file.name)):
    file.write(array.tobytes())


def _cut_lines(path: Path, last_step: int, last_line: float) -> int:
  """Cuts off what is after a step or a number of lines; returns how many lines are left."""
  if not path.exists():
    return 0
  num_lines = size = 0
  with path.open("rb") as file:
    for line in file:
      # A line that a kill cut in half is after every saved step.
      if num_lines == last_line or not line.endswith(b"\n"):
        break
      if json.loads(line)["step"] > last_step:
        break
      num_lines, size = num_lines + 1, size + len(line)
  os.truncate(path, size)
  return num_lines


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
  """Names the file in errors such as that of a full disk."""
  try:
    yield
  except OSError as error:
    error.filename = error.filename or str(path)
    raise
