"""Weights of a checkpoint into sharded arrays."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jdc.models.base import Params
from jdc.models.decoder import decoder
from jdc.models.decoder_config import DecoderConfig
from jdc.models.hf.files import Tensors, open_folder
from jdc.models.hf.names import Leaf, Path, find_layout, flatten, is_ignored, leaves, names_of
from jdc.models.hf.safetensors import DTYPES

_TILE = 64  # rows that are transposed at a time, so that both sides stay in the cache


def load(folder: str | os.PathLike[str], config: DecoderConfig, target: Params) -> Params:
  """Reads the weights of a checkpoint into sharded arrays.

  Each shard is made of the bytes that it needs and no others, one shard at a time, through a
  memory map; replicas on several devices are read once. A process reads only the shards of its
  own devices.

  Not every tensor is needed: rotary frequencies and, for the text part of Gemma 3, the image
  encoder are ignored; an output matrix beside tied embeddings must equal them.

  Args:
    folder: with `model.safetensors`, or with its index and the files that it names; of float32,
      float16 or bfloat16.
    config: the decoder, as from `from_hf_config(folder)`.
    target: the tree of `jax.ShapeDtypeStruct` of its parameters, or of some of them, each with
      a sharding (`None`: the first device) and with the type that weights are converted to.

  Returns:
    The parameters in `target`; what is checked is the whole checkpoint.

  Raises:
    ValueError: listing every tensor that is missing, left over, or of another shape or type
      than the decoder needs; if a file is truncated or corrupt.
  """
  tensors = open_folder(folder)
  table = leaves(config, find_layout(config, tensors.info))
  problems = list(_problems(tensors, config, table, flatten(target)))
  if problems:
    raise ValueError(f"{folder} does not fit the decoder: {'; '.join(problems)}")
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: _array(tensors, table[names_of(path)], leaf), target
  )


def fingerprint(folder: str | os.PathLike[str]) -> str:
  """A hash of a checkpoint's weights: of their names, types, shapes and bytes.

  It does not depend on how the tensors are divided into files.

  Returns:
    64 hexadecimal digits.

  Raises:
    ValueError: as `load` does for files that cannot be read.
  """
  tensors = open_folder(folder)
  total = hashlib.sha256()
  for name, info in sorted(tensors.info.items()):
    total.update(json.dumps([name, info.dtype, info.shape, tensors.digest(name)]).encode())
  return total.hexdigest()


def _problems(
  tensors: Tensors, config: DecoderConfig, table: Mapping[Path, Leaf], target: dict[Path, Any]
) -> Iterator[str]:
  """Yields every way in which the checkpoint, the decoder and the target do not fit."""
  shapes = flatten(jax.eval_shape(decoder(config).init, jax.random.key(0)))
  for path, leaf in sorted(target.items()):
    if path not in shapes:
      yield f"{'/'.join(path)} is no parameter of the decoder"
    elif leaf.shape != shapes[path].shape:
      yield f"{'/'.join(path)} has shape {shapes[path].shape}, the target has {leaf.shape}"
  expected: dict[str, tuple[int, ...]] = {}
  for path, leaf in table.items():
    shape = shapes[path].shape
    expected |= dict.fromkeys(_tensor_names(leaf, shape), leaf.shape(shape))
  missing = sorted(expected.keys() - tensors.info.keys())
  if missing:
    yield f"missing: {', '.join(missing)}"
  extra = {n for n in tensors.info.keys() - expected.keys() if not is_ignored(config, n)}
  head = find_layout(config, tensors.info).output
  if config.tie_embeddings and head in extra:
    extra.remove(head)
    if not _equal(tensors, head, table["embedding", "embedding"].name()):
      yield f"{head} differs from the embeddings, although tie_word_embeddings is true"
  if extra:
    yield f"left over: {', '.join(sorted(extra))}"
  for name in sorted(expected.keys() & tensors.info.keys()):
    info = tensors.info[name]
    if info.shape != expected[name]:
      yield f"{name} has shape {info.shape}, not {expected[name]}"
    if info.dtype not in DTYPES:
      yield f"{name} is of type {info.dtype}, not of {', '.join(DTYPES)}"


def _tensor_names(leaf: Leaf, shape: tuple[int, ...]) -> Iterator[str]:
  for coordinates in itertools.product(*map(range, shape[: leaf.stacked])):
    yield leaf.name(*coordinates)


def _equal(tensors: Tensors, left: str, right: str) -> bool:
  if right not in tensors.info or tensors.info[left][:2] != tensors.info[right][:2]:
    return False
  return tensors.digest(left) == tensors.digest(right)


def _array(tensors: Tensors, leaf: Leaf, target: jax.ShapeDtypeStruct) -> jax.Array:
  """One parameter on its devices."""
  shape, sharding = target.shape, target.sharding
  if sharding is None:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  devices: dict[tuple[range, ...], list[jax.Device]] = {}
  for device, index in sharding.addressable_devices_indices_map(shape).items():
    assert index is not None
    parts = tuple(range(*i.indices(n)) for i, n in zip(index, shape, strict=True))
    devices.setdefault(parts, []).append(device)
  shards = []
  for parts, replicas in devices.items():
    shard = _shard(tensors, leaf, parts, np.dtype(target.dtype))
    for device in replicas:
      where = jax.sharding.SingleDeviceSharding(device, memory_kind=sharding.memory_kind)
      shards.append(jax.device_put(shard, where))
  return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _shard(
  tensors: Tensors, leaf: Leaf, parts: tuple[range, ...], dtype: np.dtype
) -> np.ndarray:
  """The ranges `parts` of the axes of a parameter."""
  shard = np.empty([len(part) for part in parts], dtype)
  index = [slice(part.start, part.stop) for part in parts[leaf.stacked :]]
  if leaf.transposed:
    index[-2:] = index[:-3:-1]
  places = itertools.product(*(enumerate(part) for part in parts[: leaf.stacked]))
  for place in places:
    name = leaf.name(*(coordinate for _, coordinate in place))
    block = shard[tuple(position for position, _ in place)]
    _fill(block, tensors.read(name, _of_part(leaf, tensors.info[name].shape, index)), leaf)
  return shard


def _of_part(leaf: Leaf, shape: tuple[int, ...], index: list[slice]) -> tuple[slice, ...]:
  """Where the index of a part lies in the tensor that it is a part of."""
  if leaf.num_parts == 1:
    return tuple(index)
  start = leaf.part * (shape[-2] // leaf.num_parts)
  rows = slice(start + index[-2].start, start + index[-2].stop)
  return (*index[:-2], rows, index[-1])


def _fill(block: np.ndarray, source: np.ndarray, leaf: Leaf) -> None:
  if not leaf.transposed:
    block[...] = source
    return
  # A tile is converted while its rows are contiguous, and moved as plain integers, which takes
  # a third of the time of doing both at once.
  bits = np.dtype(f"u{block.dtype.itemsize}")
  out = block.view(bits)
  for i in range(0, source.shape[-2], _TILE):
    tile = source[..., i : i + _TILE, :].astype(block.dtype, copy=False)
    out[..., i : i + _TILE] = tile.view(bits).swapaxes(-1, -2)
