import collections

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdc.prep import line_dedup
from jdc.prep.line_dedup import LineCounts

BLANK = " \t\n\r\v\f"
TEXTS = st.lists(st.text(st.sampled_from("ab é\n\n\r ")), max_size=8)


def units(text, unit):
  """The unit that each line belongs to, None for blank lines, and whether it begins there."""
  lines = [line.strip(BLANK) for line in text.split("\n")]
  if unit == "line":
    return [(line or None, True) for line in lines]
  found = []
  for i, line in enumerate(lines):
    if not line:
      found.append((None, False))
      continue
    first = last = i
    while first and lines[first - 1]:
      first -= 1
    while last + 1 < len(lines) and lines[last + 1]:
      last += 1
    found.append((tuple(lines[first : last + 1]), first == i))
  return found


def reference(texts, unit, min_count):
  counts = collections.Counter(
    name for text in texts for name, first in units(text, unit) if first and name
  )
  out = []
  for text in texts:
    pairs = zip(text.split("\n"), units(text, unit), strict=True)
    out.append("\n".join(line for line, (name, _) in pairs if counts[name] < min_count))
  return out, counts


@settings(deadline=None, max_examples=150)
@given(TEXTS, st.sampled_from(["line", "paragraph"]), st.integers(2, 4), st.integers(0, 8))
def test_against_plain_python(texts, unit, min_count, cut):
  text = pa.array(["skipped", *texts], pa.string())[1:]
  parts = [line_dedup.count_lines(x, unit=unit) for x in (text[:cut], text[cut:])]
  expected, counts = reference(texts, unit, min_count)
  assert sorted(line_dedup.merge(parts).times.tolist()) == sorted(counts.values())
  lines = line_dedup.frequent(parts, min_count=min_count)
  assert len(lines) == sum(count >= min_count for count in counts.values())
  found, dropped = line_dedup.drop_lines(text, lines, unit=unit)
  assert found.to_pylist() == expected
  found.validate(full=True)
  for i, one in enumerate(texts):
    lines_gone = sum(counts[name] >= min_count for name, _ in units(one, unit) if name)
    assert dropped[i] == lines_gone


@pytest.mark.parametrize(("times", "left"), [(5, "Home\n0"), (6, "0")])
def test_lines_of_six_documents_go(times, left):
  text = pa.array([f"Home\n{i}" for i in range(times)])
  lines = line_dedup.frequent(
    [line_dedup.count_lines(text[:2]), line_dedup.count_lines(text[2:])]
  )
  assert line_dedup.drop_lines(text, lines)[0][0].as_py() == left


def test_text_without_such_lines_is_not_copied():
  text = pa.array(["a\nb"])
  found, dropped = line_dedup.drop_lines(text, np.zeros(0, np.uint64))
  assert found is text
  assert dropped.tolist() == [0]


def test_ranges_of_hashes_change_nothing(monkeypatch):
  rng = np.random.default_rng(0)
  parts = []
  for _ in range(4):
    line = np.unique(
      rng.integers(0, 1 << 64, 30_000, dtype=np.uint64) >> np.uint64(1) << np.uint64(1)
    )
    line[:3] = (0, 2, 1 << 63)
    parts.append(LineCounts(np.sort(line), rng.integers(1, 4, len(line))))
  edge = np.uint64((1 << 64) - 1)
  parts = [LineCounts(np.append(p.line, edge), np.append(p.times, 2)) for p in parts]
  whole = line_dedup.frequent(parts, min_count=6)
  assert {0, 2, int(edge)} <= set(whole.tolist())
  assert np.array_equal(line_dedup.frequent(parts, min_count=6, max_bytes=1 << 20), whole)
  assert np.array_equal(line_dedup.frequent(parts[::-1], min_count=6), whole)


def test_errors():
  text = pa.array(["a"])
  with pytest.raises(ValueError, match="unit must be 'line' or 'paragraph', got 'word'"):
    line_dedup.count_lines(text, unit="word")
  with pytest.raises(ValueError, match=r"min_count must be 2 or more, got 1; max_bytes must"):
    line_dedup.frequent([], min_count=1, max_bytes=10)
