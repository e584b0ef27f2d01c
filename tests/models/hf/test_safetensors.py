"""Tests of the safetensors format: the reference implementation, and files that are broken."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jdc.models.hf.files import INDEX, SINGLE, Tensors, open_folder
from jdc.models.hf.safetensors import read_header, write_file

ARRAYS = {
  "a": np.arange(12, dtype=np.float32).reshape(3, 4),
  "b": np.arange(6, dtype=np.float16).reshape(2, 3),
  "c": np.arange(5).astype(ml_dtypes.bfloat16),
  "empty": np.zeros((0, 3), np.float32),
  "scalar": np.array(7.0, np.float32),
}
KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def write(path, arrays):
  headers = [(n, KINDS[str(a.dtype)], a.shape) for n, a in arrays.items()]
  write_file(path, headers, arrays.values())


def raw(path, header, data=b"", length=None):
  """A file with any header."""
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  length = len(text) if length is None else length
  path.write_bytes(length.to_bytes(8, "little") + text + data)
  return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
  return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_the_reference_reads_what_is_written(tmp_path):
  write(tmp_path / "x.safetensors", ARRAYS)
  read = safetensors.numpy.load_file(tmp_path / "x.safetensors")
  assert read.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    assert read[name].dtype == array.dtype
    np.testing.assert_array_equal(read[name], array)


def test_reads_what_the_reference_writes(tmp_path):
  path = tmp_path / "x.safetensors"
  safetensors.numpy.save_file(ARRAYS, path, metadata={"format": "pt"})
  tensors = Tensors([path])
  assert tensors.info.keys() == ARRAYS.keys()
  for name, array in ARRAYS.items():
    np.testing.assert_array_equal(tensors.read(name), array)
    assert tensors.read(name).dtype == array.dtype
  assert tensors.bytes_read == 2 * sum(array.nbytes for array in ARRAYS.values())


def test_reads_parts_and_counts_their_bytes(tmp_path):
  write(tmp_path / "x.safetensors", ARRAYS)
  tensors = Tensors([tmp_path / "x.safetensors"])
  part = tensors.read("a", (slice(1, 3), slice(0, 2)))
  np.testing.assert_array_equal(part, ARRAYS["a"][1:3, :2])
  assert tensors.bytes_read == 16


def test_writing_checks_the_arrays(tmp_path):
  for array in (np.zeros(3, np.float32), np.zeros(2, np.float16)):
    with pytest.raises(ValueError, match=r"x is float\d\d\(\d,\), not F32\(2,\)"):
      write_file(tmp_path / "x.safetensors", [("x", "F32", (2,))], [array])
  with pytest.raises(ValueError, match="zip"):
    write_file(tmp_path / "x.safetensors", [("x", "F32", (2,))], [])


@pytest.mark.parametrize(
  ("header", "data", "message"),
  [
    (b"[1]", b"", "header is not a JSON object"),
    (b"{", b"", "header is not a JSON object"),
    (b"\xff\xfe", b"", "header is not a JSON object"),
    (b'{"a": 1, "a": 2}', b"", "it has a twice"),
    ({"a": entry("F32"), "b": 3}, bytes(8), "b: "),
    ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), "a: 'data_offsets'"),
    ({"a": entry("Q7")}, bytes(8), "a: unknown dtype 'Q7'"),
    ({"a": entry(shape=(-2,), offsets=(0, 8))}, bytes(8), "whole numbers from 0"),
    ({"a": entry(shape=(2.0,))}, bytes(8), "whole numbers from 0"),
    ({"a": entry(offsets=(8, 0))}, bytes(8), r"is 8 bytes, not -8"),
    ({"a": entry(shape=(3,))}, bytes(8), r"F32 of shape \(3,\) is 12 bytes, not 8"),
    ({"a": entry()}, bytes(7), "a ends at byte .* of a file of"),
    ({"a": entry()}, bytes(9), "1 bytes after the last tensor"),
    ({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12), "b overlaps with the tensor"),
    ({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20), "b leaves a gap"),
  ],
)
def test_names_a_broken_file_and_what_is_wrong(header, data, message, tmp_path):
  path = raw(tmp_path / "broken.safetensors", header, data)
  with pytest.raises(ValueError, match=message) as error:
    read_header(path)
  assert "broken.safetensors" in str(error.value)


def test_names_all_faults_of_a_header(tmp_path):
  header = {"a": entry("Q7"), "b": entry(shape=(3,)), "c": 5}
  with pytest.raises(ValueError) as error:
    read_header(raw(tmp_path / "x.safetensors", header, bytes(8)))
  assert all(f"{name}: " in str(error.value) for name in "abc")


@pytest.mark.parametrize("size", [0, 3, 8, 20])
def test_a_file_cut_in_its_header_is_an_error(size, tmp_path):
  path = tmp_path / "x.safetensors"
  write(path, ARRAYS)
  path.write_bytes(path.read_bytes()[:size])
  with pytest.raises(ValueError, match=r"x.safetensors: not a safetensors file, or truncated"):
    read_header(path)


def test_a_file_cut_anywhere_is_an_error(tmp_path):
  path = tmp_path / "x.safetensors"
  write(path, ARRAYS)
  content = path.read_bytes()
  for size in range(len(content)):
    path.write_bytes(content[:size])
    with pytest.raises(ValueError, match="truncated"):
      read_header(path)


def test_an_absurd_header_length_allocates_nothing(tmp_path):
  path = raw(tmp_path / "x.safetensors", b"{}", length=2**63)
  with pytest.raises(ValueError, match="header of 9223372036854775808 bytes"):
    read_header(path)


def sharded(folder, weight_map=None):
  """Two files and their index."""
  write(folder / "1.safetensors", {"a": ARRAYS["a"]})
  write(folder / "2.safetensors", {"b": ARRAYS["b"]})
  weight_map = weight_map or {"a": "1.safetensors", "b": "2.safetensors"}
  (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
  return folder


def test_opens_the_files_of_an_index(tmp_path):
  tensors = open_folder(sharded(tmp_path))
  np.testing.assert_array_equal(tensors.read("a"), ARRAYS["a"])
  np.testing.assert_array_equal(tensors.read("b"), ARRAYS["b"])


@pytest.mark.parametrize(
  ("weight_map", "message"),
  [
    ({"a": "1.safetensors", "b": "3.safetensors", "c": "4.safetensors"}, r"3.*, 4.safet"),
    ({"a": "2.safetensors", "b": "1.safetensors"}, r"a \(.* 2.saf.*, b \(.* 1.saf"),
    ({"a": "2.safetensors", "b": "2.safetensors"}, r"a \(should be in 2.safetensors\)"),
    ({"a": "1.safetensors", "z": "1.safetensors"}, r"z \(should be in 1.safetensors\)"),
    ({"a": "../1.safetensors"}, r"must name files beside it, got '../1.safetensors'"),
    ({"a": 5}, r"must name files beside it, got 5"),
  ],
)
def test_an_index_that_does_not_fit_is_an_error(weight_map, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    open_folder(sharded(tmp_path, weight_map))


def test_an_index_that_is_none_is_an_error(tmp_path):
  (tmp_path / INDEX).write_text("{}")
  with pytest.raises(ValueError, match="not an index with a weight_map"):
    open_folder(tmp_path)


def test_a_tensor_in_two_files_is_an_error(tmp_path):
  sharded(tmp_path)
  write(tmp_path / "2.safetensors", {"a": ARRAYS["a"], "b": ARRAYS["b"]})
  with pytest.raises(ValueError, match=r"2.safetensors: a is also in 1.safetensors"):
    open_folder(tmp_path)


def test_the_faults_of_all_files_are_named(tmp_path):
  sharded(tmp_path)
  for name in "12":
    (tmp_path / f"{name}.safetensors").write_bytes(b"123")
  with pytest.raises(ValueError, match=r"1.safetensors.*2.safetensors"):
    open_folder(tmp_path)


def test_a_folder_with_two_sets_of_weights_or_none_is_an_error(tmp_path):
  (tmp_path / "pytorch_model.bin").touch()
  with pytest.raises(ValueError, match="must be saved as safetensors first"):
    open_folder(tmp_path)
  sharded(tmp_path)
  write(tmp_path / SINGLE, ARRAYS)
  with pytest.raises(ValueError, match="has both"):
    open_folder(tmp_path)
