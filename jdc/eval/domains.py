"""Perplexity and bits per byte of the domains of a folder, as a task."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jdc.data import pack
from jdc.data.domains import find_domains
from jdc.eval.perplexity import evaluate
from jdc.eval.task import Outcome, Task
from jdc.eval.text_model import TextModel

_PREFIX = "validation/"


def domain_perplexity(
  name: str,
  folder: str | Path,
  cache_dir: str | Path,
  sequence_length: int = 0,
  max_rows: int | None = None,
  text_field: str = "text",
) -> Task:
  """Evaluates the text of each domain; see `jdc.eval.perplexity` for the metrics.

  Documents are cut into rows as for training (`jdc.data.packer`), with the boundary tokens that
  the checkpoint's tokenizer puts around a text. A domain with validation files is evaluated on
  these, another on all its files.

  Args:
    name: of the task.
    folder: of domains, as for `find_domains`.
    cache_dir: holds packed rows.
    sequence_length: target positions of a row; 0 for the model's context, 1,024 at most.
    max_rows: of a domain, evenly spaced; `None` for all.
    text_field: of the records.

  Raises:
    ValueError: if the folder holds no domains; when prepared, for bad records, or rows longer
      than the model's context.
  """
  if sequence_length < 0:
    raise ValueError(f"sequence_length must be 0 or positive, got {sequence_length}")
  domains = find_domains(folder)
  settings: dict[str, Any] = {
    "splits": {k: "validation" if files.validation else "all" for k, files in domains.items()},
    "max_rows": max_rows,
  }

  def prepare(model: TextModel) -> Callable[[], Outcome]:
    length = sequence_length or min(model.context_length or 1024, 1024)
    if model.context_length and length > model.context_length:
      raise ValueError(
        f"sequence_length {length} is beyond the model's context of {model.context_length}"
      )
    settings["sequence_length"] = length
    prepared = pack.prepare(
      domains, model.own.tokenizer, length, 0.0, cache_dir, text_field=text_field
    )
    tables = {k: domain.validation or domain.train for k, domain in prepared.items()}
    settings["rows_fingerprints"] = {k: table.fingerprint for k, table in tables.items()}
    return functools.partial(_run, model, tables, max_rows)

  return Task(name, settings, prepare)


def _run(model: TextModel, tables: dict[str, Any], max_rows: int | None) -> Outcome:
  metrics = evaluate(
    model.model.token_losses, model.params, tables, model.batch_size, model.mesh, max_rows
  )
  return Outcome({key.removeprefix(_PREFIX): value for key, value in metrics.items()}, [])
