"""Gradients and embeddings of the pool that stay on disk, for other policies and targets."""

import contextlib
import hashlib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np

from jdc.stats.digest import digest
from jdc.stats.directions import Adam, moments_of
from jdc.stats.features_table import FeaturesTable, FeaturesWriter
from jdc.stats.sweep_store import in_all_processes
from jdc.train.config import RESUMABLE
from jdc.train.passes import EMBEDDINGS
from jdc.train.state import TrainState

NAMES = frozenset({"gradient", "update_direction"}) | EMBEDDINGS
# What decides a feature besides the data and the arrays of the state; not the policies, nor
# the target set.
_FIELDS = (
  "seed", "sequence_length", "model", "weights", "lora", "trainable", "features",
)  # fmt: skip


class KeptFeatures:
  """Tables of projected gradients and embeddings under a folder.

  Those of the whole pool are in `STEP/NAMES`, and serve any rows of it; those of some rows are
  in `STEP/NAMES-ROWS`, ROWS a hash.

  Args:
    folder: made where missing.
    described: of the run, as from `setup.describe_run`.
    num_rows: of the pool.
    data: the fingerprint of the pool.
    adam: the constants of the optimizer, which decide an `update_direction`.
  """

  def __init__(
    self,
    folder: str | Path,
    described: Mapping[str, Any],
    num_rows: int,
    data: str,
    adam: Adam | None = None,
  ):
    self.folder = Path(folder)
    self.rows_read = 0  # of tables that were there
    config = {
      name: value
      for name, value in described["config"].items()
      if name.partition(".")[0] in _FIELDS and name not in RESUMABLE
    }
    self._run = {"config": config, "data": data, "weights": described["parts"].get("weights")}
    self._adam = None if adam is None else list(adam)
    self._whole = np.arange(num_rows)

  def open(
    self, names: Set[str], state: TrainState, ids_C: np.ndarray
  ) -> FeaturesTable | FeaturesWriter:
    """Returns a table of some rows at a step where a sweep has left it, else its writer.

    Raises:
      ValueError: if the place holds features of other parameters, data or rows.
    """
    directed = "update_direction" in names
    moments = moments_of(state.opt_state) if directed else None
    key = self._run | {
      "adam": self._adam if directed else None,
      "state": digest((state.params, state.frozen, moments)),
    }
    place = self.folder / str(int(state.step)) / "+".join(sorted(names))
    table = _table(place, key)
    if table is None and not np.array_equal(ids_C, self._whole):
      rows = hashlib.sha256(np.ascontiguousarray(ids_C, np.int64).tobytes()).hexdigest()
      place = place.with_name(f"{place.name}-{rows[:16]}")
      table = _table(place, key)
    if table is None:
      return FeaturesWriter(place, names, ids_C, key)
    self.rows_read += int(np.sum(ids_C >= 0))
    return table

  def read(self, writer: FeaturesWriter) -> FeaturesTable:
    """Returns the table that a sweep has just finished, in all processes."""
    in_all_processes([True])  # the first one has written it
    return FeaturesTable(writer.folder)


def _table(place: Path, key: Any) -> FeaturesTable | None:
  table = None
  with contextlib.suppress(ValueError):  # not there, or begun
    table = FeaturesTable(place)
  everywhere, nowhere = in_all_processes([table is not None, table is None])
  if not everywhere and not nowhere:
    raise ValueError(f"{place} is seen by some processes only; all must share the folder")
  if table is not None and table.key != key:
    held = table.key if isinstance(table.key, dict) else {}
    other = [name for name in key if held.get(name) != key[name]]
    raise ValueError(
      f"{place} holds features of another sweep, of other {', '.join(other)}; delete it"
    )
  return table
