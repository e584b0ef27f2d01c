"""Tests of Arrow strings as buffers and lines, and of how loops tell characters apart."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdc.prep.text.buffers import from_buffers, replace_rows, to_buffers
from jdc.prep.text.codepoints import decode, is_unspaced, is_white
from jdc.prep.text.lines import join_lines, split_lines
from jdc.prep.text.scripts import UNSPACED

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=6)


@given(TEXTS, st.integers(0, 3), st.sampled_from([pa.string(), pa.large_string()]))
@settings(deadline=None, max_examples=60)
def test_buffers_of_slices_hold_the_strings(texts, start, kind):
  array = pa.array(texts, kind)[start:]
  offsets, data = to_buffers(array)
  found = [data[a:b].tobytes().decode() for a, b in itertools.pairwise(offsets)]
  assert found == texts[start:]
  copy = from_buffers(offsets - offsets[0], data[offsets[0] :])
  assert copy.to_pylist() == texts[start:]
  copy.validate(full=True)


def test_other_types_and_nulls_are_refused():
  with pytest.raises(ValueError, match="got binary"):
    to_buffers(pa.array([b"a"]))
  with pytest.raises(ValueError, match="1 nulls in 2 rows"):
    to_buffers(pa.array(["a", None]))


def test_too_much_text_for_one_batch_is_refused():
  with pytest.raises(ValueError, match="2147483648 bytes"):
    from_buffers(np.array([0, 1 << 31]), np.zeros(0, np.uint8))


def test_rows_are_replaced_in_order():
  text = pa.array(["a", "b", "c"])
  assert replace_rows(text, np.array([True, False, True]), ["x", "y"]).to_pylist() == [
    "x",
    "b",
    "y",
  ]
  assert replace_rows(text, np.zeros(3, bool), []) is text


@given(TEXTS, st.integers(0, 2), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_lines_are_those_of_split(texts, start, random):
  texts = ["\n".join(texts[:3]), *texts]
  array = pa.array(texts)[start:]
  lines = split_lines(array)
  expected = [line for text in texts[start:] for line in text.split("\n")]
  spans = zip(lines.starts, lines.ends, strict=True)
  assert [lines.data[a:b].tobytes().decode() for a, b in spans] == expected
  keep = np.array([random.random() < 0.5 for _ in expected], bool)
  flags = iter(keep)
  kept = ["\n".join([x for x in text.split("\n") if next(flags)]) for text in texts[start:]]
  assert join_lines(lines, keep).to_pylist() == kept


def test_code_points_are_told_apart_as_unicode_does():
  # U+001C to U+001F are spaces to Python and not to Unicode.
  white = {code for code in range(0x110000) if chr(code).isspace()} - set(range(0x1C, 0x20))
  sample = [*range(0x3100), 0x3400, 0x9FFF, 0xA000, 0xFEFF, 0x1F600, 0x20000, 0x3FFFF, 0x40000]
  for code in sample:
    data = np.frombuffer(chr(code).encode(), np.uint8) if not 0xD800 <= code < 0xE000 else None
    assert data is None or decode(data, 0) == (code, len(data))
    assert is_white(code) == (code in white)
  for first, last in UNSPACED:
    assert is_unspaced(first)
    assert is_unspaced(last)
    assert is_unspaced(last + 1) == any(low == last + 1 for low, _ in UNSPACED)
  assert white == {code for code in white if is_white(code)}
