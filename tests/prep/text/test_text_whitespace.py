"""Tests of white space, against the rule line by line."""

import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdc.prep.text.whitespace import normalize_whitespace

SPACES = " \t\u00a0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
BREAKS = "\n\r\x0b\x0c\x85\u2028\u2029"
TEXT = st.text(
  st.one_of(st.sampled_from(SPACES + BREAKS), st.sampled_from("abé好😀\u200b\u00c2"))
)


def reference(text, max_blank_lines, strip, keep_indent):
  """The rule, one line at a time."""
  lines = re.split("\r\n|[\n\r\x0b\x0c\x85\u2028\u2029]", text)
  done = []
  for line in lines:
    indent = re.match(f"[{SPACES}]*", line)[0]
    words = [word for word in re.split(f"[{SPACES}]+", line) if word]
    margin = "".join(char if char == "\t" else " " for char in indent) if keep_indent else ""
    done.append(margin + " ".join(words) if words else "")
  kept, blank = [], 0
  for line in done[:-1]:
    blank = 0 if line else blank + 1
    if blank <= max_blank_lines:
      kept.append(line + "\n")
  result = "".join(kept) + done[-1]
  return result.strip(SPACES + "\n") if strip else result


@given(TEXT, st.integers(0, 2), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=300)
def test_agrees_with_the_rule_and_is_a_fixed_point(text, blank, strip, indent):
  array = pa.array(["x", text, "y"])[1:2]
  found = normalize_whitespace(array, blank, strip, indent)
  found.validate(full=True)
  assert found[0].as_py() == reference(text, blank, strip, indent)
  assert normalize_whitespace(found, blank, strip, indent) == found


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("", ""),
    (" \n\t\r\n ", ""),
    ("a\r\nb\rc\x0bd\x0ce\x85f\u2028g\u2029h", "a\nb\nc\nd\ne\nf\ng\nh"),
    ("a\n\n\n\nb", "a\n\nb"),
    ("a \u3000\tb\u00a0", "a b"),
    ("def f():\n\tif x:\n\t\treturn  1", "def f():\n\tif x:\n\t\treturn 1"),
    ("\u3000\u3000中文\u3000字", "中文 字"),
    ("a\u200bb", "a\u200bb"),
  ],
)
def test_cases(text, expected):
  assert normalize_whitespace(pa.array([text]))[0].as_py() == expected


@pytest.mark.parametrize("blank", [0, 1, 2])
def test_as_many_blank_lines_stay(blank):
  text = pa.array(["a" + "\n" * k + "b" for k in range(1, 6)])
  lines = [value.count("\n") for value in normalize_whitespace(text, blank).to_pylist()]
  assert lines == [min(k, blank + 1) for k in range(1, 6)]


def test_without_strip_the_ends_stay():
  found = normalize_whitespace(pa.array(["\n\n  a \n\n\n"]), strip=False)
  assert found[0].as_py() == "\n  a\n\n"


def test_a_negative_number_is_refused():
  with pytest.raises(ValueError, match="max_blank_lines must be at least 0, got -1"):
    normalize_whitespace(pa.array(["a"]), -1)


def test_dirty_documents(dirty):
  found = normalize_whitespace(dirty)
  for before, after in zip(dirty.to_pylist(), found.to_pylist(), strict=True):
    assert after == reference(before, 1, True, True)
