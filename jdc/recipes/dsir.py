"""Importance resampling of a run's pool: a weight for each row, by words alone."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jdc.data import dsir
from jdc.policies.selection import score_files
from jdc.train import corpus, setup
from jdc.train.config import TrainConfig

_ROWS = 1024  # read at a time


class Weighed(NamedTuple):
  """The rows of a pool, in order, and what tells the pool from others."""

  columns: dict[str, Any]  # by name, one value a row
  fingerprint: str
  num_target_rows: int


def weigh(config: TrainConfig, workdir: str) -> Weighed:
  """Returns log importance weights of the rows that a config trains on.

  The text of a row is that of its documents, or of its record with the prompt, a line between
  one and the next. The target is all target rows: those of `config.target.folder`, or else the
  target splits of the domains.

  Args:
    config: of the run that will read the scores; its corpus, data and target count.
    workdir: a local folder, for rows that no cache holds.

  Returns:
    Columns `example_id`, `domain`, `num_words` and `score`, the logarithm of the weight, as
    `jdc.data.dsir.log_importance` says.

  Raises:
    ValueError: listing what is wrong with the data, or if there are no target rows.
  """
  found = corpus.with_tokenizer_of(config.weights.folder, config.corpus)
  corpus.check(config.data, found)
  tokenizer = corpus.tokenizer(found)
  domains = corpus.prepare(config.data, found, config.sequence_length, config.seed, workdir)
  folder = config.target.folder
  targets = [domain.target for domain in domains.values() if domain.target is not None]
  if folder:
    tasks = corpus.prepare_targets(folder, found, config.sequence_length, workdir)
    targets = list(tasks.values())
  problems = [f"{name} has no train rows" for name, d in domains.items() if d.train is None]
  if not targets:
    problems.append(
      "there are no target rows: give target.folder, NAME.target.jsonl files, or "
      "corpus.target_fraction"
    )
  if problems:
    raise ValueError("; ".join(problems))
  tables = [domain.train for domain in domains.values()]
  pool = dsir.hash_ngrams(texts(tables, tokenizer.decode))
  target = dsir.hash_ngrams(texts(targets, tokenizer.decode))
  sizes = [len(table) for table in tables]
  columns = {
    "example_id": np.arange(sum(sizes)),
    "domain": np.repeat(list(domains), sizes),
    "num_words": pool.num_words,
    "score": dsir.log_importance(pool, target),
  }
  return Weighed(columns, setup.data_fingerprint(domains), len(target.num_words))


def texts(tables: Iterable[Any], decode: Any) -> Iterator[str]:
  """Yields the text of every row of some tables, a line between its documents."""
  for table in tables:
    for first in range(0, len(table), _ROWS):
      rows = np.arange(first, min(first + _ROWS, len(table)))
      for tokens_T1, segments_T1 in zip(*table.rows(rows), strict=True):
        segments_T1 = np.abs(segments_T1)  # prompts are negative
        tokens_T1 = tokens_T1[segments_T1 > 0]
        ends = np.flatnonzero(np.diff(segments_T1[segments_T1 > 0])) + 1
        yield "\n".join(map(decode, np.split(tokens_T1, ends)))


def write(output: Path, weighed: Weighed) -> None:
  """Writes the table that `selection.from_file` reads, whole or not at all."""
  import pyarrow as pa

  described = {"data_fingerprint": weighed.fingerprint, "method": "dsir"}
  score_files.write_parquet(output, pa.table(weighed.columns), described)
