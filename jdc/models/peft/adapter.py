"""Adapters in the format of the PEFT library, read and written, sharded or not."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdc.models.base import Params
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.models.hf.files import Tensors
from jdc.models.hf.names import flatten
from jdc.models.hf.pieces import NAMES, Piece, gathered
from jdc.models.hf.safetensors import DTYPES, write_file
from jdc.models.hf.write import agree, new_folder
from jdc.models.lora import LEAVES, LoraConfig, check_targets
from jdc.models.peft.config import CONFIG, module_names, read_config, to_config
from jdc.models.subsets import matcher, split

WEIGHTS = "adapter_model.safetensors"
_BASE = "base_model.model."
# What the modules' names begin with: in a causal language model, and inside a multimodal
# Gemma 3, since transformers 4.52 and before.
_FIRST_LAYER = re.compile(
  r"base_model\.model\.(model\.|model\.language_model\.|language_model\.model\.)layers\.0\..+"
)
_PEFT_LEAVES = {"lora_a": "lora_A", "lora_b": "lora_B"}


class _Adapter(NamedTuple):
  """What a folder holds."""

  lora: LoraConfig
  tensors: Tensors
  prefix: str  # of the modules' names


def read_adapter_config(folder: str | os.PathLike[str], config: DecoderConfig) -> LoraConfig:
  """Reads what an adapter that PEFT saved was made with.

  Modules are found by PEFT's rules: a list holds ends of names, a string is a regular
  expression, "all-linear" means every linear map but the output matrix. A name in a list that
  no module has is without effect, as it is there; which modules have tensors is checked by
  `load_adapter`.

  Args:
    folder: with `adapter_config.json` and `adapter_model.safetensors`.
    config: the decoder that is adapted.

  Returns:
    Rank, scale, dropout and targets; the type is bfloat16 if all tensors have it, else float32,
    which holds float16 exactly.

  Raises:
    ValueError: listing everything that the decoder's adapters do not have, such as other ranks
      by module, biases, or initial values that change the base model; if a file is absent,
      truncated or corrupt.
  """
  return _open(Path(folder), config).lora


def load_adapter(
  folder: str | os.PathLike[str], config: DecoderConfig, target: Params | None = None
) -> tuple[LoraConfig, Params]:
  """Reads an adapter that PEFT saved into sharded arrays.

  Args:
    folder: with `adapter_config.json` and `adapter_model.safetensors`, the latter of float32,
      float16 or bfloat16.
    config: the decoder that is adapted.
    target: the tree of `jax.ShapeDtypeStruct` of the adapters, each with a sharding and with
      the type that it is converted to; other parameters in it are not looked at. `None`: the
      first device, and the type that `read_adapter_config` returns.

  Returns:
    What the adapter was made with, and its parameters, a nested dict with nothing but the
    leaves `lora_a` [L, in, rank] and `lora_b` [L, rank, out].

  Raises:
    ValueError: as `read_adapter_config`; listing every tensor that is missing, left over, or of
      another shape or type.
  """
  lora, tensors, prefix = _open(Path(folder), config)
  expected = _shapes(config, lora)
  given = expected if target is None else _adapters(target)
  pieces = _pieces(config, expected, prefix)
  problems = [*_mismatches(given, expected), *_tensor_problems(tensors, pieces)]
  if problems:
    raise ValueError(f"{folder} does not fit the decoder: {'; '.join(problems)}")
  names = {(piece.path, piece.place[0]): piece.name for piece in pieces}
  return lora, jax.tree_util.tree_map_with_path(
    lambda path, leaf: _array(tensors, names, tuple(k.key for k in path), leaf), given
  )


def save_adapter(
  folder: str | os.PathLike[str],
  params: Params,
  lora: LoraConfig,
  config: DecoderConfig,
  base_model_name: str | None = None,
) -> None:
  """Writes a folder that `peft.PeftModel.from_pretrained` loads.

  All processes call this; process 0 writes, into a folder beside it that gets its name when
  everything is on the disk.

  Args:
    folder: must be absent or empty.
    params: of a decoder with adapters; other leaves than `lora_a` and `lora_b` are not looked
      at.
    lora: what the adapters were made with.
    config: the decoder.
    base_model_name: the name or folder of the base model, by which PEFT finds it.

  Raises:
    ValueError: before anything is written, if the folder is not empty, or listing every
      adapter that is missing, left over, or of another shape or type.
    RuntimeError: in the other processes, if process 0 could not write.
  """
  check_targets(lora, config)
  adapters = _adapters(params)
  problems = list(_mismatches(adapters, _shapes(config, lora)))
  problems += [
    f"{'/'.join(path)} is of type {leaf.dtype}, not of {', '.join(NAMES)}"
    for path, leaf in flatten(adapters).items()
    if str(leaf.dtype) not in NAMES
  ]
  if problems:
    raise ValueError(f"not the adapters of this decoder: {'; '.join(problems)}")
  pieces = _pieces(config, adapters, "model.")
  headers = [(piece.name, NAMES[piece.dtype], piece.shape) for piece in pieces]
  content = to_config(lora, config, base_model_name)
  arrays, error = list(gathered(pieces, adapters)), None
  if jax.process_index() == 0:
    try:
      with new_folder(Path(folder).absolute()) as partial:
        write_file(partial / WEIGHTS, headers, iter(arrays))
        (partial / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except Exception as caught:  # told to the other processes before it is raised
      error = caught
  agree(error)


def _open(folder: Path, config: DecoderConfig) -> _Adapter:
  if not (folder / WEIGHTS).exists():
    raise ValueError(
      f"{folder} has no {WEIGHTS}; adapters in other formats must be saved as safetensors first"
    )
  tensors = Tensors([folder / WEIGHTS])
  found = {m[1] for name in tensors.info if (m := _FIRST_LAYER.fullmatch(name))}
  prefix = min(found, default="model.")
  is_bfloat16 = {info.dtype for info in tensors.info.values()} == {"BF16"}
  dtype = "bfloat16" if is_bfloat16 else "float32"
  return _Adapter(read_config(folder / CONFIG, config, prefix, dtype), tensors, prefix)


def _adapters(params: Params) -> Params:
  return split(params, matcher(f"*/{leaf}" for leaf in LEAVES))[0]


def _shapes(config: DecoderConfig, lora: LoraConfig) -> Params:
  return _adapters(jax.eval_shape(decoder(config, lora=lora).init, jax.random.key(0)))


def _pieces(config: DecoderConfig, adapters: Params, prefix: str) -> list[Piece]:
  """All tensors, layer after layer."""
  names, pieces = module_names(config, prefix), []
  for path, leaf in flatten(adapters).items():
    name = f"{_BASE}{names['/'.join(path[:-1])]}.{_PEFT_LEAVES[path[-1]]}.weight"
    num_layers, *shape = leaf.shape
    for i in range(num_layers):
      place, kind = (i,), str(leaf.dtype)
      pieces.append(Piece(name.format(layer=i), path, place, True, kind, tuple(shape[::-1])))
  return sorted(pieces, key=lambda piece: piece.place)


def _mismatches(given: Params, expected: Params) -> Iterator[str]:
  left, right = flatten(given), flatten(expected)
  for path in sorted(left.keys() ^ right.keys()):
    side = "is no adapter of the decoder" if path in left else "is missing"
    yield f"{'/'.join(path)} {side}"
  for path in sorted(left.keys() & right.keys()):
    if left[path].shape != right[path].shape:
      yield f"{'/'.join(path)} has shape {left[path].shape}, not {right[path].shape}"


def _tensor_problems(tensors: Tensors, pieces: list[Piece]) -> Iterator[str]:
  expected = {piece.name: piece.shape for piece in pieces}
  missing = sorted(expected.keys() - tensors.info.keys())
  if missing:
    yield f"missing: {', '.join(missing)}"
  extra = sorted(tensors.info.keys() - expected.keys())
  if extra:
    yield f"left over: {', '.join(extra)}"
  for name in sorted(expected.keys() & tensors.info.keys()):
    info = tensors.info[name]
    if info.shape != expected[name]:
      yield f"{name} has shape {info.shape}, not {expected[name]}"
    if info.dtype not in DTYPES:
      yield f"{name} is of type {info.dtype}, not of {', '.join(DTYPES)}"


def _array(
  tensors: Tensors, names: dict[tuple[tuple[str, ...], int], str], path: tuple, target: Any
) -> jax.Array:
  """One leaf on its devices, each shard made of the bytes that it needs."""

  def shard(index: tuple[slice, ...] | None) -> np.ndarray:
    assert index is not None
    layers, rows, columns = index
    parts = [
      tensors.read(names[path, i], (columns, rows)).T
      for i in range(*layers.indices(target.shape[0]))
    ]
    return np.stack(parts).astype(jnp.dtype(target.dtype))

  sharding = target.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.make_array_from_callback(target.shape, sharding, shard)
