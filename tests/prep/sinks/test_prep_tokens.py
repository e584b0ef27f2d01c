"""Token shards: every token in its place, the same files however they are made, errors."""

import hashlib
import itertools
import json
import pickle
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jdc.data import token_index, token_manifest, token_shards, tokenize
from jdc.data.batch import inputs_and_targets
from jdc.prep.sinks import arrayrecord, token_documents, token_writer, tokens
from jdc.prep.sinks.tokens import TokenOptions, pack_shard, tokenize_pack, write_manifest

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def batch_of(texts, domain="web", source="raw/a.jsonl", start=0):
  domains = [domain] * len(texts) if isinstance(domain, str) else domain
  places = [start + 100 * i for i in range(len(texts))]
  ids = [hashlib.blake2b(f"{source}{o}".encode(), digest_size=16).digest() for o in places]
  return pa.record_batch(
    {
      "doc_id": pa.array(ids, pa.binary(16)),
      "source": pa.array([source] * len(texts)),
      "offset": pa.array(places, pa.int64()),
      "domain": pa.array(domains),
      "text": pa.array(texts),
      "fields": pa.array(["{}"] * len(texts)),
    }
  )


def options(**changes):
  fields = {"tokenizer": "bytes", "seq_len": 16, "validation_fraction": 0.0, **changes}
  return TokenOptions(**fields)


def write(folder, batches, chosen, name="part-00000"):
  shard = pack_shard(batches, name, folder, chosen)
  write_manifest(folder, [shard], chosen)
  return token_shards.open_folder(folder)


def files_of(folder):
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }


