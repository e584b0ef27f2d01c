"""Features of the pool that stay on disk, for other policies and other targets."""

import contextlib
import hashlib
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np

from jdc.stats.digest import digest
from jdc.stats.directions import moments_of
from jdc.stats.features_table import FeaturesTable, FeaturesWriter
from jdc.stats.sweep_store import in_all_processes
from jdc.train.state import TrainState

NAMES = frozenset({"gradient", "update_direction"})
# What decides a feature besides the data and the arrays of the state; not the policies, nor
# the target set.
_FIELDS = (
  "seed", "sequence_length", "model", "weights", "lora", "trainable", "optimizer", "features",
)  # fmt: skip


class KeptFeatures:
  """Tables of projected gradients under a folder, as `STEP/NAMES`.

  Args:
    folder: made where missing.
    described: of the run, as from `setup.describe_run`.
  """

  def __init__(self, folder: str | Path, described: Mapping[str, Any]):
    self.folder = Path(folder)
    self.rows_read = 0  # of tables that were there
    config = {
      name: value
      for name, value in described["config"].items()
      if name.partition(".")[0] in _FIELDS
    }
    self._run = {"config": config, "data": described["data"]}
    self._run["weights"] = described["parts"].get("weights")

  def open(
    self, names: Set[str], state: TrainState, ids_C: np.ndarray
  ) -> FeaturesTable | FeaturesWriter:
    """Returns the table of some rows at a step where a sweep has left it, else its writer.

    Raises:
      ValueError: if the place holds features of other parameters, data or rows.
    """
    moments = moments_of(state.opt_state) if "update_direction" in names else None
    key = self._run | {
      "rows": hashlib.sha256(np.ascontiguousarray(ids_C).tobytes()).hexdigest(),
      "state": digest((state.params, state.frozen, moments)),
    }
    place = self.folder / str(int(state.step)) / "+".join(sorted(names))
    table = None
    with contextlib.suppress(ValueError):  # not there, or begun
      table = FeaturesTable(place)
    everywhere, nowhere = in_all_processes([table is not None, table is None])
    if not everywhere and not nowhere:
      raise ValueError(f"{place} is seen by some processes only; all must share the folder")
    if table is None:
      return FeaturesWriter(place, names, ids_C, key)
    if table.key != key:
      raise ValueError(f"{place} holds features of another sweep; delete it")
    self.rows_read += int(np.sum(ids_C >= 0))
    return table
