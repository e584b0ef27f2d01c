"""Batches of packed rows, drawn by the plan and placed on the devices."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np

from jdc.data import plan as plan_lib
from jdc.data.draw import Arrange, Plan
from jdc.data.replay import Replay
from jdc.metrics import Decisions


class Table(Protocol):
  """Rows of one domain with random access: `rows.RowTable`, or `records.RecordTable`."""

  def __len__(self) -> int: ...

  def rows(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and segments, both [b, T + 1]."""
    ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """One step's rows, over all processes.

  Where rows are packed, each holds up to S records of the pool, the s-th one in segment s + 1,
  and what is said of a record has shape [B, S].
  """

  tokens: Any  # i32[B, T + 1]
  segments: Any  # i32[B, T + 1], as `batch.inputs_and_targets` reads them
  example_id: Any  # i32[B] or [B, S], row in the pool, -1: padding
  domain: Any  # i32[B] or [B, S]
  sampling_probability: Any  # f32[B] or [B, S]
  domain_probability: Any  # f32[B] or [B, S]
  weight: Any  # f32[B] or [B, S], decided at the start of the round, else 1
  reference_token_loss: Any = None  # f32[B, T], where it was computed before the run

  @property
  def max_segments(self) -> int | None:
    """The most records of a packed row, S; `None` where a row is one row of the pool."""
    return self.example_id.shape[1] if self.example_id.ndim == 2 else None


class Losses(Protocol):
  """Losses of the tokens of each row of a pool: `stats.reference.ReferenceLosses`."""

  def rows(self, ids_B: np.ndarray, wanted_B: np.ndarray) -> np.ndarray:
    """Returns losses f32[B, T] of the wanted rows."""
    ...


class Pool:
  """The rows of all domains, numbered through in order.

  Args:
    tables: of each domain.
    sequence_length: T.
    reference: losses under a reference model, which batches bring along.
  """

  def __init__(
    self, tables: Sequence[Table], sequence_length: int, reference: Losses | None = None
  ):
    self.reference = reference
    self.tables = tuple(tables)
    self.starts_K = np.concatenate([[0], np.cumsum([len(table) for table in tables])])
    self.sequence_length = sequence_length

  def __len__(self) -> int:
    return int(self.starts_K[-1])

  def domain(self, ids_B: np.ndarray) -> np.ndarray:
    """Returns the domain of each row; padding (-1) has domain 0."""
    return np.maximum(np.searchsorted(self.starts_K, ids_B, side="right") - 1, 0)

  def rows(self, ids_B: np.ndarray, wanted_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads tokens and segments i32[B, T + 1]; rows that are not wanted stay zero."""
    tokens_BxT = np.zeros((len(ids_B), self.sequence_length + 1), np.int32)
    segments_BxT = np.zeros_like(tokens_BxT)
    wanted_B = wanted_B & (ids_B >= 0)
    domain_B = self.domain(ids_B)
    for k in np.unique(domain_B[wanted_B]):
      at = np.flatnonzero(wanted_B & (domain_B == k))
      tokens_BxT[at], segments_BxT[at] = self.tables[k].rows(ids_B[at] - self.starts_K[k])
    return tokens_BxT, segments_BxT

  def lengths(self, ids_n: np.ndarray) -> np.ndarray:
    """Returns the tokens of each record, i64[n]; its tables must hold records."""
    lengths_n, domain_n = np.zeros(len(ids_n), np.int64), self.domain(ids_n)
    for k in np.unique(domain_n):
      at = np.flatnonzero(domain_n == k)
      lengths_n[at] = self.tables[k].lengths[ids_n[at] - self.starts_K[k]]
    return lengths_n

  def input_lengths(self, ids_n: np.ndarray) -> np.ndarray:
    """Returns how many inputs of each row are read, i64[n]; T for rows of documents.

    The last token of a record predicts nothing, but embeddings read it where it is an input: in
    all records that do not fill their row.
    """
    lengths_n, domain_n = np.full(len(ids_n), self.sequence_length), self.domain(ids_n)
    for k in np.unique(domain_n):
      lengths = getattr(self.tables[k], "lengths", None)
      if lengths is not None:
        at = np.flatnonzero(domain_n == k)
        lengths_n[at] = np.minimum(lengths[ids_n[at] - self.starts_K[k]], self.sequence_length)
    return lengths_n

  def packed(self, ids_BxS: np.ndarray, wanted_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reads the records of each row, one after the other, as i32[B, T + 1]."""
    tokens_BxT = np.zeros((len(ids_BxS), self.sequence_length + 1), np.int32)
    segments_BxT = np.zeros_like(tokens_BxT)
    row_n, place_n = np.nonzero((ids_BxS >= 0) & wanted_B[:, None])
    tokens_nxT, segments_nxT = self.rows(ids_BxS[row_n, place_n], np.ones(len(row_n), bool))
    used_B = np.zeros(len(ids_BxS), np.int64)
    for row, place, tokens_T, segments_T in zip(
      row_n, place_n, tokens_nxT, segments_nxT, strict=True
    ):
      start, length = used_B[row], np.count_nonzero(segments_T)
      tokens_BxT[row, start : start + length] = tokens_T[:length]
      segments_BxT[row, start : start + length] = segments_T[:length] * (place + 1)
      used_B[row] += length
    return tokens_BxT, segments_BxT

  def reference_rows(
    self, ids_B: np.ndarray, sharding: jax.NamedSharding | None
  ) -> np.ndarray | None:
    """Reads the reference losses f32[B, T] of the rows of this process, where there are any."""
    if self.reference is None:
      return None
    return self.reference.rows(ids_B, local_rows(ids_B, sharding))

  def batch(self, rows: plan_lib.Rows, sharding: jax.NamedSharding | None) -> Batch:
    """Assembles the batch; each process reads the rows of its own devices only."""
    read = self.packed if rows.example_id.ndim == 2 else self.rows
    tokens_BxT, segments_BxT = read(rows.example_id, local_rows(rows.example_id, sharding))
    reference_BxT = self.reference_rows(rows.example_id, sharding)
    batch = Batch(tokens_BxT, segments_BxT, *rows, reference_token_loss=reference_BxT)
    return batch if sharding is None else place(batch, sharding)


def local_rows(ids_B: np.ndarray, sharding: jax.NamedSharding | None) -> np.ndarray:
  """Returns which rows of a batch lie on this process's devices, bool[B]."""
  if sharding is None or sharding.is_fully_addressable:
    return np.ones(len(ids_B), bool)
  wanted_B = np.zeros(len(ids_B), bool)
  for index in sharding.addressable_devices_indices_map(wanted_B.shape).values():
    assert index is not None
    wanted_B[index] = True
  return wanted_B


def place(tree: Any, sharding: jax.NamedSharding) -> Any:
  """Puts host arrays, equal in all processes where they are read, on the devices."""
  if sharding.is_fully_addressable:
    return jax.device_put(tree, sharding)
  return jax.tree.map(
    lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), tree
  )


