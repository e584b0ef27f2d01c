"""Tests of chunks: what they hold, how long they are, where they come from."""

import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdc.prep.text.chunk import BY, chunk_text, count_words
from jdc.prep.text.scripts import words

TEXT = st.lists(
  st.sampled_from(
    ["a", "bb", " ", "\n", "\n\n", ". ", "好", "。", "ไ", "x" * 9, "é", "\t", "😀"]
  ),
  max_size=40,
).map("".join)


def squeezed(text):
  return re.sub(r"\s", "", text)


@given(st.lists(TEXT, min_size=1, max_size=3), st.integers(1, 7), st.sampled_from(BY))
@settings(deadline=None, max_examples=200)
def test_nothing_is_lost_or_too_long(texts, tokens, by):
  chunks = chunk_text(pa.array(texts), tokens, by=by)
  assert sorted(set(chunks.row.tolist())) == list(range(len(texts)))
  for row, text in enumerate(texts):
    parts = [
      (part, start)
      for part, owner, start in zip(
        chunks.text.to_pylist(), chunks.row.tolist(), chunks.offset.tolist(), strict=True
      )
      if owner == row
    ]
    assert squeezed("".join(part for part, _ in parts)) == squeezed(text)
    for part, start in parts:
      assert count_words(part) <= tokens
      assert part == part.strip()
      assert text.encode()[start:].startswith(part.encode())


@given(TEXT, st.integers(2, 7), st.integers(1, 3))
@settings(deadline=None, max_examples=100)
def test_overlap(text, tokens, overlap):
  overlap = min(overlap, tokens - 1)
  chunks = chunk_text(pa.array([text]), tokens, overlap, by="word")
  parts = [words(part) for part in chunks.text.to_pylist()]
  assert all(len(part) <= tokens for part in parts)
  whole = parts[0]
  for part in parts[1:]:
    assert part[:overlap] == whole[-overlap:]
    assert len(part) > overlap
    whole = whole + part[overlap:]
  assert whole == words(text)


@pytest.mark.parametrize(
  ("text", "tokens", "by", "expected"),
  [
    ("a b\n\nc\n\nd e f", 3, "paragraph", ["a b\n\nc", "d e f"]),
    ("a b\nc\n\nd", 3, "paragraph", ["a b\nc", "d"]),
    ("a b\nc d e", 3, "paragraph", ["a b", "c d e"]),
    ("A b. C d! E", 3, "line", ["A b.", "C d! E"]),
    ("A b. C d e f", 3, "sentence", ["A b. C", "d e f"]),
    ("你好。再见。", 3, "sentence", ["你好。", "再见。"]),
    ("a b c", 3, "word", ["a b c"]),
    ("a b c d", 3, "word", ["a b c", "d"]),
    (" \n ", 3, "word", [""]),
    ("", 3, "word", [""]),
  ],
)
def test_cases(text, tokens, by, expected):
  assert chunk_text(pa.array([text]), tokens, by=by).text.to_pylist() == expected


def test_a_tokenizer_may_count():
  count = lambda text: -(-len(text) // 2)
  chunks = chunk_text(pa.array(["abcdefgh ij", "好" * 7]), 2, by="word", count=count)
  assert chunks.text.to_pylist() == ["abcd", "efgh", "ij", "好好", "好好", "好好", "好"]
  assert chunks.row.tolist() == [0, 0, 0, 1, 1, 1, 1]
  assert chunks.offset.tolist() == [0, 4, 9, 0, 6, 12, 18]
  # A character that counts more than a chunk may hold is a chunk.
  assert chunk_text(pa.array(["ab"]), 1, count=lambda text: 3).text.to_pylist() == ["a", "b"]


def test_arguments_out_of_range_are_refused_together():
  with pytest.raises(ValueError, match=r"tokens must .* got 0; overlap .* got 5 .*; by must"):
    chunk_text(pa.array(["a"]), 0, 5, by="page")
  with pytest.raises(ValueError, match=r"overlap must be in \[0, tokens\), got 4"):
    chunk_text(pa.array(["a"]), 4, 4)


def test_dirty_documents(dirty):
  texts = dirty[::40]
  chunks = chunk_text(texts, 100, 10)
  assert max(map(count_words, chunks.text.to_pylist())) <= 100
  joined = [""] * len(texts)
  for part, row in zip(*chunk_text(texts, 100)[:2], strict=True):
    joined[row] += part.as_py()
  assert list(map(squeezed, joined)) == list(map(squeezed, texts.to_pylist()))
