"""The losses of a run on rows that it does not train on."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jdc.data.filled import FilledTable
from jdc.eval import perplexity
from jdc.train.run import Run


def make_evaluate(run: Run, mesh: jax.sharding.Mesh) -> Callable[[Any], dict[str, float]]:
  """Returns the function from parameters to the metrics of the split that the config names."""
  config, split = run.config, run.config.evaluation.split
  max_rows, packed = config.evaluation.max_rows, config.plan.max_segments > 0
  tables = {name: domain.splits.get(split) for name, domain in run.domains.items()}
  rows = {
    name: _filled(table, max_rows, config.plan.max_segments) if packed else table
    for name, table in tables.items()
    if table is not None
  }

  def evaluate(params: Any) -> dict[str, float]:
    if split == "none":
      return {}
    batch_size = config.evaluation.batch_size or config.batch_size
    limit = None if packed else max_rows or None
    losses = run.model.token_losses
    found = perplexity.evaluate(losses, params, rows, batch_size, mesh, limit)
    return {f"{split}/{path.removeprefix('validation/')}": x for path, x in found.items()}

  return evaluate


def _filled(table: Any, max_records: int, max_segments: int) -> FilledTable:
  """Packed rows of records that are spread over the table evenly."""
  size = min(len(table), max_records or len(table))
  return FilledTable(table, np.arange(size) * len(table) // size, max_segments)
