"""Tests of packing: every token once, against a plain loop; the cache; errors over domains."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import grain
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jdc.data import pack
from jdc.data.pack import Domain, RowTable, pack_documents, prepare
from jdc.data.sources import Document, DomainFiles, find_domains
from jdc.data.tokenize import byte_tokenizer

ROOT = Path(__file__).parents[2]
CORPUS = Path(os.environ.get("JDC_TEST_DATA", ROOT / "../shared/data")) / "corpus"
BYTES = byte_tokenizer()
PLAIN = BYTES._replace(bos_id=None, eos_id=None)
BOS = BYTES._replace(eos_id=None)
WIDE = BYTES._replace(vocab_size=100_000)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


def documents_of(texts):
  return [Document(text, f"file:{i + 1}") for i, text in enumerate(texts)]


def reference(texts, tokenizer, length):
  """The rule, one token at a time: rows of (token, segment), targets and bytes per row."""
  stream = []  # (token, document, bytes)
  for index, text in enumerate(texts):
    data = text.encode()
    stream += [(tokenizer.bos_id, index, 0)] if tokenizer.bos_id is not None else []
    stream += [(byte, index, 1) for byte in data]
    stream += [(tokenizer.eos_id, index, 0)] if tokenizer.eos_id is not None else []
  rows = []
  for start in range(0, len(stream) - 1, length):
    row = stream[start : start + length + 1]
    segments = [entry[1] - row[0][1] + 1 for entry in row]
    targets = [i for i in range(1, len(row)) if row[i][1] == row[i - 1][1]]
    padding = [0] * (length + 1 - len(row))
    rows.append(
      (
        [entry[0] for entry in row] + padding,
        segments + padding,
        len(targets),
        sum(row[i][2] for i in targets),
      )
    )
  return rows


@given(
  st.lists(TEXT, min_size=1, max_size=12),
  st.integers(1, 40),
  st.sampled_from([BYTES, BOS, WIDE]),
  st.sampled_from([1, 7, 1 << 20]),
)
def test_agrees_with_the_rule(tmp_path_factory, texts, length, tokenizer, block_tokens):
  folder = tmp_path_factory.mktemp("pack") / "rows"
  table = pack_documents(documents_of(texts), tokenizer, length, folder, block_tokens)
  tokens, segments = table.rows(np.arange(len(table)))
  expected = reference(texts, tokenizer, length)
  assert tokens.tolist() == [row[0] for row in expected]
  assert segments.tolist() == [row[1] for row in expected]
  assert table.num_targets.tolist() == [row[2] for row in expected]
  assert table.num_bytes.tolist() == [row[3] for row in expected]
  assert table.num_target_tokens == table.num_targets.sum()
  # With a token before it, every byte of the text is predicted.
  assert table.num_target_bytes == sum(len(text.encode()) for text in texts)


@given(st.lists(TEXT, min_size=1, max_size=12), st.integers(1, 40))
def test_pieces_give_each_document_back(tmp_path_factory, texts, length):
  folder = tmp_path_factory.mktemp("pack") / "rows"
  table = pack_documents(documents_of(texts), BYTES, length, folder, block_tokens=50)
  found = {document.where: {} for document in documents_of(texts)}
  times_target = {document.where: {} for document in documents_of(texts)}
  for row in range(len(table)):
    tokens, segments = table[row]["tokens"], table[row]["segments"]
    column = 0
    for segment, (where, offset, size) in enumerate(table.documents(row), start=1):
      assert (segments[column : column + size] == segment).all()
      for k in range(size):
        token = int(tokens[column + k])
        assert found[where].setdefault(offset + k, token) == token
        if k > 0:
          times_target[where][offset + k] = times_target[where].get(offset + k, 0) + 1
      column += size
    assert not segments[column:].any()
  for text, (where, tokens) in zip(texts, found.items(), strict=True):
    ids = [256, *text.encode(), 257]
    assert tokens == dict(enumerate(ids))
    assert times_target[where] == dict.fromkeys(range(1, len(ids)), 1)


def test_subword_bytes(tmp_path):
  """Widths come from the byte starts, whatever the tokenizer."""

  def encode_batch(texts):
    return [(np.array([5, 6, 7], np.int32), np.array([0, 3, 3], np.int32)) for _ in texts]

  tokenizer = PLAIN._replace(encode_batch=encode_batch)
  table = pack_documents(documents_of(["x" * 10, "y" * 9]), tokenizer, 3, tmp_path / "rows")
  assert table.rows([0, 1])[0].tolist() == [[5, 6, 7, 5], [5, 6, 7, 0]]
  assert table.num_targets.tolist() == [2, 2]
  assert table.num_bytes.tolist() == [0 + 7, 0 + 6]


def test_many_segments_and_long_rows(tmp_path):
  texts = ["a"] * 70_000
  table = pack_documents(documents_of(texts), BOS, 140_000, tmp_path / "rows")
  tokens, segments = table.rows([0])
  assert segments[0, :-1].tolist() == np.repeat(np.arange(1, 70_001), 2).tolist()
  assert tokens[0, :6].tolist() == [256, 97] * 3
  assert len(table.documents(0)) == 70_000


def test_types_on_disk(tmp_path):
  small = pack_documents(documents_of(["abc"]), BYTES, 8, tmp_path / "small")
  wide = pack_documents(documents_of(["abc"]), WIDE, 8, tmp_path / "wide")
  assert np.fromfile(tmp_path / "small/tokens.bin", "<u2")[:4].tolist() == [256, 97, 98, 99]
  assert np.fromfile(tmp_path / "wide/tokens.bin", "<u4")[:4].tolist() == [256, 97, 98, 99]
  for table in (small, wide):
    assert table.rows([0])[0].dtype == table.rows([0])[1].dtype == np.int32
    assert (table.sequence_length, table.num_documents) == (8, 1)


def test_fingerprint_is_of_the_rows(tmp_path):
  texts = ["one", "two and more", "three"]

  def fingerprint(name, texts, length=4, **options):
    return pack_documents(
      documents_of(texts), BYTES, length, tmp_path / name, **options
    ).fingerprint

  base = fingerprint("a", texts)
  assert fingerprint("b", texts, block_tokens=1) == base
  assert fingerprint("c", texts[::-1]) != base
  assert fingerprint("d", texts, length=5) != base
  assert fingerprint("e", ["one", "two and morethree"]) != base


def test_table_reads_rows(tmp_path):
  folder = tmp_path / "rows"
  table = pack_documents(documents_of(["abcdefgh" * 9]), BYTES, 4, folder)
  again = pickle.loads(pickle.dumps(table))
  assert len(pickle.dumps(table)) < 500
  source = grain.MapDataset.source(again).shuffle(seed=1)
  assert len(source) == len(table)
  tokens, segments = table.rows([3, 3, 0])
  for k, row in enumerate([3, 3, 0]):
    np.testing.assert_array_equal(tokens[k], table[row]["tokens"])
    np.testing.assert_array_equal(segments[k], again[row]["segments"])
  assert source[0]["tokens"].shape == (5,)
  for wrong in (-1, len(table)):
    for read in (lambda row: table.rows([0, row]), table.documents, table.__getitem__):
      with pytest.raises(IndexError, match=str(wrong)):
        read(wrong)


def test_table_refuses_other_folders(tmp_path):
  folder = tmp_path / "rows"
  pack_documents(documents_of(["abc"]), BYTES, 4, folder)
  with pytest.raises(ValueError, match="not a folder of rows"):
    RowTable(tmp_path)
  (folder / "tokens.bin").write_bytes(b"12")
  (folder / "segments.bin").unlink()
  with pytest.raises(ValueError, match=r"tokens.bin: 2 bytes instead of 10(.|\n)*segments.bin"):
    RowTable(folder)
  meta = json.loads((folder / "meta.json").read_text())
  (folder / "meta.json").write_text(json.dumps({**meta, "format_version": 99}))
  with pytest.raises(ValueError, match="format 99; accepted: 1"):
    RowTable(folder)


def test_ten_million_rows_open_without_being_read(tmp_path):
  """Sparse files stand in for the arrays: opening must not depend on their size."""
  folder = tmp_path / "rows"
  pack_documents(documents_of(["abc"]), BYTES, 256, folder)
  meta, num_rows = json.loads((folder / "meta.json").read_text()), 10_000_000
  for name, (dtype, shape) in meta["arrays"].items():
    if not name.startswith("where"):
      shape[0] = num_rows + (name == "row_offsets")
      size = int(np.prod(shape)) * np.dtype(dtype).itemsize
      os.truncate(folder / f"{name}.bin", size)
  (folder / "meta.json").write_text(json.dumps(meta))
  program = """
