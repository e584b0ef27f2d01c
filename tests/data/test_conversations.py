"""Tests of instruction formats: what each becomes, every kind of bad record, every file."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from jdc.data.conversations import (
  Conversation,
  Message,
  check,
  check_prompt,
  messages_of,
  read_conversations,
)
from jdc.data.sources import ReadReport

TALK = (
  Message("system", "Be brief."),
  Message("user", "héllo"),
  Message("assistant", "三"),
  Message("user", "And?"),
  Message("assistant", "No."),
)
SHAREGPT = {
  "id": 7,
  "conversations": [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "héllo"},
    {"from": "gpt", "value": "三"},
    {"from": "user", "value": "And?"},
    {"from": "assistant", "value": "No."},
  ],
}
MESSAGES = {"messages": [{"role": m.role, "content": m.content} for m in TALK], "input": "x"}
ALPACA = {
  "instruction": "And?",
  "input": "",
  "output": "No.",
  "system": "Be brief.",
  "history": [["héllo", "三"]],
}


@pytest.mark.parametrize("record", [SHAREGPT, MESSAGES, ALPACA])
def test_formats_say_the_same(record):
  assert tuple(messages_of(record)) == TALK


def test_alpaca():
  record = {"instruction": "Add.", "input": "1 + 2", "output": "3", "history": None}
  question, answer = messages_of(record)
  assert (question.content, question.input, question.text) == ("Add.", "1 + 2", "Add.\n1 + 2")
  assert answer == Message("assistant", "3")
  assert messages_of({"instruction": "Add.", "output": "3", "system": ""})[0].role == "user"
  assert messages_of({"instruction": "", "input": "1 + 2", "output": "3"})[0].text == "\n1 + 2"


def test_sharegpt_with_the_system_message_beside_it():
  turns = SHAREGPT["conversations"][1:]
  assert tuple(messages_of({"system": "Be brief.", "conversations": turns})) == TALK
  assert tuple(messages_of({"system": None, "conversations": turns})) == TALK[1:]


def test_a_named_format_settles_what_is_ambiguous():
  both = {**SHAREGPT, "messages": [{"role": "user", "content": "a"}]}
  with pytest.raises(ValueError, match=r"may be any of sharegpt, messages.*accepted: alpaca"):
    messages_of(both)
  assert tuple(messages_of(both, "sharegpt")) == TALK
  assert tuple(messages_of({**SHAREGPT, "messages": None})) == TALK


def turns(*pairs):
  return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize(
  ("record", "wrong"),
  [
    ({"text": "a"}, r"of no known format; fields present: \['text'\]; accepted: alpaca"),
    ({"instruction": "a"}, "no response: field 'output' is absent"),
    ({"instruction": "a", "output": None}, "no response: field 'output' is absent"),
    ({"instruction": "a", "output": ""}, r"the response of message 2 .* is empty"),
    ({"instruction": "a", "output": " \n"}, r"the response of message 2 .* is empty"),
    ({"instruction": " ", "output": "b"}, r"the text of message 1 \(role 'user'\) is empty"),
    ({"instruction": 3, "output": "b"}, "'instruction' is of type int, not a string"),
    ({"instruction": "a", "input": ["b"], "output": "b"}, "'input' is of type list"),
    ({"instruction": "a", "output": "b", "history": "c"}, "'history' is of type str"),
    (
      {"instruction": "a", "output": "b", "history": [["c"]]},
      "entry 1 of 'history' is no pair",
    ),
    ({"instruction": "a", "output": "\ud800"}, "'output' is not valid Unicode"),
    ({"instruction": "a", "output": b"\xff"}, "'output' is not valid Unicode"),
    ({"messages": "a"}, "'messages' is of type str, not a list"),
    ({"messages": []}, "there is no response"),
    ({"messages": ["a"]}, "message 1 is of type str, not an object"),
    (
      {"messages": [{"role": "user"}]},
      r"message 1 has no 'content'; fields present: \['role'\]",
    ),
    ({"messages": [{"from": "human", "value": "a"}]}, "message 1 has no 'role'"),
    (turns(("user", "a")), "there is no response: the last message"),
    (turns(("user", "a"), ("assistant", "b"), ("user", "c")), "there is no response"),
    (turns(("system", "a")), "there is no response"),
    (turns(("assistant", "b")), "message 1 is of role 'assistant' where 'user' is due"),
    (turns(("user", "a"), ("user", "b")), "message 2 is of role 'user' where 'assistant'"),
    (
      turns(("user", "a"), ("assistant", "b"), ("system", "c"), ("assistant", "d")),
      "message 3 is of role 'system' where 'user' is due; accepted: a system message first",
    ),
    (turns(("user", "a"), ("tool", "b")), "message 2: role 'tool' is unknown; accepted"),
    (turns(("user", "a"), ("gpt", "b")), "role 'gpt' is unknown"),
    (turns(("user", "a"), ("assistant", None)), "'content' of message 2 is of type NoneType"),
    (turns(("user", [{"type": "text"}]), ("assistant", "b")), "message 1 is of type list"),
    (
      {
        "messages": [
          {"role": "user", "content": "a"},
          {"role": "assistant", "content": "b", "tool_calls": [{"name": "c"}]},
        ]
      },
      r"message 2: fields \['tool_calls'\] are not supported",
    ),
  ],
)
def test_bad_records(record, wrong):
  with pytest.raises(ValueError, match=wrong):
    messages_of(record)


def test_all_silent_turns_are_listed():
  with pytest.raises(ValueError, match=r"message 2 .*message 4 .*is empty"):
    messages_of(turns(("user", "a"), ("assistant", ""), ("user", "b"), ("assistant", "")))


def test_prompts():
  check_prompt(TALK[:2])
  check_prompt(TALK[:4])
  for wrong in ((), TALK[:1], TALK[:3]):
    with pytest.raises(ValueError, match="accepted: a system message first"):
      check_prompt(wrong)
  check(TALK)


def records(count):
  return [
    {"messages": [*turns(("user", f"q{i}"), ("assistant", f"三{i}"))["messages"]]}
    for i in range(count)
  ]


def expected(path, count, place):
  return [
    (
      (Message("user", f"q{i}"), Message("assistant", f"三{i}")),
      f"{path}:{i + 1}" if place == "line" else f"{path}[{i}]",
    )
    for i in range(count)
  ]


@pytest.mark.parametrize(
  "name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.json.zst", "array.json.gz"]
)
def test_reads_json(tmp_path, name):
  array = name.startswith("array")
  content = json.dumps(records(5)) if array else "\n".join(map(json.dumps, records(5)))
  data = content.encode()
  if name.endswith(".gz"):
    data = gzip.compress(data)
  elif name.endswith(".zst"):
    data = zstandard.ZstdCompressor().compress(data)
  (tmp_path / name).write_bytes(data)
  found = [conversation[:2] for conversation in read_conversations([tmp_path / name])]
  assert found == expected(tmp_path / name, 5, "index" if array else "line")


def test_reads_parquet(tmp_path):
  path = tmp_path / "a.parquet"
  rows = [{**record, "id": i} for i, record in enumerate(records(5))]
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
  assert [c[:2] for c in read_conversations([path])] == expected(path, 5, "index")
  alpaca = [{"instruction": "a", "input": None, "output": "b", "history": [["c", "d"]]}]
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(alpaca), path)
  (found,) = read_conversations([path], "alpaca")
  assert [message.text for message in found.messages] == ["c", "d", "a", "b"]


def test_invalid_unicode_in_a_column_of_structs(tmp_path):
  path, aside, report = tmp_path / "a.parquet", tmp_path / "bad.jsonl", ReadReport()
  turn = pyarrow.struct([("role", pyarrow.binary()), ("content", pyarrow.binary())])
  talks = [
    [{"role": b"user", "content": b"a"}, {"role": b"assistant", "content": answer}]
    for answer in (b"b", b"\xff", b"c")
  ]
  column = pyarrow.array(talks, pyarrow.list_(turn))
  as_text = pyarrow.list_(
    pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
  )
  buffers, pieces = column.buffers(), len(talks)
  text = pyarrow.Array.from_buffers(
    as_text, pieces, buffers[:2], children=[_as_strings(column.values, as_text.value_type)]
  )
  pyarrow.parquet.write_table(pyarrow.table({"messages": text}), path)
  found = list(
    read_conversations([path], on_bad_record="quarantine", quarantine=aside, report=report)
  )
  assert [c.messages[1].content for c in found] == ["b", "c"]
  assert "'content' of message 2 is not valid Unicode" in json.loads(aside.read_text())["error"]
  assert (report.num_documents, report.num_bad_records) == (2, 1)


def _as_strings(structs, kind):
  fields = [
    pyarrow.Array.from_buffers(pyarrow.string(), len(field), field.buffers())
    for field in (structs.field(0), structs.field(1))
  ]
  return pyarrow.StructArray.from_arrays(fields, fields=list(kind))


def test_bad_records_by_place_or_aside(tmp_path):
  path, aside, report = tmp_path / "a.jsonl", tmp_path / "bad.jsonl", ReadReport()
  lines = [json.dumps(ALPACA), "no", json.dumps({"messages": 1}), json.dumps(SHAREGPT)]
  path.write_text("\n".join(lines))
  with pytest.raises(ValueError, match=r"a.jsonl:2: invalid JSON.*on_bad_record='quarantine'"):
    list(read_conversations([path]))
  found = list(
    read_conversations([path], on_bad_record="quarantine", quarantine=aside, report=report)
  )
  assert [c.where for c in found] == [f"{path}:1", f"{path}:4"]
  assert all(isinstance(c, Conversation) and c.messages == TALK for c in found)
  bad = [json.loads(line) for line in aside.read_text().splitlines()]
  assert [(b["where"], b["raw"]) for b in bad] == [(f"{path}:2", "no"), (f"{path}:3", lines[2])]
  assert (report.num_documents, report.num_bad_records) == (2, 2)


def test_wrong_arguments(tmp_path):
  with pytest.raises(ValueError, match=r"format must be one of auto, alpaca.*got 'openai'"):
    read_conversations([tmp_path], "openai")
  (tmp_path / "a.txt").write_text("a")
  with pytest.raises(ValueError, match=r"a.txt: a text file holds no records with fields"):
    list(read_conversations([tmp_path / "a.txt"]))
  with pytest.raises(ValueError, match=r"gone.jsonl: no such file"):
    read_conversations([tmp_path / "gone.jsonl"])
