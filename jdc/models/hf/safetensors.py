"""The safetensors format of files with named tensors.

It is the length of a header as u64, the header as JSON with the type, shape and byte range of
each tensor, and then their bytes, without gaps. https://github.com/huggingface/safetensors
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

_MAX_HEADER = 100_000_000  # bytes, as in the reference implementation
_BITS = {
  **{"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32},
  **{"U64": 64, "I64": 64, "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64},
  **{"F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
  **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
DTYPES: dict[str, np.dtype[Any]] = {
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}  # of weights


class TensorInfo(NamedTuple):
  """What a header says of a tensor."""

  dtype: str  # such as BF16
  shape: tuple[int, ...]
  start: int  # bytes from the start of the file
  stop: int


def read_header(path: Path) -> dict[str, TensorInfo]:
  """Reads and checks the header of a safetensors file.

  Raises:
    ValueError: naming the file and everything that is wrong with it.
  """
  size = path.stat().st_size
  with path.open("rb") as file:
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, _MAX_HEADER):
      raise ValueError(
        f"{path}: not a safetensors file, or truncated: {size} bytes cannot hold the header of "
        f"{length} bytes that the first 8 bytes state"
      )
    text = file.read(length)
  try:
    content = json.loads(text, object_pairs_hook=_without_duplicates)
    assert isinstance(content, dict)
  except (ValueError, AssertionError) as error:
    raise ValueError(f"{path}: the header is not a JSON object: {error}") from error
  content.pop("__metadata__", None)
  infos, problems = {}, []
  for name, entry in content.items():
    try:
      infos[name] = _info(entry, 8 + length)
    except (KeyError, TypeError, ValueError) as error:
      problems.append(f"{name}: {error}")
  problems += [] if problems else _layout_problems(infos, 8 + length, size)
  if problems:
    raise ValueError(f"{path}: corrupt or truncated: {'; '.join(problems)}")
  return infos


def write_file(
  path: Path, headers: list[tuple[str, str, tuple[int, ...]]], arrays: Iterable[np.ndarray]
) -> None:
  """Writes a safetensors file, one tensor at a time.

  Args:
    path: the file.
    headers: the name, the type (F32, F16 or BF16) and the shape of each tensor.
    arrays: the tensors, in that order; consumed one by one.

  Raises:
    ValueError: if an array is not what its header says, or there are too few or too many.
  """
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
  end = 0
  for name, dtype, shape in headers:
    start, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
  text = json.dumps(header).encode()
  text += b" " * (-len(text) % 8)
  with path.open("wb") as file:
    file.write(len(text).to_bytes(8, "little") + text)
    for (name, dtype, shape), array in zip(headers, arrays, strict=True):
      if array.shape != shape or array.dtype != DTYPES[dtype]:
        raise ValueError(f"{name} is {array.dtype}{array.shape}, not {dtype}{shape}")
      file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _info(entry: Mapping[str, Any], origin: int) -> TensorInfo:
  dtype, shape = entry["dtype"], tuple(entry["shape"])
  start, stop = entry["data_offsets"]
  if dtype not in _BITS:
    raise ValueError(f"unknown dtype {dtype!r}")
  numbers = (*shape, start, stop)
  if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
    raise ValueError(f"shape {shape} and offsets {start}, {stop} must be whole numbers from 0")
  wanted = math.prod(shape) * _BITS[dtype]
  if wanted != 8 * (stop - start):
    raise ValueError(f"{dtype} of shape {shape} is {wanted // 8} bytes, not {stop - start}")
  return TensorInfo(dtype, shape, origin + start, origin + stop)


def _layout_problems(infos: Mapping[str, TensorInfo], origin: int, size: int) -> Iterator[str]:
  """Yields where tensors overlap, leave gaps, or do not end with the file."""
  end = origin
  for name, info in sorted(infos.items(), key=lambda item: (item[1].start, item[1].stop)):
    if info.stop > size:
      yield f"{name} ends at byte {info.stop} of a file of {size}"
    if info.start != end:
      kind = "overlaps with the tensor" if info.start < end else "leaves a gap to what is"
      yield f"{name} {kind} before it"
    end = max(end, info.stop)
  if end < size:
    yield f"{size - end} bytes after the last tensor"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  result = dict(pairs)
  if len(result) != len(pairs):
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    raise ValueError(f"it has {', '.join(twice)} twice")
  return result
