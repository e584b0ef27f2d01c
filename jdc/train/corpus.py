"""From the data fields of a config to packed rows."""

import dataclasses
import datetime
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from jdc.data import chat as chat_lib
from jdc.data import chat_template, instruct, pack, quickstart, token_shards, tokenize
from jdc.data.domains import DomainFiles, find_domains, find_tasks
from jdc.train.config import CorpusConfig

TEMPLATES = ("plain", "alpaca", "tokenizer")
_CHOICES = {
  "on_bad_record": ("error", "quarantine"),
  "format": ("text", "auto", "alpaca", "sharegpt", "messages"),
  "template": TEMPLATES,
  "predict": ("all", "last"),
  "on_long": instruct.ON_LONG,
}


def cache_dir(config: CorpusConfig) -> Path:
  """Returns where packed rows are kept: the config says, else $JDC_CACHE, else ~/.cache/jdc."""
  chosen = config.cache_dir or os.environ.get("JDC_CACHE") or "~/.cache/jdc"
  return Path(chosen).expanduser()


def prepare(
  data: str, config: CorpusConfig, sequence_length: int, seed: int, workdir: str
) -> dict[str, pack.Domain]:
  """Returns the domains of `data`, tokenized now or in an earlier run.

  Args:
    data: a folder of domains, or of token shards, or "python" for the quickstart's text.
    config: how to read and split it.
    sequence_length: tokens predicted in a row.
    seed: of the held-out splits.
    workdir: receives the records that are set aside.

  Raises:
    ValueError: if the path, the tokenizer or a record is not usable; see `jdc.data.pack` for
      documents and `jdc.data.instruct` for instruction data.
  """
  check(data, config)
  folder = Path(data).expanduser()
  if data == "python":
    folder = cache_dir(config) / "python_text" / quickstart.installation()
    quickstart.write_corpus(folder)
  if token_shards.is_folder(folder):
    _check_shards(folder, config)
    return cast(Any, token_shards.open_folder(folder))
  quarantine = Path(workdir) / "quarantine.jsonl"
  return _tokenized(find_domains(folder), config, sequence_length, seed, quarantine)


def prepare_targets(
  folder: str, config: CorpusConfig, sequence_length: int, workdir: str
) -> dict[str, Any]:
  """Returns the rows or records of a target set by task, tokenized now or in an earlier run.

  They are written as the run's data are; all of them belong to the target set.

  Args:
    folder: a file a task, such as `gsm8k.dev.jsonl.gz`.
    config: how to read it; its fractions are not used.
    sequence_length: tokens predicted in a row.
    workdir: receives the records that are set aside.

  Raises:
    ValueError: if the folder, the tokenizer or a record is not usable.
  """
  tasks = find_tasks(Path(folder).expanduser())
  whole = dataclasses.replace(config, validation_fraction=0.0, target_fraction=0.0)
  check(folder, whole)
  quarantine = Path(workdir) / "quarantine_target.jsonl"
  prepared = _tokenized(tasks, whole, sequence_length, 0, quarantine)
  return {name: task.train for name, task in prepared.items()}


def _tokenized(
  files: Mapping[str, DomainFiles],
  config: CorpusConfig,
  sequence_length: int,
  seed: int,
  quarantine: Path,
) -> dict[str, pack.Domain]:
  on_bad_record = cast(Any, config.on_bad_record)  # known to `check`, as the other choices
  if config.format == "text":
    return pack.prepare(
      files,
      tokenizer(config),
      sequence_length,
      config.validation_fraction,
      cache_dir(config) / "rows",
      text_field=config.text_field,
      on_bad_record=on_bad_record,
      quarantine=quarantine,
      seed=seed,
      target_fraction=config.target_fraction,
    )
  return instruct.prepare(
    files,
    chat(config),
    sequence_length,
    config.validation_fraction,
    cache_dir(config) / "records",
    format=cast(Any, config.format),
    on_bad_record=on_bad_record,
    quarantine=quarantine,
    seed=seed,
    on_long=cast(Any, config.on_long),
    target_fraction=config.target_fraction,
  )


def with_tokenizer_of_shards(data: str, config: CorpusConfig) -> CorpusConfig:
  """Returns the config with the tokenizer of the token shards, where it names none itself.

  Raises:
    ValueError: if the shards' preparation has not ended, or their manifest is not readable.
  """
  folder = Path(data).expanduser()
  if not data or config.tokenizer != "bytes" or not token_shards.is_folder(folder):
    return config
  info = token_shards.read_manifest(folder).tokenizer
  if info.name == "bytes":
    return config
  return dataclasses.replace(
    config,
    tokenizer=str(folder / token_shards.TOKENIZER),
    bos_token=info.bos_token,
    eos_token=info.eos_token,
  )


