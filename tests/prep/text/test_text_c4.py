"""Tests of C4's rules at their thresholds, against a plain-Python reading of them."""

import re

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdc.prep.text.c4 import POLICY, SIGNALS, drop_lines
from jdc.prep.text.scripts import words

WIDE = "。！？｡．"
MARKS = ".?!。！？｡．؟۔।॥၊။។៕៖።፧"
QUOTES = '"”»」』'
SPACE = "[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"


def sentences(line):
  """Pieces, between marks that end a sentence, which hold more than marks and quotes."""
  ends = f"(?<=[{MARKS}])[{MARKS}{QUOTES}]*(?={SPACE}|$)|(?<=[{WIDE}])[{MARKS}{QUOTES}]*"
  pieces = re.split(ends, line)
  return sum(bool(re.search(rf"[^\s{MARKS}{QUOTES}]", piece)) for piece in pieces)


def reference(text, no_terminal_punct, min_words, javascript, policy, max_word_len):
  kept, dropped, count, curly, lorem = [], 0, 0, 0, 0
  for line in text.split("\n"):
    bare, lower = re.sub(f"^{SPACE}+|{SPACE}+$", "", line), line.lower()
    found = words(line)
    last = bare[-1:]
    ends = last != "" and (last in MARKS + QUOTES or "\u0e00" <= last <= "\u0eff")
    dropped += 1
    if any(len(word) > max_word_len for word in found):
      continue
    if no_terminal_punct and (not ends or bare.endswith("...")):
      continue
    if len(found) < min_words:
      continue
    lorem += "lorem ipsum" in lower
    if javascript and "javascript" in lower:
      continue
    curly += "{" in line
    if policy and any(phrase in lower for phrase in POLICY):
      continue
    dropped -= 1
    count += sentences(line)
    kept.append(line)
  return "\n".join(kept), dict(zip(SIGNALS, (dropped, count, curly, lorem), strict=True))


def run(text, **options):
  found, signals = drop_lines(pa.array(["ab", text])[1:], **options)
  return found[0].as_py(), {name: int(values[0]) for name, values in signals.items()}


PIECES = st.sampled_from(
  [
    *'ab. ?!"…{}\n\t好。」ไ।',
    "JavaScript",
    "lorem Ipsum",
    "Privacy policy",
    "uses cookies",
    "...",
    "A word",
    "\u00a0",
    "😀",
    ".”",
    "? ",
    "use of cookie",
  ]
)


@given(
  st.lists(PIECES, max_size=25).map("".join),
  st.booleans(),
  st.integers(0, 4),
  st.booleans(),
  st.booleans(),
  st.sampled_from([1, 3, 1000]),
)
@settings(deadline=None, max_examples=300)
def test_agrees_with_the_rules(text, punct, min_words, javascript, policy, longest):
  options = {
    "no_terminal_punct": punct,
    "min_words": min_words,
    "javascript": javascript,
    "policy": policy,
    "max_word_len": longest,
  }
  assert run(text, **options) == reference(text, **options)


@pytest.mark.parametrize(
  ("line", "kept"),
  [
    ("two words", False),
    ("now three words", True),
    ("你好", False),
    ("你好吗", True),
    ("ไทย", True),
    ("Enable JAVASCRIPT to go on", False),
    ("See our Terms of Use here", False),
    ("a cookie is baked", True),
    ("w" * 1000 + " and more", True),
    ("w" * 1001 + " and more", False),
    ("", False),
  ],
)
def test_lines_at_the_defaults(line, kept):
  assert run(line)[0] == (line if kept else "")


@pytest.mark.parametrize(
  ("line", "kept"),
  [
    ("This is a line.", True),
    ("Is this a line?", True),
    ("What a line!", True),
    ('He said "a line"', True),
    ("he said “a line”", True),
    ("This goes on...", False),
    ("This goes on..", True),
    ("This goes on …", False),
    ("This goes on", False),
    ("(This is a line.)", False),
    ("This is a line. \t", True),
    ("这是一行。", True),
    ("这是一行", False),
    ("นี่คือบรรทัด", True),
    ("यह एक पंक्ति है।", True),
  ],
)
def test_terminal_punctuation(line, kept):
  assert run(line, no_terminal_punct=True)[0] == (line if kept else "")


@pytest.mark.parametrize(
  ("text", "count"),
  [
    ("One two three. Four five six! Seven?", 3),
    ("It costs 3.50 dollars.", 1),
    ("No full stop here", 1),
    ('He said "No way." Then he left.', 2),
    ("Well... yes it is.", 2),
    ("他来了。你呢？好！", 3),
    ("one two three.\nfour five six", 2),
    ("... ... ...", 0),
  ],
)
def test_sentences(text, count):
  assert run(text)[1]["c4_sentences"] == count


def test_signals_of_whole_documents_follow_the_order_of_the_rules():
  text = "lorem ipsum {\nLorem ipsum dolor sit amet {\nlorem ipsum javascript {\na { b c"
  found = run(text, min_words=4)[1]
  assert found == {
    "c4_lines_dropped": 2,
    "c4_sentences": 2,
    "c4_curly_lines": 2,
    "c4_lorem_lines": 2,
  }


def test_numbers_out_of_range_are_refused_together():
  with pytest.raises(ValueError, match=r"min_words must be .* got -1; max_word_len .* got 0"):
    run("a", min_words=-1, max_word_len=0)


def test_dirty_documents(dirty):
  options = {
    "no_terminal_punct": True,
    "min_words": 5,
    "javascript": True,
    "policy": True,
    "max_word_len": 1000,
  }
  found, signals = drop_lines(dirty, **options)
  for row in range(0, len(dirty), 7):
    text, expected = reference(dirty[row].as_py(), **options)
    assert found[row].as_py() == text
    assert {name: signals[name][row] for name in SIGNALS} == expected
  assert all(values.dtype == np.int32 for values in signals.values())
