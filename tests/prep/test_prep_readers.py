"""Tests of readers: every line is a document, blank, or quarantined with its cause."""

import decimal
import gzip
import io
import json
import os
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from jdc.prep import batches, readers
from jdc.prep.links import cause_kind
from jdc.prep.readers import files, jsonl, streams
from jdc.prep.readers import warc as warc_lib
from jdc.prep.spec import InputSpec

LINES = [
  b'{"text": "one", "n": 1.10}',
  b"",
  b'{"text": "zwei\\n\xc3\xa9", "id": 123456789012345678901234567890}',
  b"  \t ",
  b'{"text": "windows"}\r',
  b"not JSON",
  b'{"text": "\xff"}',
  b'{"text": null}',
  b'{"text": 7}',
  b'{"txet": "x"}',
  b'["text"]',
  b'"text"',
  b'{"text": "\\ud800"}',
  b'{"text": "nan", "x": NaN}',
  b'{"text": "inf", "x": 1e999}',
  b"{" * 3000,
  b'{"text": "cut off',
  b'{"text": "", "a": "\\ud800"}',
]
CAUSES = {
  6: "invalid JSON",
  7: "invalid UTF-8 at byte 10",
  8: "field 'text' is null, not a string",
  9: "field 'text' is int, not a string",
  10: "no field 'text'; fields: txet",
  11: "a JSON list, not an object",
  12: "a JSON str, not an object",
  13: "field 'text' has a lone surrogate at character 0",
  14: "NaN is not a number of JSON",
  15: "1e999 is beyond the range of a double",
  16: "",
  17: "invalid JSON",
}


def compress(data, suffix):
  if suffix == ".gz":
    return gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :])
  return zstandard.ZstdCompressor().compress(data) if suffix == ".zst" else data


def read_all(path, spec=None, **given_spec):
  spec = spec or InputSpec(paths=(str(path),), **given_spec)
  (file,) = files.find(spec, path.parent)
  index = files.index(file, spec)
  bad, counts, rows = [], {}, []
  for shard in files.shards([index], spec):
    for piece in shard:
      for batch in readers.read(piece, spec, bad.append, counts):
        assert batch.schema == batches.SCHEMA
        rows += batch.to_pylist()
  return rows, bad, counts, index


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("task_mb", [64.0, 0.0001])
def test_every_line_is_accounted_for(tmp_path, suffix, task_mb):
  data = b"\n".join(LINES)
  path = tmp_path / f"a.jsonl{suffix}"
  path.write_bytes(compress(data, suffix))
  rows, bad, counts, index = read_all(path, task_mb=task_mb)
  assert [row["text"] for row in rows] == ["one", "zwei\né", "windows", ""]
  assert counts == {"blank_lines": 2}
  assert sorted(b.line for b in bad) == sorted(CAUSES)
  for held in bad:
    assert held.raw == LINES[held.line - 1]
    assert CAUSES[held.line] in held.cause, held
    assert data[held.offset :].startswith(held.raw)
  for row in rows:
    assert data[row["offset"] :].startswith(b"{")
    assert row["doc_id"] == batches.document_id(row["source"], row["offset"])
  assert json.loads(rows[1]["fields"]) == {"id": 123456789012345678901234567890}
  assert rows[3]["fields"] == '{"a":"\\ud800"}'
  assert len(index.pieces) == (1 if task_mb > 1 else len(index.pieces)) > 0


@settings(deadline=None, max_examples=150)
@given(
  st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), max_size=12),
  st.integers(1, 40),
)
def test_cuts_are_at_ends_of_lines_and_small(lines, most):
  data = b"".join(line + b"\n" for line in lines)
  path_like = io.BytesIO(data)
  stream = streams.ByteStream.__new__(streams.ByteStream)
  stream.position, stream._back, stream._compression = 0, b"", ""
  stream._file = type("Slow", (), {"read": staticmethod(lambda n: path_like.read(7))})
  found, damage = streams.cuts(stream, most)
  assert not damage
  assert found[0][0] == 0
  assert found[-1][1] == -1
  for (start, end, first), following in zip(found, [*found[1:], None], strict=True):
    stop = len(data) if following is None else end
    assert first == data.count(b"\n", 0, start) + 1
    assert stop - start <= most or data.count(b"\n", start, stop) <= 1
    if following is not None:
      assert following[0] == end
      assert data[end - 1 : end] == b"\n"


