"""Tests of lists of words and of domains."""

import json
import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jdc.prep.text.blocklist import blocklist, host_of, read_list, url_blocklist


def hits(text, words):
  return int(blocklist(pa.array([text]), words)["blocklist_hits"][0])


@pytest.mark.parametrize(
  ("text", "words", "expected"),
  [
    ("Spam spammer SPAM! e-spam spam_x", ["spam"], 3),
    ("spamspam", ["spam"], 0),
    ("buy now, Buy  now", ["buy now"], 1),
    ("straße STRASSE", ["Straße"], 2),
    ("c++ c+++ xc++", ["c++"], 2),
    ("赌博网站", ["赌博"], 1),
    ("在线casino赌场", ["casino"], 0),
    ("ab abc", ["ab", "abc", "b"], 2),
    ("x x x", ["x", "X"], 3),
    ("", ["x"], 0),
  ],
)
def test_words(text, words, expected):
  assert hits(text, words) == expected


@given(
  st.text(st.sampled_from("abA_ -好é"), max_size=30),
  st.lists(st.text(st.sampled_from("ab好é -"), min_size=1, max_size=3), min_size=1, max_size=4),
)
@settings(deadline=None, max_examples=150)
def test_words_agree_with_a_search(text, entries):
  entries = [entry for entry in entries if entry.strip()] or ["a"]
  count = 0
  for entry in {entry.strip().casefold() for entry in entries}:
    before = r"(?<!\w)" if re.match(r"\w", entry) and entry[0] != "好" else ""
    after = r"(?!\w)" if re.search(r"\w$", entry) and entry[-1] != "好" else ""
    count += len(re.findall(f"(?={before}{re.escape(entry)}{after})", text.casefold()))
  assert hits(text, entries) == count


def test_no_words_are_refused():
  for words in ([], ["a", " "]):
    with pytest.raises(ValueError, match="words must be one or more"):
      blocklist(pa.array(["a"]), words)


@pytest.mark.parametrize(
  ("url", "host"),
  [
    ("https://Shop.Example.ORG:8080/x?u=http://b.c", "shop.example.org"),
    ("http://user:pw@example.org.", "example.org"), ("//example.org/x", "example.org"),
    ("example.org/x", "example.org"), ("http://bücher.example", "xn--bcher-kva.example"),
    ("http://[2001:db8::1]:80/", "[2001:db8::1]"), ("", ""), ("http:///x", ""),
    ("http://\u2603..\u2603", ""),
  ],
)  # fmt: skip
def test_hosts(url, host):
  assert host_of(url) == host


def test_domains_cover_their_subdomains():
  urls = [
    "http://bad.example/x", "http://a.b.BAD.example", "http://notbad.example", "http://example",
    "http://www.one.example", "http://one.example", "http://bücher.example",
  ]  # fmt: skip
  records = [json.dumps({"url": url}) for url in urls]
  records += ['{"url": 3}', "{}", '{"url": null}']
  found = url_blocklist(
    pa.array(records), ["*.Bad.example", "www.one.example", "bücher.example"]
  )
  assert found["url_blocklist_hits"].tolist() == [1, 1, 0, 0, 1, 0, 1, 0, 0, 0]
  assert found["url_missing"].tolist() == [0] * 7 + [1, 1, 1]
  other = url_blocklist(pa.array(['{"link": "bad.example"}']), ["bad.example"], field="link")
  assert other["url_blocklist_hits"].tolist() == [1]


def test_what_is_no_domain_is_named():
  with pytest.raises(ValueError, match=r"got \['a/b', 'http://c.d'\]"):
    url_blocklist(pa.array(["{}"]), ["ok.example", "a/b", "http://c.d"])
  with pytest.raises(ValueError, match="got none"):
    url_blocklist(pa.array(["{}"]), [])


def test_lists_in_files(tmp_path):
  path = tmp_path / "list.txt"
  path.write_text("# words\nspam\n\n  buy now \n", encoding="utf-8")
  assert read_list(path) == ["spam", "buy now"]
  path.write_text("# nothing\n")
  with pytest.raises(ValueError, match="no entries"):
    read_list(path)
  path.write_bytes(b"ok\n\xff")
  with pytest.raises(ValueError, match="invalid UTF-8 at byte 3"):
    read_list(path)


def test_dirty_documents(dirty):
  found = blocklist(dirty, ["casino", "buy now"])["blocklist_hits"]
  pattern = re.compile(r"(?<!\w)(?:casino|buy now)(?!\w)", re.IGNORECASE)
  assert found.tolist() == [len(pattern.findall(text)) for text in dirty.to_pylist()]
