"""From documents to token shards to a run, and from its examples back to the raw files."""

import dataclasses
import gzip
import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from jdc import metrics
from jdc.data import token_shards, tokenize
from jdc.train import command, pretrained
from jdc.train import config as config_lib
from jdc.train.config import LoggingConfig, MeshConfig

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("numba")  # of the extra `prep`

from jdc.prep.sinks.tokens import TokenOptions, tokenize_pack  # noqa: E402

CONFIG = Path(__file__).parents[2] / "configs/pretrain_mixture.py"
WORDS = {"fruit": ["apple", "pear", "fig", "quince"], "metal": ["iron", "tin", "zinc", "gold"]}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
  """Raw files, and Parquet files of their documents as a pipeline leaves them."""
  folder, rng = tmp_path_factory.mktemp("raw"), np.random.default_rng(0)
  inputs = []
  for name, words in WORDS.items():
    texts = [" ".join(rng.choice(words, rng.integers(3, 40))) for _ in range(80)]
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in texts]
    with gzip.open(folder / f"{name}.jsonl.gz", "wb") as file:
      file.writelines(lines)
    starts = np.cumsum([0, *map(len, lines)])[:-1]
    source = f"{name}.jsonl.gz"
    ids = [hashlib.blake2b(f"{source}\0{s}".encode(), digest_size=16).digest() for s in starts]
    for i in range(2):  # two shards a domain
      here = slice(40 * i, 40 * i + 40)
      table = pa.table(
        {
          "doc_id": pa.array(ids[here], pa.binary(16)),
          "source": [source] * 40,
          "offset": pa.array(starts[here], pa.int64()),
          "domain": [name] * 40,
          "text": texts[here],
          "fields": ["{}"] * 40,
        }
      )
      inputs.append(folder / f"{name}-{i}.parquet")
      pq.write_table(table, inputs[-1])
  return folder, inputs


def tiny_config(data, **changes):
  """What `--config=configs/pretrain_mixture.py:tiny --config.data=FOLDER` is."""
  spec = importlib.util.spec_from_file_location("pretrain_mixture", CONFIG)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  made: ConfigDict = module.get_config("tiny")
  made.data = str(data)
  config = config_lib.from_config_dict(made)
  logging = LoggingConfig(tensorboard=False)
  fields = {"num_steps": 6, "mesh": MeshConfig(data=8), "logging": logging, **changes}
  return dataclasses.replace(config, **fields)


@pytest.fixture(scope="module")
def shards(raw, tmp_path_factory):
  """The same token shards in both formats; the folder of the raw files."""
  folder = tmp_path_factory.mktemp("shards")
  for kind in ("array_record", "parquet"):
    options = TokenOptions("bytes", seq_len=64, format=kind, validation_fraction=0.2)
    tokenize_pack(raw[1], folder / kind, options)
  return folder


@pytest.fixture(scope="module")
def runs(shards, tmp_path_factory):
  """A run on each format."""
  folder = tmp_path_factory.mktemp("runs")
  for kind in ("array_record", "parquet"):
    command.train(tiny_config(shards / kind), str(folder / kind))
  return folder


def test_examples_lead_back_to_the_raw_files(runs, shards, raw):
  ids = metrics.read_example_ids(runs / "array_record")
  assert ids.shape == (6, 8)
  domains = token_shards.open_folder(shards / "array_record")
  decode = tokenize.byte_tokenizer().decode
  for example in ids.ravel().tolist():
    domain, row, pieces = token_shards.trace(domains, example)
    tokens, _ = domains[domain].train.rows([row])
    end = 0
    for piece in pieces:
      with gzip.open(raw[0] / piece.source) as file:
        file.seek(piece.source_offset)
        text = json.loads(file.readline())["text"]
      held = tokens[0, end : end + piece.length]
      end += piece.length
      start = max(piece.offset - 1, 0)  # the first token is BOS
      assert decode(held)
      assert text.encode()[start:].startswith(decode(held).encode())
      name = f"{piece.source}\0{piece.source_offset}".encode()
      assert piece.doc_id == hashlib.blake2b(name, digest_size=16).hexdigest()
    assert domains[domain].train.where(row) == "; ".join(piece.where for piece in pieces)
  with pytest.raises(IndexError, match="example ids must be in"):
    token_shards.trace(domains, 10**6)


def test_both_formats_train_the_same(runs, shards):
  tables = [token_shards.open_folder(shards / kind) for kind in ("array_record", "parquet")]
  for left, right in zip(*(domains.values() for domains in tables), strict=True):
    for split, table in left.splits.items():
      every = np.arange(len(table))
      for a, b in zip(table.rows(every), right.splits[split].rows(every), strict=True):
        assert a.tobytes() == b.tobytes()
  for file in ("metrics.jsonl", "example_ids.i32"):
    assert (runs / "array_record" / file).read_bytes() == (runs / "parquet" / file).read_bytes()


def test_a_mismatch_is_an_error_before_compilation(shards, tmp_path):
  config = tiny_config(shards / "parquet", sequence_length=32)
  with pytest.raises(ValueError, match="rows are for sequence_length=64, the run has 32"):
    command.train(config, str(tmp_path / "a"))
  small = dataclasses.replace(config.model, vocab_size=200)
  config = tiny_config(shards / "parquet", model=small)
  with pytest.raises(
    ValueError, match="tokenizer has 258 tokens, the model's vocab_size is 200"
  ):
    command.train(config, str(tmp_path / "b"))
  corpus = dataclasses.replace(
    config.corpus,
    validation_fraction=0.5,
    format="auto",
    tokenizer=str(tmp_path / "other.json"),
  )
  with pytest.raises(ValueError) as error:
    command.train(tiny_config(shards / "parquet", corpus=corpus), str(tmp_path / "c"))
  for part in (
    "corpus.format='auto' is not that of token shards",
    "corpus.validation_fraction=0.5 is not read",
    "is not 'bytes', the tokenizer of the shards",
  ):
    assert part in str(error.value)


def test_the_tokenizer_of_the_shards_is_that_of_the_run(raw, base_folder, tmp_path):
  options = TokenOptions(str(base_folder), seq_len=64, validation_fraction=0.2)
  tokenize_pack(raw[1], tmp_path / "shards", options)
  config = tiny_config(tmp_path / "shards")
  with pytest.raises(ValueError, match="the model's vocab_size is 258"):
    command.train(config, str(tmp_path / "run"))
  model = dataclasses.replace(config.model, vocab_size=300)
  command.train(dataclasses.replace(config, model=model), str(tmp_path / "run"))
  found = pretrained.corpus_of(tmp_path / "run")
  assert found.tokenizer == str(tmp_path / "shards/tokenizer.json")
  assert found.eos_token == "<|im_end|>"
  # A run may name it too, but no other one.
  named = dataclasses.replace(config.corpus, tokenizer=str(base_folder))
  command.build_run(
    dataclasses.replace(config, model=model, corpus=named), str(tmp_path / "named")
  )


def test_shards_that_are_not_finished_are_refused(shards, tmp_path):
  import shutil

  shutil.copytree(shards / "parquet", tmp_path / "shards")
  (tmp_path / "shards/tokens.json").unlink()
  with pytest.raises(ValueError, match="whose preparation has not ended"):
    command.train(tiny_config(tmp_path / "shards"), str(tmp_path / "run"))