import resource, sys, time
from jdc.data.rows import RowTable
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
table = RowTable(sys.argv[1])
assert len(table) == 10_000_000
table.rows([9_999_999])
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
  ran = subprocess.run(
    [sys.executable, "-c", program, folder],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    encoding="utf-8",
  )
  assert ran.returncode == 0, ran.stderr
  seconds, kilobytes = map(float, ran.stdout.split())
  assert seconds < 0.5
  assert kilobytes < 20_000


def test_documents_without_targets(tmp_path):
  with pytest.raises(ValueError, match="no target tokens in 2 documents"):
    pack_documents(documents_of(["a", "b"]), PLAIN, 4, tmp_path / "one")
  with pytest.raises(ValueError, match="no target tokens in 0 documents"):
    pack_documents([], BYTES, 4, tmp_path / "none")
  empty = PLAIN._replace(
    encode_batch=lambda texts: [(np.zeros(0, np.int32),) * 2 for _ in texts]
  )
  with pytest.raises(ValueError, match="file:1: no tokens"):
    pack_documents(documents_of(["a"]), empty, 4, tmp_path / "empty")
  padded = pack_documents(documents_of(["ab"]), PLAIN, 4, tmp_path / "padded")
  assert padded[0]["tokens"].tolist() == [97, 98, 0, 0, 0]
  assert padded[0]["segments"].tolist() == [1, 1, 0, 0, 0]


