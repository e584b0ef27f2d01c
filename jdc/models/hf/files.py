"""The weight files of a checkpoint folder, read through memory maps."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jdc.models.hf.safetensors import DTYPES, TensorInfo, read_header

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Tensors:
  """The tensors of one or more safetensors files, read where they lie.

  Attributes:
    info: what the headers say of each tensor, by name.
    bytes_read: bytes of tensors that `read` has returned so far.
  """

  def __init__(self, paths: list[Path]):
    """Reads the headers.

    Raises:
      ValueError: listing every fault of every file: it is truncated or no safetensors file,
        its tensors overlap, a name occurs twice.
    """
    self.info: dict[str, TensorInfo] = {}
    self.bytes_read = 0
    self._files: dict[str, Path] = {}
    self._maps: dict[Path, np.memmap] = {}
    problems = []
    for path in paths:
      try:
        header = read_header(path)
      except ValueError as error:
        problems.append(str(error))
        continue
      twice = sorted(header.keys() & self.info.keys())
      problems += [f"{path}: {name} is also in {self._files[name].name}" for name in twice]
      self.info |= header
      self._files |= dict.fromkeys(header, path)
    if problems:
      raise ValueError("; ".join(problems))

  def file(self, name: str) -> Path:
    """The file that holds a tensor."""
    return self._files[name]

  def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    """Returns a part of a tensor, as a view of its file.

    Args:
      name: the tensor, which must be of type F32, F16 or BF16.
      index: slices of its axes.
    """
    info = self.info[name]
    part = self._bytes(name).view(DTYPES[info.dtype]).reshape(info.shape)[index]
    self.bytes_read += part.nbytes
    return part

  def digest(self, name: str) -> str:
    """The SHA-256 of a tensor's bytes."""
    return hashlib.sha256(self._bytes(name).data).hexdigest()

  def _bytes(self, name: str) -> np.ndarray:
    info, path = self.info[name], self._files[name]
    if path not in self._maps:
      self._maps[path] = np.memmap(path, np.uint8, mode="r")
    return np.asarray(self._maps[path])[info.start : info.stop]


def open_folder(folder: str | os.PathLike[str]) -> Tensors:
  """Opens the weights of a checkpoint: `model.safetensors`, or the files of its index.

  Args:
    folder: the checkpoint.

  Raises:
    ValueError: if there are no weights, or two sets of them; listing all files that the index
      names and that are absent, and all tensors that are in another file than it says.
  """
  folder = Path(folder)
  single, index = folder / SINGLE, folder / INDEX
  if single.exists() and index.exists():
    raise ValueError(f"{folder} has both {SINGLE} and {INDEX}: remove the one that is stale")
  if single.exists():
    return Tensors([single])
  if not index.exists():
    raise ValueError(
      f"{folder} has neither {SINGLE} nor {INDEX}; weights in other formats must be saved as "
      "safetensors first"
    )
  return _open_sharded(folder, _weight_map(index))


def _weight_map(index: Path) -> dict[str, str]:
  try:
    weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    files = set(weight_map.values())
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f"{index}: not an index with a weight_map: {error!r}") from error
  foreign = sorted(repr(f) for f in files if not isinstance(f, str) or Path(f).name != f)
  if foreign:
    raise ValueError(f"{index}: weight_map must name files beside it, got {', '.join(foreign)}")
  return weight_map


def _open_sharded(folder: Path, weight_map: Mapping[str, str]) -> Tensors:
  files = sorted(set(weight_map.values()))
  absent = [name for name in files if not (folder / name).exists()]
  if absent:
    raise ValueError(f"{folder / INDEX} names files that are absent: {', '.join(absent)}")
  tensors = Tensors([folder / name for name in files])
  misplaced = [
    f"{name} (should be in {file})"
    for name, file in weight_map.items()
    if name not in tensors.info or tensors.file(name).name != file
  ]
  if misplaced:
    raise ValueError(f"{folder}: tensors are not where {INDEX} says: {', '.join(misplaced)}")
  return tensors


def read_json(path: Path) -> dict[str, Any]:
  """Reads a JSON object; a ValueError names the file where there is none."""
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    raise ValueError(f"{path} does not exist") from None
  except ValueError as error:
    raise ValueError(f"{path} is not JSON: {error}") from None
  if not isinstance(content, dict):
    raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
  return content