class Loader(grain.IterDataset):
  """The batches of a run as a Grain data set.

  Reading happens inside each domain by random access; domains are mixed last, in this process,
  so that batch s uses the mixture decided at step s - 1 - `decision_lag` whatever the timing.

  Args:
    pool: the rows of each domain, in the order of `spec.domain_names`.
    spec: the plan.
    mixture_logits: f32[K], the initial mixture decision.
    sharding: where the batches go; `None` yields NumPy arrays.
    arrange: puts the rows of a queue in order, where `spec.ordered`.
    recorded: decisions of another run, which then are made again in place of the plan's.
  """

  def __init__(
    self,
    pool: Pool,
    spec: plan_lib.PlanSpec,
    mixture_logits: np.ndarray,
    sharding: jax.NamedSharding | None = None,
    arrange: Arrange | None = None,
    recorded: Decisions | None = None,
  ):
    super().__init__()
    sizes = tuple(len(table) for table in pool.tables)
    if sizes != spec.domain_sizes:
      raise ValueError(f"the tables have {sizes} rows, the plan expects {spec.domain_sizes}")
    self.pool = pool
    self.spec = spec
    self.sharding = sharding
    self._arrange, self._recorded = arrange, recorded
    self._initial = plan_lib.initial_state(spec, mixture_logits)

  def __iter__(self) -> "LoaderIterator":
    lengths = self.pool.lengths if self.spec.packed else None
    if self._recorded is not None:
      plan: Plan = Replay(self.spec, self._recorded)
    else:
      plan = Plan(self.spec, self._arrange, lengths)
    return LoaderIterator(self.pool, plan, self._initial, self.sharding)


class LoaderIterator(grain.DatasetIterator):
  """Yields a `Batch` per step; its state is the plan's, the same on any number of processes."""

  def __init__(
    self,
    pool: Pool,
    plan: Plan,
    state: plan_lib.PlanState,
    sharding: jax.NamedSharding | None,
  ):
    super().__init__()
    self.plan = plan
    self.state = state
    self.pool = pool
    self._sharding = sharding

  def __next__(self) -> Batch:
    try:
      rows, self.state = self.plan.draw(self.state)
    except plan_lib.Exhausted as end:
      raise StopIteration(str(end)) from end
    return self.pool.batch(rows, self._sharding)

  def push(self, mixture_logits: Any) -> None:
    """Hands over the mixture decision f32[K] of the newest step, computed or not."""
    self.state = plan_lib.push(self.state, mixture_logits)

  def hold(self, mixture_logits: Any) -> None:
    """Puts a round's mixture decision f32[K] in force at once."""
    self.state = plan_lib.hold(self.state, mixture_logits)

  def at_round_start(self) -> bool:
    """Whether the next batch begins a round."""
    return int(self.state.round_step) == 0

  def resume_round(self, rows: plan_lib.RoundRows) -> None:
    """Puts the decision of the round in which the state stands in force again."""
    self.plan.resume_round(self.state, rows)

  def start_round(self, rows: plan_lib.RoundRows) -> None:
    """Puts a round's decision about the rows in force."""
    self.state = self.plan.start_round(self.state, rows)

  def get_state(self) -> dict[str, Any]:
    """Returns the plan's state as JSON; waits for decisions that are still computed."""
    return plan_lib.to_json(self.state)

  def set_state(self, state: dict[str, Any]) -> None:
    """Continues from a state of `get_state`; a round decision is handed over separately."""
    self.state = plan_lib.from_json(state, self.state)
