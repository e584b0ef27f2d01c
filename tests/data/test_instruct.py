"""Tests of preparing instruction data: the split, long and bad records, the cache."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jdc.data import instruct
from jdc.data.chat import from_tokenizer
from jdc.data.conversations import Message
from jdc.data.instruct import fit, prepare
from jdc.data.pack import Domain
from jdc.data.sources import DomainFiles
from jdc.data.tokenize import byte_tokenizer

ROOT = Path(__file__).parents[2]
POOL = Path(os.environ.get("JDC_TEST_DATA", ROOT / "../shared/data")) / "instruct/pool.jsonl.gz"
CHAT = from_tokenizer(byte_tokenizer())
FRAME = len("User:\n\n\nAssistant:\n") + 2  # and BOS, EOS


def write(path, records):
  path.write_text("".join(json.dumps(record) + "\n" for record in records))
  return path


def record(question, answer="yes", **more):
  return {"instruction": question, "output": answer, **more}


def texts(table):
  tokens, _ = table.read(range(len(table)))
  return [CHAT.decode(ids) for ids in tokens]


def answers(table):
  return [
    CHAT.decode(ids[counts]) for ids, counts in zip(*table.read(range(len(table))), strict=True)
  ]


@pytest.fixture
def files(tmp_path):
  records = [record(f"question {i % 45}", f"answer {i % 45}") for i in range(50)]
  return records, {"a": DomainFiles((write(tmp_path / "a.jsonl", records),))}


def test_records_are_examples(tmp_path, files):
  records, domains = files
  domain = prepare(domains, CHAT, 64, 0.0, tmp_path / "cache")["a"]
  assert isinstance(domain, Domain)
  assert domain.validation is None
  assert answers(domain.train) == [r["output"] for r in records]
  assert domain.train.num_target_bytes == sum(len(r["output"]) for r in records)
  assert domain.train.num_targets.tolist() == [len(r["output"]) + 1 for r in records]
  assert domain.train.lengths.tolist() == [
    len(r["instruction"] + r["output"]) + FRAME for r in records
  ]
  assert domain.train.vocab_size == 258
  assert domain.train.where(3).endswith("a.jsonl:4")
  assert (domain.train.num_truncated_tokens, domain.num_bad_records) == (0, 0)


def test_holds_out_conversations_by_content(tmp_path, files):
  records, domains = files
  domain = prepare(domains, CHAT, 64, 0.2, tmp_path / "cache")["a"]
  train, held_out = texts(domain.train), texts(domain.validation)
  assert len(train) + len(held_out) == 50
  assert not {*train} & {*held_out}
  assert len({*held_out}) == 9  # a fifth of 45
  again = {"a": DomainFiles((write(tmp_path / "b.jsonl", records[::-1]),))}
  for seed, same in ((0, True), (1, False)):
    other = prepare(again, CHAT, 64, 0.2, tmp_path / "cache", seed=seed)["a"]
    assert ({*texts(other.validation)} == {*held_out}) is same


def test_validation_files(tmp_path, files):
  _, domains = files
  own = write(tmp_path / "val.jsonl", [record("held", "out")])
  domains = {"a": domains["a"]._replace(validation=(own,))}
  domain = prepare(domains, CHAT, 64, 0.2, tmp_path / "cache")["a"]
  assert (len(domain.train), answers(domain.validation)) == (50, ["out"])


def test_too_long_is_an_error_that_counts(tmp_path):
  domains = {
    name: DomainFiles((write(tmp_path / f"{name}.jsonl", [record("q" * n) for n in sizes]),))
    for name, sizes in (("a", (1, 80, 90, 70)), ("b", (1, 2)), ("c", (99,)))
  }
  with pytest.raises(ValueError, match="have more than 65 tokens") as error:
    prepare(domains, CHAT, 64, 0.0, tmp_path / "cache")
  longest = 90 + 3 + FRAME
  first, second = str(error.value).splitlines()
  assert "domain 'a': 3 of 4 records" in first
  assert f"the longest {longest} ({tmp_path}/a.jsonl:3)" in first
  assert f"sequence_length of at least {longest - 1}" in first
  assert "domain 'c': 1 of 1 records" in second
  table = prepare({"a": domains["a"]}, CHAT, longest - 1, 0.0, tmp_path / "cache")[
    "a"
  ].train  # just long enough
  assert table.lengths.max() == longest


def test_truncation_cuts_the_end_of_the_response(tmp_path, caplog):
  long = [record("q", "abc"), record("q", "x" * 30), record("q" * 10, "y" * 40)]
  domains = {"a": DomainFiles((write(tmp_path / "a.jsonl", long),))}
  for _ in range(2):  # built, then from the cache
    caplog.clear()
    with caplog.at_level(logging.INFO, "jdc"):
      table = prepare(domains, CHAT, 39, 0.0, tmp_path / "c", on_long="truncate")["a"].train
    total = sum(len(r["instruction"] + r["output"]) + FRAME for r in long)
    cut = [max(0, len(r["instruction"] + r["output"]) + FRAME - 40) for r in long]
    assert table.num_truncated_tokens == sum(cut)
    assert table.num_truncated_records == 2
    (line,) = [entry.getMessage() for entry in caplog.records]
    assert f"on_long=truncate cut {sum(cut)} of {total} tokens" in line
    assert "from 2 of 3 records" in line
  assert table.lengths.tolist() == [len("qabc") + FRAME, 40, 40]
  # The end of the turn is cut first: the model does not learn to stop there.
  kept = [len(r["output"]) + 1 - lost for r, lost in zip(long, cut, strict=True)]
  assert table.num_targets.tolist() == kept
  assert answers(table) == [r["output"][:n] for r, n in zip(long, kept, strict=True)]
  assert table.num_bytes.tolist() == [3, *kept[1:]]


def test_a_prompt_that_fills_the_row_leaves_no_response(tmp_path):
  records = [record("q" * 60), record("q")]
  domains = {"a": DomainFiles((write(tmp_path / "a.jsonl", records),))}
  bad = tmp_path / "bad.jsonl"
  with pytest.raises(
    ValueError, match=r"a.jsonl:1: of 84 tokens, the first 40 hold no response"
  ):
    prepare(domains, CHAT, 39, 0.0, tmp_path / "c", on_long="truncate")
  domain = prepare(
    domains, CHAT, 39, 0.0, tmp_path / "c", on_long="truncate", on_bad_record="quarantine",
    quarantine=bad,
  )["a"]  # fmt: skip
  assert (len(domain.train), domain.num_bad_records) == (1, 1)
  assert domain.train.num_truncated_tokens == 0
  assert json.loads(json.loads(bad.read_text())["raw"]) == records[0]


def talk(*texts, system=""):
  messages = [Message(("user", "assistant")[k % 2], text) for k, text in enumerate(texts)]
  return [Message("system", system), *messages] if system else messages


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_dropping_turns(system):
  whole = talk("a", "b" * 9, "c", "d", "e", "f", system=system)
  sizes = [
    len(CHAT.encode([*whole[: bool(system)], *whole[start + bool(system) :]]).ids)
    for start in (0, 2, 4)
  ]
  for max_tokens, left in ((sizes[0], 6), (sizes[0] - 1, 4), (sizes[1], 4), (sizes[2], 2)):
    example, lost = fit(whole, CHAT, max_tokens, "drop_turns")
    kept = [*whole[: bool(system)], *whole[-left:]]
    np.testing.assert_array_equal(example.ids, CHAT.encode(kept).ids)
    assert lost == sizes[0] - len(example.ids)
  with pytest.raises(ValueError, match=f"response alone are {sizes[2]} tokens"):
    fit(whole, CHAT, sizes[2] - 1, "drop_turns")


def test_dropped_turns_are_reported(tmp_path, caplog):
  records = [record("c", "d", history=[["a" * 10, "b" * 10]]), record("e", "f")]
  domains = {"a": DomainFiles((write(tmp_path / "a.jsonl", records),))}
  with caplog.at_level(logging.INFO, "jdc"):
    table = prepare(domains, CHAT, 30, 0.0, tmp_path / "c", on_long="drop_turns")["a"].train
  assert answers(table) == ["d", "f"]
  lost = len("\n\nUser:\n" + "a" * 10 + "\n\nAssistant:\n" + "b" * 10) + 1
  assert (table.num_truncated_tokens, table.num_truncated_records) == (lost, 1)
  assert f"on_long=drop_turns cut {lost} of" in caplog.text


def test_quarantine_totals(tmp_path, caplog):
  lines = [
    json.dumps(record("q")),
    "no",
    json.dumps(record("q" * 80)),
    json.dumps({"instruction": "q"}),
    json.dumps(record("r")),
    json.dumps({"messages": [{"role": "user", "content": "a"}]}),
  ]
  domains = {}
  for name in ("a", "b"):
    (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    domains[name] = DomainFiles((tmp_path / f"{name}.jsonl",))
  bad, options = (
    tmp_path / "bad.jsonl",
    {"on_bad_record": "quarantine", "on_long": "quarantine"},
  )
  for _ in range(2):
    prepared = prepare(domains, CHAT, 64, 0.5, tmp_path / "c", quarantine=bad, **options)
    found = [json.loads(line) for line in bad.read_text().splitlines()]
    assert [entry["where"] for entry in found] == [
      f"{tmp_path}/{name}.jsonl:{line}" for name in "ab" for line in (2, 3, 4, 6)
    ]
    assert found[1]["error"] == f"{80 + 3 + FRAME} tokens, more than 65"
    assert [domain.num_bad_records for domain in prepared.values()] == [4, 4]
    assert len(prepared["a"].train) + len(prepared["a"].validation) + 4 == len(lines)
    assert "domain b: 4 records set aside" in caplog.text
    bad.unlink()
    caplog.clear()


def test_long_records_aside_while_bad_ones_stop(tmp_path):
  bad, path = tmp_path / "bad.jsonl", tmp_path / "a.jsonl"
  domains = {"a": DomainFiles((write(path, [record("q"), record("q" * 80)]),))}
  prepared = prepare(
    domains, CHAT, 64, 0.0, tmp_path / "c", on_long="quarantine", quarantine=bad
  )
  assert prepared["a"].num_bad_records == len(bad.read_text().splitlines()) == 1
  write(path, [record("q"), record("q" * 80), record("")])
  with pytest.raises(ValueError, match=r"a.jsonl:3: .*is empty"):
    prepare(domains, CHAT, 64, 0.0, tmp_path / "c", on_long="quarantine", quarantine=bad)


def test_what_the_chat_cannot_write_is_a_bad_record(tmp_path, files):
  _, domains = files

  def encode(messages):
    if messages[0].content == "question 7":
      raise ValueError("message 1 spells the special token '<s>'")
    return CHAT.encode(messages)

  chat, bad = CHAT._replace(encode=encode), tmp_path / "bad.jsonl"
  with pytest.raises(ValueError, match=r"a.jsonl:8: message 1 spells.*on_bad_record"):
    prepare(domains, chat, 64, 0.0, tmp_path / "c")
  domain = prepare(
    domains, chat, 64, 0.0, tmp_path / "c", on_bad_record="quarantine", quarantine=bad
  )["a"]
  assert (len(domain.train), domain.num_bad_records) == (49, 1)


def test_cache_is_used_while_nothing_changes(tmp_path, files, monkeypatch):
  records, domains = files
  cache = tmp_path / "cache"

  def call(chat=CHAT, length=64, fraction=0.2, **options):
    return prepare(domains, chat, length, fraction, cache, **options)["a"]

  first = call()
  monkeypatch.setattr(instruct, "read_conversations", None)  # a second read would fail
  assert call().train.fingerprint == first.train.fingerprint
  monkeypatch.undo()
  changes = [
    lambda: call(chat=from_tokenizer(byte_tokenizer(), turns="last")),
    lambda: call(length=65),
    lambda: call(fraction=0.1),
    lambda: call(seed=3),
    lambda: call(format="alpaca"),
    lambda: call(on_long="truncate"),
    lambda: call(on_bad_record="quarantine", quarantine=tmp_path / "bad.jsonl"),
    lambda: (write(tmp_path / "a.jsonl", records[:-1]), call()),
  ]
  for number, change in enumerate(changes, start=2):
    change()
    assert len(os.listdir(cache)) == number


def test_interrupted_build_is_never_used(tmp_path, files):
  records, domains = files
  cache = tmp_path / "cache"

  def dies(messages):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    prepare(domains, CHAT._replace(encode=dies), 64, 0.2, cache)
  assert not os.listdir(cache)
  program = """
