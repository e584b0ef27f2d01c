"""Tests of what is taken out of text: addresses, citations, lines of symbols."""

import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdc.prep.text.strip import strip_citations, strip_symbol_lines, strip_urls

TEXT = st.text(st.sampled_from("a1é好.,=-[]()\n \u00a0😀#edit"), max_size=40)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("see https://a.org/b?c=d&e=%20#f now", "see <> now"),
    ("HTTP://A.ORG.", "<>."),
    ("(http://a.org), http://b.org; www.c.org!", "(<>), <>; <>!"),
    ("[x](https://a.org/x_(y)) end", "[x](<>) end"),
    ("https://a.org/x_(y", "<>(y"),
    ("ftp://a.org/b/", "<>"),
    ("www.example.org/a:", "<>:"),
    ("http://[2001:db8::1]:80/x", "<>"),
    ('<a href="http://a.org/">', '<a href="<>">'),
    ("见https://a.org/路径，好", "见<>路径，好"),
    ("https://müller.example/straße ok", "<> ok"),
    ("https:// www. www.x a.org mailto:a@b.co", "https:// www. www.x a.org mailto:a@b.co"),
    ("xhttp://a.org", "xhttp://a.org"),
    ("one\nhttp://a.org\ntwo", "one\n<>\ntwo"),
  ],
)
def test_urls(text, expected):
  assert strip_urls(pa.array([text]), "<>")[0].as_py() == expected
  assert strip_urls(pa.array([text]))[0].as_py() == expected.replace("<>", "")


def test_a_replacement_is_taken_as_it_is():
  assert strip_urls(pa.array(["http://a.org"]), r"\1\g<0>")[0].as_py() == r"\1\g<0>"


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("a[1]b[]c[123]d[edit]e[citation needed]", "abcde"),
    ("[1,2] [a] [ 1] [Edit] [[1]]", "[1,2] [a] [ 1] [Edit] []"),
  ],
)
def test_citations(text, expected):
  assert strip_citations(pa.array([text]))[0].as_py() == expected


@given(st.lists(TEXT, max_size=4))
@settings(deadline=None, max_examples=60)
def test_citations_are_those_of_c4(texts):
  found = strip_citations(pa.array(texts, pa.string())).to_pylist()
  rule = re.compile(r"\[[0-9]*\]|\[edit\]|\[citation needed\]")
  assert found == [rule.sub("", text) for text in texts]


def symbols_of(line):
  line = re.sub(r"\s", "", line)
  symbols = [char for char in line if unicodedata.category(char)[0] not in "LMN"]
  return len(symbols), len(line)


@given(TEXT, st.sampled_from([0.0, 0.25, 0.5, 1.0]))
@settings(deadline=None, max_examples=150)
def test_symbol_lines_agree_with_the_definition(text, ratio):
  lines = text.split("\n")
  kept = [line for line in lines if symbols_of(line)[0] <= ratio * symbols_of(line)[1]]
  assert strip_symbol_lines(pa.array([text]), ratio)[0].as_py() == "\n".join(kept)


@pytest.mark.parametrize(
  ("line", "kept"),
  [
    ("a-", True),
    ("a--", False),
    ("", True),
    ("  ", True),
    ("-", False),
    ("中文。。", True),
    ("क्या", True),
    ("😀😀a", False),
    ("½²a--", True),
  ],
)
def test_symbol_lines_at_one_half(line, kept):
  found = strip_symbol_lines(pa.array([f"x\n{line}\ny"]))[0].as_py()
  assert found == (f"x\n{line}\ny" if kept else "x\ny")


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_beyond_its_range_is_refused(ratio):
  with pytest.raises(ValueError, match=r"max_symbol_ratio must be in \[0, 1\]"):
    strip_symbol_lines(pa.array(["a"]), ratio)


def test_dirty_documents(dirty):
  found = strip_urls(dirty).to_pylist()
  assert not any(re.search(r"(?<![A-Za-z0-9])https?://[a-z]", text) for text in found)
  before = np.array([len(text) for text in dirty.to_pylist()])
  after = np.array([len(text) for text in strip_symbol_lines(dirty).to_pylist()])
  assert (after <= before).all()
  assert 0.02 < (after < before).mean() < 0.3