NUMBERS = st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
  st.none() | st.booleans() | NUMBERS | st.text(),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
  max_leaves=8,
)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_values_mean_what_json_says(record):
  line = json.dumps(record).encode()
  parsed = jsonl.parse(line)
  assert parsed == json.loads(line)
  assert [type(v) for v in parsed.values()] == [type(v) for v in json.loads(line).values()]
  assert json.loads(jsonl.dump(parsed)) == json.loads(line)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damage_is_quarantined_and_what_precedes_it_is_read(tmp_path, suffix):
  rng = random.Random(0)
  rows = [{"text": f"{rng.getrandbits(4000):x}"} for _ in range(500)]
  whole = compress("".join(json.dumps(row) + "\n" for row in rows).encode(), suffix)
  path = tmp_path / f"a.jsonl{suffix}"
  path.write_bytes(whole[: len(whole) * 3 // 4])
  read, bad, _, index = read_all(path, task_mb=0.05)
  assert [row["text"] for row in read] == [row["text"] for row in rows[: len(read)]]
  assert index.damage or suffix == ".zst"
  assert len(read) > 100
  assert len(bad) == 1


def test_lines_that_are_too_long_are_set_aside(tmp_path, monkeypatch):
  for module in (batches, streams):
    monkeypatch.setattr(module, "MAX_DOCUMENT", 100)
  path = tmp_path / "a.jsonl"
  long = b'{"text": "' + b"x" * 3_000_000 + b'"}'
  path.write_bytes(b'{"text": "a"}\n' + long + b'\n{"text": "b"}\n')
  rows, bad, _, _ = read_all(path)
  assert [row["text"] for row in rows] == ["a", "b"]
  assert bad[0].cause == f"a line of {len(long)} bytes; at most 100"
  assert bad[0].offset == 14


def test_parquet_rows_keep_their_other_columns(tmp_path):
  table = pa.table(
    {
      "text": ["one", None, "three", "four"],
      "n": [1, 2, None, 2**62],
      "price": pa.array([decimal.Decimal("1.10")] * 4),
      "raw": [b"\xff", b"a", b"b", b"c"],
      "tags": [["a"], [], None, ["b", "c"]],
      "score": [float("nan"), 0.0, 0.5, float("-inf")],
    }
  )
  path = tmp_path / "a.parquet"
  pq.write_table(table, path, row_group_size=2)
  for task_mb in (64.0, 0.00001):
    rows, bad, _, _ = read_all(path, task_mb=task_mb)
    assert [(row["offset"], row["text"]) for row in rows] == [
      (0, "one"),
      (2, "three"),
      (3, "four"),
    ]
    assert [str(b) for b in bad] == [f"{path}:1: column 'text' is null, not a string"]
    assert json.loads(rows[0]["fields"]) == {
      "n": 1,
      "price": "1.10",
      "raw": "/w==",
      "tags": ["a"],
      "score": "NaN",
    }
    assert json.loads(rows[2]["fields"])["n"] == 2**62
    assert json.loads(rows[1]["fields"])["score"] == 0.5
    assert json.loads(rows[2]["fields"])["score"] == "-Infinity"
    assert all(jsonl.parse(row["fields"].encode()) for row in rows)


def test_parquet_that_is_not_utf8_is_set_aside(tmp_path):
  text = pa.Array.from_buffers(
    pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff")]
  )
  path = tmp_path / "a.parquet"
  pq.write_table(pa.table({"text": text}), path)
  rows, bad, _, _ = read_all(path)
  assert [row["text"] for row in rows] == ["a"]
  assert bad[0].cause == "column 'text' is not UTF-8"


def test_parquet_without_the_column_names_those_it_has(tmp_path):
  path = tmp_path / "a.parquet"
  pq.write_table(pa.table({"content": ["a"]}), path)
  with pytest.raises(ValueError, match="no column 'text'; known: content"):
    read_all(path)
  path.write_bytes(b"PAR1 no")
  with pytest.raises(ValueError, match="not readable as Parquet"):
    read_all(path)


@pytest.mark.parametrize(
  ("unit", "texts", "offsets"),
  [
    ("file", ["a b\nc\n\n\nd é\n"], [0]),
    ("line", ["a b", "c", "d é"], [0, 4, 8]),
    ("paragraph", ["a b\nc", "d é"], [0, 8]),
  ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_plain_text(tmp_path, unit, texts, offsets, suffix):
  path = tmp_path / f"a.txt{suffix}"
  path.write_bytes(compress("a b\nc\n\n\nd é\n".encode(), suffix))
  rows, bad, _, _ = read_all(path, document=unit)
  assert not bad
  assert [row["text"] for row in rows] == texts
  assert [row["offset"] for row in rows] == offsets


def warc(path, pages, suffix):
  with path.open("wb") as file:
    for url, kind, body in pages:
      http = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n".encode() + body
      head = (
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Date: 2024-01-31T00:00:00Z\r\n"
        f"WARC-Target-URI: {url}\r\nContent-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(http)}\r\n\r\n"
      )
      record = head.encode() + http + b"\r\n\r\n"
      file.write(gzip.compress(record) if suffix else record)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_archives(tmp_path, suffix):
  pages = [
    ("http://a.example/", "text/html; charset=utf-8", "<p>é</p>".encode()),
    ("http://b.example/", "text/html", b"<meta charset=latin-1><p>\xe9</p>"),
    ("http://c.example/", "image/png", b"\x89PNG"),
    ("http://d.example/", "text/html", b"<p>\x93q\x94</p>"),
    ("http://e.example/", "text/html", b"<p>\x81</p>"),
  ]
  path = tmp_path / f"a.warc{suffix}"
  warc(path, pages, suffix)
  found = []
  for task_mb in (64.0, 0.00001):
    rows, bad, counts, index = read_all(path, task_mb=task_mb)
    assert [row["text"] for row in rows] == [
      "<p>é</p>", "<meta charset=latin-1><p>é</p>", "<p>“q”</p>",
    ]  # fmt: skip
    assert counts == {"other_records": 1}
    assert [b.raw for b in bad] == [b"http://e.example/"]
    assert json.loads(rows[0]["fields"]) == {
      "url": "http://a.example/", "date": "2024-01-31T00:00:00Z",
      "content_type": "text/html; charset=utf-8", "charset": "utf-8",
    }  # fmt: skip
    data = path.read_bytes()
    for row in rows:  # a record starts at the offset, in a member of its own where compressed
      begin = data[row["offset"] :]
      assert (gzip.decompress(begin) if suffix else begin).startswith(b"WARC/1.0")
    found.append([row["doc_id"] for row in rows])
  assert len(index.pieces) > 1
  assert found[0] == found[1]


def test_hub_layouts(tmp_path):
  for name in ("data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-0-of-1"):
    path = tmp_path / "set" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": [name]}), path)
  (tmp_path / "set" / "README.md").write_text("# A set")
  found = files.find(InputSpec(paths=("set",), format="hf"), tmp_path)
  assert [f.source for f in found] == [
    "set/data/train-00000-of-00002.parquet", "set/data/train-00001-of-00002.parquet",
  ]  # fmt: skip
  (held,) = files.find(InputSpec(paths=("set",), format="hf", split="test"), tmp_path)
  assert held.source == "set/data/test-0-of-1.parquet"
  with pytest.raises(ValueError, match="no split 'dev'; found: test, train"):
    files.find(InputSpec(paths=("set",), format="hf", split="dev"), tmp_path)


def test_patterns(tmp_path):
  for name in ("a/x.jsonl", "a/b/y.jsonl", "z.csv"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"text": "a"}\n')
  found = files.find(InputSpec(paths=("a/**/*.jsonl",)), tmp_path)
  assert [f.source for f in found] == ["a/b/y.jsonl", "a/x.jsonl"]
  assert [f.source for f in files.find(InputSpec(paths=("a",)), tmp_path)] == [
    "a/b/y.jsonl", "a/x.jsonl",
  ]  # fmt: skip
  absolute = str(tmp_path / "a" / "x.jsonl")
  assert files.find(InputSpec(paths=(absolute,)), tmp_path)[0].source == absolute
  with pytest.raises(ValueError) as raised:
    files.find(InputSpec(paths=("z.csv", "none/*")), tmp_path)
  assert "z.csv: unknown suffix; accepted: .jsonl" in str(raised.value)
  assert "none/*: no such file" in str(raised.value)
  with pytest.raises(ValueError, match="both in domain 'one' and in 'two'"):
    files.find(InputSpec(paths={"one": ("a",), "two": ("a/x.jsonl",)}), tmp_path)


def test_small_pieces_are_read_together():
  pieces = [batches.Piece(f"{i}", f"{i}", "d", "jsonl", "", "", 0, -1, 1) for i in range(6)]
  sizes = [100, 20, 20, 90, 200, 5]
  index = [
    files.FileIndex(files.InputFile(*piece[:5]), size, 0, "", ((piece, size),))
    for piece, size in zip(pieces, sizes, strict=True)
  ]
  spec = InputSpec(paths=("a",), task_mb=8 * 128 / (1 << 20))
  joined = files.shards(index, spec)
  assert [[p.path for p in shard] for shard in joined] == [
    ["0", "1"], ["2", "3"], ["4"], ["5"],
  ]  # fmt: skip


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_paragraphs_are_the_same_in_pieces_of_any_size(tmp_path, suffix):
  rng = random.Random(5)
  lines = [
    rng.choice([b"", b" \t", b"\r", b"a b", b"c\r", b"d e f", b"\xff"]) for _ in range(400)
  ]
  path = tmp_path / f"a.txt{suffix}"
  path.write_bytes(compress(b"\n".join(lines), suffix))
  whole, bad, counts, _ = read_all(path, document="paragraph")
  places = [(b.line, b.offset, b.raw) for b in bad]
  assert len(whole) > 40 < len(places)
  assert counts["blank_lines"] > 100
  for most in (1, 5, 30, 100, 1000):
    rows, bad, found, index = read_all(path, document="paragraph", task_mb=most / 2**20)
    assert rows == whole
    assert [(b.line, b.offset, b.raw) for b in bad] == places
    assert found == counts
    assert len(index.pieces) > 400 / max(most, 20)
    if most > 30:  # which no paragraph has
      assert max(size for _, size in index.pieces) <= most


def test_a_damaged_archive_of_paragraphs_gives_what_precedes(tmp_path):
  data = b"\n\n".join(b"paragraph %d" % i for i in range(30_000))
  path = tmp_path / "a.txt.gz"
  path.write_bytes(compress(data, ".gz")[:-2000])
  rows, bad, _, index = read_all(path, document="paragraph", task_mb=0.01)
  assert len(index.pieces) > 10
  assert "damaged" in index.damage
  assert [row["text"] for row in rows] == [f"paragraph {i}" for i in range(len(rows))]
  assert len(rows) > 10_000
  assert "damaged" in bad[-1].cause


def test_tasks_are_joined_as_before_around_a_file_that_changes():
  def index(number, size):
    file = files.InputFile(f"raw/{number}.jsonl", f"raw/{number}.jsonl", "data", "jsonl", "")
    return files.FileIndex(file, size, 0, "", ((batches.Piece(*file, "", 0, -1, 1), size),))

  spec = InputSpec(paths=("raw",), task_mb=8.0)  # tasks of a mebibyte
  rng = random.Random(2)
  sizes = [rng.randint(1 << 10, 1 << 18) for _ in range(300)]
  before = files.shards([index(i, size) for i, size in enumerate(sizes)], spec)
  assert 20 < len(before) < 150
  redone = []
  for changed in range(0, 300, 10):
    grown = [index(i, size + (1 << 17) * (i == changed)) for i, size in enumerate(sizes)]
    gone = [index(i, size) for i, size in enumerate(sizes) if i != changed]
    for indexes in (grown, gone):
      after = files.shards(indexes, spec)
      for shard in after:
        total = sum(sizes[int(piece.source[4:].partition(".")[0])] for piece in shard)
        assert total <= 1 << 20
      redone.append(len(set(after) - set(before)))
  assert np.mean(redone) < 3
  assert max(redone) < 15


def found(folder, *paths, **spec):
  return [file.source for file in files.find(InputSpec(paths=paths, **spec), folder)]


def test_every_file_is_read_once_however_it_is_reached(tmp_path):
  (tmp_path / "raw" / "sub").mkdir(parents=True)
  for name in ("b.jsonl", "sub/a.jsonl"):
    (tmp_path / "raw" / name).write_text('{"text": "a"}\n')
  (tmp_path / "raw" / "LOOP").symlink_to("..")
  (tmp_path / "raw" / "sub" / "same.jsonl").symlink_to("a.jsonl")
  both = ["raw/b.jsonl", "raw/sub/a.jsonl"]
  assert found(tmp_path, "raw") == both
  assert sorted(found(tmp_path, "raw/**/*.jsonl")) == both
  assert found(tmp_path, "raw/b.jsonl", "./raw/b.jsonl", "raw/*.jsonl") == both[:1]
  assert sorted(found(tmp_path, "raw/[a-z]*")) == both  # a folder means the files in it


def test_what_is_no_file_is_named(tmp_path):
  os.mkfifo(tmp_path / "pipe.jsonl")
  (tmp_path / "nowhere.jsonl").symlink_to("gone")
  with pytest.raises(ValueError, match=r"pipe.jsonl: neither a file nor a folder"):
    found(tmp_path, "pipe.jsonl")
  (tmp_path / "pipe.jsonl").unlink()
  spec = InputSpec(paths=("*.jsonl",))
  with pytest.raises(ValueError, match=r"nowhere.jsonl: cannot be read: No such file"):
    files.check_readable(files.find(spec, tmp_path), spec)
  (tmp_path / "nowhere.jsonl").unlink()
  (Path(os.fsdecode(bytes(tmp_path) + b"/\xff.jsonl"))).write_text("{}")
  with pytest.raises(ValueError, match=r"xff.jsonl': a name that is not UTF-8"):
    found(tmp_path, "*.jsonl")


def test_causes_of_bad_records_are_few_kinds(tmp_path):
  path = tmp_path / "a.jsonl"
  names = ["../x", "a b", 7, None]
  path.write_text("\n".join(json.dumps({"text": "t", "d": name}) for name in names))
  _, bad, _, _ = read_all(path, domain_column="d")
  assert {cause_kind(b.cause) for b in bad} == {"no name of a domain in field 'd'"}
  assert "'../x' does not match" in bad[0].cause


def read_archive(path, suffix):
  rows, bad = [], []
  piece = batches.Piece(str(path), str(path), "", "warc", suffix, "", 0, -1, 1)
  for batch in warc_lib.read_warc(piece, InputSpec(paths=(str(path),)), bad.append, {}):
    rows += batch.column("text").to_pylist()
  return rows, bad


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_archive_that_is_cut_anywhere_is_told(tmp_path, suffix):
  path, part = tmp_path / f"a.warc{suffix}", tmp_path / f"part.warc{suffix}"
  texts = [" ".join(f"{i * k * 7919 % 9973:x}" for k in range(60)) for i in range(3)]
  pages = [(f"http://{text[:4]}.example/", "text/plain", text.encode()) for text in texts]
  ends = []
  for k in range(3):
    warc(path, pages[: k + 1], suffix)
    ends.append(path.stat().st_size)
  data = path.read_bytes()
  assert read_archive(path, suffix) == (texts, [])
  # What ends a record, blank lines or a check sum, holds nothing.
  tail = 12 if suffix else 4
  for size in range(ends[0] + 1, ends[2] - tail):
    part.write_bytes(data[:size])
    rows, bad = read_archive(part, suffix)
    assert rows == texts[: sum(end - tail <= size for end in ends)]
    assert all(fault.cause.startswith(("cut off", "damaged archive")) for fault in bad)
    if not any(end - tail <= size <= end for end in ends):
      assert bad, size


@pytest.mark.parametrize("compression", [".gz", ".zst"])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_compressed_file_that_is_cut_anywhere_is_told(tmp_path, compression, frames):
  shrink = gzip.compress if compression == ".gz" else zstandard.ZstdCompressor().compress
  lines = [b'{"text": "%x"}\n' % (i * 7919) for i in range(90)]
  parts = [shrink(b"".join(lines[k::frames])) for k in range(frames)]
  data, ends = b"".join(parts), np.cumsum([len(part) for part in parts])
  path = tmp_path / f"a.jsonl{compression}"
  for size in range(1, len(data) + 1):
    path.write_bytes(data[:size])
    rows, bad, _, index = read_all(path)
    whole = size in ends
    assert bool(index.damage) != whole
    assert bool(bad) != whole
    assert len(rows) >= 90 // frames * (ends <= size).sum()