import os, sys
from jdc.data.chat import from_tokenizer
from jdc.data.instruct import prepare
from jdc.data.sources import DomainFiles
from jdc.data.tokenize import byte_tokenizer
chat = from_tokenizer(byte_tokenizer())
left = iter(range(20))
def encode(messages):
  if next(left, None) is None:
    os.kill(os.getpid(), 9)
  return chat.encode(messages)
domains = {"a": DomainFiles((sys.argv[1],))}
prepare(domains, chat._replace(encode=encode), 64, 0.2, sys.argv[2])
"""
  ran = subprocess.run(
    [sys.executable, "-c", program, tmp_path / "a.jsonl", cache],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
  )
  assert ran.returncode == -9
  assert [name.startswith(".building-a-") for name in os.listdir(cache)] == [True]
  domain = prepare(domains, CHAT, 64, 0.2, cache)["a"]
  assert len(domain.train) + len(domain.validation) == len(records)


def test_wrong_options_come_together(tmp_path):
  with pytest.raises(ValueError, match="sequence_length") as error:
    prepare(
      {"a/b": DomainFiles(())},
      CHAT,
      0,
      1.0,
      tmp_path,
      format="x",
      on_bad_record="y",
      on_long="z",
    )
  for part in ("'a/b'", "validation_fraction", "got 'x'", "got 'y'", "got 'z'"):
    assert part in str(error.value)
  with pytest.raises(ValueError, match="on_long='quarantine' needs a quarantine file"):
    prepare({"a": DomainFiles(())}, CHAT, 4, 0.1, tmp_path, on_long="quarantine")


def test_no_good_records(tmp_path):
  (tmp_path / "a.jsonl").write_text("no\n")
  domains = {"a": DomainFiles((tmp_path / "a.jsonl",))}
  with pytest.raises(ValueError, match=r"'a': train: no records \(1 bad records\)"):
    prepare(
      domains, CHAT, 4, 0.0, tmp_path / "c", on_bad_record="quarantine",
      quarantine=tmp_path / "bad.jsonl",
    )  # fmt: skip


@pytest.mark.skipif(not POOL.is_file(), reason=f"no sample data at {POOL}; set JDC_TEST_DATA")
def test_prepares_the_sample_pool(tmp_path):
  domains, bad = {"pool": DomainFiles((POOL,))}, tmp_path / "bad.jsonl"
  options = {"on_bad_record": "quarantine", "quarantine": bad}
  domain = prepare(domains, CHAT, 1024, 0.05, tmp_path, on_long="truncate", **options)["pool"]
  num_good = len(domain.train) + len(domain.validation)
  assert num_good + domain.num_bad_records == 7449
  assert domain.num_bad_records == len(bad.read_text().splitlines())
  assert all("hold no response" in line for line in bad.read_text().splitlines())
  assert domain.train.num_truncated_records > 1000
  assert domain.train.lengths.max() == 1025
