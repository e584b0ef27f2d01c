"""Tests of embeddings: hashed words beside a plain program, those that users give."""

import collections
import itertools
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdc.prep import batches
from jdc.prep.ops import semantic as ops
from jdc.prep.semantic import given as given_lib
from jdc.prep.semantic import hash_bow, labels

FULL = (1 << 64) - 1


def mix(x):
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & FULL
  x = (x ^ x >> 27) * 0x94D049BB133111EB & FULL
  return x ^ x >> 31


def word_hash(word):
  h = 0xCBF29CE484222325
  for char in word:
    h = (h ^ ord(char)) * 0x100000001B3 & FULL
  return mix(h)


def plain(words, dimension, seed):
  hashes = [word_hash(word) for word in words]
  pairs = itertools.pairwise(hashes)
  grams = hashes + [mix((a * 0x9E3779B97F4A7C15 + b) & FULL) for a, b in pairs]
  salt, x = mix((seed + 1) * 0xD6E8FEB86659FD93 & FULL), np.zeros(dimension)
  for gram, count in collections.Counter(grams).items():
    h = mix(gram ^ salt)
    x[h % dimension] += (-1 if h >> 63 else 1) * (1 + math.log(count))
  norm = np.linalg.norm(x)
  return x / norm if norm else x


def make_batch(texts, fields=None):
  n = len(texts)
  ids = [batches.document_id("raw/a", i) for i in range(n)]
  columns = [ids, ["raw/a"] * n, list(range(n)), ["web"] * n, texts, fields or ["{}"] * n]
  arrays = [pa.array(c, f.type) for c, f in zip(columns, batches.SCHEMA, strict=True)]
  return pa.RecordBatch.from_arrays(arrays, schema=batches.SCHEMA)


@settings(deadline=None)
@given(
  st.lists(
    st.lists(st.sampled_from(["a", "fig", "ripe", "好", "der"]), max_size=9), max_size=6
  ),
  st.sampled_from([8, 64, 100]),
  st.integers(0, 2**63 - 1),
)
def test_hashed_words_are_those_of_a_plain_program(documents, dimension, seed):
  found = hash_bow.embed(
    pa.array([" ".join(words) for words in documents], pa.string()),
    dimension=dimension, seed=seed,
  )  # fmt: skip
  expected = np.array([plain(w, dimension, seed) for w in documents]).reshape(-1, dimension)
  np.testing.assert_allclose(found, expected, atol=1e-6)


def test_case_and_punctuation_do_not_matter_but_order_does():
  x = hash_bow.embed(pa.array(["Ripe figs. Red!", "ripe FIGS red", "red ripe figs"]))
  assert x[0] @ x[1] == pytest.approx(1, abs=1e-6)
  assert 0.5 < x[0] @ x[2] < 0.99


def test_characters_are_words_where_a_script_has_no_spaces():
  x = hash_bow.embed(pa.array(["好人", "好 人"]))
  assert x[0] @ x[1] == pytest.approx(1, abs=1e-6)


def test_products_estimate_cosines_without_bias():
  a, b = ([f"{name}{i}" for i in range(100)] for name in "ab")
  a[:50] = b[:50]
  pair = pa.array([" ".join(a), " ".join(b)])
  found = []
  for seed in range(200):
    x = hash_bow.embed(pair, dimension=64, seed=seed)
    found.append(float(x[0] @ x[1]))
  assert np.mean(found) == pytest.approx(99 / 199, abs=4 * np.std(found) / math.sqrt(200))
  assert np.std(found) < 1.2 / math.sqrt(64)


def test_fields_of_records_are_embeddings():
  fields = [json.dumps({"v": [1, 2.5]}), json.dumps({"v": [0, -1]})]
  batch = make_batch(["a", "b"], fields)
  assert ops.embeddings(batch, ops.Embed(embed="field:v")).tolist() == [[1, 2.5], [0, -1]]
  ids = [doc_id.hex() for doc_id in batch.column("doc_id").to_pylist()]
  for wrong in (
    {},
    {"v": [1]},
    {"v": ["x", 2]},
    {"v": None},
    {"v": [True, 1]},
    {"v": [10**400, 1]},
  ):
    bad = make_batch(["a", "b"], [fields[0], json.dumps(wrong)])
    with pytest.raises(ValueError, match=f"no list of 2 numbers, in 1 documents: {ids[1]}$"):
      given_lib.of_field(bad, "v")


@pytest.mark.parametrize("key", ["", "id"])
def test_a_file_holds_embeddings_by_key(tmp_path, key):
  batch = make_batch(["a", "b"], ['{"id": 7}', '{"id": 3}'])
  names = [i.hex() for i in batch.column("doc_id").to_pylist()] if not key else [7, 3]
  table = pa.table(
    {key or "doc_id": [*names[::-1], names[0] * 2], "embedding": [[3.0], [7.0], [0.0]]}
  )
  path = str(tmp_path / "e.parquet")
  pq.write_table(table, path)
  assert given_lib.of_file(batch, path, key).tolist() == [[7], [3]]
  pq.write_table(table.slice(1), path)
  lacking = batch.column("doc_id")[1].as_py().hex()
  with pytest.raises(ValueError, match=f"no embedding, in 1 documents: {lacking}"):
    given_lib.of_file(batch, path, key)


def test_a_file_that_is_none_of_embeddings_says_why(tmp_path):
  path, batch = str(tmp_path / "e.parquet"), make_batch(["a"])
  for columns, why in [
    ({"doc_id": ["x"]}, "no column embedding; has"),
    ({"doc_id": ["x", "y"], "embedding": [[1.0], [1.0, 2.0]]}, r"one length, got \[1, 2\]"),
    ({"doc_id": ["x", "x"], "embedding": [[1.0], [2.0]]}, "1 values of 'doc_id'"),
    ({"doc_id": ["x"], "embedding": [1.0]}, "embedding is double; accepted: lists"),
  ]:
    pq.write_table(pa.table(columns), path)
    given_lib._load.cache_clear()
    with pytest.raises(ValueError, match=why):
      given_lib.of_file(batch, path, "")


def test_names_of_embeddings_are_checked():
  for wrong in ("hash-bag", "jdc:", "field:"):
    with pytest.raises(ValueError, match="must be hash-bow, jdc:FOLDER"):
      ops.Embed(embed=wrong)


def test_numbers_of_clusters_become_fields_or_domains():
  batch = make_batch(["a", "b", "c"], ['{"x": 1}', "{}", "{}"])
  ids = np.frombuffer(b"".join(batch.column("doc_id").to_pylist()), np.uint8).reshape(-1, 16)
  order = np.lexsort(ids.view(">u8").T[::-1])
  values = np.array([4, -1, 0])[order]
  found = labels.write(batch, ids[order], values, "cluster")
  assert [json.loads(f)["cluster"] for f in found.column("fields").to_pylist()] == [4, -1, 0]
  found = labels.write(batch, ids[order], values, "domain").column("domain").to_pylist()
  assert found == ["cluster_00004", "cluster_none", "cluster_00000"]
  with pytest.raises(ValueError, match="were not there"):
    labels.write(batch, ids[order][:2], values[:2], "cluster")
