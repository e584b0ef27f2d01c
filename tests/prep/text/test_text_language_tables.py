"""Tests of the model of languages that is kept between processes."""

import numpy as np
import pytest

from jdc.prep.text import language_tables

LOAD = language_tables.load.__wrapped__


@pytest.fixture
def made(monkeypatch, tmp_path):
  """How often the library's file was unpacked."""
  calls, model = [], language_tables.load()
  monkeypatch.setenv("JDC_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(language_tables, "_laid_out", lambda: calls.append(1) or model)
  return calls


def same(one, other):
  return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_model_is_kept(made, tmp_path):
  first = LOAD()
  assert same(LOAD(), first)
  assert len(made) == 1
  assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"]
  assert LOAD().weights.ctypes.data % 64 == 0


def test_a_damaged_file_is_written_again(made, tmp_path):
  first = LOAD()
  (path,) = (tmp_path / "cache").iterdir()
  whole = path.read_bytes()
  middle = len(whole) // 2
  for damaged in (
    whole[:middle],
    b"",
    whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
  ):
    path.write_bytes(damaged)
    before = len(made)
    assert same(LOAD(), first)
    assert len(made) == before + 1
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_is_no_error(made, tmp_path):
  (tmp_path / "cache").write_text("a file")
  LOAD()
  LOAD()
  assert len(made) == 2


def test_the_model_is_the_librarys():
  """Whole weights, moved by one number, are its half floats; states lead where they did."""
  from py3langid.langid import MODEL_DIR, MODEL_FILE
  from py3langid.modelio import load_model

  logs, _, _, rows, row_of, features = load_model(MODEL_DIR / MODEL_FILE)
  made = language_tables.load()
  logs = np.asarray(logs, np.float64)
  rng = np.random.default_rng(0)
  state = mine = 0
  for byte in rng.choice(
    np.frombuffer(b"the rain in Spain, \xc3\xa9t\xc3\xa9", np.uint8), 2000
  ):
    state = rows[256 * row_of[state] + int(byte)]
    mine = made.rows[256 * int(made.row_of[mine]) + int(made.columns[byte])]
    feature = int(made.feature_of[mine])
    assert (feature > 0) == (features[state] >= 0)
    if feature:
      weights = made.weights[feature, : logs.shape[1]] / made.scale + logs.min()
      np.testing.assert_array_equal(weights, logs[features[state]])
