"""Tests of output formats, instruction data, samples and the other operators, end to end."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import tokenizers
import zstandard

from jdc.prep import (
  InputSpec,
  OutputSpec,
  PlanSpec,
  check,
  manifest,
  report,
  runner,
  sampling,
  step,
)
from jdc.prep.links import text as text_link


@pytest.fixture
def raw(tmp_path):
  (tmp_path / "raw").mkdir()
  for name in ("code", "web"):
    lines = [
      json.dumps(
        {"id": i, "big": 2**70, "text": f"{name} number {i} grows figs " * (1 + i % 3)}
      )
      for i in range(40)
    ]
    (tmp_path / "raw" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
  return tmp_path


def run(root, *steps, output=None, **spec):
  given = {"paths": {"web": ("raw/web.jsonl",), "code": ("raw/code.jsonl",)}, **spec}
  plan = PlanSpec(input=InputSpec(**given), step=steps, output=OutputSpec(**(output or {})))
  return runner.run(plan, root / "out", root=root, report=False)


def records(path):
  data = zstandard.ZstdDecompressor().stream_reader(path.read_bytes()).read()
  return [json.loads(line) for line in data.splitlines()]


def test_json_lines_have_the_fields_of_the_record(raw):
  made = run(raw, output={"format": "jsonl"})
  found = [r for file in made["output"] for r in records(raw / "out" / file["path"])]
  assert len(found) == 80
  lines = (raw / "raw" / "web.jsonl").read_bytes()
  for record in found:
    place = record.pop("jdc")
    if place["source"] == "raw/web.jsonl":
      assert json.loads(lines[place["offset"] :].partition(b"\n")[0]) == record


@pytest.mark.parametrize("messages", ["three of them", None, [], ["one"], [{"n": 1}], 7])
def test_a_field_that_is_only_called_messages_costs_no_text(tmp_path, messages):
  row = {"messages": messages, "text": "the text that training reads"}
  (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
  made = run(tmp_path, paths=("rows.jsonl",), output={"format": "jsonl"})
  (found,) = records(tmp_path / "out" / made["output"][0]["path"])
  assert {name: found[name] for name in row} == row


def test_a_text_beside_messages_is_written(tmp_path):
  turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
  rows = [
    {"messages": turns, "text": "a text of its own"},
    {"messages": turns, "text": "2+2?\n\n4"},
  ]
  (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
  made = run(tmp_path, paths=("rows.jsonl",), output={"format": "jsonl"})
  found = records(tmp_path / "out" / made["output"][0]["path"])
  assert [record.get("text") for record in found] == ["a text of its own", None]


def test_fields_whose_names_are_taken_stay_beside_the_place(tmp_path):
  row = {
    "text": "a heading",
    "body": "what training reads",
    "jdc": {"doc_id": "of a run before"},
  }
  (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
  made = run(tmp_path, paths=("rows.jsonl",), text_column="body", output={"format": "jsonl"})
  (found,) = records(tmp_path / "out" / made["output"][0]["path"])
  assert found["text"] == row["body"]
  assert found["jdc"]["fields"] == {"text": row["text"], "jdc": row["jdc"]}


def test_array_records_are_read_for_training(raw):
  from jdc.data.sources import read_documents

  made = run(raw, output={"format": "arrayrecord"})
  paths = [raw / "out" / file["path"] for file in made["output"]]
  texts = sorted(document.text for document in read_documents(paths))
  assert texts[0].startswith("code number 0")
  assert len(texts) == 80


def test_parquet_is_a_folder_of_domains(raw):
  from jdc.data.sources import find_domains, read_documents

  run(raw)
  domains = find_domains(raw / "out" / "data")
  assert sorted(domains) == ["code", "web"]
  assert len(list(read_documents(domains["web"].train))) == 40


def test_token_shards_open_for_training_and_are_made_once(raw):
  from jdc.data import token_manifest

  output = {"format": "tokens", "tokens": {"tokenizer": "bytes", "seq_len": 64}}
  made = run(raw, output=output)
  held = token_manifest.read(raw / "out" / "data")
  assert sorted(held.domains) == ["code", "web"]
  documents = sum(
    f.num_documents for s in held.domains.values() for fs in s.values() for f in fs
  )
  assert documents == made["accounts"]["kept"] == 80
  before = {p: p.stat().st_mtime_ns for p in (raw / "out" / "data").rglob("*.array_record")}
  again = run(raw, output=output)
  assert again["output_hash"] == made["output_hash"]
  assert before == {
    p: p.stat().st_mtime_ns for p in (raw / "out" / "data").rglob("*.array_record")
  }


def test_documents_without_tokens_are_dropped_with_a_reason(raw):
  with open(raw / "raw" / "web.jsonl", "a") as file:
    file.write('{"text": ""}\n{"text": "!?!"}\n{"text": "web"}\n')
  bare_tokenizer(raw / "bare.json")
  output = {"format": "tokens", "tokens": {"tokenizer": "bare.json", "eos": False}}
  made = run(raw, output=output)
  accounts = made["accounts"]
  assert accounts["dropped"] == {"no_tokens": 2}
  assert accounts["read"] == accounts["kept"] + 2 == 83
  assert sum(file["rows"] for file in made["output"]) == 81
  dropped = [row for p in made["dropped"] for row in pq.read_table(raw / "out" / p).to_pylist()]
  data = (raw / "raw" / "web.jsonl").read_bytes()
  lines = [data[row["offset"] :].partition(b"\n")[0] for row in dropped]
  assert lines == [b'{"text": ""}', b'{"text": "!?!"}']
  assert run(raw, output=output) == made
  assert runner.run(
    PlanSpec.from_dict(made["plan"]), raw / "out", root=raw, report=False, keep_dropped=True
  )["output_hash"] == made["output_hash"]  # fmt: skip
  (raw / "raw" / "web.jsonl").write_text('{"text": ""}\n')
  with pytest.raises(ValueError, match=r"nothing is left to make token shards of:\n1 records"):
    run(raw, output=output, paths=("raw/web.jsonl",))


@pytest.mark.parametrize(
  ("output", "expected"),
  [
    ({"format": "tokens"}, "tokenizer must be given"),
    (
      {"format": "tokens", "tokens": {"tokenizer": "bytes", "seqlen": 3}},
      "did you mean 'seq_len'",
    ),
    ({"format": "tokens", "tokens": {"tokenizer": "no.json"}}, "no such tokenizer"),
    (
      {"format": "tokens", "tokens": {"tokenizer": "bytes", "seq_len": 0}},
      "seq_len must be in",
    ),
    ({"tokens": {"tokenizer": "bytes"}}, "only for format='tokens'"),
    ({"format": "tokens", "tokens": {"tokenizer": 5}}, "tokenizer must be a string, got 5"),
    (
      {"format": "tokens", "tokens": {"tokenizer": "bytes", "seq_len": 16.5}},
      "seq_len must be an integer, got 16.5",
    ),
    (
      {"format": "tokens", "tokens": {"tokenizer": "bytes", "seed": True, "eos": "no"}},
      "eos must be true or false, got 'no'\n.*seed must be an integer, got True",
    ),
    (
      {"format": "tokens", "tokens": {"tokenizer": "bytes", "validation_fraction": "0.1"}},
      "validation_fraction must be a number, got '0.1'",
    ),
  ],
)
def test_wrong_options_of_token_shards(raw, output, expected):
  with pytest.raises(ValueError, match=expected):
    run(raw, output=output)


def test_a_mixture_keeps_to_its_budget(raw):
  weights = {"web": 3.0, "code": 1.0}
  made = run(raw, step("sample", max_tokens=120, weights=weights, seed=3))
  words = dict.fromkeys(weights, 0)
  for file in made["output"]:
    for text in pq.read_table(raw / "out" / file["path"]).column("text").to_pylist():
      words[file["domain"]] += len(text.split())
  assert 75 <= words["web"] <= 90
  assert 15 <= words["code"] <= 30
  assert made["accounts"]["dropped"]["sample"] == 80 - made["accounts"]["kept"]


def test_a_budget_that_a_domain_cannot_fill_is_an_error(raw):
  with pytest.raises(ValueError, match="domain 'code' has"):
    run(raw, step("mix", max_tokens=10_000))


def rows_of(root, made):
  return [
    {**row, "domain": file["domain"]}
    for file in made["output"]
    for row in pq.read_table(root / "out" / file["path"]).to_pylist()
  ]


def test_a_domain_may_be_repeated_and_copies_trace_back(raw):
  before = {row["doc_id"]: row for row in rows_of(raw, run(raw))}
  words = dict.fromkeys(("web", "code"), 0)
  for row in before.values():
    words[row["domain"]] += len(row["text"].split())
  shares = {"web": 2.5, "code": 0.5}
  budget = sum(int(words[name] * times) for name, times in shares.items())
  weights = {name: words[name] * times for name, times in shares.items()}
  mix = step("mix", max_tokens=budget, weights=weights, max_epochs=2.5, seed=3)
  made = run(raw, mix, step("strip_citations"), output={"shard_mb": 0.002})
  found = rows_of(raw, made)
  counts = dict.fromkeys(before, 0)
  places = {(row["source"], row["offset"]): row for row in before.values()}
  for row in found:
    origin = places[row["source"], row["offset"]]
    assert (row["text"], row["fields"]) == (origin["text"], origin["fields"])
    assert (row["doc_id"] == origin["doc_id"]) == (counts[origin["doc_id"]] == 0)
    counts[origin["doc_id"]] += 1
  assert len({row["doc_id"] for row in found}) == len(found)
  assert {counts[i] for i, row in before.items() if row["domain"] == "web"} == {2, 3}
  assert {counts[i] for i, row in before.items() if row["domain"] == "code"} == {0, 1}
  for name in words:
    taken = sum(len(row["text"].split()) for row in found if row["domain"] == name)
    assert 0 <= words[name] * shares[name] - taken <= 15  # the next document does not fit
  accounts = made["accounts"]
  assert accounts["dropped"] == {"sample": sum(c == 0 for c in counts.values())}
  assert accounts["made"] == sum(c - 1 for c in counts.values() if c)
  assert accounts["kept"] == len(found)


def bare_tokenizer(path):
  """A tokenizer.json that names no boundary token, and knows letters of two words only."""
  vocabulary = {char: i for i, char in enumerate("webcodnumri 0123456789gsf")}
  model = tokenizers.models.BPE(vocab=vocabulary, merges=[])
  made = tokenizers.Tokenizer(model)
  made.decoder = tokenizers.decoders.Fuse()
  made.save(str(path))


def test_budgets_are_counted_by_a_tokenizer_without_boundary_tokens(raw):
  bare_tokenizer(raw / "bare.json")
  made = run(raw, step("sample", max_tokens=300, unit="tokens", tokenizer="bare.json"))
  texts = [row["text"] for row in rows_of(raw, made)]
  known = set("webcodnumri 0123456789gsf")
  assert 200 < sum(char in known for text in texts for char in text) <= 300


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ({"max_epochs": 0.0}, "max_epochs"),
    ({"unit": "tokens"}, "tokenizer must be given for unit='tokens'"),
    ({"tokenizer": "bad.json"}, "and only then"),
    ({"unit": "tokens", "tokenizer": "bad.json"}, "bad.json: not a Hugging Face tokenizer"),
    ({"unit": "tokens", "tokenizer": "none.json"}, "none.json: no such file"),
  ],
)
def test_wrong_samples_are_refused_before_anything_runs(raw, given, expected):
  (raw / "bad.json").write_text("{}")
  with pytest.raises(ValueError, match=expected):
    run(raw, step("sample", max_tokens=3, **given))
  assert not (raw / "out").exists()


def test_files_of_steps_are_read_before_anything_runs(raw):
  (raw / "empty.txt").write_text("# nothing\n")
  (raw / "exam.jsonl").write_text('{"answer": "B"}\n')
  steps = (step("blocklist", path="empty.txt"), step("decontaminate", against=["exam.jsonl"]))
  with pytest.raises(ValueError) as raised:
    run(raw, *steps)
  lines = str(raised.value).splitlines()
  assert any("step 1 (blocklist)" in line and "no entries" in line for line in lines)
  assert any("step 2 (decontaminate)" in line and "exam.jsonl" in line for line in lines)
  assert not (raw / "out").exists()


def test_instruction_data_becomes_messages(tmp_path):
  rows = [
    {"instruction": "Add", "input": "1 and 2", "output": "It is 3."},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
    {"instruction": "Say it", "output": "As an AI language model, I cannot help."},
    {"prompt": "Empty", "response": ""},
    {"title": "no format at all"},
  ]
  (tmp_path / "raw").mkdir()
  text = "\n".join(json.dumps(row) for row in rows)
  (tmp_path / "raw" / "web.jsonl").write_text(text)
  made = run(
    tmp_path,
    step("sft_normalize"),
    step("sft_filter"),
    output={"format": "jsonl"},
    paths=("raw/*.jsonl",),
    text_column="",
  )
  assert made["accounts"]["dropped"] == {
    "sft_filter.refusal": 1, "sft_filter.response_words": 1, "sft_normalize": 1,
  }  # fmt: skip
  found = [r for file in made["output"] for r in records(tmp_path / "out" / file["path"])]
  assert [[m["role"] for m in r["messages"]] for r in found] == [["user", "assistant"]] * 2
  assert found[0]["messages"][0]["content"] == "Add\n1 and 2"
  assert not any("text" in record for record in found)


def test_messages_are_masked_as_the_text_is(tmp_path):
  turns = [("user", "I am ann@example.org."), ("assistant", "Pay 4111 1111 1111 1111.")]
  row = {"messages": [{"role": r, "content": c} for r, c in turns]}
  (tmp_path / "chat.jsonl").write_text(json.dumps(row) + "\n")
  steps = step("sft_normalize"), step("mask_pii")
  output = {"format": "jsonl"}
  made = run(tmp_path, *steps, paths=("chat.jsonl",), text_column="", output=output)
  (found,) = records(tmp_path / "out" / made["output"][0]["path"])
  expected = ["I am <EMAIL>.", "Pay <CARD>."]
  assert [turn["content"] for turn in found["messages"]] == expected
  assert [turn["role"] for turn in found["messages"]] == [r for r, _ in turns]


@pytest.mark.parametrize(
  ("op", "given", "expected"),
  [
    ("strip_urls", {}, 1),
    ("chunk_text", {}, 1),
    ("mask_pii", {}, 0),
    ("rename", {"mapping": {"a": "b"}}, 0),
  ],
)
def test_steps_that_leave_messages_as_they_are_are_remarked_on(op, given, expected):
  for steps, count in (
    ((step("sft_normalize"), step(op, **given)), expected),
    ((step(op, **given), step("sft_normalize")), 0),
  ):
    plan = PlanSpec(input=InputSpec(paths=("a",), text_column=""), step=steps)
    found = [line for line in check.remarks(plan) if "messages of step 1" in line]
    assert len(found) == count
    assert all(f"step 2 ({op})" in line for line in found)


def test_an_order_that_costs_more_is_remarked_on():
  plan = PlanSpec(
    input=InputSpec(paths=("a",)), step=(step("exact_dedup"), step("fix_unicode"))
  )
  assert check.remarks(plan) == ["step 2 (fix_unicode) usually stands before exact_dedup"]
  again = (step("fix_unicode"), step("exact_dedup"), step("fix_unicode"))
  assert not check.remarks(PlanSpec(input=InputSpec(paths=("a",)), step=again))


def test_filters_of_instruction_data_need_messages(tmp_path):
  (tmp_path / "raw").mkdir()
  (tmp_path / "raw" / "web.jsonl").write_text('{"text": "a"}')
  with pytest.raises(ValueError, match=r"needs the column 'messages'.*sft_normalize does"):
    run(tmp_path, step("sft_filter"), paths=("raw/*.jsonl",))


def test_masks_cannot_precede_html(raw):
  with pytest.raises(ValueError, match=r"step 2 \(html_to_text\) cannot come after step 1"):
    run(raw, step("mask_pii"), step("html_to_text"))


def test_chunks_have_ids_of_their_own_and_are_counted(raw):
  made = run(raw, step("chunk_text", tokens=5, by="word"))
  rows = [
    row for f in made["output"] for row in pq.read_table(raw / "out" / f["path"]).to_pylist()
  ]
  assert made["accounts"]["made"] == len(rows) - 80 > 0
  assert len({row["doc_id"] for row in rows}) == len(rows)
  for row in rows:
    data = (raw / row["source"]).read_bytes()[row["offset"] :].partition(b"\n")[0]
    start = json.loads(row["fields"])["chunk"]
    assert json.loads(data)["text"].encode()[start:].decode().startswith(row["text"])


def test_fields_are_renamed_and_selected(raw):
  made = run(raw, step("rename", mapping={"id": "number"}), step("select", fields=["number"]))
  table = pq.read_table(raw / "out" / made["output"][0]["path"])
  assert [json.loads(v) for v in table.column("fields").to_pylist()] == [
    {"number": i} for i in range(40)
  ]
  assert np.all(np.diff(table.column("offset").to_numpy()) > 0)


def test_no_field_is_lost_by_a_new_name(tmp_path):
  rows = [{"id": 0, "key": "a"}, {"id": 1}, {"key": "b"}, {"other": 2}]
  lines = [json.dumps({**row, "text": f"figs {row}"}) for row in rows]
  (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
  made = run(tmp_path, step("rename", mapping={"id": "key"}), paths=("rows.jsonl",))
  assert made["accounts"]["dropped"] == {"rename": 1}
  table = pq.read_table(tmp_path / "out" / made["output"][0]["path"])
  found = [json.loads(value) for value in table.column("fields").to_pylist()]
  assert found == [{"key": 1}, {"key": "b"}, {"other": 2}]
  assert table.column("offset").to_pylist()[0] == len(lines[0]) + 1
  swapped = run(
    tmp_path, step("rename", mapping={"id": "key", "key": "id"}), paths=("rows.jsonl",)
  )
  assert swapped["accounts"]["kept"] == 4


def test_fields_that_no_record_has_are_told_by_what_reads_them(raw):
  (raw / "hosts.txt").write_text("bad.example\n")
  listed = step("url_blocklist", path="hosts.txt")
  with open(raw / "raw" / "web.jsonl", "a") as file:
    file.write(json.dumps({"text": "figs", "url": "http://bad.example", "id": 0}) + "\n")
  assert run(raw, listed)["accounts"]["dropped"] == {"url_blocklist": 1}
  for steps, told in (
    (
      [step("select", fields=("id", "idd"))],
      ["step 1 (select): no record has the field 'idd'"],
    ),
    ([step("select", fields=("id",)), listed], ["step 2", "the address in field 'url'"]),
    (
      [step("url_blocklist", path="hosts.txt", field="URL")],
      ["step 1", "the address in field 'URL'"],
    ),
  ):
    with pytest.raises(ValueError, match="no record has") as error:
      run(raw, *steps)
    assert all(part in str(error.value) for part in told)
    assert "'id'" not in str(error.value)


def test_a_field_that_no_record_has_cannot_be_renamed(raw):
  steps = step("rename", mapping={"id": "number", "idd": "key", "bigg": "b"}), step("mask_pii")
  with pytest.raises(
    ValueError, match=r"step 1 \(rename\): no record has the field 'idd'"
  ) as e:
    run(raw, *steps)
  assert "'bigg'" in str(e.value)
  assert "'id'" not in str(e.value)
  some = {"url": "u"}  # one record in one of two domains has it
  with open(raw / "raw" / "web.jsonl", "a") as file:
    file.write(json.dumps({"text": "figs", "url": "x", "id": 0}) + "\n")
  assert run(raw, step("rename", mapping=some))["accounts"]["kept"] == 81


@pytest.mark.parametrize(
  ("mapping", "expected"),
  [
    ({"a": "c", "b": "c"}, "several fields get the name 'c'"),
    ({"title": "text"}, "no field gets the name 'text'"),
    ({}, "at least 1 item"),
  ],
)
def test_names_that_would_lose_a_field(raw, mapping, expected):
  with pytest.raises(ValueError, match=expected):
    run(raw, step("rename", mapping=mapping))


def test_the_reason_is_the_first_rule_of_the_catalogue_that_is_broken(raw):
  for rules in (["gopher_quality", "fineweb_lines"], ["fineweb_lines", "gopher_quality"]):
    given = step("filter", rules={name: {} for name in rules})
    # No document has 50 words, and none ends in punctuation.
    assert run(raw, given)["accounts"]["dropped"] == {"word_count": 80}


def test_fields_are_derived_from_templates(tmp_path):
  (tmp_path / "raw").mkdir()
  rows = [
    {"title": "Figs", "text": "They grow.", "meta": {"n": 2, "by": None}},
    {"title": "Plums", "text": "They, too.", "meta": {"n": 3.5, "by": "Ann {x}"}},
    {"text": "No title.", "meta": {"n": [1, "é"], "by": "Bob"}},
  ]
  (tmp_path / "raw" / "web.jsonl").write_text("\n".join(map(json.dumps, rows)))
  fields = {
    "text": "# {title}\n\n{text}",
    "label": "{meta.n}{{}} of {jdc.source}@{jdc.offset}",
    "kind": "constant",
    "title": "{title}!",
  }
  made = run(tmp_path, step("derive", fields=fields), paths=("raw/web.jsonl",))
  assert made["accounts"]["dropped"] == {"derive.missing.title": 1}
  found = rows_of(tmp_path, made)
  assert [row["text"] for row in found] == ["# Figs\n\nThey grow.", "# Plums\n\nThey, too."]
  assert [json.loads(row["fields"]) for row in found] == [
    {"title": f"{name}!", "meta": meta, "label": f"{meta['n']}{{}} of raw/web.jsonl@{offset}",
     "kind": "constant"}
    for name, meta, offset in zip(
      ("Figs", "Plums"), (rows[0]["meta"], rows[1]["meta"]),
      (row["offset"] for row in found), strict=True,
    )
  ]  # fmt: skip
  with open(tmp_path / "raw" / "web.jsonl", "a") as file:
    file.write('\n{"text": "Half a letter.", "title": "\\ud800", "meta": {"n": 1}}')
  made = run(tmp_path, step("derive", fields=fields), paths=("raw/web.jsonl",))
  assert made["accounts"]["dropped"] == {
    "derive.missing.title": 1, "derive.lone_surrogate": 1,
  }  # fmt: skip
  fields = {"text": "{title}|{meta.by}|{text}"}
  empty = step("derive", fields=fields, missing="empty")
  found = rows_of(tmp_path, run(tmp_path, empty, paths=("raw/web.jsonl",)))
  assert [row["text"] for row in found] == [
    "Figs||They grow.", "Plums|Ann {x}|They, too.", "|Bob|No title.",
  ]  # fmt: skip


@pytest.mark.parametrize("template", ["{", "{}", "{n:3}", "{n!r}", "a}"])
def test_templates_that_are_none(template):
  with pytest.raises(ValueError, match=r"step 1 \(derive\): fields=.*label"):
    PlanSpec.from_dict(
      {
        "jdc_pipeline": 1,
        "input": {"paths": ["a"]},
        "step": [{"op": "derive", "fields": {"label": template}}],
      }
    )


def test_every_predicate_stands_in_a_filter_as_by_itself(tmp_path):
  (tmp_path / "raw").mkdir()
  question = "How many red figs are there in the basket under the old tree?"
  texts = [
    "Quite short.",
    "The rotten figs lie under the old trees, and the wasps eat them all day long.",
    f"Quiz: {question} Twelve of them, says the book that we read.",
    "Les figues mûrissent lentement sous le vieil arbre du jardin de ma grand-mère.",
    "The figs ripen slowly under the old tree in the garden of my grandmother here.",
    "The plums ripen slowly under the old tree in the garden of my grandfather now.",
  ]
  hosts = ["bad.example" if i == 5 else "good.example" for i in range(6)]
  rows = [
    {"text": text, "url": f"https://{host}/"} for text, host in zip(texts, hosts, strict=True)
  ]
  (tmp_path / "raw" / "web.jsonl").write_text("\n".join(map(json.dumps, rows)))
  (tmp_path / "words.txt").write_text("rotten\n")
  (tmp_path / "hosts.txt").write_text("bad.example\n")
  (tmp_path / "exam.jsonl").write_text(json.dumps({"question": question}) + "\n")
  rules = {
    "decontaminate": {"against": ["exam.jsonl"]},
    "blocklist": {"path": "words.txt"},
    "url_blocklist": {"path": "hosts.txt"},
    "language": {"min_score": 0.1},
    "word_count": {"min": 5},
  }
  together = run(tmp_path, step("filter", rules=rules), paths=("raw/*.jsonl",))
  reasons = {
    "blocklist": 1, "decontaminate": 1, "language": 1, "url_blocklist": 1, "word_count": 1,
  }  # fmt: skip
  assert together["accounts"]["dropped"] == reasons
  dropped = (tmp_path / "out" / path for path in together["dropped"])
  columns = {name for path in dropped for name in pq.read_schema(path).names}
  assert {"lang", "n_words"} < columns
  assert any(name.startswith("blocklist_hits#") for name in columns)
  held = together["operators"]["1 filter"]["rules"]["language"]
  assert held == {"keep": ["en"], "max_bytes": 512, "min_score": 0.1}
  assert "\nlanguage:\n- " in (tmp_path / "out" / "README.md").read_text()
  steps = [step(name, **given) for name, given in reversed(rules.items())]
  apart = run(tmp_path, *steps, paths=("raw/*.jsonl",))
  assert apart["output_hash"] == together["output_hash"]
  (tmp_path / "words.txt").write_text("rotten\ngarden\n")  # what a list holds counts here, too
  again = run(tmp_path, step("filter", rules=rules), paths=("raw/*.jsonl",))
  assert again["accounts"]["dropped"]["blocklist"] == 2 + 1


@pytest.mark.parametrize(
  ("rules", "expected"),
  [
    ({"exact_dedup": {}}, "exact_dedup bounds no signal .*: make it a step of its own"),
    ({"mask_pii": {}}, "mask_pii bounds no signal .*: make it a step of its own"),
    ({"langauge": {}}, r"unknown rule 'langauge', did you mean 'language'\? known: [^:]*$"),
    (
      {"language": {"keep": ["en", "xx"]}},
      "keep: no language 'xx' is told apart.* known: .*de",
    ),
    ({"signals": {}}, "unknown rule 'signals'"),
    ({"language": {"keep": ["english"]}}, "language: keep.0='english'"),
    ({"blocklist": {}}, "blocklist: path must be given"),
    ({"word_count": {"min": -1}, "language": 3}, "language: accepted: a table"),
    ({"blocklist": {"path": "no.txt"}}, r"step 1 \(filter\): .*no.txt: no such file"),
    ({"sft_filter": {}}, r"step 1 \(sft_filter\) needs the column 'messages'"),
  ],
)
def test_what_cannot_stand_in_a_filter(raw, rules, expected):
  with pytest.raises(ValueError, match=expected):
    run(raw, step("filter", rules=rules))


def test_lists_of_words_and_of_hosts(tmp_path):
  (tmp_path / "raw").mkdir()
  rows = [
    {"text": "a fig tree", "url": "https://good.example/x"},
    {"text": "a rotten fig", "url": "https://good.example/y"},
    {"text": "another fig", "url": "https://www.bad.example/"},
  ]
  (tmp_path / "raw" / "web.jsonl").write_text("\n".join(map(json.dumps, rows)))
  (tmp_path / "words.txt").write_text("rotten\n")
  (tmp_path / "hosts.txt").write_text("bad.example\n")
  steps = (step("blocklist", path="words.txt"), step("url_blocklist", path="hosts.txt"))
  made = run(tmp_path, *steps, paths=("raw/*.jsonl",))
  assert made["accounts"]["dropped"] == {"blocklist": 1, "url_blocklist": 1}
  # A run is compared with plans by its manifest, wherever the files of the plan are.
  plan = manifest.plan_of(made)
  assert manifest.essence(made) == check.essence(plan, tmp_path)
  (tmp_path / "words.txt").write_text("rotten\ntree\n")  # what a list holds counts, too
  made = run(tmp_path, *steps, paths=("raw/*.jsonl",))
  assert made["accounts"]["dropped"] == {"blocklist": 2, "url_blocklist": 1}


def test_evaluation_sets_are_found(tmp_path):
  (tmp_path / "raw").mkdir()
  question = "How many red figs are there in the basket under the old tree?"
  rows = [{"text": f"Quiz: {question} Twelve."}, {"text": "There are figs in the basket."}]
  (tmp_path / "raw" / "web.jsonl").write_text("\n".join(map(json.dumps, rows)))
  exam = json.dumps({"id": "q1", "question": question})
  (tmp_path / "exam.jsonl").write_text(exam + "\n")
  made = run(tmp_path, step("decontaminate", against=["exam.jsonl"]), paths=("raw/*.jsonl",))
  assert made["accounts"]["dropped"] == {"decontaminate": 1}


def test_samples_of_shards_are_one_sample_of_all(raw, monkeypatch):
  monkeypatch.setattr(text_link, "SAMPLE", 7)
  (raw / "raw" / "few.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c"}\n')
  paths = tuple(f"raw/{name}.jsonl" for name in ("code", "few", "web"))
  plan = PlanSpec(input=InputSpec(paths=paths, task_mb=0.001), step=())
  job = runner.Run(plan, raw / "out", root=raw, report=False)
  made = job.execute()
  files = [pq.read_table(raw / "out" / file["path"]) for file in made["output"]]
  ids = np.concatenate([
    sampling.id_bytes(table.column("doc_id").combine_chunks()) for table in files
  ])  # fmt: skip
  taken = [sampling.id_bytes(b.column("doc_id")) for b in report._came(job) if b.num_rows]
  bound = sampling.numbers(np.concatenate(taken)).max()
  least = {bytes(one) for one in ids[sampling.numbers(ids) <= bound]}
  assert least == {bytes(one) for one in np.concatenate(taken)}
  assert len(job.shards) > 3
  assert 7 <= len(least) < len(ids)
