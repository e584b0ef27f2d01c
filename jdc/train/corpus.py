"""From the data fields of a config to packed rows."""

import os
from pathlib import Path
from typing import Any, cast

from jdc.data import pack, quickstart, tokenize
from jdc.data.domains import find_domains
from jdc.train.config import CorpusConfig


def cache_dir(config: CorpusConfig) -> Path:
  """Returns where packed rows are kept: the config says, else $JDC_CACHE, else ~/.cache/jdc."""
  chosen = config.cache_dir or os.environ.get("JDC_CACHE") or "~/.cache/jdc"
  return Path(chosen).expanduser()


def prepare(
  data: str, config: CorpusConfig, sequence_length: int, seed: int, workdir: str
) -> dict[str, pack.Domain]:
  """Returns the domains of `data`, tokenized and packed now or in an earlier run.

  Args:
    data: a folder of domains, or "python" for the quickstart's text.
    config: how to read and split it.
    sequence_length: tokens predicted in a row.
    seed: of the held-out split.
    workdir: receives the records that are set aside.

  Raises:
    ValueError: if the path, the tokenizer or a record is not usable; see `jdc.data.pack`.
  """
  check(data, config)
  folder = Path(data).expanduser()
  if data == "python":
    folder = cache_dir(config) / "python_text" / quickstart.installation()
    quickstart.write_corpus(folder)
  return pack.prepare(
    find_domains(folder),
    tokenizer(config),
    sequence_length,
    config.validation_fraction,
    cache_dir(config) / "rows",
    text_field=config.text_field,
    on_bad_record=cast(Any, config.on_bad_record),  # `check` knows it
    quarantine=Path(workdir) / "quarantine.jsonl",
    seed=seed,
  )


def check(data: str, config: CorpusConfig) -> None:
  """Raises a ValueError that lists the fields that are wrong whatever the data hold."""
  errors = []
  if not data:
    errors.append("data is empty; give a folder of domains, or 'python' for the quickstart")
  if config.on_bad_record not in ("error", "quarantine"):
    errors.append(
      f"corpus.on_bad_record must be error or quarantine, got {config.on_bad_record!r}"
    )
  if not 0 <= config.validation_fraction < 1:
    errors.append(
      f"corpus.validation_fraction must be in [0, 1), got {config.validation_fraction}"
    )
  if errors:
    raise ValueError("; ".join(errors))


def tokenizer(config: CorpusConfig) -> tokenize.Tokenizer:
  """Returns the tokenizer that a config names."""
  if config.tokenizer == "bytes":
    if config.bos_token or config.eos_token:
      raise ValueError("corpus.bos_token and corpus.eos_token are for tokenizer files only")
    return tokenize.byte_tokenizer()
  return tokenize.from_file(
    config.tokenizer, bos_token=config.bos_token or None, eos_token=config.eos_token or None
  )
