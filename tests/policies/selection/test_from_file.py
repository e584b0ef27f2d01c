"""Selection by the scores of a file: its formats, what rows get, what is refused."""

import builtins
import json

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from jdc.policies import ExampleStats, RunSpec, sampling
from jdc.policies.selection import from_file

KEY = jax.random.key(0)
N = 12
SPEC = RunSpec(N, 1, ("web",), (N,), (1.0,))
ID_n = np.array([7, 0, 3, 11, 5, 1])
SCORE_n = np.array([0.5, -2.0, np.nan, 3.0, 1e300, -np.inf])
WEIGHT_n = np.array([1.0, 0.0, np.nan, 2.5, 9.0, 1.0])
COLUMNS = {"example_id": ID_n, "score": SCORE_n, "less": -SCORE_n, "importance": WEIGHT_n}


def write(path, columns, metadata=None):
  if path.suffix == ".npz":
    np.savez(path, **columns)
  elif path.suffix == ".npy":
    rows = np.zeros(len(ID_n), [(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
      rows[name] = column
    np.save(path, rows)
  else:
    table = pyarrow.table(columns).replace_schema_metadata(metadata)
    pyarrow.parquet.write_table(table, path)
  return str(path)


def decide(path, spec=SPEC, **arguments):
  policy = from_file(path, **arguments)
  decision, state = policy.init(spec, KEY)
  held, _ = jax.jit(policy.update)(ExampleStats(), state)
  jax.tree.map(np.testing.assert_array_equal, held, decision)  # the same in every round
  assert (policy.scope, policy.observes, policy.score) == ("round", frozenset(), None)
  return decision


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".npy"])
def test_rows_get_the_scores_and_weights_of_the_file(suffix, tmp_path):
  path = write(tmp_path / f"scores{suffix}", COLUMNS)
  expected = np.full(N, -np.inf, np.float32)
  expected[[7, 0, 11]] = [0.5, -2.0, 3.0]  # 1e300 is no float32
  decision = decide(path)
  assert decision.logits.dtype == np.float32
  np.testing.assert_array_equal(decision.logits, expected)
  assert decision.metrics == {"num_missing": 6, "num_nonfinite": 3, "num_eligible": 3}
  assert decision.weights is None
  decision = decide(path, score="less", weight="importance")
  np.testing.assert_array_equal(decision.logits, np.where(expected > -9, -expected, -np.inf))
  weights = np.ones(N, np.float32)
  weights[[7, 0, 11]] = [1.0, 0.0, 2.5]
  np.testing.assert_array_equal(decision.weights, weights)


def test_the_best_rows_of_a_sweep_are_drawn(tmp_path):
  """Scores of a pool in which rows 2, 5 and 9 are right, in another order than the pool's."""
  rng = np.random.default_rng(0)
  score, ids = rng.normal(size=N), rng.permutation(N)
  score[np.isin(ids, [2, 5, 9])] += 20
  path = write(tmp_path / "scores.parquet", {"example_id": ids, "score": score})
  logits = decide(path).logits
  assert sorted(np.asarray(jax.lax.top_k(logits, 3)[1]).tolist()) == [2, 5, 9]
  drawn, _ = sampling.gumbel_top_k(KEY, logits, 3)
  assert sorted(drawn.tolist()) == [2, 5, 9]


def test_a_plain_array_has_a_score_for_every_row(tmp_path):
  scores = np.arange(N, dtype=np.float16)
  np.save(tmp_path / "scores.npy", scores)
  path = str(tmp_path / "scores.npy")
  np.testing.assert_array_equal(decide(path).logits, scores)
  with pytest.raises(ValueError, match=f"num_examples {N + 1} rows, got {N}"):
    from_file(path).init(SPEC._replace(num_examples=N + 1), KEY)
  with pytest.raises(ValueError, match=r"no columns \['less'\]; those there are"):
    from_file(path, "less")
  np.save(path, np.ones((2, 2)))
  with pytest.raises(ValueError, match=r"score is float64 \[2, 2\]"):
    from_file(path)


def test_whole_numbers_are_scores_and_nulls_are_not(tmp_path):
  columns = {"example_id": [0, 1, 2], "score": [4, None, 6], "text": ["a", "b", "c"]}
  decision = decide(write(tmp_path / "scores.parquet", columns))
  assert decision.logits[:4].tolist() == [4.0, -np.inf, 6.0, -np.inf]
  assert decision.metrics == {"num_missing": N - 3, "num_nonfinite": 1, "num_eligible": 2}


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".npy"])
@pytest.mark.parametrize(
  ("changed", "arguments", "message"),
  [
    ({}, {"score": "influence"}, r"\['influence'\]; those there are.*importance.*less"),
    ({}, {"weight": "importances"}, r"\['importances'\]; those there are"),
    ({"example_id": [7, 0, 3, 0, 7, 1]}, {}, "unique, got 0, 7"),
    ({"example_id": [-1, 0, -3, 11, 5, 1]}, {}, "at least 0, got -3, -1"),
    ({"example_id": ID_n * 1.0}, {}, "whole numbers without gaps, got float64"),
    ({"score": np.full(6, np.nan)}, {}, "none of 6 scores is finite"),
    ({"importance": WEIGHT_n - 1.0}, {"weight": "importance"}, "weights.*got -1.0"),
    ({"importance": WEIGHT_n * 1e300}, {"weight": "importance"}, "weights.*got inf"),
    (
      {"example_id": [7, 7, 3, 11, 5, 1], "importance": -WEIGHT_n - 9},
      {"weight": "importance"},
      "unique.*weights must be finite and at least 0, got -10.0, -9.0, -11.5",
    ),
  ],
  ids=str,
)
def test_refuses_files_that_are_wrong(suffix, changed, arguments, message, tmp_path):
  columns = COLUMNS | {name: np.asarray(column) for name, column in changed.items()}
  path = write(tmp_path / f"scores{suffix}", columns)
  with pytest.raises(ValueError, match=message):
    from_file(path, **arguments)