def words(num, seed=0, low=1, high=60):
  rng = np.random.default_rng(seed)
  return [
    " ".join(f"w{x}" for x in rng.integers(0, 99, rng.integers(low, high))) for _ in range(num)
  ]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
  """A folder with a small tokenizer that names its boundary tokens."""
  made = tokenizers.Tokenizer(tokenizers.models.BPE())
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=400,
    special_tokens=["<s>", "</s>"],
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  made.train_from_iterator(words(200), trainer)
  folder = tmp_path_factory.mktemp("bpe")
  made.save(str(folder / "tokenizer.json"))
  (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
  return folder


def assert_holds(table, texts, tokenizer, packing):
  """Every document whole and in order, its bytes on the tokens that are predicted."""
  length = table.sequence_length
  all_tokens, all_segments = table.rows(np.arange(len(table)))
  inputs = inputs_and_targets(all_tokens, all_segments)
  np.testing.assert_array_equal(inputs.mask.sum(axis=1), table.num_targets)
  found, num_bytes = {}, 0
  for row in range(len(table)):
    end = 0
    for segment, piece in enumerate(table.documents(row), start=1):
      here = slice(end, end + piece.length)
      assert (all_segments[row, here] == segment).all()
      held = found.setdefault(piece.source_offset // 100, [])
      held.append((piece.offset, all_tokens[row, here].tolist()))
      end += piece.length
    assert not all_tokens[row, end:].any()
    assert not all_segments[row, end:].any()
    assert packing != "none" or segment == 1
  for document, text in enumerate(texts):
    ((ids, byte_starts),) = tokenizer.mark_batch([text])
    if not len(ids):
      assert document not in found
      continue
    before = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    after = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    pieces = sorted(found[document])
    joined = pieces[0][1] + [token for _, piece in pieces[1:] for token in piece[1:]]
    assert joined == [*before, *ids.tolist(), *after]
    assert [offset for offset, _ in pieces] == [length * k for k in range(len(pieces))]
    first = 0 if before else [*byte_starts(range(len(ids))), len(text.encode())][1]
    num_bytes += len(text.encode()) - first
  assert table.num_bytes.sum() == table.num_target_bytes == num_bytes


@settings(
  deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
  st.lists(TEXT, min_size=1, max_size=12).filter(any),
  st.integers(1, 30),
  st.sampled_from(["best-fit", "none"]),
  st.sampled_from(["array_record", "parquet"]),
  st.booleans(),
)
def test_holds_every_token(tmp_path_factory, bpe, texts, length, pack, kind, eos):
  for named in ("bytes", str(bpe)):
    chosen = options(tokenizer=named, seq_len=length, pack=pack, format=kind, eos=eos)
    folder = tmp_path_factory.mktemp("shards")
    table = write(folder, [batch_of(texts)], chosen)["web"].train
    assert_holds(table, texts, tokens.open_tokenizer(chosen).tokenizer, pack)


def test_holds_every_token_of_several_windows(tmp_path, monkeypatch):
  monkeypatch.setattr(token_writer, "_WINDOW_TOKENS", 500)
  monkeypatch.setattr(token_writer, "_WINDOW_ROWS", 1)
  texts = words(60)
  for kind in ("array_record", "parquet"):
    table = write(tmp_path / kind, [batch_of(texts)], options(format=kind))["web"].train
    assert_holds(table, texts, tokenize.byte_tokenizer(), "best-fit")


def test_a_tokenizer_that_changes_is_opened_again(tmp_path, bpe):
  folder = tmp_path / "bpe"
  shutil.copytree(bpe, folder)
  chosen = options(tokenizer=str(folder))
  first = pack_shard([batch_of(["a"])], "a", tmp_path, chosen)
  (folder / "tokenizer_config.json").write_text('{"eos_token": "<s>"}')
  second = pack_shard([batch_of(["a"])], "b", tmp_path, chosen)
  (one,), (two,) = (list(s.files["web"].values()) for s in (first, second))
  assert one.fingerprint != two.fingerprint


def test_bytes_are_those_of_the_predicted_tokens(tmp_path, bpe):
  texts = [*words(30, high=80), "naïve café — " * 20, "日本語のテキスト" * 10]
  chosen = options(tokenizer=str(bpe), seq_len=7)
  table = write(tmp_path, [batch_of(texts)], chosen)["web"].train
  made = tokenizers.Tokenizer.from_file(str(bpe / "tokenizer.json"))
  for row in range(len(table)):
    expected, (held, segments) = 0, table.rows([row])
    predicted = inputs_and_targets(held, segments).mask[0]
    for token in held[0, 1:][predicted].tolist():
      # A letter stands for a byte; "</s>" for none.
      expected += 0 if token == 1 else len(made.id_to_token(token))
    assert table.num_bytes[row] == expected


@pytest.mark.parametrize("kind", ["array_record", "parquet"])
def test_the_same_files_for_any_batches_and_workers(tmp_path, monkeypatch, kind):
  monkeypatch.setattr(token_writer, "_WINDOW_TOKENS", 3000)  # several windows a shard
  monkeypatch.setattr(token_writer, "_WINDOW_ROWS", 1)
  texts = words(120)
  domains = ["web" if i % 3 else "code" for i in range(120)]
  chosen = options(format=kind, validation_fraction=0.2)
  one, many = tmp_path / "one", tmp_path / "many"
  write(one, [batch_of(texts, domains)], chosen)
  whole = batch_of(texts, domains)
  write(many, [whole.slice(i, 7) for i in range(0, 120, 7)], chosen)
  assert files_of(one) == files_of(many)
  assert len(files_of(one)) == 9  # a file and its index for two domains of two splits


def test_the_same_files_for_any_number_of_processes(tmp_path):
  inputs = []
  for i in range(3):
    inputs.append(tmp_path / f"doc-{i}.parquet")
    table = pa.Table.from_batches([batch_of(words(40, i), source=f"raw/{i}.jsonl")])
    pq.write_table(table, inputs[-1], row_group_size=9)
  chosen = options(validation_fraction=0.2)
  tokenize_pack(inputs, tmp_path / "one", chosen)
  tokenize_pack(inputs, tmp_path / "two", chosen, workers=2)
  assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
  table = token_shards.open_folder(tmp_path / "one")["web"].train
  assert table.num_documents > 80
  assert table.documents(len(table) - 1)[0].source == "raw/2.jsonl"


def test_both_formats_hold_the_same(tmp_path):
  texts = words(200)
  tables = []
  for kind in ("array_record", "parquet"):
    folder = tmp_path / kind
    tables.append(write(folder, [batch_of(texts)], options(format=kind))["web"].train)
  records, parquet = tables
  ids = np.random.default_rng(0).integers(0, len(records), 50)
  for left, right in zip(records.rows(ids), parquet.rows(ids), strict=True):
    np.testing.assert_array_equal(left, right)
  assert records.fingerprint == parquet.fingerprint
  assert [records.where(row) for row in range(5)] == [parquet.where(row) for row in range(5)]
  (file,) = (tmp_path / "parquet/web").glob("*.parquet")
  row = pq.read_table(file).slice(3, 1).to_pylist()[0]
  pieces = parquet.documents(3)
  assert [doc_id.hex() for doc_id in row["doc_ids"]] == [piece.doc_id for piece in pieces]
  assert row["doc_offsets"] == [piece.offset for piece in pieces]
  assert row["doc_lengths"] == [piece.length for piece in pieces]
  np.testing.assert_array_equal(row["tokens"], parquet.rows([3])[0][0][: len(row["tokens"])])


def test_rows_are_read_after_a_pickle(tmp_path):
  table = write(tmp_path, [batch_of(words(50))], options())["web"].train
  again = pickle.loads(pickle.dumps(table))
  np.testing.assert_array_equal(again.rows([4, 2, 4])[0], table.rows([4, 2, 4])[0])
  np.testing.assert_array_equal(again[2]["segments"], table.rows([2])[1][0])
  with pytest.raises(IndexError, match=r"rows must be in \[0"):
    table.rows([len(table)])


def test_without_packing_rows_have_lengths(tmp_path):
  texts = words(20)
  table = write(tmp_path, [batch_of(texts)], options(pack="none"))["web"].train
  lengths = [sum(piece.length for piece in table.documents(row)) for row in range(len(table))]
  assert table.lengths.tolist() == lengths
  packed = write(tmp_path / "b", [batch_of(texts)], options())["web"].train
  assert not hasattr(packed, "lengths")


def test_splits_are_by_text_and_disjoint(tmp_path):
  texts = [*words(300), *words(300)]
  chosen = options(validation_fraction=0.2, target_fraction=0.1, seed=3)
  domain = write(tmp_path, [batch_of(texts)], chosen)["web"]
  sides = {}
  for split, table in domain.splits.items():
    for row in range(len(table)):
      for piece in table.documents(row):
        sides.setdefault(texts[piece.source_offset // 100], set()).add(split)
  assert {len(side) for side in sides.values()} == {1}
  count = {split: sum(side == {split} for side in sides.values()) for split in domain.splits}
  assert abs(count["validation"] / len(sides) - 0.2) < 0.08
  assert abs(count["target"] / len(sides) - 0.1) < 0.06
  more = write(tmp_path / "b", [batch_of(texts)], options(validation_fraction=0.2, seed=3))
  assert more["web"].validation.fingerprint == domain.validation.fingerprint


def test_input_files_can_name_their_split(tmp_path):
  for i, name in enumerate(("a", "a.val", "a.target")):
    table = pa.Table.from_batches([batch_of(words(9, i))])
    pq.write_table(table, tmp_path / f"{name}.parquet")
  inputs = [tmp_path / f"{name}.parquet" for name in ("a", "a.val", "a.target")]
  tokenize_pack(inputs, tmp_path / "out", options(validation_fraction=0.3))
  domain = token_shards.open_folder(tmp_path / "out")["web"]
  assert domain.target.num_documents == 9
  assert domain.validation.num_documents > 9  # and those held out of the first
  pq.write_table(pa.table({"text": ["a"]}), tmp_path / "b.parquet")
  with pytest.raises(ValueError, match=r"b\.parquet: no column doc_id, source, offset; has"):
    tokenize_pack([tmp_path / "b.parquet"], tmp_path / "out", options())


def test_documents_without_tokens_are_reported(tmp_path):
  batch = batch_of(["a", "", "b"])
  shard = pack_shard([batch], "part-00000", tmp_path, options())
  assert shard.without_tokens == [batch["doc_id"][1].as_py().hex()]
  assert shard.files["web"]["train"].num_documents == 2
  empty = pack_shard([batch_of([""])], "part-00001", tmp_path, options())
  assert not empty.files
  with pytest.raises(ValueError, match="no document of 1 shards has tokens"):
    write_manifest(tmp_path / "none", [empty], options())


def test_long_texts_are_tokenized_in_parts(tmp_path, bpe, monkeypatch):
  monkeypatch.setattr(token_documents, "_PART_CHARS", 100)
  monkeypatch.setattr(token_documents, "_BATCH_BYTES", 50)
  texts = [" ".join(words(3, 1, 30, 40)), "\n".join(words(5, 2, 10, 20)), "x" * 250, "short"]
  for part in map(token_documents.cut_text, texts):
    assert max(map(len, part)) <= 100
  assert token_documents.cut_text(texts[1])[0].endswith("\n")
  chosen = options(tokenizer=str(bpe), seq_len=9)
  table = write(tmp_path, [batch_of(texts)], chosen)["web"].train
  tokenizer = tokens.open_tokenizer(chosen).tokenizer
  found = {}
  for row in range(len(table)):
    (held, _), end = table.rows([row]), 0
    for piece in table.documents(row):
      ids = held[0, end : end + piece.length].tolist()
      found.setdefault(piece.source_offset // 100, []).append((piece.offset, ids))
      end += piece.length
  for document, text in enumerate(texts):
    pieces = [ids for _, ids in sorted(found[document])]
    joined = pieces[0] + [token for ids in pieces[1:] for token in ids[1:]]
    parts = [tokenizer.encode(part)[0].tolist() for part in token_documents.cut_text(text)]
    assert joined == [*itertools.chain(*parts), tokenizer.eos_id]
    assert tokenizer.decode(joined) == text
  first = sum(len(tokenizer.decode([found[d][0][1][0]]).encode()) for d in found)
  assert table.num_target_bytes == sum(len(text.encode()) for text in texts) - first


def test_the_type_of_tokens_follows_from_the_vocabulary(bpe):
  assert tokens.open_tokenizer(options()).layout.dtype == np.uint16
  assert tokens.open_tokenizer(options(dtype="uint32")).layout.dtype == np.uint32
  for size, dtype in ((1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)):
    made = tokenize.byte_tokenizer()._replace(vocab_size=size)
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(tokenize, "byte_tokenizer", lambda made=made: made)
      assert tokens.open_tokenizer(options()).layout.dtype == dtype
      if size > 1 << 16:
        with pytest.raises(ValueError, match="holds 65,536 tokens, the tokenizer has 65,537"):
          tokens.open_tokenizer(options(dtype="uint16"))


def test_options_that_are_wrong_are_listed():
  with pytest.raises(ValueError) as error:
    options(
      pack="first-fit", dtype="int32", format="csv", seq_len=0, seed=-1, eos=False,
      eos_token="</s>", validation_fraction=0.6, target_fraction=0.5,
    )  # fmt: skip
  for part in (
    "pack must be one of best-fit, none, got 'first-fit'",
    "dtype must be one of auto, uint16, uint32, got 'int32'",
    "format must be one of array_record, parquet, got 'csv'",
    "seq_len must be in [1, 16777216), got 0",
    "seed must be in [0, 2^64), got -1",
    "eos_token='</s>' needs eos=true",
    "validation_fraction + target_fraction must be below 1, got 1.1",
    "bos_token and eos_token are for tokenizer files",
  ):
    assert part in str(error.value)


def test_tokenizers_that_cannot_be_used(tmp_path, bpe):
  alone = tmp_path / "tokenizer.json"
  alone.write_bytes((bpe / "tokenizer.json").read_bytes())
  with pytest.raises(ValueError, match="eos=true needs eos_token"):
    tokens.open_tokenizer(options(tokenizer=str(alone)))
  assert tokens.open_tokenizer(options(tokenizer=str(alone), eos=False)).info.eos_id is None
  named = tokens.open_tokenizer(options(tokenizer=str(alone), eos_token="</s>"))
  assert (named.info.eos_token, named.info.eos_id) == ("</s>", 1)
  with pytest.raises(ValueError, match="no such tokenizer file"):
    tokens.open_tokenizer(options(tokenizer=str(tmp_path / "none.json")))
  with pytest.raises(ValueError, match=r"domain '\.\./x' must match"):
    pack_shard([batch_of(["a"], "../x")], "part", tmp_path, options())


class TestDamage:
  @pytest.fixture(params=["array_record", "parquet"])
  def folder(self, request, tmp_path):
    write(tmp_path, [batch_of(words(60))], options(format=request.param))
    return tmp_path

  def shard(self, folder):
    return next(path for path in (folder / "web").iterdir() if "index" not in path.name)

  def test_files_that_are_not_listed_are_not_read(self, folder):
    before = token_shards.open_folder(folder)["web"].train.fingerprint
    (folder / "web/part-00001-00000000.train.array_record").write_bytes(b"half")
    (folder / "web/.part-00002.train.tmp").write_bytes(b"half")
    assert token_shards.open_folder(folder)["web"].train.fingerprint == before
    assert token_shards.verify(folder) == []

  def test_other_sizes_are_noticed(self, folder):
    shard = self.shard(folder)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ValueError, match="bytes instead of"):
      token_shards.open_folder(folder)
    next((folder / "web").glob("*.index.*")).unlink()
    with pytest.raises(ValueError, match=r"index\.safetensors: 0 bytes instead of"):
      token_shards.open_folder(folder)

  def test_other_content_is_found(self, folder):
    shard = self.shard(folder)
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 255
    shard.write_bytes(content)
    assert token_shards.verify(folder) == [str(shard)]

  def test_without_a_manifest_it_has_not_ended(self, folder):
    (folder / "tokens.json").unlink()
    with pytest.raises(ValueError, match=r"without tokens\.json, whose preparation has not"):
      token_manifest.is_folder(folder)
    assert not token_manifest.is_folder(folder / "web")

  def test_a_manifest_that_is_none(self, folder):
    path = folder / "tokens.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format_version": 9}))
    with pytest.raises(ValueError, match="format_version 9; accepted: 1"):
      token_shards.open_folder(folder)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"tokens\.json: not the manifest of token shards"):
      token_shards.open_folder(folder)
    del content["domains"]["web"]["train"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="domain 'web' has no rows to train on"):
      token_shards.open_folder(folder)

  def test_an_index_that_is_none(self, folder):
    index = next((folder / "web").glob("*.index.*"))
    index.write_bytes(b"x" * index.stat().st_size)
    with pytest.raises(ValueError, match="not the index of a token shard"):
      token_shards.open_folder(folder)