def write_jsonl(path, texts):
  path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
  return path


def texts_of(table):
  """The texts of a table, from its rows."""
  found = {}
  for row in range(len(table)):
    column = 0
    for where, offset, size in table.documents(row):
      for k in range(size):
        found.setdefault(where, {})[offset + k] = int(table[row]["tokens"][column + k])
      column += size
  return [BYTES.decode([t for _, t in sorted(tokens.items())]) for tokens in found.values()]


@pytest.fixture
def web(tmp_path):
  texts = [f"document {i % 45} of the web, no more" for i in range(50)]  # five twice
  return texts, {"web": DomainFiles((write_jsonl(tmp_path / "web.jsonl", texts),))}


def test_holds_out_documents_by_content(tmp_path, web):
  texts, domains = web
  domain = prepare(domains, BYTES, 16, 0.2, tmp_path / "cache")["web"]
  train, validation = texts_of(domain.train), texts_of(domain.validation)
  assert sorted(train + validation) == sorted(texts)
  assert not {*train} & {*validation}
  assert len({*validation}) == 9  # a fifth of 45
  # Neither the order of the documents nor their file matters; the seed does.
  shuffled = {"web": DomainFiles((write_jsonl(tmp_path / "b.jsonl", texts[::-1]),))}
  for domains, seed, same in ((shuffled, 0, True), (shuffled, 1, False)):
    other = prepare(domains, BYTES, 16, 0.2, tmp_path / "cache", seed=seed)["web"]
    assert ({*texts_of(other.validation)} == {*validation}) is same


def test_validation_files_take_the_place_of_the_split(tmp_path, web):
  texts, domains = web
  held_out = write_jsonl(tmp_path / "val.jsonl", ["held", "out"])
  domains = {"web": domains["web"]._replace(validation=(held_out,))}
  domain = prepare(domains, BYTES, 16, 0.2, tmp_path / "cache")["web"]
  assert (texts_of(domain.train), texts_of(domain.validation)) == (texts, ["held", "out"])


def test_no_validation_where_nothing_is_held_out(tmp_path, web):
  texts, domains = web
  domain = prepare(domains, BYTES, 16, 0.0, tmp_path / "cache")["web"]
  assert domain.validation is None
  assert texts_of(domain.train) == texts


