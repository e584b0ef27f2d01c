"""Arrow string arrays as NumPy buffers and back, without a copy where there need be none."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_MAX_BYTES = np.iinfo(np.int32).max


def to_buffers(text: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
  """Returns (offsets i64[n+1], bytes u8[m]) of n strings; string i is bytes[o[i]:o[i+1]].

  Raises:
    ValueError: if the array is of another type or holds nulls, which readers set aside.

  Example:
    >>> offsets, data = to_buffers(pa.array(["ab", "", "c"]))
    >>> offsets.tolist(), data.tobytes()
    ([0, 2, 2, 3], b'abc')
  """
  large = pa.types.is_large_string(text.type)
  if not large and not pa.types.is_string(text.type):
    raise ValueError(f"text must be of type string or large_string, got {text.type}")
  if text.null_count:
    raise ValueError(f"text holds {text.null_count} nulls in {len(text)} rows; accepted: none")
  if not len(text):
    return np.zeros(1, np.int64), np.zeros(0, np.uint8)
  _, offsets_buffer, data_buffer = text.buffers()
  offsets = np.frombuffer(offsets_buffer, np.int64 if large else np.int32)
  offsets = offsets[text.offset : text.offset + len(text) + 1].astype(np.int64)
  if data_buffer is None:
    return offsets, np.zeros(0, np.uint8)
  return offsets, np.frombuffer(data_buffer, np.uint8)


def from_buffers(offsets: np.ndarray, data: np.ndarray) -> pa.StringArray:
  """Returns the strings of (offsets [n+1] from 0 on, bytes u8[m]), which must be valid UTF-8.

  Raises:
    ValueError: if they are more than Arrow's type string can hold.
  """
  if offsets[-1] > _MAX_BYTES:
    raise ValueError(f"a batch of {offsets[-1]} bytes of text; accepted: at most {_MAX_BYTES}")
  used = np.ascontiguousarray(data[: offsets[-1]])
  return pa.StringArray.from_buffers(
    len(offsets) - 1, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(used)
  )


def map_rows(
  text: pa.StringArray, rows: np.ndarray, change: Callable[[str], str]
) -> pa.StringArray:
  """Returns the strings, those of `rows` (bool[n]) changed one by one in Python."""
  return replace_rows(
    text, rows, [change(value) for value in text.filter(pa.array(rows)).to_pylist()]
  )


def replace_rows(
  text: pa.StringArray, rows: np.ndarray, values: Sequence[str]
) -> pa.StringArray:
  """Returns the strings with `values`, in order, in the places of `rows` (bool[n])."""
  if not rows.any():
    return text
  return pc.replace_with_mask(text, pa.array(rows), pa.array(values, text.type))