def test_an_index_is_a_safetensors_file(tmp_path):
  safetensors = pytest.importorskip("safetensors.numpy")
  write(tmp_path, [batch_of(words(30))], options())
  path = next((tmp_path / "web").glob("*.index.*"))
  arrays, index = safetensors.load_file(path), token_index.read(path)
  assert arrays.keys() == set(index._fields) - {"sources"}
  for name, array in arrays.items():
    np.testing.assert_array_equal(array, getattr(index, name))
    assert array.dtype == getattr(index, name).dtype


def test_without_array_record_the_error_says_what_to_install(tmp_path, monkeypatch):
  write(tmp_path, [batch_of(["a"])], options())
  monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
  with pytest.raises(ImportError, match=r"pip install jdc\[prep\]"):
    write(tmp_path / "b", [batch_of(["a"])], options())
  with pytest.raises(ImportError, match=r"pip install jdc\[prep\]"):
    token_shards.open_folder(tmp_path)["web"].train.rows([0])
  write(tmp_path / "c", [batch_of(["a"])], options(format="parquet"))


def test_a_disk_that_is_full_leaves_no_file(tmp_path, monkeypatch):
  monkeypatch.setattr(
    arrayrecord.RecordFile, "close", lambda self: (_ for _ in ()).throw(OSError(28, "full"))
  )
  with pytest.raises(OSError, match="full"):
    pack_shard([batch_of(words(9))], "part-00000", tmp_path, options())
  assert files_of(tmp_path) == {}


