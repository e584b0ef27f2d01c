import hashlib
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdc.prep import exact_dedup
from jdc.prep.kernels import bands
from jdc.prep.kernels.tokenise_classes import WHITE_SPACE

CHARS = st.characters(exclude_categories=("Cs", "Cn"))
PARTS = st.text(st.one_of(CHARS, st.sampled_from("aAİẞ\u212a\u023aé\u0301 \t\n\u3000\u2028")))


def folded(char):
  full = char.casefold()
  return full if len(full) == 1 else char.lower()[0]


def normal(text):
  lower = [folded(char) for char in unicodedata.normalize("NFC", text)]
  text = "".join(" " if char in WHITE_SPACE else char for char in lower)
  while "  " in text:
    text = text.replace("  ", " ")
  return text.strip(" ")


@settings(deadline=None, max_examples=100)
@given(st.lists(PARTS, max_size=5))
def test_keys_are_hashes_of_normal_text(texts):
  array = pa.array(["not read", *texts], pa.string())[1:]
  for normalize, form in ((True, normal), (False, str)):
    expected = [hashlib.blake2b(form(x).encode(), digest_size=16).digest() for x in texts]
    found = exact_dedup.keys(array, normalize=normalize)
    assert [row.tobytes() for row in found] == expected


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 5), max_size=30), st.data())
def test_decision_is_that_of_plain_python(values, data):
  # Keys that agree in one half only are different.
  keys = np.array([[v & 1, v >> 1] for v in values], np.uint64).reshape(-1, 2).view(np.uint8)
  ids = np.array(data.draw(st.permutations(range(len(values)))), ">u8")
  ids = np.stack([np.zeros_like(ids), ids], axis=1).view(np.uint8).reshape(-1, 16)
  cut = data.draw(st.integers(0, len(values)))
  for given_ids in (None, [ids[:cut], ids[cut:]]):
    found = exact_dedup.decide([keys[:cut], keys[cut:]], doc_ids=given_ids)
    order = [row if given_ids is None else bytes(ids[row]) for row in range(len(values))]
    first = {
      v: min((r for r, w in enumerate(values) if w == v), key=lambda r: order[r])
      for v in values
    }
    gone = [row for row, value in enumerate(values) if first[value] != row]
    assert found.row.tolist() == gone
    assert (
      found.kept.tolist() == found.neighbour.tolist() == [first[values[row]] for row in gone]
    )
    assert found.similarity.tolist() == [1.0] * len(gone)


def test_shared_rows_of_no_keys():
  for keys in (np.zeros(0, np.uint64), np.arange(3, dtype=np.uint64)):
    rows, group = bands.shared(keys)
    assert rows.tolist() == group.tolist() == []
    assert bands.starts(group).tolist() == [0]


def test_shared_rows_of_many_keys():
  rng = np.random.default_rng(0)
  keys = rng.integers(0, 1 << 64, 20_000, dtype=np.uint64)
  keys[-3000:] = rng.choice(keys[:2000], 3000)
  rows, group = bands.shared(keys)
  values, counts = np.unique(keys, return_counts=True)
  assert np.array_equal(np.sort(rows), np.flatnonzero(np.isin(keys, values[counts > 1])))
  assert np.array_equal(np.bincount(group), counts[counts > 1])
  assert len({*zip(keys[rows].tolist(), group.tolist(), strict=True)}) == (counts > 1).sum()


def test_text_with_and_without_normal_form():
  text = pa.array(["Caf\u00e9 au  lait", "cafe\u0301\nAU lait ", "Caf\u00e9 au  lait"])
  assert exact_dedup.decide([exact_dedup.keys(text)]).row.tolist() == [1, 2]
  found = exact_dedup.decide([exact_dedup.keys(text, normalize=False)])
  assert (found.row.tolist(), found.kept.tolist()) == ([2], [0])


def test_empty_documents_are_equal():
  text = pa.array(["", " \n", "x"])
  assert exact_dedup.decide([exact_dedup.keys(text)]).row.tolist() == [1]
  assert exact_dedup.decide([]).row.tolist() == []


def test_errors():
  keys = exact_dedup.keys(pa.array(["a"]))
  with pytest.raises(
    ValueError, match=r"tables must be uint8\[., 16\]: tables\[1\] is float64"
  ):
    exact_dedup.decide([keys, np.zeros((2, 16))])
  with pytest.raises(ValueError, match=r"doc_ids must be .*: doc_ids\[0\] is uint8\[1, 8\]"):
    exact_dedup.decide([keys], doc_ids=[keys[:, :8]])
  with pytest.raises(ValueError, match="got int64"):
    exact_dedup.keys(pa.array([1]))
