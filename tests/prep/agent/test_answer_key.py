import collections
import gzip
import hashlib
import ipaddress
import json
import os
import random
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DATA = Path(os.environ.get("JDC_TEST_DATA", HERE / "../../../../shared/data")) / "dirty"
LINES = {"raw-00.jsonl.gz": 2378, "raw-01.jsonl.gz": 2375, "raw-02.jsonl.gz": 2375}
REASONS = {"good", "non_english", "code", "scrambled", "fragment", "gibberish", "repeated"}
REASONS |= {"link_list", "unreadable", "spam", "boilerplate", "mixed_language", "markup"}
REASONS |= {"no_text"}
ENCODING = {"mojibake", "replacement", "controls", "invisible", "spaces", "fullwidth"}
REPAIR = {"furniture", "html", "entities", "whitespace", "capitals", "foreign_part"}
DIGITS = {"phone": {10}, "card": {15, 16}, "ssn": {9}}
NAMED = {"file", "line", "offset", "blake2b"}
FIELDS = NAMED | {"keep", "why", "reason", "language", "encoding", "repair", "pii"}
FIELDS |= {"quarantine", "duplicates", "possible_duplicates", "doubtful", "second_pass"}
KEY = [json.loads(line) for line in (HERE / "answer_key.jsonl").read_text().splitlines()]
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}; set JDC_TEST_DATA")


def place(record):
  return record["file"], record["line"]


def partners(record):
  return record["duplicates"] + record["possible_duplicates"]


@pytest.fixture(scope="module")
def raw():
  """Each file as it is decompressed."""
  return {name: gzip.decompress((DATA / name).read_bytes()) for name in LINES}


def line_of(raw, record):
  data, start = raw[record["file"]], record["offset"]
  return data[start : data.index(b"\n", start)]


def text_of(line):
  """The text of a line, or None where it is no UTF-8 JSON of an object with a string."""
  try:
    record = json.loads(line.decode("utf-8-sig"))  # one file begins with a byte-order mark
  except ValueError:
    return None
  text = record.get("text") if isinstance(record, dict) else None
  return text if isinstance(text, str) else None


def looks_like(kind, value):
  if kind in DIGITS:
    return len(re.sub(r"\D", "", value)) in DIGITS[kind]
  if kind == "ip":
    return bool(ipaddress.ip_address(value))
  if kind == "email":
    return re.fullmatch(r"\S+@\S+\.\w+", value) is not None
  if kind == "address":
    return re.match(r"\d+ .*\d$", value) is not None
  return kind == "name" and value == value.title()


def test_the_sample_is_the_stated_draw():
  everything = [(name, line + 1) for name, count in LINES.items() for line in range(count)]
  drawn = sorted(random.Random(9).sample(range(len(everything)), 200))
  assert [place(record) for record in KEY] == [everything[i] for i in drawn]
  twice = random.Random(10).sample(range(200), 50)
  assert [i for i, record in enumerate(KEY) if record["second_pass"]] == sorted(twice)


@pytest.mark.parametrize("record", KEY, ids=lambda record: f"{record['file']}:{record['line']}")
def test_a_record_is_well_formed(record):
  assert set(record) == FIELDS
  assert all(set(partner) == NAMED for partner in partners(record))
  assert {record["why"], record["second_pass"]} <= REASONS | {None}
  assert set(record["encoding"] + record["repair"]) <= ENCODING | REPAIR
  assert record["keep"] is (record["why"] == "good")
  assert record["quarantine"] is (record["why"] in {"unreadable", "no_text"})
  assert isinstance(record["doubtful"], bool)
  assert 0 < len(record["reason"]) < 80
  assert not record["keep"] or record["language"] == "en"
  ends = [0] + [end for _, end, _ in record["pii"]]
  starts = [start for start, _, _ in record["pii"]]
  assert all(end <= start for end, start in zip(ends, starts, strict=False))
  named = [place(record), *map(place, partners(record))]
  assert len(set(named)) == len(named)


def test_no_line_is_in_two_clusters():
  claimed = collections.Counter(place(p) for record in KEY for p in record["duplicates"])
  claimed.update(place(record) for record in KEY)
  assert max(claimed.values()) == 1


def test_the_readme_counts_what_the_key_holds():
  readme = (HERE / "README.md").read_text()
  rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", readme, re.MULTILINE)
  assert {why: int(n) for why, n in rows} == collections.Counter(r["why"] for r in KEY)
  for count, what in [
    (sum(record["doubtful"] for record in KEY), "`doubtful`, {} records"),
    (sum(len(record["duplicates"]) for record in KEY), "\n{} duplicates"),
    (sum(bool(record["duplicates"]) for record in KEY), " {} records have\n"),
    (sum(len(record["pii"]) for record in KEY), "\n{} spans of personal data"),
    (sum("furniture" in record["repair"] for record in KEY), "{} records carry furniture"),
  ]:
    assert what.format(count) in readme
  again = [record for record in KEY if record["second_pass"]]
  assert all(record["why"] == record["second_pass"] for record in again)
  assert "agreed in all 50" in readme


@needs_data
def test_all_lines_are_those_that_were_read(raw):
  for name, count in LINES.items():
    assert raw[name].count(b"\n") == count
    assert raw[name].endswith(b"\n")
  for record in [named for r in KEY for named in [r, *partners(r)]]:
    line = line_of(raw, record)
    assert hashlib.blake2b(line, digest_size=8).hexdigest() == record["blake2b"]
    assert raw[record["file"]].count(b"\n", 0, record["offset"]) == record["line"] - 1


@needs_data
def test_quarantined_lines_are_those_without_a_text(raw):
  for record in KEY:
    assert record["quarantine"] is (text_of(line_of(raw, record)) is None)


@needs_data
def test_spans_hold_what_they_say(raw):
  for record in KEY:
    for start, end, kind in record["pii"]:
      value = text_of(line_of(raw, record))[start:end]
      assert len(value) == end - start
      assert looks_like(kind, value), (place(record), kind)


@needs_data
def test_duplicates_have_half_of_their_words_in_common(raw):
  for record in KEY:
    ours = set(text_of(line_of(raw, record)).split()) if record["duplicates"] else set()
    for partner in record["duplicates"]:
      theirs = set(text_of(line_of(raw, partner)).split())
      assert len(ours & theirs) >= 0.5 * min(len(ours), len(theirs)), place(partner)
