"""Tests of the quickstart corpus: domains that differ, disjoint splits, determinism."""

import ast
import email.message
import gzip
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tokenize
import types
from collections import Counter

import pytest

from jdc.data import quickstart
from jdc.data.quickstart import write_corpus
from jdc.data.sources import find_domains, read_documents

NAMES = ["docstrings", "licences", "python", "readmes", "reference"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  folder = tmp_path_factory.mktemp("quickstart") / "corpus"
  write_corpus(folder)
  return folder


@pytest.fixture
def few_modules(monkeypatch):
  """Leaves most of the standard library out, to be quick."""
  monkeypatch.setattr(quickstart, "_MODULE_BYTES", (3_000, 4_500))


def records(path):
  with gzip.open(path, "rt", encoding="utf-8") as file:
    return [json.loads(line) for line in file]


def files_in(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_is_a_folder_of_domains(corpus):
  domains = find_domains(corpus)
  assert list(domains) == NAMES
  for files in domains.values():
    assert not files.target
    for split in (files.train, files.validation):
      assert list(read_documents(split))
  assert sorted(files_in(corpus)) == sorted(
    f"{name}.{split}.jsonl.gz" for name in NAMES for split in ("train", "val")
  )


def test_size(corpus):
  sizes = {
    path.name: sum(len(record["text"].encode()) for record in records(path))
    for path in corpus.iterdir()
  }
  assert 4e6 < sum(sizes.values()) < 12e6
  for name in NAMES:
    train, validation = sizes[f"{name}.train.jsonl.gz"], sizes[f"{name}.val.jsonl.gz"]
    assert 0.03 < validation / (train + validation) < 0.13, name


def test_nothing_is_in_both_splits(corpus):
  for name in NAMES:
    train = records(corpus / f"{name}.train.jsonl.gz")
    validation = records(corpus / f"{name}.val.jsonl.gz")
    for field in ("id", "text"):
      values = [record[field] for record in train + validation]
      assert len({*values}) == len(values)
    paragraphs = [
      {" ".join(p.split()) for record in split for p in record["text"].split("\n\n")}
      for split in (train, validation)
    ]
    assert max(map(len, paragraphs[0] & paragraphs[1]), default=0) < 80


def test_domains_differ(corpus):
  """Bytes of one domain are predicted best by the byte pairs of that domain."""
  pairs = {}
  for name in NAMES:
    data = "".join(r["text"] for r in records(corpus / f"{name}.train.jsonl.gz")).encode()
    pairs[name] = Counter(itertools.pairwise(data)), Counter(data)

  def loss(text, name):
    pair, single = pairs[name]
    nats = [
      -math.log((pair[a, b] + 0.1) / (single[a] + 25.6)) for a, b in itertools.pairwise(text)
    ]
    return sum(nats) / len(nats)

  for name in NAMES:
    held_out = records(corpus / f"{name}.val.jsonl.gz")
    text = "".join(record["text"] for record in held_out).encode()[:100_000]
    losses = {other: loss(text, other) for other in NAMES}
    assert min(losses, key=losses.get) == name, losses


def test_code_has_no_docstrings_or_comments(corpus):
  checked = 0
  for record in records(corpus / "python.val.jsonl.gz"):
    module = ast.parse(record["text"])
    assert ast.get_docstring(module) is None
    lines = iter(record["text"].splitlines(keepends=True))
    kinds = {token.type for token in tokenize.generate_tokens(lambda lines=lines: next(lines))}
    assert tokenize.COMMENT not in kinds
    checked += 1
  assert checked > 5


def test_is_deterministic(tmp_path, few_modules):
  write_corpus(tmp_path / "one")
  write_corpus(tmp_path / "deep" / "two")
  assert files_in(tmp_path / "one") == files_in(tmp_path / "deep" / "two")
  assert sorted(os.listdir(tmp_path)) == ["deep", "one"]


def test_installation_is_named_by_python_and_the_distributions(monkeypatch):
  def named(*pairs, python="3.11.4"):
    found = []
    for name, version in pairs:
      message = email.message.Message()
      message["Name"], message["Version"] = name, version
      found.append(types.SimpleNamespace(metadata=message))
    monkeypatch.setattr(quickstart.metadata, "distributions", lambda: found)
    monkeypatch.setattr(quickstart.platform, "python_version", lambda: python)
    return quickstart.installation()

  name = named(("numpy", "2.0"), ("jax", "0.10"))
  assert re.fullmatch("[0-9a-f]{16}", name)
  # The order of discovery, the spelling of a name and jdc itself do not count.
  assert named(("jax", "0.10"), ("NumPy", "2.0")) == name
  assert named(("numpy", "2.0"), ("jax", "0.10"), ("jdc", "0.1")) == name
  others = [
    named(("numpy", "2.1"), ("jax", "0.10")),
    named(("numpy", "0.10"), ("jax", "2.0")),
    named(("numpy", "2.0")),
    named(("numpy", "2.0"), ("jax", "0.10"), ("flax", "0.10")),
    named(("numpy", "2.0"), ("jax", "0.10"), python="3.12.1"),
    named(),
  ]
  assert len({name, *others}) == 7


def test_installation_is_stable():
  command = "from jdc.data import quickstart; print(quickstart.installation())"
  paths = [path for path in sys.path if path]
  environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(paths)}
  other = subprocess.run(
    [sys.executable, "-c", command],
    env=environment,
    check=True,
    capture_output=True,
    text=True,
  )
  assert quickstart.installation() == quickstart.installation() == other.stdout.strip()


def test_is_written_once(corpus, monkeypatch):
  before = files_in(corpus)
  monkeypatch.setattr(quickstart, "_read_domains", None)
  write_corpus(corpus)
  assert files_in(corpus) == before


def test_interrupted_call_leaves_nothing(tmp_path, few_modules, monkeypatch):
  def dies(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(quickstart, "_held_out", dies)
  with pytest.raises(KeyboardInterrupt):
    write_corpus(tmp_path / "corpus")
  assert not os.listdir(tmp_path)


def test_refuses_a_folder_of_other_files(tmp_path):
  (tmp_path / "thesis.tex").touch()
  with pytest.raises(ValueError, match="holds other files"):
    write_corpus(tmp_path)


def test_says_which_domains_are_empty(tmp_path, few_modules, monkeypatch):
  monkeypatch.setattr(quickstart, "_distributions", dict)
  monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
  with pytest.raises(ValueError) as error:
    write_corpus(tmp_path / "corpus")
  problems = str(error.value).splitlines()
  assert [problem.split("'")[1] for problem in problems] == ["licences", "readmes", "reference"]
  assert "has 0 texts for it, at least 2 are needed" in problems[1]
  assert not os.listdir(tmp_path)