def _check_shards(folder: Path, config: CorpusConfig) -> None:
  """Raises a ValueError that lists the fields that shards made before cannot follow."""
  errors, defaults = [], CorpusConfig()
  info = token_shards.read_manifest(folder).tokenizer
  if config.format != "text":
    errors.append(
      f"corpus.format={config.format!r} is not that of token shards, which is 'text'"
    )
  unread = ("text_field", "validation_fraction", "target_fraction", "on_bad_record")
  errors += [
    f"corpus.{name}={getattr(config, name)!r} is not read: the rows are made already"
    for name in unread
    if getattr(config, name) != getattr(defaults, name)
  ]
  if config.tokenizer == "bytes":
    own = info.content if info.name == "bytes" else "bytes"
  else:
    path = Path(config.tokenizer).expanduser()
    path = path / token_shards.TOKENIZER if path.is_dir() else path
    own = token_shards.file_digest(path) if path.is_file() else ""
  if own != info.content:
    errors.append(
      f"corpus.tokenizer={config.tokenizer!r} is not {info.name!r}, the tokenizer of the "
      "shards; leave it out to take theirs"
    )
  errors += [
    f"corpus.{name}={getattr(config, name)!r}, the shards were made with "
    f"{getattr(info, name)!r}"
    for name in ("bos_token", "eos_token")
    if getattr(config, name) not in ("", getattr(info, name))
  ]
  if errors:
    raise ValueError(f"{folder}: {'; '.join(errors)}")


def with_tokenizer_of(folder: str, config: CorpusConfig) -> CorpusConfig:
  """Returns the config with the folder of the weights in place of tokenizer="weights".

  Raises:
    ValueError: if there are no weights.
  """
  if config.tokenizer != "weights":
    return config
  if not folder:
    raise ValueError("corpus.tokenizer='weights' needs config.weights.folder")
  return dataclasses.replace(config, tokenizer=folder)


def check(data: str, config: CorpusConfig) -> None:
  """Raises a ValueError that lists the fields that are wrong whatever the data hold."""
  errors = []
  if not data:
    errors.append("data is empty; give a folder of domains, or 'python' for the quickstart")
  errors += [
    f"corpus.{name} must be one of {', '.join(known)}, got {getattr(config, name)!r}"
    for name, known in _CHOICES.items()
    if getattr(config, name) not in known
  ]
  if config.format == "text":
    defaults = CorpusConfig()
    errors += [
      f"corpus.{name}={getattr(config, name)!r} is for instruction data; set corpus.format"
      for name in ("template", "predict", "on_long")
      if getattr(config, name) != getattr(defaults, name)
    ]
  else:
    if config.text_field != CorpusConfig().text_field:
      errors.append(f"corpus.text_field={config.text_field!r} is for documents of text")
    if config.template == "tokenizer" and (config.bos_token or config.eos_token):
      errors.append(
        "corpus.bos_token and corpus.eos_token are not read with corpus.template='tokenizer', "
        "which writes its own"
      )
  if config.format != "text" and data == "python":
    errors.append(f"data='python' is text, not instruction data of format {config.format!r}")
  if config.template == "tokenizer" and not Path(config.tokenizer).is_dir():
    errors.append(
      "corpus.template='tokenizer' needs the folder of a Hugging Face tokenizer as "
      f"corpus.tokenizer, got {config.tokenizer!r}"
    )
  if config.template_date and config.template != "tokenizer":
    errors.append(
      f"corpus.template_date={config.template_date!r} is for corpus.template='tokenizer', got "
      f"{config.template!r}"
    )
  try:
    _date(config)
  except ValueError:
    errors.append(
      f"corpus.template_date must be a date such as 2024-07-26, got {config.template_date!r}"
    )
  errors += [
    f"corpus.{name} must be in [0, 1), got {getattr(config, name)}"
    for name in ("validation_fraction", "target_fraction")
    if not 0 <= getattr(config, name) < 1
  ]
  if errors:
    raise ValueError("; ".join(errors))


def tokenizer(config: CorpusConfig) -> tokenize.Tokenizer:
  """Returns the tokenizer that a config names."""
  if config.tokenizer == "bytes":
    if config.bos_token or config.eos_token:
      raise ValueError("corpus.bos_token and corpus.eos_token are for tokenizer files only")
    return tokenize.byte_tokenizer()
  path, named = Path(config.tokenizer).expanduser(), {}
  if path.is_dir():
    named = tokenize.boundary_tokens(path)
    path = path / "tokenizer.json"
  bos, eos = (
    config.bos_token or named.get("bos_token"),
    config.eos_token or named.get("eos_token"),
  )
  return tokenize.from_file(path, bos_token=bos, eos_token=eos)


def chat(config: CorpusConfig) -> chat_lib.Chat:
  """Returns how a config writes conversations."""
  turns = cast(Any, config.predict)
  if config.template == "tokenizer":
    return chat_template.from_folder(config.tokenizer, turns, today=_date(config))
  return chat_lib.from_tokenizer(tokenizer(config), config.template, turns)


def _date(config: CorpusConfig) -> datetime.date | None:
  """The day that templates are told."""
  return datetime.date.fromisoformat(config.template_date) if config.template_date else None