KILLED = """
import sys
from pathlib import Path
import pyarrow as pa
from jdc.prep.sinks import token_writer
from jdc.prep.sinks.tokens import COLUMNS, TokenOptions, pack_shard
token_writer._WINDOW_TOKENS = 1000
folder = Path(sys.argv[1])
def batches():
  for i in range(10**6):
    rows = [[bytes(16)], ["a"], pa.array([i], pa.int64()), ["web"], ["text " * 400]]
    yield pa.record_batch(dict(zip(COLUMNS, rows)))
    if i == 5:
      (folder / "started").touch()
pack_shard(batches(), "part-00001", folder, TokenOptions("bytes", 16, validation_fraction=0))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_kill_leaves_nothing_that_is_read(tmp_path):
  write(tmp_path, [batch_of(words(50))], options())
  before = files_of(tmp_path)
  process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
  limit = time.monotonic() + 60
  while not (tmp_path / "started").exists() and time.monotonic() < limit:
    time.sleep(0.02)
  time.sleep(0.2)
  process.kill()
  process.wait()
  (tmp_path / "started").unlink()
  after = files_of(tmp_path)
  assert after.keys() - before.keys() == {"web/.part-00001.train.tmp"}
  assert {name: after[name] for name in before} == before
  assert len(token_shards.open_folder(tmp_path)["web"].train) > 0


def test_documents_as_array_record(tmp_path):
  from jdc.data.sources import read_documents

  batch = batch_of(["né", "b"])
  assert arrayrecord.write_arrayrecord([batch], tmp_path / "a.array_record") == 2
  found = list(read_documents([tmp_path / "a.array_record"]))
  assert [document.text for document in found] == ["né", "b"]
  assert [path.name for path in tmp_path.iterdir()] == ["a.array_record"]