def test_no_row_crosses_a_domain(tmp_path):
  domains = {
    name: DomainFiles((write_jsonl(tmp_path / f"{name}.jsonl", [name * 5] * 3),))
    for name in ("ba", "ab")
  }
  prepared = prepare(domains, BYTES, 7, 0.0, tmp_path / "cache")
  assert list(prepared) == ["ba", "ab"]
  for name, domain in prepared.items():
    assert isinstance(domain, Domain)
    assert domain.name == name
    assert texts_of(domain.train) == [name * 5] * 3


def test_cache_is_used_while_nothing_changes(tmp_path, web, monkeypatch):
  texts, domains = web
  cache = tmp_path / "cache"

  def folders():
    return {*os.listdir(cache)}

  def call(tokenizer=BYTES, length=16, fraction=0.2, **options):
    return prepare(domains, tokenizer, length, fraction, cache, **options)

  first = call()["web"]
  assert len(folders()) == 1
  monkeypatch.setattr(pack, "read_documents", None)  # a second read would fail
  again = call()["web"]
  assert again.train.fingerprint == first.train.fingerprint
  monkeypatch.undo()
  changes = [
    lambda: call(tokenizer=BOS._replace(fingerprint="bos")),
    lambda: call(length=8),
    lambda: call(fraction=0.1),
    lambda: call(seed=3),
    lambda: call(on_bad_record="quarantine", quarantine=tmp_path / "bad.jsonl"),
    lambda: (write_jsonl(tmp_path / "web.jsonl", [*texts[:-1], "D" + texts[-1][1:]]), call()),
  ]
  for number, change in enumerate(changes, start=2):
    change()
    assert len(folders()) == number


def test_interrupted_build_is_never_used(tmp_path, web):
  texts, domains = web
  cache = tmp_path / "cache"

  def dies(batch):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    prepare(domains, BYTES._replace(encode_batch=dies), 16, 0.2, cache)
  assert not os.listdir(cache)
  program = """
import os, sys
from jdc.data.pack import prepare
from jdc.data.sources import DomainFiles
from jdc.data.tokenize import byte_tokenizer
dies = byte_tokenizer()._replace(encode_batch=lambda texts: os._exit(9))
prepare({"web": DomainFiles((sys.argv[1],))}, dies, 16, 0.2, sys.argv[2])
"""
  ran = subprocess.run(
    [sys.executable, "-c", program, tmp_path / "web.jsonl", cache],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
  )
  assert ran.returncode == 9
  assert [name.startswith(".building-web-") for name in os.listdir(cache)] == [True]
  domain = prepare(domains, BYTES, 16, 0.2, cache)["web"]
  assert sorted(texts_of(domain.train) + texts_of(domain.validation)) == sorted(texts)


def test_builders_at_once_are_both_right(tmp_path, web, monkeypatch):
  """Another process finishes while this one builds."""
  texts, domains = web
  cache = tmp_path / "cache"

  def overtaken(batch):
    if not (cache / "done").exists():
      (cache / "done").touch()
      prepare(domains, BYTES, 16, 0.0, cache)
    return BYTES.encode_batch(batch)

  domain = prepare(domains, BYTES._replace(encode_batch=overtaken), 16, 0.0, cache)["web"]
  assert texts_of(domain.train) == texts
  assert len(os.listdir(cache)) == 2  # the mark and one folder


def test_quarantine_is_the_same_from_the_cache(tmp_path):
  bad = tmp_path / "bad.jsonl"
  domains = {}
  for name in ("a", "b"):
    (tmp_path / f"{name}.jsonl").write_text('{"text": "x y z"}\nno\n{"text": "uvw"}\n{}\n')
    domains[name] = DomainFiles((tmp_path / f"{name}.jsonl",))
  for _ in range(2):
    prepared = prepare(
      domains, BYTES, 4, 0.5, tmp_path / "cache", on_bad_record="quarantine", quarantine=bad
    )
    assert [domain.num_bad_records for domain in prepared.values()] == [2, 2]
    wheres = [json.loads(line)["where"] for line in bad.read_text().splitlines()]
    assert wheres == [f"{tmp_path}/{name}.jsonl:{line}" for name in "ab" for line in (2, 4)]
    bad.unlink()


