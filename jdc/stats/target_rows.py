"""The rows of a target set, which policies may observe and no run is scored on."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np


class Table(Protocol):
  """Rows of one domain or task: `rows.RowTable`, or `records.RecordTable`."""

  @property
  def num_targets(self) -> np.ndarray:
    """i32[N], target tokens of each row."""

  def rows(self, ids: np.ndarray, /) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and segments i32[b, T + 1] of the rows `ids` i64[b]."""


class TargetRows(NamedTuple):
  """The rows of a target set, each an example; no padding among them."""

  tokens: Any  # i32[M, T + 1]
  segments: Any  # i32[M, T + 1], as `batch.inputs_and_targets` reads them
  domain: Any  # i32[M]
  task: Any  # i32[M], place among the tables


def choose_rows(
  tables: Mapping[str, Table | None],
  rows: int,
  domain_names: Sequence[str] | None = None,
  seed: int | None = None,
) -> TargetRows:
  """Reads the same number of rows of every domain, or of every task.

  Rows of domains without a target token are passed over; in a task there may be none.

  Args:
    tables: by domain, in order; or by task.
    rows: of each table; all where there are fewer.
    domain_names: with tables of tasks, the domains of the run. The rows of a task have the
      domain of the same name, or 0 without one. `None`: the tables are those of the domains.
    seed: of the choice; `None` takes floor(i N / rows) for i < `rows`, evenly spaced.

  Returns:
    Arrays of the host, sorted by table and row.

  Raises:
    ValueError: if `rows` is not positive, or naming all tables that are `None`, that hold no
      row with a target token, or as a task any row without one, or if there is no table.
  """
  problems = [] if rows > 0 else [f"rows must be at least 1, got {rows}"]
  if not tables:
    problems.append("a target set needs at least one domain or task")
  if absent := [name for name, table in tables.items() if table is None]:
    problems.append(f"no target split in the domains {', '.join(absent)}")
  present = {name: table for name, table in tables.items() if table is not None}
  usable = {name: np.flatnonzero(table.num_targets) for name, table in present.items()}
  if empty := [name for name, ids in usable.items() if not len(ids)]:
    problems.append(f"no target tokens in {', '.join(empty)}")
  if domain_names is not None:
    sizes = {name: len(present[name].num_targets) for name in usable}
    problems += [
      f"task {name}: {sizes[name] - len(ids)} of {sizes[name]} rows have no target token, as "
      "where a prompt fills the whole row; shorten or remove them"
      for name, ids in usable.items()
      if 0 < len(ids) < sizes[name]
    ]
  if problems:
    raise ValueError("; ".join(problems))
  names = list(tables) if domain_names is None else list(domain_names)
  parts = []
  for task, (name, table) in enumerate(present.items()):
    ids = usable[name][_chosen(len(usable[name]), rows, seed, task)]
    tokens, segments = table.rows(ids)
    domain = names.index(name) if name in names else 0
    alike = [np.full(len(ids), number, np.int32) for number in (domain, task)]
    parts.append(TargetRows(tokens, segments, *alike))
  return TargetRows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def sample_rows(rows: TargetRows, key: jax.Array, count: int) -> TargetRows:
  """Draws `count` rows without replacement, inside jit or outside; all if there are fewer."""
  num_rows = rows.tokens.shape[0]
  if count >= num_rows:
    return rows
  ids = jax.random.choice(key, num_rows, (count,), replace=False)
  return TargetRows(*(x[ids] for x in rows))


def _chosen(num_rows: int, rows: int, seed: int | None, task: int) -> np.ndarray:
  count = min(rows, num_rows)
  if seed is None:
    return np.arange(count, dtype=np.int64) * num_rows // count
  rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, task, 3))))
  return np.sort(rng.choice(num_rows, count, replace=False))
