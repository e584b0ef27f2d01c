"""Batches of packed rows, drawn by the plan and placed on the devices."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import grain
import jax
import numpy as np

from jdc.data import plan as plan_lib
from jdc.data.draw import Arrange, Plan


class Table(Protocol):
  """Packed rows of one domain with random access, such as `pack.RowTable`."""

  def __len__(self) -> int: ...

  def rows(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns tokens and segments, both [b, T + 1]."""
    ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
  """One step's rows, over all processes."""

  tokens: Any  # i32[B, T + 1]
  segments: Any  # i32[B, T + 1], document of each token within the row, 0: padding
  example_id: Any  # i32[B], row in the pool, -1: padding
  domain: Any  # i32[B]
  sampling_probability: Any  # f32[B]
  domain_probability: Any  # f32[B]
  weight: Any  # f32[B], decided for the row at the start of the round, else 1


class Pool:
  """The rows of all domains, numbered through in order."""

  def __init__(self, tables: Sequence[Table], sequence_length: int):
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

  def batch(self, rows: plan_lib.Rows, sharding: jax.NamedSharding | None) -> Batch:
    """Assembles the batch; each process reads the rows of its own devices only."""
    tokens_BxT, segments_BxT = self.rows(rows.example_id, local_rows(rows.example_id, sharding))
    batch = Batch(tokens_BxT, segments_BxT, *rows)
    return batch if sharding is None else place(batch, sharding)


def local_rows(ids_B: np.ndarray, sharding: jax.NamedSharding | None) -> np.ndarray:
  """Returns which rows of a batch lie on this process's devices, bool[B]."""
  if sharding is None or sharding.is_fully_addressable:
    return np.ones(len(ids_B), bool)
  wanted_B = np.zeros(len(ids_B), bool)
  for index in sharding.addressable_devices_indices_map(ids_B.shape).values():
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
  """

  def __init__(
    self,
    pool: Pool,
    spec: plan_lib.PlanSpec,
    mixture_logits: np.ndarray,
    sharding: jax.NamedSharding | None = None,
    arrange: Arrange | None = None,
  ):
    super().__init__()
    sizes = tuple(len(table) for table in pool.tables)
    if sizes != spec.domain_sizes:
      raise ValueError(f"the tables have {sizes} rows, the plan expects {spec.domain_sizes}")
    self.pool = pool
    self.spec = spec
    self.sharding = sharding
    self._arrange = arrange
    self._initial = plan_lib.initial_state(spec, mixture_logits)

  def __iter__(self) -> "LoaderIterator":
    plan = Plan(self.spec, self._arrange)
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