def test_text_without_tokens_is_a_bad_record(tmp_path):
  def encode_batch(texts):
    return [BYTES.encode(text.strip()) for text in texts]

  tokenizer, bad = BYTES._replace(encode_batch=encode_batch), tmp_path / "bad.jsonl"
  domains = {"a": DomainFiles((write_jsonl(tmp_path / "a.jsonl", ["x", "  ", "y"]),))}
  with pytest.raises(ValueError, match=r"domain 'a': .*a.jsonl:2: .*no tokens"):
    prepare(domains, tokenizer, 4, 0.0, tmp_path / "cache")
  domain = prepare(
    domains, tokenizer, 4, 0.0, tmp_path / "c", on_bad_record="quarantine", quarantine=bad
  )["a"]
  assert (domain.num_bad_records, domain.train.num_documents) == (1, 2)
  assert json.loads(bad.read_text())["raw"] == "  "


def test_errors_of_all_domains_come_together(tmp_path):
  domains = {
    "few": DomainFiles((write_jsonl(tmp_path / "few.jsonl", ["one", "two", "two"]),)),
    "broken": DomainFiles((tmp_path / "broken.jsonl",)),
    "gone": DomainFiles((tmp_path / "gone.jsonl",)),
    "blank": DomainFiles((tmp_path / "blank.jsonl",)),
    "good": DomainFiles((write_jsonl(tmp_path / "good.jsonl", map(str, range(50))),)),
  }
  (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
  (tmp_path / "blank.jsonl").write_text("\n")
  with pytest.raises(ValueError) as error:
    prepare(domains, BYTES, 4, 0.1, tmp_path / "cache")
  problems = str(error.value).splitlines()
  for problem, parts in zip(
    problems,
    (
      ["'few'", "too few documents", "validation_fraction 0.1 holds out 0 of 2"],
      ["'broken'", "broken.jsonl:2", "'text' is absent", "['txt']"],
      ["'gone'", "gone.jsonl: no such file"],
      ["'blank'", "too few documents", "0 of 0"],
    ),
    strict=True,
  ):
    assert all(part in problem for part in parts)
  only_blank = {"blank": domains["blank"]}
  with pytest.raises(ValueError, match="'blank': train: no target tokens in 0 documents"):
    prepare(only_blank, BYTES, 4, 0.0, tmp_path / "cache")


def test_wrong_options_come_together(tmp_path):
  with pytest.raises(ValueError) as error:
    prepare({"a/b": DomainFiles(())}, BYTES, 0, 1.0, tmp_path, on_bad_record="skip")
  for part in ("'a/b'", "sequence_length", "validation_fraction", "got 1.0", "'skip'"):
    assert part in str(error.value)
  with pytest.raises(ValueError, match="at least one domain"):
    prepare({}, BYTES, 4, 0.1, tmp_path)
  with pytest.raises(ValueError, match="needs a quarantine file"):
    prepare({"a": DomainFiles(())}, BYTES, 4, 0.1, tmp_path, on_bad_record="quarantine")


def test_full_disk_leaves_nothing_behind(tmp_path, web, monkeypatch):
  _, domains = web

  def full(*args):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("jdc.data.rows.os.fsync", full)
  with pytest.raises(OSError, match="No space left"):
    prepare(domains, BYTES, 16, 0.2, tmp_path / "cache")
  assert not os.listdir(tmp_path / "cache")


@pytest.mark.skipif(
  not CORPUS.is_dir(), reason=f"no sample data at {CORPUS}; set JDC_TEST_DATA"
)
def test_packs_the_sample_corpus(tmp_path):
  domains = find_domains(CORPUS)
  domains = {name: domains[name] for name in ("math", "books")}
  prepared = prepare(domains, BYTES, 256, 0.05, tmp_path)
  assert prepared["math"].train.num_target_bytes == 2_850_050  # as the README beside it says
  assert prepared["books"].validation.num_target_bytes == 418_182
  assert prepared["books"].train.num_documents == 89