def test_refuses_ids_outside_the_pool(tmp_path):
  path = write(
    tmp_path / "scores.npz", {"example_id": [0, 12, 99, 2**40, 50], "score": ID_n[:5]}
  )
  with pytest.raises(
    ValueError, match=r"below num_examples 12, got 12, 99, 1099511627776 and 1"
  ):
    from_file(path).init(SPEC, KEY)


def test_refuses_scores_of_other_data(tmp_path):
  metadata = {b"jdc": json.dumps({"data_fingerprint": "abc", "score": "less"}).encode()}
  path = write(tmp_path / "scores.parquet", COLUMNS, metadata)
  policy = from_file(path)
  for known in ("", "abc"):  # a run that does not know its data, and that of the scores
    policy.init(SPEC._replace(data_fingerprint=known), KEY)
  with pytest.raises(ValueError, match=r"data_fingerprint 'abc'.*'abd'"):
    policy.init(SPEC._replace(data_fingerprint="abd"), KEY)
  with pytest.raises(ValueError, match=r"below num_examples 8, got 11.*data_fingerprint"):
    policy.init(SPEC._replace(data_fingerprint="abd", num_examples=8), KEY)
  unsaid = from_file(write(tmp_path / "scores.parquet", COLUMNS, {b"pandas": b"{}"}))
  unsaid.init(SPEC._replace(data_fingerprint="abd"), KEY)
  for wrong, message in (
    (b"{", "no JSON"),
    (b"[]", "object"),
    (b'{"data_fingerprint": 1}', ""),
  ):
    write(tmp_path / "scores.parquet", COLUMNS, {b"jdc": wrong})
    with pytest.raises(ValueError, match=f"metadata entry jdc .*{message}"):
      from_file(path)


@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".npy"])
def test_refuses_what_cannot_be_read(suffix, tmp_path):
  path = tmp_path / f"scores{suffix}"
  with pytest.raises(ValueError, match="no such file"):
    from_file(str(path))
  for content in (b"", b"PK\x03\x04 cut", b"text"):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no readable"):
      from_file(str(path))


def test_refuses_arguments_and_shapes(tmp_path):
  with pytest.raises(ValueError, match=r"must be one of .parquet, .npz, .npy"):
    from_file("scores.csv")
  with pytest.raises(ValueError, match=r"path must be.*score must be"):
    from_file("", None)
  with pytest.raises(ValueError, match="weight must be text"):
    from_file("a.npz", weight=None)
  path = write(tmp_path / "scores.npz", {"example_id": ID_n, "score": np.ones((6, 2))})
  with pytest.raises(ValueError, match=r"score is float64 \[6, 2\]"):
    from_file(path)
  path = write(tmp_path / "scores.npz", {"example_id": ID_n, "score": np.ones(5)})
  with pytest.raises(ValueError, match="of one length"):
    from_file(path)


def test_says_what_parquet_needs(tmp_path, monkeypatch):
  path, plain = write(tmp_path / "scores.parquet", COLUMNS), builtins.__import__

  def absent(name, *args, **kwargs):
    if name.startswith("pyarrow"):
      raise ImportError(name)
    return plain(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", absent)
  with pytest.raises(ImportError, match=r"pip install jdc\[parquet\]"):
    from_file(path)
