"""Writes a decoder as a folder that transformers loads."""

import contextlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jdc.models.base import Params
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.models.hf.config_write import to_hf_config
from jdc.models.hf.files import INDEX
from jdc.models.hf.names import flatten
from jdc.models.hf.pieces import NAMES, Piece, divided, gathered, pieces_of
from jdc.models.hf.safetensors import write_file

TOKENIZER_FILES = (
  "tokenizer.json",
  "tokenizer.model",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "chat_template.jinja",
  "chat_template.json",
)
TEMPLATES = "additional_chat_templates"  # a folder


def save(
  folder: str | os.PathLike[str],
  config: DecoderConfig,
  params: Params,
  *,
  tokenizer_folder: str | os.PathLike[str] | None = None,
  generation_config: Mapping[str, Any] | None = None,
  token_ids: Mapping[str, Any] | None = None,
  dtype: str | None = None,
  max_shard_bytes: int = 5_000_000_000,
) -> None:
  """Writes a folder that `transformers.AutoModelForCausalLM.from_pretrained` loads.

  One tensor at a time is gathered from the devices. All processes call this; process 0 writes,
  into a folder beside it that gets its name when everything is on the disk.

  Args:
    folder: must be absent or empty.
    config: the decoder.
    params: its parameters, without adapters.
    tokenizer_folder: whose tokenizer is copied; `None`: the folder has none.
    generation_config: written as `generation_config.json`, where there is one.
    token_ids: as `to_hf_config` takes them, and `read_token_ids` reads them from the
      checkpoint that training began with.
    dtype: of the weights, float32 or bfloat16; `None`: as they are.
    max_shard_bytes: more than this is divided into files, each at most as large unless it holds
      a single tensor.

  Raises:
    ValueError: before anything is written: if the folder is not empty, the parameters are not
      those of the decoder, transformers has no such architecture, or an argument is not
      accepted.
    RuntimeError: in the other processes, if process 0 could not write.
  """
  problems = [*_argument_problems(dtype, max_shard_bytes, tokenizer_folder)]
  problems += _parameter_problems(config, params)
  if problems:
    raise ValueError("; ".join(problems))
  pieces = pieces_of(config, params, dtype)
  texts = {"config.json": to_hf_config(config, dtype=pieces[0].dtype, token_ids=token_ids)}
  if generation_config is not None:
    texts["generation_config.json"] = dict(generation_config)
  arrays, error = gathered(pieces, params), None
  if jax.process_index() == 0:
    try:
      with new_folder(Path(folder).absolute()) as partial:
        _write_weights(partial, divided(pieces, max_shard_bytes), arrays)
        for name, content in texts.items():
          (partial / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if tokenizer_folder is not None:
          _copy_tokenizer(Path(tokenizer_folder), partial)
    except Exception as caught:  # told to the other processes before it is raised
      error = caught
  if jax.process_count() > 1:
    for (
      _
    ) in arrays:  # every process takes part in every gathering, whatever became of process 0
      pass
  agree(error)


def _argument_problems(
  dtype: str | None, max_shard_bytes: int, tokenizer_folder: str | os.PathLike[str] | None
) -> Iterator[str]:
  if dtype is not None and dtype not in NAMES:
    yield f"dtype must be one of {', '.join(NAMES)} or None, got {dtype!r}"
  if not isinstance(max_shard_bytes, int) or max_shard_bytes < 1:
    yield f"max_shard_bytes must be at least 1, got {max_shard_bytes!r}"
  source = Path(tokenizer_folder or "")
  if tokenizer_folder and not any((source / name).is_file() for name in TOKENIZER_FILES):
    yield f"tokenizer_folder {source} has none of {', '.join(TOKENIZER_FILES)}"


def _parameter_problems(config: DecoderConfig, params: Params) -> Iterator[str]:
  """Yields each parameter that is not as the decoder has it."""
  expected = flatten(jax.eval_shape(decoder(config).init, jax.random.key(0)))
  given = flatten(params)
  for path in sorted(expected.keys() ^ given.keys()):
    name = "/".join(path)
    adapter = path[-1].startswith("lora_")
    hint = " (adapters must be merged first)" if adapter else ""
    yield f"{name} is missing" if path in expected else f"{name} is no parameter{hint}"
  for path in sorted(expected.keys() & given.keys()):
    array, name = given[path], "/".join(path)
    if array.shape != expected[path].shape:
      yield f"{name} has shape {array.shape}, not {expected[path].shape}"
    if str(array.dtype) not in NAMES:
      yield f"{name} is of type {array.dtype}, not of {', '.join(NAMES)}"


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
  """A folder beside the target that takes its name at the end, or vanishes after an error."""
  if target.exists() and not (target.is_dir() and not any(target.iterdir())):
    raise ValueError(f"folder {target} exists and is not empty")
  partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.partial")
  partial.mkdir(parents=True)
  try:
    yield partial
    for path in sorted(partial.rglob("*")):
      _flush(path)
    partial.rename(target)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
  _flush(target.parent)


def _flush(path: Path) -> None:
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _write_weights(
  folder: Path, files: dict[str, list[Piece]], arrays: Iterator[np.ndarray]
) -> None:
  for name, pieces in files.items():
    headers = [(piece.name, NAMES[piece.dtype], piece.shape) for piece in pieces]
    write_file(folder / name, headers, itertools.islice(arrays, len(pieces)))
  if len(files) == 1:
    return
  total = sum(piece.num_bytes for pieces in files.values() for piece in pieces)
  where = {piece.name: name for name, pieces in files.items() for piece in pieces}
  index = {"metadata": {"total_size": total}, "weight_map": where}
  (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _copy_tokenizer(source: Path, folder: Path) -> None:
  for name in TOKENIZER_FILES:
    if (source / name).is_file():
      shutil.copyfile(source / name, folder / name)
  if (source / TEMPLATES).is_dir():
    shutil.copytree(source / TEMPLATES, folder / TEMPLATES)


def agree(error: Exception | None) -> None:
  """Raises the error of process 0, and in the other processes that there was one."""
  failed = error is not None
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    failed = bool(multihost_utils.broadcast_one_to_all(np.int32(failed)))
  if error is not None:
    raise error
  if failed:
    raise RuntimeError("process 0 could not write the checkpoint; its own error says why")
