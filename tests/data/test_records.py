"""Tests of record tables: what was written is read, other folders are refused."""

import json
import os
import pickle

import grain
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jdc.data.batch import inputs_and_targets
from jdc.data.chat import Example
from jdc.data.records import RecordTable, RecordWriter


def example(ids, counted, widths=None):
  counts = np.array(counted, bool)
  num_bytes = np.where(counts, 2, 0) if widths is None else np.array(widths)
  return Example(np.array(ids, np.int32), counts, num_bytes.astype(np.int32))


def write(folder, examples, length=8, vocab_size=300, truncated=0):
  with RecordWriter(folder, length, vocab_size) as writer:
    for k, item in enumerate(examples):
      writer.add(f"file:{k + 1}", item, truncated)
    return writer.finish()


RECORD = st.lists(st.tuples(st.integers(0, 299), st.booleans()), min_size=1, max_size=8)


@given(st.lists(RECORD, min_size=1, max_size=6), st.sampled_from([300, 70_000]), st.data())
def test_round_trip(tmp_path_factory, records, vocab_size, data):
  examples = [
    example([1, *(t for t, _ in r)], [False, *(c for _, c in r[:-1]), True]) for r in records
  ]
  table = write(tmp_path_factory.mktemp("records") / "a", examples, vocab_size=vocab_size)
  table = pickle.loads(pickle.dumps(table))
  ids = data.draw(st.lists(st.integers(0, len(examples) - 1), max_size=8))
  tokens, counts = table.read(ids)
  rows, segments = table.rows(ids)
  assert rows.shape == segments.shape == (len(ids), 9)
  assert rows.dtype == segments.dtype == np.int32
  for k, i in enumerate(ids):
    length = len(examples[i].ids)
    np.testing.assert_array_equal(tokens[k], examples[i].ids)
    np.testing.assert_array_equal(counts[k], examples[i].counts)
    assert (tokens[k].dtype, counts[k].dtype) == (np.int32, bool)
    np.testing.assert_array_equal(rows[k, :length], examples[i].ids)
    np.testing.assert_array_equal(segments[k, :length], np.where(examples[i].counts, 1, -1))
    assert not rows[k, length:].any()
    assert not segments[k, length:].any()
    assert table.where(i) == f"file:{i + 1}"
    assert table.lengths[i] == length
  if ids:
    # The model's mask is the counted tokens, one position earlier.
    inputs = inputs_and_targets(rows, segments)
    np.testing.assert_array_equal(inputs.mask, segments[:, 1:] == 1)
    np.testing.assert_array_equal(inputs.mask.sum(1), table.num_targets[ids])
  assert len(table) == table.num_documents == len(examples)
  assert table.num_targets.tolist() == [int(e.counts.sum()) for e in examples]
  assert table.num_bytes.tolist() == [2 * int(e.counts.sum()) for e in examples]
  assert table.num_target_tokens == table.num_targets.sum()
  assert table.num_target_bytes == table.num_bytes.sum()
  assert table.num_tokens == table.lengths.sum()
  assert (table.sequence_length, table.vocab_size) == (8, vocab_size)


def test_a_grain_source(tmp_path):
  table = write(tmp_path / "a", [example([1, 2, 3], [0, 1, 1]), example([4, 5], [0, 1])])
  source = grain.MapDataset.source(table).shuffle(seed=1)
  assert sorted(int(row["tokens"][0]) for row in source) == [1, 4]
  assert len(pickle.dumps(table)) < 500
  assert repr(table) == f"RecordTable({str(tmp_path / 'a')!r})"


def test_bytes_of_tokens_that_do_not_count_are_not_counted(tmp_path):
  table = write(tmp_path / "a", [example([1, 2, 3], [0, 0, 1], [5, 4, 3])], truncated=2)
  assert table.num_bytes.tolist() == [3]
  assert (table.num_target_bytes, table.num_truncated_tokens) == (3, 2)
  assert table.num_truncated_records == 1


def test_fingerprint_is_of_the_records(tmp_path):
  first = [example([1, 2, 3], [0, 1, 1]), example([4, 5], [0, 1])]
  others = [
    first[::-1],
    [example([1, 2, 3], [0, 0, 1]), first[1]],
    [example([1, 2, 3, 4, 5], [0, 1, 1, 0, 1])],
  ]
  tables = [write(tmp_path / str(k), e) for k, e in enumerate([first, *others, first])]
  tables.append(write(tmp_path / "longer", first, length=9))
  prints = [table.fingerprint for table in tables]
  assert prints[0] == prints[4]
  assert len({*prints}) == 5


@pytest.mark.parametrize(
  ("item", "wrong"),
  [
    (example([1] * 10, [0] * 9 + [1]), "10 tokens, more than 9"),
    (example([1, 2], [0, 0]), "no token to predict"),
    (example([1, 2], [1, 1]), "or the first one"),
    (example([], []), "no token to predict"),
    (example([1, 300], [0, 1]), r"tokens must be in \[0, 300\)"),
    (example([-1, 3], [0, 1]), r"tokens must be in \[0, 300\)"),
  ],
)
def test_refuses_records(tmp_path, item, wrong):
  with (
    RecordWriter(tmp_path / "a", 8, 300) as writer,
    pytest.raises(ValueError, match=f"b:7: {wrong}|b:7: .*{wrong}"),
  ):
    writer.add("b:7", item)


def test_refuses_other_folders(tmp_path):
  folder = tmp_path / "a"
  write(folder, [example([1, 2, 3], [0, 1, 1])])
  with pytest.raises(ValueError, match="not a folder of records"):
    RecordTable(tmp_path)
  (folder / "tokens.bin").write_bytes(b"12")
  (folder / "counts.bin").unlink()
  with pytest.raises(ValueError, match=r"tokens.bin: 2 bytes instead of 6(.|\n)*counts.bin: 0"):
    RecordTable(folder)
  meta = json.loads((folder / "meta.json").read_text())
  (folder / "meta.json").write_text(json.dumps({**meta, "format_version": 99}))
  with pytest.raises(ValueError, match="version 99; accepted: 1"):
    RecordTable(folder)
  with (
    RecordWriter(tmp_path / "none", 8, 300) as writer,
    pytest.raises(ValueError, match="no records"),
  ):
    writer.finish()
  with pytest.raises(ValueError, match="not a folder of records"):
    RecordTable(tmp_path / "none")


def test_wrong_ids(tmp_path):
  table = write(tmp_path / "a", [example([1, 2, 3], [0, 1, 1])])
  for wrong in (-1, 1):
    for read in (table.read, table.rows):
      with pytest.raises(IndexError, match=rf"in \[0, 1\), got .*{wrong}"):
        read([0, wrong])
    with pytest.raises(IndexError):
      table.where(wrong)


def test_opening_reads_no_array(tmp_path):
  """Sparse files stand in for the arrays: opening must not depend on their size."""
  folder = tmp_path / "a"
  write(folder, [example([1, 2, 3], [0, 1, 1])])
  meta = json.loads((folder / "meta.json").read_text())
  for name, (dtype, shape) in meta["arrays"].items():
    shape[0] = 1_000_000_000
    os.truncate(folder / f"{name}.bin", shape[0] * np.dtype(dtype).itemsize)
  (folder / "meta.json").write_text(json.dumps({**meta, "num_documents": 999_999_999}))
  assert RecordTable(folder).read([999_999_998])[0][0].tolist() == []
